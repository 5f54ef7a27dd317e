"""Checkpoints in a bucket of a real S3 server."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from components.train.mirror import MirrorError, S3Mirror
from tests.servers.servers import KEY, SECRET, free_port, s3_server
from yolact.engine.checkpoint import MIRROR_FOLDER, CheckpointStore, TrainingState, digest_of
from yolact.errors import EX_UNAVAILABLE

RUN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start an S3 server with an empty bucket ``runs``; returns its address."""
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
def test_the_bucket_mirrors_the_folder_and_restores_it(folder: Path, tmp_path: Path) -> None:
    mirror = S3Mirror("s3://runs/one/", RUN)
    mirror.sync(folder, [[BEST, "000002.pt"], ["000001.pt"]])
    mirror.sync(folder, [[BEST, "000003.pt"], [BEST, "000002.pt"]])
    mirror.close(60)
    start = f"one/{RUN[:16]}/"
    assert keys("one/") == {start + BEST, f"{start}000002.pt", f"{start}000003.pt"}

    other = tmp_path / "other"
    other.mkdir()
    S3Mirror("s3://runs/one", RUN).fetch(other)
    found = {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    assert found == {BEST, "000002.pt", "000003.pt"}
    assert all((other / name).read_bytes() == (folder / name).read_bytes() for name in found)
    assert not (folder / MIRROR_FOLDER).exists()


@pytest.mark.usefixtures("environment")
def test_runs_are_separated_in_the_bucket(folder: Path, tmp_path: Path) -> None:
    mirror = S3Mirror("s3://runs/two", RUN)
    mirror.sync(folder, [["000001.pt"]])
    mirror.close(60)
    other = tmp_path / "other"
    other.mkdir()
    S3Mirror("s3://runs/two", "f" * 64).fetch(other)
    assert not list(other.iterdir())


@pytest.mark.usefixtures("environment")
def test_nothing_is_removed_before_its_successor_is_uploaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = S3Mirror("s3://runs/three", RUN)
    mirror.sync(folder, [["000001.pt"]])
    mirror.close(60)
    mirror = S3Mirror("s3://runs/three", RUN)
    with caplog.at_level(logging.WARNING):
        mirror.sync(folder, [["missing.pt"]])
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
    mirror.sync(folder, [["000001.pt"]])
    assert going.wait(60)
    mirror.sync(folder, [["000002.pt"]])  # returns although the first upload has not ended
    mirror.sync(folder, [["000003.pt"]])
    assert keys("four/") == set()
    goes_on.set()
    mirror.close(60)
    assert keys("four/") == {f"four/{RUN[:16]}/000003.pt"}


@pytest.mark.usefixtures("environment")
def test_a_bucket_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"runtime\.checkpoint_mirror: s3://runs/five/.* cannot be read"
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(MirrorError, match=said) as refused:
            S3Mirror("s3://runs/five", RUN).fetch(tmp_path)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MirrorError, match=said) as away:
        S3Mirror("s3://runs/five", RUN).fetch(tmp_path)
    assert (refused.value.exit_code, away.value.exit_code) == (1, EX_UNAVAILABLE)


def test_a_missing_checkpoint_is_skipped(environment: None, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = S3Mirror("s3://runs/six", RUN)
    mirror.sync(folder, [["000001.pt"]])
    mirror.close(60)
    mirror = S3Mirror("s3://runs/six", RUN)
    mirror.sync(folder, [[BEST, "missing.pt"], [BEST, "000002.pt"]])
    mirror.close(60)
    assert keys("six/") == {f"six/{RUN[:16]}/{name}" for name in (BEST, "000002.pt")}
    assert f"{folder / 'missing.pt'} is gone" in caplog.text


class SlowUploads:
    """Makes every upload take as long as ``saves`` further checkpoints."""

    def __init__(self, mirror: S3Mirror, saves: int) -> None:
        self._upload, self._saves = mirror._client.upload_file, saves
        self._changed = threading.Condition()
        self._saved = 0
        self._wanted = 0
        """Value of ``_saved`` at which the upload in progress ends."""
        self._over = False
        self.uploaded: list[str] = []
        self.seen: list[set[str]] = []
        """The bucket after each upload."""

    def __call__(self, path: str, bucket: str, key: str) -> None:
        with self._changed:
            self._wanted = self._saved + self._saves
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._over or self._saved >= self._wanted, 60)
        self._upload(path, bucket, key)
        self.uploaded.append(key.rpartition("/")[2])
        self.seen.append(keys(key.partition("/")[0] + "/"))

    def count(self, saved: int) -> None:
        """Count a saved checkpoint, and wait until an upload is in progress that it does not end."""
        with self._changed:
            self._saved = saved
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._wanted > saved, 60)

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_saves_faster_than_it_uploads_has_a_complete_recent_checkpoint_in_the_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, keep: int
) -> None:
    if not links:

        def refuse(*_: Any) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    prefix = f"slow-{keep}-{links}"
    mirror = S3Mirror(f"s3://runs/{prefix}", RUN)
    uploads = SlowUploads(mirror, saves=4)
    monkeypatch.setattr(mirror._client, "upload_file", uploads)
    store = CheckpointStore(tmp_path / "checkpoints", keep, RUN, mirror)
    of_step: dict[str, int] = {}
    best_of: dict[str, str] = {}
    for step in range(1, 41):
        best = f"best_{step // 7:04d}-a"
        (store.directory / best).mkdir(parents=True, exist_ok=True)
        (store.directory / best / "model.safetensors").write_text(best)
        name = store.save(tiny_state(step, best)).name
        of_step[name], best_of[name] = step, best
        uploads.count(step)
    uploads.end()
    mirror.close(60)

    start = f"{prefix}/{RUN[:16]}/"
    kept = sorted(path.name for path in store.directory.glob("*.pt"))
    assert of_step[kept[-1]] == 40
    assert keys(prefix) == {f"{start}{name}" for name in kept} | {
        f"{start}{best_of[name]}/model.safetensors" for name in kept
    }
    sent = [of_step[name] for name in uploads.uploaded if name.endswith(".pt")]
    during = [step for step in sent if step <= 40 - keep]
    assert len(during) >= 4
    # Each was the newest when its upload began: 4 saves for the best weights, where they are new, and 4 for itself.
    assert all(later - earlier <= 8 for earlier, later in zip([0, *during], [*during, 40], strict=True))
    first = next(number for number, seen in enumerate(uploads.seen) if any(key.endswith(".pt") for key in seen))
    for seen in uploads.seen[first:]:
        there = [key.removeprefix(start) for key in seen if key.endswith(".pt")]
        assert there
        assert all(f"{start}{best_of[name]}/model.safetensors" in seen for name in there)

    other = tmp_path / "other"
    other.mkdir()
    S3Mirror(f"s3://runs/{prefix}", RUN).fetch(other)
    assert all(f"-{digest_of(path)}.pt" in path.name for path in other.glob("*.pt"))


def tiny_state(step: int, best: str) -> TrainingState:
    empty: dict[str, Any] = {}
    return TrainingState(
        settings=empty,
        epochs_done=0,
        batches_done=step,
        step=step,
        steps_per_epoch=1,
        validation_due=False,
        model=empty,
        optimizer=empty,
        scaler=empty,
        ema=empty,
        random=empty,
        terms=empty,
        best_score=0.5,
        best=best,
        history={"steps": [], "epochs": []},
        seconds=1.0,
        finished=False,
    )
