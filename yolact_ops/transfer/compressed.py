"""Unpacked size of compressed files, as declared at their end."""

from __future__ import annotations

import os
from pathlib import Path

GZIP_START = b"\x1f\x8b"
XZ_START = b"\xfd7zXZ\x00"
XZ_FOOTER = 12
"""Bytes: a checksum (4), the index's size (4), flags (2) and ``YZ`` (xz file format 1.2.1, section 2.1.2)."""

MAX_INDEX = 16 << 20
"""Maximum size of an xz index that is read, bytes; a larger one is of an archive of terabytes, or false."""


def least_unpacked_size(path: Path) -> int:
    """Lower bound of a file's unpacked size, bytes; its own size if it is not compressed or declares less.

    The declared size may be false (it cannot be checked before everything is read), and only the last of several
    streams counts: enough to refuse what will not fit, not to trust what seems to fit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(XZ_START))
        stated = 0
        if start.startswith(GZIP_START) and size >= 18:
            file.seek(-4, os.SEEK_END)
            stated = int.from_bytes(file.read(4), "little")  # ISIZE: the size modulo 2^32 (RFC 1952, 2.3.1)
        elif start == XZ_START and size >= 2 * XZ_FOOTER:
            file.seek(-XZ_FOOTER, os.SEEK_END)
            footer = file.read(XZ_FOOTER)
            length = 4 * (int.from_bytes(footer[4:8], "little") + 1)
            if footer.endswith(b"YZ") and length <= min(MAX_INDEX, size - 2 * XZ_FOOTER):
                file.seek(-XZ_FOOTER - length, os.SEEK_END)
                stated = _xz_index_total(file.read(length))
    return max(size, stated)


def _xz_index_total(index: bytes) -> int:
    """Sum of the blocks' unpacked sizes in an xz index; 0 if it is invalid (xz file format 1.2.1, section 4)."""
    place = 1  # after the index indicator, a zero byte

    def number() -> int:
        nonlocal place
        value = shift = 0
        while shift < 63:
            byte = index[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number of more than 63 bits")

    total = 0
    try:
        for _ in range(number()):
            number()  # the block's packed size
            total += number()
    except (IndexError, ValueError):
        return 0
    return total if index[0] == 0 else 0
