"""Feedback over HTTP: stored as a COCO data set, only if switched on, within limits, and deleted in time."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image, ImageEnhance
from pycocotools import mask as coco_mask

from components.ingest import step as ingest
from components.preprocess import step as preprocess
from serving.feedback import FeedbackStore
from serving.server import Server
from serving.settings import read_settings
from tests.interop.packages import needed
from tests.serving.conftest import CATEGORY_IDS, SIZE, encoded, error_of, picture, post, running
from tests.serving.test_bad_input import RawClient
from yolact.formats.registry import read_dataset
from yolact_ops.settings.params import DataParams, Params

MASK_SIDE = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "kept"


@pytest.fixture(scope="module")
def storing(model_dir: Path, folder: Path) -> Iterator[Server]:
    with running(model=str(model_dir), feedback=folder, feedback_days=7, mask_side=MASK_SIDE) as server:
        yield server


def report_of(address: str, image: bytes, wrong: list[int] | None = None) -> dict[str, Any]:
    answer = post(f"{address}/predict", image, params={"score_threshold": 0.001}).json()
    assert len(answer["images"][0]["detections"]) > 2
    return {
        "image": base64.b64encode(image).decode(),
        "model": answer["model"],
        "detections": answer["images"][0]["detections"],
        "wrong": wrong,
    }


def send(address: str, report: Any) -> requests.Response:
    return requests.post(f"{address}/feedback", json=report, timeout=30)


def stored(answer: requests.Response, folder: Path) -> tuple[dict[str, Any], Image.Image]:
    assert answer.status_code == 201, answer.text
    assert answer.json()["deleted_after_days"] == 7
    name = answer.json()["id"]
    tree = json.loads((folder / f"instances_{name}.json").read_text())
    return tree, Image.open(folder / "images" / f"{name}.png")


def test_openapis_example_is_stored(model_dir: Path, tmp_path: Path) -> None:
    with running(model=str(model_dir), feedback=tmp_path, feedback_days=7) as server:
        tree = requests.get(f"{server.address}/openapi.json", timeout=10).json()
        content = tree["paths"]["/feedback"]["post"]["requestBody"]["content"]["application/json"]
        [example] = content["examples"].values()
        kept, image = stored(send(server.address, example["value"]), tmp_path)
    assert (image.size, kept["annotations"]) == ((2, 2), [])
    [rejected] = kept["rejected"]
    np.testing.assert_array_equal(coco_mask.decode(rejected["segmentation"]), [[1, 1], [0, 0]])


def test_what_was_found_is_stored_in_the_pixels_of_the_stored_image(storing: Server, folder: Path) -> None:
    image = picture()
    report = report_of(storing.address, encoded(image), wrong=[1])
    tree, kept = stored(send(storing.address, report), folder)
    np.testing.assert_array_equal(kept, image)
    [row] = tree["images"]
    assert (row["width"], row["height"]) == SIZE
    found = report["detections"]
    assert [each["score"] for each in tree["rejected"]] == [found[1]["score"]]
    assert [each["score"] for each in tree["annotations"]] == [each["score"] for each in (found[0], *found[2:])]
    for each, seen in zip(tree["annotations"], (found[0], *found[2:]), strict=True):
        np.testing.assert_array_equal(coco_mask.decode(each["segmentation"]), coco_mask.decode(seen["mask"]))
        assert each["area"] == coco_mask.area(seen["mask"])
        left, top, right, bottom = seen["box"]
        assert each["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.011)
    names = {row["id"]: row["name"] for row in tree["categories"]}
    assert names == {CATEGORY_IDS[name]: name for name in names.values()}
    kept_classes = [names[each["category_id"]] for each in (*tree["rejected"], *tree["annotations"])]
    assert kept_classes == [seen["class"] for seen in (found[1], found[0], *found[2:])]


def test_large_images_are_stored_at_the_resolution_of_their_masks_upright_and_without_metadata(
    storing: Server, folder: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    exif[0x010F] = "a camera"
    data = encoded(picture((300, 200)), "JPEG", exif=exif)
    report = report_of(storing.address, data)
    tree, kept = stored(send(storing.address, report), folder)
    assert kept.size == (67, MASK_SIDE)  # of 200x300, upright
    assert not kept.getexif()
    assert tree["annotations"] == []
    assert len(tree["rejected"]) == len(report["detections"])
    for each, seen in zip(tree["rejected"], report["detections"], strict=True):
        assert each["segmentation"]["size"] == [MASK_SIDE, 67]
        assert each["bbox"][0] == pytest.approx(seen["box"][0] * 67 / 200, abs=0.011)


def test_the_largest_image_that_is_predicted_can_be_reported(model_dir: Path, tmp_path: Path) -> None:
    limits = {"max_body_mb": 1, "body_timeout": 5}
    with running(model=str(model_dir), feedback=tmp_path, feedback_days=7, **limits) as server:
        image = encoded(picture())
        image += bytes(1_000_000 - len(image))  # decoders stop at the image's end
        stored(send(server.address, report_of(server.address, image)), tmp_path)
        for length, status in ((9_333_337, 413), (9_333_336, 408)):  # base64 of a megabyte, and 8 MB; nothing is sent
            raw = RawClient(server.address)
            lines = ("POST /feedback HTTP/1.1", "Host: x", "Content-Type: application/json")
            raw.send("\r\n".join([*lines, f"Content-Length: {length}"]) + "\r\n\r\n")
            assert raw.status() == status
            raw.close()


def test_ingest_and_preprocess_read_the_folder_as_coco(
    storing: Server, folder: Path, tmp_path: Path, params: Params
) -> None:
    for shade in range(6):
        image = ImageEnhance.Brightness(picture()).enhance(1 - shade / 20)
        stored(send(storing.address, report_of(storing.address, encoded(image), [0])), folder)
    trees = [json.loads(path.read_text()) for path in folder.glob("instances_*.json")]
    expected = {row["file_name"]: len(tree["annotations"]) for tree in trees for row in tree["images"]}
    assert sum(expected.values()) > 10
    settings = DataParams(data=params.data.model_copy(update={"source": str(folder), "max_dropped": 1.0}))
    raw, processed = tmp_path / "raw", tmp_path / "processed"
    ingest.run(settings, raw_dir=raw, downloads_dir=tmp_path / "downloads")
    dataset = read_dataset(raw)
    assert dataset.classes == {CATEGORY_IDS[name]: name for name in dataset.classes.values()}
    assert len(dataset.classes) > 1
    assert len(dataset.splits["train"]) == len(expected)
    preprocess.run(settings, raw_dir=raw, processed_dir=processed, report_dir=tmp_path / "report", workers=1)
    written = [json.loads((processed / file).read_text()) for file in ("train/train.json", "eval/val.json")]
    assert sum(len(tree["images"]) for tree in written) > 0
    assert 0 < sum(len(tree["annotations"]) for tree in written) <= sum(expected.values())


@pytest.mark.interop
def test_datumaro_reads_a_report_as_cvat_does(storing: Server, folder: Path, tmp_path: Path) -> None:
    """CVAT uses a fork of it."""
    kinds = needed("datumaro.components.annotation").AnnotationType
    tree, image = stored(send(storing.address, report_of(storing.address, encoded(picture()), [0])), folder)
    [row] = tree["images"]
    for name in ("annotations", "images/images"):  # as in CVAT's archives; CVAT takes the file alone, too
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(tree))
    image.save(tmp_path / "images" / row["file_name"])

    dataset = needed("datumaro").Dataset.import_from(str(tmp_path), "coco_instances")
    labels = dataset.categories()[kinds.label]
    [item] = dataset
    found = {each.id: each for each in item.annotations if each.type == kinds.mask}
    names = {each["id"]: each["name"] for each in tree["categories"]}
    assert found.keys() == {each["id"] for each in tree["annotations"]}
    for each in tree["annotations"]:
        mask = found[each["id"]]
        assert labels[mask.label].name == names[each["category_id"]]
        np.testing.assert_array_equal(mask.image, coco_mask.decode(each["segmentation"]))


def test_a_server_without_the_setting_stores_nothing(url: str, png: bytes) -> None:
    answer = send(url, report_of(url, png))
    assert answer.status_code == 403
    assert "YOLACT_SERVE_FEEDBACK" in error_of(answer)


def _damaged(report: dict[str, Any], change: str) -> Any:
    first = report["detections"][0]
    if change == "size":
        first["mask"]["size"] = [10, 10]
    elif change == "counts":
        first["mask"]["counts"] = first["mask"]["counts"][:-1]
    elif change == "negative":
        first["mask"]["counts"] = "O1"
    elif change == "box":
        first["box"][2] = 1e6
    elif change == "wrong":
        report["wrong"] = [500]
    elif change == "image":
        report["image"] = base64.b64encode(b"text").decode()
    elif change == "base64":
        report["image"] = "%"
    elif change == "key":
        report["comment"] = "?"
    elif change == "score":
        first["score"] = "high"
    elif change == "category":
        first["category_id"] = -1
    elif change == "no category":
        del first["category_id"]
    if change == "bool":  # found by schemathesis
        report["wrong"] = [False]
    return report if change != "list" else [report]


@pytest.mark.parametrize(
    "change",
    [
        *("size", "counts", "negative", "box", "wrong", "image", "base64", "key", "score", "category", "no category"),
        *("list", "bool"),
    ],
)
def test_a_report_that_cannot_be_right_is_refused_and_leaves_no_file(
    storing: Server, folder: Path, change: str
) -> None:
    report = report_of(storing.address, encoded(picture()), wrong=[0])
    before = sorted(folder.rglob("*"))
    answer = send(storing.address, _damaged(report, change))
    assert answer.status_code == 422, answer.text
    assert error_of(answer)
    assert sorted(folder.rglob("*")) == before


def test_other_bodies_are_refused(storing: Server, png: bytes) -> None:
    assert post(f"{storing.address}/feedback", png).status_code == 415
    assert post(f"{storing.address}/feedback", b"{", "application/json").status_code == 400


def test_feedback_needs_the_token(model_dir: Path, tmp_path: Path, png: bytes) -> None:
    with running(model=str(model_dir), feedback=tmp_path / "kept", token="secret") as server:
        assert send(server.address, {}).status_code == 401
    assert not (tmp_path / "kept").exists()


def test_a_full_store_refuses_and_keeps_what_it_has(model_dir: Path, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8))
    with running(model=str(model_dir), feedback=tmp_path, feedback_mb=1) as server:
        report = {"image": base64.b64encode(encoded(noise)).decode(), "model": {}, "detections": []}
        report["model"] = {"name": "yolact", "version": None, "alias": None}
        assert send(server.address, report).status_code == 201
        before = sorted(tmp_path.rglob("*"))
        answer = send(server.address, report)
        assert (answer.status_code, error_of(answer)[:17]) == (507, "the space for fee")
        assert sorted(tmp_path.rglob("*")) == before


def test_old_reports_are_deleted_and_other_files_are_not(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, read_settings(feedback=tmp_path, feedback_days=7))
    (tmp_path / "images").mkdir()
    now = datetime(2026, 3, 20, 12, tzinfo=UTC)
    stamps = {days: f"{now - timedelta(days=days):%Y%m%d-%H%M%S}-0a1b2c3d" for days in (1, 6, 8, 100)}
    for name in (*stamps.values(), "mine", "20260101-corrected"):
        (tmp_path / f"instances_{name}.json").write_text("{}")
        (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    assert store.delete_old(now) == 4
    left = {stamps[1], stamps[6], "mine", "20260101-corrected"}
    assert {path.stem for path in (tmp_path / "images").iterdir()} == left
    assert {path.stem.removeprefix("instances_") for path in tmp_path.glob("*.json")} == left
