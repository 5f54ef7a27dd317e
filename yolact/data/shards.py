"""Image files in shards: uncompressed tar files in WebDataset's convention, read at random by offset and length.

``train-000000.tar`` has the first images of the split ``train``, in their order, ``train-000001.tar`` the next ones. A
member is named by the image's number in the split and its name (``00000012-dog.jpg``), without dots before the suffix,
which WebDataset takes as the beginning of it. Where each image is, is in the split's index (`yolact.data.arrow_file`).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from yolact.errors import DataError

FOLDER = "shards"
"""Folder of the shards in the processed data."""

JPEG_START = b"\xff\xd8"


class Place(NamedTuple):
    """Where an image's file is."""

    shard: int
    """Number of the shard, from 0."""
    offset: int
    """Position of its first byte in the shard."""
    length: int
    """Bytes."""
    crc32: int
    """Checksum of these bytes."""


class Part(NamedTuple):
    """Bytes of a shard."""

    shard: str
    """File name."""
    offset: int
    length: int
    crc32: int
    """See `Place`."""

    def is_in(self, data: bytes) -> bool:
        """Whether these are the part's bytes."""
        return len(data) == self.length and zlib.crc32(data) == self.crc32


def shard_name(split: str, number: int) -> str:
    """File name of a shard."""
    return f"{split}-{number:06d}.tar"


@dataclass(frozen=True)
class ShardPlan:
    """What a shard will have."""

    path: Path
    """A new file."""
    number: int
    """Number of the shard, from 0."""
    first: int
    """Number of its first image in the split, from 0."""
    files: Sequence[Path]
    """The images' files, JPEG or PNG, in order."""


def plan_shards(folder: Path, split: str, files: Sequence[Path], size: int) -> list[ShardPlan]:
    """Divide a split's images into shards of ``size`` images; the last one has the rest."""
    return [
        ShardPlan(folder / shard_name(split, number), number, first, files[first : first + size])
        for number, first in enumerate(range(0, len(files), size))
    ]


def shards_digest(images: Iterable[tuple[str, bytes]], size: int) -> str:
    """SHA-256 (hex) over what a split's shards are made from: equal digests mean equal shards.

    Args:
        images: name and SHA-256 of each image's file, in order.
        size: images in a shard.
    """
    digest = hashlib.sha256(f"{size}\n".encode())
    for name, content in images:
        digest.update(content + name.encode() + b"\n")
    return digest.hexdigest()


def write_shard(plan: ShardPlan) -> list[Place]:
    """Write a shard and remove the files that are now in it; returns where they are.

    The bytes depend on the images and their names alone: times, owners and modes are fixed.
    """
    places = []
    with plan.path.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, path in enumerate(plan.files, plan.first):
            data = path.read_bytes()
            suffix = "jpg" if data.startswith(JPEG_START) else "png"
            member = tarfile.TarInfo(f"{number:08d}-{path.stem.replace('.', '_')}.{suffix}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            places.append(Place(plan.number, file.tell() - padded, len(data), zlib.crc32(data)))
            path.unlink()
    return places


class ShardReader(Protocol):
    """Reads parts of shards, from wherever they are."""

    def read(self, part: Part) -> bytes:
        """The bytes of a part, or fewer if the shard ends there; the caller compares the checksum.

        Raises:
            DataError: the shard is missing or cannot be read.
        """

    def fetch_ahead(self, parts: Iterable[Part]) -> None:
        """Begin to fetch parts that will be read soon; does not wait."""

    def location(self, shard: str) -> str:
        """The path or address of a shard, for messages."""


@dataclass(frozen=True)
class LocalShards:
    """Shards in a folder: on a disk or a mounted volume."""

    folder: Path

    def read(self, part: Part) -> bytes:
        path = self.folder / part.shard
        try:
            with path.open("rb") as file:
                file.seek(part.offset)
                return file.read(part.length)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{path}: {reason}. Run the preprocess step again: dvc repro -f preprocess") from error

    def fetch_ahead(self, parts: Iterable[Part]) -> None:
        """Nothing: the operating system reads ahead."""

    def location(self, shard: str) -> str:
        return str(self.folder / shard)
