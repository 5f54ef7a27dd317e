"""`data.shard_size`: shards and their index have the same images and objects as loose files, and train the same."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from components.preprocess.step import run
from tests.servers.servers import s3_server, use_s3
from tests.yolact.engine.runs import small_params
from yolact.data.coco import CocoInstances
from yolact.data.loader import training_loader
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.interrupts import InterruptedRunError, Interrupts
from yolact.engine.trainer import SilentListener, Trainer
from yolact.errors import DataError
from yolact.models.yolact import Yolact
from yolact_ops.settings.params import Params, load_params
from yolact_ops.transfer.instances import load_instances
from yolact_ops.transfer.storage import make_client

NAMES = ["a.jpg", "b.c.PNG", "b.d.png", "dög.jpeg", f"{'x' * 120}.jpg", "plain.png", "q r.png", "z.jpg"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with 0, 1 or 2 objects in COCO's format."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, name in enumerate(NAMES, 1):
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / name, kind)
        images.append({"id": number, "file_name": name, "width": 80, "height": 60})
        for k in range(number % 3):
            x = 5 + 20 * k
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + k, "iscrowd": 0}
            polygon = [x, 5, x + 30 + number, 5, x + 30, 40, x, 50]
            annotations.append(row | {"bbox": [x, 5, 30 + number, 45], "segmentation": [polygon]})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    for split, some in (("train", images[:-2]), ("val", images[-2:])):
        ids = {row["id"] for row in some}
        rows = [row for row in annotations if row["image_id"] in ids]
        (folder / f"instances_{split}.json").write_text(json.dumps(tree | {"images": some, "annotations": rows}))
    return folder


@pytest.fixture(scope="module")
def preprocess(raw: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Callable[..., Path]:
    base = load_params(repository / "conf" / "base.yaml")

    def call(shard_size: int, workers: int = 1, **options: str) -> Path:
        data = base.data.model_copy(update={"shard_size": shard_size})
        folder = tmp_path_factory.mktemp("out")
        params: Params = base.model_copy(update={"data": data})
        run(
            params,
            raw_dir=raw,
            processed_dir=folder / "processed",
            report_dir=folder / "report",
            workers=workers,
            **options,
        )
        return folder / "processed"

    return call


@pytest.fixture(scope="module")
def loose(preprocess: Callable[..., Path]) -> Path:
    return preprocess(0)


@pytest.fixture(scope="module")
def sharded(preprocess: Callable[..., Path]) -> Path:
    return preprocess(4)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            yield member, file.read()


def test_shards_replace_the_images_and_nothing_else_changes(loose: Path, sharded: Path) -> None:
    one, other = contents(loose), contents(sharded)
    same = {"train/train.json", "eval/val.json", "eval/stats.json"}  # with the digest of the data: a run resumes
    assert one.keys() == same | {f"train/images/{name}" for name in NAMES[:-2]} | {
        f"eval/images/{name}" for name in NAMES[-2:]
    }
    shards = {"train/shards/train-000000.tar", "train/shards/train-000001.tar", "eval/shards/val-000000.tar"}
    assert other.keys() == same | shards | {"train/train.arrow", "eval/val.arrow"}
    assert all(one[name] == other[name] for name in same)


def test_shards_have_the_bytes_of_the_images_and_fixed_headers(loose: Path, sharded: Path) -> None:
    rows = json.loads((loose / "train/train.json").read_text())["images"]
    found = [member for shard in sorted((sharded / "train/shards").glob("train-*")) for member in members(shard)]
    assert [data for _, data in found] == [(loose / "train/images" / row["file_name"]).read_bytes() for row in rows]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m, _ in found} == {
        (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
    }
    assert [member.name for member, _ in found] == [
        "00000000-a.jpg",
        "00000001-b_c.png",
        "00000002-b_d.png",
        "00000003-dög.jpg",
        "00000004-plain.png",
        f"00000005-{'x' * 120}.jpg",
    ]


def test_tar_lists_and_unpacks_a_shard(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "train/shards/train-000001.tar"
    subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
    assert contents(tmp_path) == {member.name: data for member, data in members(shard)}
    assert len(contents(tmp_path)) == 2


def test_webdataset_reads_shards(loose: Path, sharded: Path) -> None:
    shards = str(sharded / "train/shards/train-{000000..000001}.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("jpg;png", "__key__"))
    data = CocoInstances.load(loose / "train/train.json")
    assert len(samples) == len(data.images) == 6
    for (pixels, key), (number, image) in zip(samples, enumerate(data.images), strict=True):
        assert key.startswith(f"{number:08d}-")
        assert np.array_equal(pixels, data.read_image(image))


def test_the_index_says_where_each_image_is(loose: Path, sharded: Path) -> None:
    for split, folder in (("train", "train"), ("val", "eval")):
        data = CocoInstances.load(sharded / folder / f"{split}.json")
        assert len(data.images)
        for image in data.images:
            assert image.place is not None
            with (sharded / f"{folder}/shards/{split}-{image.place.shard:06d}.tar").open("rb") as shard:
                shard.seek(image.place.offset)
                assert shard.read(image.place.length) == (loose / folder / "images" / image.file_name).read_bytes()


@pytest.mark.parametrize("file", ["train/train.json", "eval/val.json"])
def test_both_forms_have_the_same_images_and_objects(loose: Path, sharded: Path, file: str) -> None:
    one, other = (CocoInstances.load(folder / file) for folder in (loose, sharded))
    assert (one.category_ids, one.class_names) == (other.category_ids, other.class_names) == ([1, 2], ["cat", "dog"])
    assert list(one.images) == [replace(image, place=None) for image in other.images]
    assert dict(one.objects) == dict(other.objects)
    assert any(one.objects.values())
    for image, stored in zip(one.images, other.images, strict=True):
        assert np.array_equal(one.read_image(image), other.read_image(stored))


def test_the_same_input_gives_the_same_bytes_for_any_number_of_workers(
    preprocess: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(preprocess(1))
    monkeypatch.setattr("yolact_ops.scanning.workers.CHUNK", 1)  # these few shards in several processes too
    assert contents(preprocess(1, workers=2)) == expected
    assert sum(name.endswith(".tar") for name in expected) == len(NAMES)


# --- Training


def train(processed: Path, folder: Path, workers: int, stop_after: int = 0) -> dict[str, torch.Tensor]:
    """The weights after two epochs of three steps; ``stop_after``: stopped after that step, then resumed."""
    params = small_params(epochs=2, workers=workers)

    def fit(interrupts: Interrupts, on_alive: Callable[[Trainer], None] = lambda _: None) -> Trainer:
        class Alive(SilentListener):
            def on_alive(self) -> None:
                on_alive(trainer)

        store = CheckpointStore(folder / "checkpoints", 2, "test run")
        state = store.begin()
        torch.manual_seed(0)
        model, data = Yolact(params.model, 2), CocoInstances.load(processed / "train/train.json")
        trainer = Trainer(
            model, data, params, folder, store, lambda _: {"mask_AP": 0.0}, Alive(), {}, interrupts=interrupts
        )
        if state is not None:
            assert 0 < trainer.steps_per_epoch * state.epochs_done + state.batches_done == stop_after
            trainer.restore(state)
        trainer.fit()
        return trainer

    if stop_after:
        interrupts = Interrupts()

        def stop(trainer: Trainer) -> None:
            if trainer.step == stop_after - 1:  # takes effect after the next step
                interrupts.requested = "SIGTERM"

        with pytest.raises(InterruptedRunError):
            fit(interrupts, stop)
    trainer = fit(Interrupts())
    assert trainer.step == 6
    return trainer.model.state_dict()


@pytest.fixture(scope="module")
def weights(loose: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Trained on loose files without loader processes."""
    return train(loose, tmp_path_factory.mktemp("run"), workers=0)


@pytest.mark.parametrize(("workers", "stop_after"), [(0, 0), (1, 0), (2, 0), (0, 2), (2, 4)])
def test_training_on_shards_equals_training_on_loose_files(
    sharded: Path, weights: dict[str, torch.Tensor], tmp_path: Path, workers: int, stop_after: int
) -> None:
    found = train(sharded, tmp_path, workers, stop_after)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


# --- S3


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address on a real S3 server, whose files are in ``s3`` below ``tmp_path``, as temporary files are."""
    (tmp_path / "s3/bucket").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with s3_server(tmp_path / "s3") as server:
        use_s3(monkeypatch, server)
        yield "s3://bucket/set/shards"


def uploaded(tmp_path: Path) -> dict[str, bytes]:
    """Files in the bucket, by the part of their names after the folder that the data gives them."""
    found = contents(tmp_path / "s3/bucket/set/shards")
    assert {len(name.partition("/")[0]) for name in found} == {16}
    return {name.partition("/")[2]: data for name, data in found.items()}


def test_shards_go_to_s3_and_nothing_else_changes(
    preprocess: Callable[..., Path], sharded: Path, bucket: str, tmp_path: Path
) -> None:
    expected = contents(sharded)
    shards = {name.rpartition("/")[2]: data for name, data in expected.items() if name.endswith(".tar")}
    assert contents(preprocess(4, shards=bucket)) == {
        name: data for name, data in expected.items() if not name.endswith(".tar")
    }
    assert uploaded(tmp_path) == shards


def test_shards_that_are_there_are_not_uploaded_again_and_those_of_other_data_stay(
    preprocess: Callable[..., Path], bucket: str, tmp_path: Path
) -> None:
    folder = tmp_path / "s3/bucket/set/shards"
    preprocess(4, shards=bucket)
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    assert len(first) == 3
    missing = next(iter(first))
    key = missing.relative_to(tmp_path / "s3/bucket").as_posix()
    make_client().delete_object(Bucket="bucket", Key=key)  # as if the upload had been killed before it
    preprocess(4, shards=bucket)
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    assert {path for path in again if again[path] != first[path]} == {missing}
    preprocess(3, shards=bucket)  # other shards of the same images
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar") if path in again} == again
    assert len(list(folder.rglob("*.tar"))) == 3 + 3


def test_processed_data_whose_shards_cannot_be_uploaded_stays_as_it_was(
    preprocess: Callable[..., Path], tmp_path: Path, bucket: str, raw: Path, params: Params
) -> None:
    """A data set whose index is there is complete."""
    processed = preprocess(4, shards=bucket)
    before = contents(processed)
    settings = params.model_copy(update={"data": params.data.model_copy(update={"shard_size": 2})})
    with pytest.raises(DataError, match="there is no bucket 'nowhere'"):
        run(settings, raw_dir=raw, processed_dir=processed, report_dir=tmp_path / "report", shards="s3://nowhere/set")
    assert contents(processed) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_shards_on_s3_are_those_of_loose_files(
    loose: Path, preprocess: Callable[..., Path], bucket: str, tmp_path: Path, params: Params, workers: int
) -> None:
    """Also with mosaics, whose other images are fetched ahead too."""
    remote = preprocess(4, shards=bucket)
    runtime = params.runtime.model_copy(update={"shards": bucket, "shard_cache_gb": 1e-4})
    augment = params.train.augment.model_copy(update={"mosaic": 0.7, "mosaic_until": 1.0})
    config = params.train.model_copy(update={"augment": augment, "batch_size": 2, "epochs": 4})
    found = []
    for data, count in (
        (CocoInstances.load(loose / "train/train.json"), 0),
        (load_instances(remote / "train/train.json", runtime), workers),
    ):
        loader, sampler = training_loader(data, config, 64, workers=count, pin=False)
        batches = []
        for sampler.epoch in range(2):
            batches += list(loader)
        found.append(batches)
    assert len(found[0]) == len(found[1]) == 6
    for one, other in zip(*found, strict=True):
        assert one.image_ids == other.image_ids
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets.masks, other.targets.masks)
    [cache] = tmp_path.glob("yolact-shards-*")
    assert 0 < sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= 100_000


def test_loose_files_cannot_be_read_from_s3(loose: Path, params: Params) -> None:
    runtime = params.runtime.model_copy(update={"shards": "s3://bucket/set/shards"})
    with pytest.raises(DataError, match=r"train\.arrow: no such file.* on S3\. Set data\.shard_size"):
        load_instances(loose / "train/train.json", runtime)


# --- Damage


def test_a_missing_or_short_shard_is_named(preprocess: Callable[..., Path]) -> None:
    folder = preprocess(8)
    shard = folder / "train/shards/train-000000.tar"
    data = CocoInstances.load(folder / "train/train.json")
    last = data.images[-1]
    assert last.place is not None
    shard.write_bytes(shard.read_bytes()[: last.place.offset + last.place.length - 1])
    with pytest.raises(DataError, match=r"train-000000\.tar, byte \d+ .*has other bytes than train\.arrow says"):
        data.read_image(last)
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: No such file.*Run the preprocess step again"):
        data.read_image(last)


def test_an_image_that_is_damaged_in_a_shard_is_named(preprocess: Callable[..., Path]) -> None:
    folder = preprocess(8)
    data = CocoInstances.load(folder / "train/train.json")
    place = data.images[1].place
    assert place is not None
    with (folder / "train/shards/train-000000.tar").open("r+b") as shard:
        shard.seek(place.offset)
        shard.write(bytes(place.length))
    with pytest.raises(DataError, match=rf"train-000000\.tar, byte {place.offset} \(b\.c\.PNG\): has other bytes"):
        data.read_image(data.images[1])
