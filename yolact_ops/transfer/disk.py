"""Room on the disk and digests of files."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from yolact.errors import DataError

BLOCK = 1 << 20
"""Bytes that are read or written at once."""

SPARE = 64 << 20
"""Bytes that a transfer leaves free."""


def require_free_disk(folder: Path, size: int, what: str) -> None:
    """Refuse to begin what will not fit.

    Args:
        folder: on the disk in question; it or a folder above it exists.
        size: bytes that will be written.
        what: for the message, as ``downloading voc.tar``.

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
