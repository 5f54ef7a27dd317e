"""Checkpoints in an S3 bucket too, so that a run outlives its machine.

Credentials, region and address come from where boto3 finds them: the environment (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL_S3`` for MinIO and others), its files, or the machine's role.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from components.common.lineage import redact
from yolact.errors import YolactError

log = logging.getLogger(__name__)

_FAILURES = (Boto3Error, BotoCoreError, ClientError, OSError)
_CALM = Config(connect_timeout=20, read_timeout=60, retries={"max_attempts": 5, "mode": "standard"})


class MirrorError(YolactError):
    """The bucket cannot be read at the start of a run; names it and the way out."""


@dataclass(frozen=True)
class _Wanted:
    """What the bucket shall hold."""

    directory: Path
    names: list[str]


class S3Mirror:
    """A `yolact.engine.checkpoint.Mirror` in a bucket.

    A thread of its own uploads, so training never waits; a failure is a warning, and the next checkpoint is another
    try. Objects are removed only after everything that takes their place is safe. Each run, by its fingerprint, has a
    folder of its own below the prefix.

    Args:
        address: ``s3://bucket`` or ``s3://bucket/prefix``.
        fingerprint: of the run.
    """

    def __init__(self, address: str, fingerprint: str) -> None:
        self.bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self.prefix = "/".join(part for part in (prefix.strip("/"), fingerprint[:16]) if part) + "/"
        self.address = f"s3://{self.bucket}/{self.prefix}"
        self._client = boto3.Session().client("s3", config=_CALM)
        self._wanted: queue.Queue[_Wanted | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="checkpoint mirror", daemon=True)
        self._thread.start()

    def fetch(self, directory: Path) -> None:
        """Bring what the bucket has of this run into ``directory``, each file whole or not at all.

        Raises:
            MirrorError: the bucket cannot be read.
        """
        try:
            names = sorted(self._list())
            for name in names:
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = directory / f".{path.name}.part"
                self._client.download_file(self.bucket, self.prefix + name, str(temporary))
                temporary.replace(path)
        except _FAILURES as error:
            raise MirrorError(
                f"runtime.checkpoint_mirror: {self.address} cannot be read: {redact(str(error))}. Check its name, the "
                "credentials and AWS_ENDPOINT_URL_S3, or set runtime.checkpoint_mirror: none"
            ) from error
        if names:
            log.info("%d files of the run's checkpoints come from %s", len(names), self.address)

    def sync(self, directory: Path, names: list[str]) -> None:
        """Begin to make the bucket hold exactly these files; returns at once."""
        self._wanted.put(_Wanted(directory, names))

    def close(self, timeout: float) -> None:
        """Wait until the newest call of `sync` is done, at most ``timeout`` seconds."""
        self._wanted.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("%s: not everything was uploaded within %.0f s", self.address, timeout)

    def _work(self) -> None:
        closing = False
        while not closing:
            wanted = self._wanted.get()
            while not self._wanted.empty() and wanted is not None:  # only the newest counts
                following = self._wanted.get()
                if following is None:
                    closing = True
                    break
                wanted = following
            if wanted is None:
                return
            try:
                self._update(wanted)
            except _FAILURES as error:
                log.warning("%s: the mirror is behind: %s", self.address, redact(str(error)))
            except Exception:  # whatever it is, it must not end the thread in silence
                log.exception("%s: the mirror is behind", self.address)

    def _update(self, wanted: _Wanted) -> None:
        there = self._list()
        for name in wanted.names:
            if name not in there:
                self._client.upload_file(str(wanted.directory / name), self.bucket, self.prefix + name)
        for name in there.difference(wanted.names):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def _list(self) -> set[str]:
        """Names of this run's objects, relative to its folder."""
        pages: Any = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return {item["Key"].removeprefix(self.prefix) for page in pages for item in page.get("Contents", [])}
