"""The steps split, predict and merge on a folder of a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.merge import step as merge
from components.predict import step as predict
from components.split import step as split
from tests.servers.servers import KEY, SECRET, free_port, s3_server
from tests.small_networks import tiny_config
from yolact.errors import EX_UNAVAILABLE, DataError, SettingsError
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION
from yolact_ops.batch_prediction.plan import Plan
from yolact_ops.transfer.download import DownloadError
from yolact_ops.transfer.storage import S3Address

CLASSES = ["cat", "dog"]
CATEGORY_IDS = [0, 7]
TURNED = 6
"""EXIF orientation: rotate by 90 degrees clockwise."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("s3")
    images = folder / "bucket/images"
    (images / "sub").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, name in enumerate(["a.jpg", "b.png", "sub/c.JPG", "d.jpeg", "e.jpg"]):
        pixels = random.integers(0, 256, (40, 60 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name)
    exif = Image.Exif()
    exif[0x0112] = TURNED
    Image.fromarray(random.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(images / "turned.jpg", exif=exif)
    (images / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (images / "readme.txt").write_text("no image")
    (folder / "bucket/neighbour.jpg").write_bytes(b"not below images/")
    (folder / "bucket/texts").mkdir()
    (folder / "bucket/texts/readme.txt").write_text("no image")
    with s3_server(folder) as address:
        yield folder / "bucket", address


@pytest.fixture(autouse=True)
def keys(bucket: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": bucket[1],
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that detects something in every image."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(Yolact(tiny_config(), len(CLASSES)), CLASSES, folder, CATEGORY_IDS)
    detection = DEFAULT_DETECTION.replace(score_threshold=0.01, max_detections=5)
    (folder / "detect.json").write_text(detection.model_dump_json())
    return folder


def predicted(model_dir: Path, plan: Path, shards: list[str]) -> list[Path]:
    results = [plan.with_name(f"result_{shard}.json") for shard in shards]
    for shard, path in zip(shards, results, strict=True):
        predict.run(model_dir=model_dir, plan_path=plan, shard=int(shard), result_path=path, device="cpu", batch_size=2)
    return results


def test_images_are_numbered_by_their_keys_and_dealt_out_evenly(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert split.run(images="s3://bucket/images/", shards=3, plan_path=path) == ["0", "1", "2"]
    plan = Plan.read(path)
    assert plan.address == S3Address("bucket", "images")
    listed = [(image.id, image.file.key) for shard in plan.shards for image in shard]
    names = ["a.jpg", "b.png", "broken.jpg", "d.jpeg", "e.jpg", "sub/c.JPG", "turned.jpg"]
    assert listed == [(number, f"images/{name}") for number, name in enumerate(names, 1)]
    assert [len(shard) for shard in plan.shards] == [2, 2, 3]


def test_there_are_no_empty_shards(tmp_path: Path) -> None:
    assert len(split.run(images="s3://bucket/images", shards=50, plan_path=tmp_path / "plan.json")) == 7
    assert all(Plan.read(tmp_path / "plan.json").shards)


@pytest.mark.parametrize(
    ("images", "shards", "error", "message"),
    [
        ("s3://bucket/images", 0, SettingsError, "shards: must be at least 1"),
        ("/data/images", 1, SettingsError, "images: must be s3://"),
        ("s3://bucket/texts", 1, DataError, "none ends in .jpg"),
        ("s3://bucket/nothing", 1, DataError, "no file of this name or below it"),
        ("s3://nobucket/x", 1, DataError, "nobucket"),
    ],
)
def test_invalid_input_of_split_is_named(
    tmp_path: Path, images: str, shards: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        split.run(images=images, shards=shards, plan_path=tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.usefixtures("one_thread")
def test_the_number_of_shards_changes_nothing(model_dir: Path, tmp_path: Path, bucket: tuple[Path, str]) -> None:
    written = {}
    for shards in (1, 7):
        folder = tmp_path / str(shards)
        folder.mkdir()
        plan = folder / "plan.json"
        results = predicted(model_dir, plan, split.run(images="s3://bucket/images", shards=shards, plan_path=plan))
        totals = merge.run(
            model_dir=model_dir,
            plan_path=plan,
            results=results[::-1],
            output_dir=folder / "out",
            destination="s3://bucket/found",
        )
        assert (totals.images, totals.problems) == (6, 1)
        assert totals.objects == sum(totals.per_class.values()) > 0
        written[shards] = {name: (folder / "out" / name).read_bytes() for name in merge.FILES}
        uploaded = {name: (bucket[0] / "found" / name).read_bytes() for name in merge.FILES}
        assert uploaded == written[shards]
    images, problems = (json.loads(written[1][name]) for name in ("images.json", "problems.json"))
    rows = {shards: json.loads(files["detections.json"]) for shards, files in written.items()}
    assert images["categories"] == [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert {row["category_id"] for row in rows[1]} <= set(CATEGORY_IDS)
    assert images == json.loads(written[7]["images.json"])
    assert problems == json.loads(written[7]["problems.json"])
    assert len(rows[1]) == len(rows[7])  # another batch may round scores differently
    for one, other in zip(rows[1], rows[7], strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.parametrize("away", [False, True])
def test_a_failed_upload_is_named(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool) -> None:
    plan = tmp_path / "plan.json"
    results = predicted(model_dir, plan, split.run(images="s3://bucket/images", shards=1, plan_path=plan))
    if away:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DownloadError, match="cannot be reached" if away else "does not accept the keys") as failed:
        merge.run(
            model_dir=model_dir,
            plan_path=plan,
            results=results,
            output_dir=tmp_path / "out",
            destination="s3://bucket/found",
        )
    assert failed.value.exit_code == (EX_UNAVAILABLE if away else 1)


def test_rotated_images_are_turned_upright_and_broken_ones_are_listed(model_dir: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    [path] = predicted(model_dir, plan, split.run(images="s3://bucket/images", shards=1, plan_path=plan))
    result = json.loads(path.read_text())
    sizes = {entry["file_name"]: (entry["width"], entry["height"]) for entry in result["images"]}
    assert sizes["turned.jpg"] == (30, 50)
    assert sizes["sub/c.JPG"] == (62, 40)
    [problem] = result["problems"]
    assert (problem["id"], problem["file_name"]) == (3, "broken.jpg")
    assert problem["reason"].startswith("broken.jpg: cannot be read as an image")


def test_an_image_that_changes_after_it_was_listed_is_an_error(
    model_dir: Path, tmp_path: Path, bucket: tuple[Path, str]
) -> None:
    plan = tmp_path / "plan.json"
    split.run(images="s3://bucket/images", shards=7, plan_path=plan)
    image = bucket[0] / "images/e.jpg"
    kept = image.read_bytes()
    image.write_bytes(kept[:-4] + b"more")
    try:
        with pytest.raises(DataError, match="the received file has the md5"):
            predict.run(model_dir=model_dir, plan_path=plan, shard=4, result_path=tmp_path / "r.json", device="cpu")
    finally:
        image.write_bytes(kept)
    assert not (tmp_path / "r.json").exists()


def test_a_missing_shard_is_named(model_dir: Path, tmp_path: Path) -> None:
    split.run(images="s3://bucket/images", shards=2, plan_path=tmp_path / "plan.json")
    with pytest.raises(DataError, match="has 2 shards, so no shard 2"):
        predict.run(model_dir=model_dir, plan_path=tmp_path / "plan.json", shard=2, result_path=tmp_path / "r.json")


def entry(number: int) -> dict[str, Any]:
    return {"id": number, "key": f"p/{number}.jpg", "path": f"{number}.jpg", "size": 1, "etag": '"x"'}


@given(
    ids=st.lists(st.integers(1, 5), min_size=0, max_size=7),
    shards=st.integers(1, 5),
)
def test_results_are_merged_only_if_every_image_occurs_once(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path, ids: list[int], shards: int
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    dealt = [[entry(number) for number in range(1, 6) if number % shards == shard] for shard in range(shards)]
    (folder / "plan.json").write_text(json.dumps({"images": "s3://b/p", "shards": dealt}))
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 2, "height": 2} for number in ids]
    (folder / "r.json").write_text(json.dumps({"images": images, "rows": [], "problems": []}))

    def run() -> merge.Totals:
        plan, results = folder / "plan.json", [folder / "r.json"]
        return merge.run(model_dir=model_dir, plan_path=plan, results=results, output_dir=folder / "out")

    if sorted(ids) == [1, 2, 3, 4, 5]:
        assert run().images == 5
    else:
        with pytest.raises(DataError, match="the results do not match"):
            run()
        assert not (folder / "out").exists()
