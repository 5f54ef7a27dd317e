"""Mirror of the checkpoints in an S3 bucket: a run outlives its machine.

boto3 finds credentials, region and address in the environment (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL_S3`` for MinIO and others), its configuration files, or the machine's
role.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from yolact.engine.checkpoint import MIRROR_FOLDER
from yolact.errors import EX_UNAVAILABLE, YolactError
from yolact_ops.lineage.redaction import redact
from yolact_ops.transfer.storage import may_pass

log = logging.getLogger(__name__)

_FAILURES = (Boto3Error, BotoCoreError, ClientError, OSError)
_CALM = Config(connect_timeout=20, read_timeout=60, retries={"max_attempts": 5, "mode": "standard"})


class MirrorError(YolactError):
    """The bucket cannot be read at the start of a run; names it and how to fix it."""

    def __init__(self, message: str, exit_code: int = YolactError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Wanted:
    """The desired content of the bucket."""

    directory: Path
    checkpoints: list[list[str]]
    """See `yolact.engine.checkpoint.Mirror.sync`."""


class S3Mirror:
    """A `yolact.engine.checkpoint.Mirror` in a bucket.

    A separate thread uploads, so training never waits; a failure is a warning, and the next checkpoint is another
    attempt. The newest checkpoint is uploaded first, preceded by its best weights; objects are removed only afterwards,
    so the bucket always has a complete checkpoint. If uploads take longer than the time between checkpoints, some are
    skipped, and the bucket lags behind by the current upload. Each run, identified by its fingerprint, has its own
    folder below the prefix.

    Args:
        address: ``s3://bucket`` or ``s3://bucket/prefix``.
        fingerprint: fingerprint of the run.
    """

    def __init__(self, address: str, fingerprint: str) -> None:
        self.bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self.prefix = "/".join(part for part in (prefix.strip("/"), fingerprint[:16]) if part) + "/"
        self.address = f"s3://{self.bucket}/{self.prefix}"
        self._client = boto3.Session().client("s3", config=_CALM)
        self._changed = threading.Condition()
        self._wanted: _Wanted | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="checkpoint mirror", daemon=True)
        self._thread.start()

    def fetch(self, directory: Path) -> None:
        """Download what the bucket has of this run into ``directory``, each file whole or not at all.

        Raises:
            MirrorError: the bucket cannot be read.
        """
        try:
            names = sorted(self._list(), reverse=True)  # best weights, then the newest checkpoint: a kill may come
            for name in names:
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = directory / f".{path.name}.part"
                self._client.download_file(self.bucket, self.prefix + name, str(temporary))
                temporary.replace(path)
        except _FAILURES as error:
            raise MirrorError(
                f"runtime.checkpoint_mirror: {self.address} cannot be read: {redact(str(error))}. Check its name, the "
                "credentials and AWS_ENDPOINT_URL_S3, or set runtime.checkpoint_mirror: none",
                EX_UNAVAILABLE if may_pass(error) else YolactError.exit_code,
            ) from error
        if names:
            log.info("%d files of the run's checkpoints were restored from %s", len(names), self.address)

    def sync(self, directory: Path, checkpoints: list[list[str]]) -> None:
        """Start to make the bucket hold exactly these checkpoints; returns at once."""
        with self._changed:
            self._wanted = _Wanted(directory, checkpoints)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Wait until the newest call of `sync` is done, at most ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("%s: not everything was uploaded within %.0f s", self.address, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._closing)
                wanted, self._wanted = self._wanted, None
            if wanted is None:
                return
            try:
                self._update(wanted)
            except _FAILURES as error:
                log.warning("%s: the mirror is behind: %s", self.address, redact(str(error)))
            except Exception:  # nothing may end the thread silently
                log.exception("%s: the mirror is behind", self.address)

    def _update(self, wanted: _Wanted) -> None:
        there = self._list()
        is_safe = False
        for names in wanted.checkpoints:
            if is_safe and self._wanted is not None:  # a newer checkpoint takes precedence over the older ones
                return
            try:
                self._upload(wanted.directory, [name for name in names if name not in there])
            except FileNotFoundError as error:
                log.warning("%s: the mirror is behind: %s is gone", self.address, error.filename)
                continue
            there.update(names)
            if not is_safe:
                self._remove(there.difference(*wanted.checkpoints))
                is_safe = True

    def _upload(self, directory: Path, names: list[str]) -> None:
        with _held(directory, names) as paths:
            for name, path in zip(names, paths, strict=True):
                self._client.upload_file(str(path), self.bucket, self.prefix + name)

    def _remove(self, names: set[str]) -> None:
        """Checkpoints before best weights, so none is left without them."""
        for name in sorted(names):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def _list(self) -> set[str]:
        """Names of this run's objects, relative to its folder."""
        pages: Any = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return {item["Key"].removeprefix(self.prefix) for page in pages for item in page.get("Contents", [])}


@contextmanager
def _held(directory: Path, names: list[str]) -> Iterator[list[Path]]:
    """Paths at which these files of ``directory`` remain as long as needed, even if the originals are removed.

    Raises:
        FileNotFoundError: one is gone already.
    """
    folder = directory / MIRROR_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield [_second_name(directory / name, folder / name) for name in names]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _second_name(path: Path, second: Path) -> Path:
    """A hard link, or a copy if the file system has none."""
    second.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, second)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, second)
    return second
