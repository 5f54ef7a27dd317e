"""Where the image files of a split are read from: one file each, or shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yolact.data.columns import CocoImage
from yolact.data.shards import Part, ShardReader, shard_name
from yolact.errors import DataError


class ImageStore(Protocol):
    """The image files of a split."""

    def read(self, image: CocoImage) -> bytes:
        """An image's file, encoded as it is stored.

        Raises:
            DataError: it is missing, damaged or cannot be read.
        """

    def fetch_ahead(self, images: Iterable[CocoImage]) -> None:
        """Begin to fetch images that will be read soon, where that helps; does not wait."""

    def location(self, image: CocoImage) -> str:
        """Where an image is, for messages."""


@dataclass(frozen=True)
class LooseImages:
    """One file per image in a folder."""

    folder: Path

    def read(self, image: CocoImage) -> bytes:
        path = self.folder / image.file_name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{path}: no such image. Run the preprocess step again: dvc repro -f preprocess") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be decoded: {error}") from error

    def fetch_ahead(self, images: Iterable[CocoImage]) -> None:
        """Nothing: the operating system reads ahead."""

    def location(self, image: CocoImage) -> str:
        return str(self.folder / image.file_name)


@dataclass(frozen=True)
class ShardedImages:
    """The images of a split in shards; each image has its `Place`."""

    split: str
    reader: ShardReader

    def read(self, image: CocoImage) -> bytes:
        part = self._part(image)
        data = self.reader.read(part)
        if not part.is_in(data):
            raise DataError(
                f"{self.location(image)}: has other bytes than {self.split}.arrow says: the shard is damaged, or of "
                "another data set. Run the preprocess step again (dvc repro -f preprocess), or copy the shards again."
            )
        return data

    def fetch_ahead(self, images: Iterable[CocoImage]) -> None:
        self.reader.fetch_ahead(map(self._part, images))

    def location(self, image: CocoImage) -> str:
        part = self._part(image)
        return f"{self.reader.location(part.shard)}, byte {part.offset} ({image.file_name})"

    def _part(self, image: CocoImage) -> Part:
        if image.place is None:
            raise ValueError(f"{image.file_name} is a file of its own")
        return Part(shard_name(self.split, image.place.shard), *image.place[1:])
