"""Free disk space and digests of files."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from yolact.errors import DataError

BLOCK = 1 << 20
"""Block size of reads and writes, bytes."""

SPARE = 64 << 20
"""Disk space that transfers leave free, bytes."""


def require_free_disk(folder: Path, size: int, what: str) -> None:
    """Refuse to start a transfer that will not fit.

    Args:
        folder: target folder; it or one of its parents exists.
        size: bytes to write.
        what: name of the transfer in the error, as ``downloading voc.tar``.

    Raises:
        DataError: the disk has less than ``size`` and `SPARE` bytes free.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < size + SPARE:
        raise DataError(
            f"{folder}: {what} needs {size:,} bytes, but the disk has {free:,} free ({SPARE:,} are left as a reserve). "
            "Make room, or work on another disk."
        )


def file_digest(path: Path, algorithm: str) -> str:
    """Digest (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
