"""Checkpoints in a bucket of a real S3 server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from components.train.mirror import MirrorError, S3Mirror
from tests.components.servers import KEY, SECRET, s3_server

RUN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 server with an empty bucket ``runs``."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "runs").mkdir()
    with s3_server(folder) as address:
        yield address


@pytest.fixture
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": server,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints"
    (path / "best_0001-a").mkdir(parents=True)
    (path / "best_0001-a" / "model.safetensors").write_bytes(b"best" * 1000)
    for number in (1, 2, 3):
        (path / f"{number:06d}.pt").write_bytes(bytes([number]) * 100_000)
    return path


BEST = "best_0001-a/model.safetensors"


def keys(prefix: str = "") -> set[str]:
    found: Any = boto3.client("s3").list_objects_v2(Bucket="runs", Prefix=prefix)
    return {item["Key"] for item in found.get("Contents", [])}


@pytest.mark.usefixtures("environment")
def test_the_bucket_holds_what_the_folder_holds_and_gives_it_back(folder: Path, tmp_path: Path) -> None:
    mirror = S3Mirror("s3://runs/one/", RUN)
    mirror.sync(folder, [BEST, "000001.pt", "000002.pt"])
    mirror.sync(folder, [BEST, "000002.pt", "000003.pt"])
    mirror.close(60)
    start = f"one/{RUN[:16]}/"
    assert keys("one/") == {start + BEST, f"{start}000002.pt", f"{start}000003.pt"}

    other = tmp_path / "other"
    other.mkdir()
    S3Mirror("s3://runs/one", RUN).fetch(other)
    found = {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    assert found == {BEST, "000002.pt", "000003.pt"}
    assert all((other / name).read_bytes() == (folder / name).read_bytes() for name in found)


@pytest.mark.usefixtures("environment")
def test_another_run_sees_nothing_of_it(folder: Path, tmp_path: Path) -> None:
    mirror = S3Mirror("s3://runs/two", RUN)
    mirror.sync(folder, ["000001.pt"])
    mirror.close(60)
    other = tmp_path / "other"
    other.mkdir()
    S3Mirror("s3://runs/two", "f" * 64).fetch(other)
    assert not list(other.iterdir())


@pytest.mark.usefixtures("environment")
def test_nothing_is_removed_while_its_successor_is_not_safe(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = S3Mirror("s3://runs/three", RUN)
    mirror.sync(folder, ["000001.pt"])
    mirror.close(60)
    mirror = S3Mirror("s3://runs/three", RUN)
    with caplog.at_level(logging.WARNING):
        mirror.sync(folder, ["missing.pt"])
        mirror.close(60)
    assert keys("three/") == {f"three/{RUN[:16]}/000001.pt"}
    assert "the mirror is behind" in caplog.text


@pytest.mark.usefixtures("environment")
def test_training_does_not_wait_for_an_upload(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = S3Mirror("s3://runs/four", RUN)
    going, goes_on = threading.Event(), threading.Event()
    upload = mirror._client.upload_file

    def slow(*arguments: Any) -> None:
        going.set()
        assert goes_on.wait(60)
        upload(*arguments)

    monkeypatch.setattr(mirror._client, "upload_file", slow)
    mirror.sync(folder, ["000001.pt"])
    assert going.wait(60)
    mirror.sync(folder, ["000002.pt"])  # returns although the first upload has not ended
    mirror.sync(folder, ["000003.pt"])
    assert keys("four/") == set()
    goes_on.set()
    mirror.close(60)
    assert keys("four/") == {f"four/{RUN[:16]}/000003.pt"}


@pytest.mark.usefixtures("environment")
def test_a_bucket_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(MirrorError, match=r"runtime\.checkpoint_mirror: s3://runs/five/.* cannot be read"):
        S3Mirror("s3://runs/five", RUN).fetch(tmp_path)
