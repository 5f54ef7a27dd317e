"""One data set from every kind of source: after ingest and preprocess, the processed data is the same to the byte."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.ingest.step import run as ingest
from components.preprocess.step import run as preprocess
from tests.servers.servers import KEY, SECRET, s3_server
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig
from yolact_ops.settings.params import load_params


@pytest.fixture(scope="module", params=["generated", "real"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with VOCdevkit: generated images, and real ones if they are available in the checkout."""
    if request.param == "real":
        return Path(request.getfixturevalue("voc_mini"))
    folder = tmp_path_factory.mktemp("generated")
    few = SampleConfig(seed=3, train_images=10, val_images=5, min_size=96, max_size=160, max_objects=4)
    generate_sample(folder, few)
    return folder


@pytest.fixture(scope="module")
def sources(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Values of ``data.source``, and the address of the S3 server under ``server``."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(folder / "set.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(images / "VOCdevkit", "some/folder/VOCdevkit")
    with zipfile.ZipFile(folder / "set.zip", "w") as file:
        for path in sorted((images / "VOCdevkit").rglob("*"), reverse=True):
            file.write(path, path.relative_to(images))
    shutil.copytree(images / "VOCdevkit", folder / "s3/bucket/set/VOCdevkit", copy_function=shutil.copyfile)
    with s3_server(folder / "s3") as server:
        yield {
            "folder": str(images),
            "tar": str(folder / "set.tar.gz"),
            "zip": str(folder / "set.zip"),
            "s3": "s3://bucket/set",
            "server": server,
        }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_tar_zip_and_s3_give_the_same_processed_data(
    sources: dict[str, str], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", sources["server"]),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ):
        monkeypatch.setenv(name, value)
    base = load_params(repository / "conf" / "base.yaml")
    found = {}
    for kind in ("folder", "tar", "zip", "s3"):
        params = base.model_copy(update={"data": base.data.model_copy(update={"source": sources[kind]})})
        place = tmp_path / kind
        ingest(params, raw_dir=place / "raw", downloads_dir=place / "downloads")
        preprocess(params, raw_dir=place / "raw", processed_dir=place / "processed", report_dir=place / "report")
        found[kind] = contents(place / "processed")
    assert {"train/train.json", "eval/val.json", "eval/stats.json"} < found["folder"].keys()
    assert sum("/images/" in name for name in found["folder"]) > 10
    for kind, files in found.items():
        assert files == found["folder"], kind
