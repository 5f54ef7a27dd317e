"""Images and their objects as columns: in memory, or mapped from a file (`yolact.data.arrow_file`).

Forked loader processes share the columns. They would not share Python objects for long: reading one writes its
reference count, and the system then copies the page of memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from yolact.data.shards import Place


@dataclass(frozen=True)
class CocoImage:
    """One image of the data set."""

    id: int
    file_name: str
    width: int
    height: int
    place: Place | None = None
    """Where its file is in the shards; None: it is a file of its own."""


@dataclass(frozen=True)
class CocoObject:
    """One annotated object."""

    label: int
    """0 to C - 1."""
    box: tuple[float, float, float, float]
    """xyxy, pixels."""
    crowd: bool
    segmentation: Any
    """Compressed or uncompressed RLE, or polygons, as in COCO's JSON."""

    @classmethod
    def of_row(cls, row: Mapping[str, Any], label_of: Mapping[int, int]) -> CocoObject:
        """An object from its row of COCO's ``annotations``; ``label_of`` has the label of each category id."""
        x, y, width, height = row["bbox"]
        return cls(
            label=label_of[row["category_id"]],
            box=(x, y, x + width, y + height),
            crowd=bool(row.get("iscrowd", 0)),
            segmentation=row["segmentation"],
        )


@dataclass(frozen=True)
class Texts:
    """UTF-8 texts in one block of memory."""

    ends: np.ndarray
    """(n + 1,) int32 or int64: text k is from ``ends[k]`` to ``ends[k + 1]``."""
    block: memoryview

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        encoded = [str.encode(text) for text in texts]
        ends = np.cumsum([0, *(len(text) for text in encoded)], dtype=np.int64)
        return cls(ends, memoryview(b"".join(encoded)))

    def __getitem__(self, row: int) -> str:
        return str(self.block[self.ends[row] : self.ends[row + 1]], "utf-8")


@dataclass(frozen=True)
class Columns:
    """N consecutive images and their M objects."""

    ids: np.ndarray
    """(N,) int64."""
    file_names: Texts
    widths: np.ndarray
    heights: np.ndarray
    """(N,) int32, pixels."""
    shards: np.ndarray
    """(N,) int32: number of the shard that has the image, from 0; -1: none, it is a file of its own."""
    offsets: np.ndarray
    lengths: np.ndarray
    """(N,) int64, bytes: where the image's file is in the shard."""
    checksums: np.ndarray
    """(N,) uint32: CRC-32 of the image's file."""
    first: np.ndarray
    """(N + 1,) integers: the objects of image k are rows ``first[k]`` to ``first[k + 1]`` of what follows."""
    labels: np.ndarray
    """(M,) int32."""
    boxes: np.ndarray
    """(M, 4) float64, xyxy, pixels."""
    crowd: np.ndarray
    """(M,) int8, 0 or 1."""
    segmentations: Texts
    """The ``counts`` of a compressed RLE of the image's size; of other forms the JSON."""
    compressed: np.ndarray
    """(M,) int8: 1 for compressed RLE."""

    @classmethod
    def of(cls, images: Sequence[CocoImage], objects: Iterable[Sequence[CocoObject]]) -> Columns:
        """Columns in memory; ``objects`` has those of each image."""
        places = [image.place or Place(-1, 0, 0, 0) for image in images]
        counts, found = [0], list[CocoObject]()
        for some in objects:
            counts.append(len(some))
            found += some
        compressed = [_is_compressed(item.segmentation) for item in found]
        return cls(
            ids=np.array([image.id for image in images], dtype=np.int64),
            file_names=Texts.of(image.file_name for image in images),
            widths=np.array([image.width for image in images], dtype=np.int32),
            heights=np.array([image.height for image in images], dtype=np.int32),
            shards=np.array([place.shard for place in places], dtype=np.int32),
            offsets=np.array([place.offset for place in places], dtype=np.int64),
            lengths=np.array([place.length for place in places], dtype=np.int64),
            checksums=np.array([place.crc32 for place in places], dtype=np.uint32),
            first=np.cumsum(counts, dtype=np.int64),
            labels=np.array([item.label for item in found], dtype=np.int32),
            boxes=np.array([item.box for item in found], dtype=np.float64).reshape(-1, 4),
            crowd=np.array([item.crowd for item in found], dtype=np.int8),
            segmentations=Texts.of(
                item.segmentation["counts"] if short else json.dumps(item.segmentation)
                for item, short in zip(found, compressed, strict=True)
            ),
            compressed=np.array(compressed, dtype=np.int8),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, row: int) -> CocoImage:
        """Image number ``row``, 0 to N - 1."""
        numbers = (self.shards, self.offsets, self.lengths, self.checksums)
        place = Place(*(int(column[row]) for column in numbers)) if self.shards[row] >= 0 else None
        width, height = int(self.widths[row]), int(self.heights[row])
        return CocoImage(int(self.ids[row]), self.file_names[row], width, height, place)

    def objects(self, row: int) -> list[CocoObject]:
        """The objects of image number ``row``, in their order."""
        start, stop = int(self.first[row]), int(self.first[row + 1])
        size = [int(self.heights[row]), int(self.widths[row])]
        return [
            CocoObject(label, tuple(box), bool(crowd), self._segmentation(number, size))
            for number, label, box, crowd in zip(
                range(start, stop),
                self.labels[start:stop].tolist(),
                self.boxes[start:stop].tolist(),
                self.crowd[start:stop].tolist(),
                strict=True,
            )
        ]

    def _segmentation(self, number: int, size: list[int]) -> Any:
        text = self.segmentations[number]
        return {"size": size, "counts": text} if self.compressed[number] else json.loads(text)


def _is_compressed(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)


class Rows:
    """The images and objects of a data set, in parts of consecutive images."""

    def __init__(self, parts: Sequence[Columns]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *(part.ids for part in parts)])
        self._order = None if (ids[1:] > ids[:-1]).all() else ids.argsort(kind="stable")
        self._ids = ids if self._order is None else ids[self._order]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, row: int) -> tuple[Columns, int]:
        """The part with image number ``row``, and its number there."""
        part = int(self._ends.searchsorted(row, side="right"))
        return self.parts[part], row - (int(self._ends[part - 1]) if part else 0)

    def row_of(self, image_id: int) -> int:
        """The number of an image; KeyError if there is none with that id."""
        place = int(self._ids.searchsorted(image_id))
        if place == len(self._ids) or self._ids[place] != image_id:
            raise KeyError(image_id)
        return place if self._order is None else int(self._order[place])

    def ids(self) -> Iterator[int]:
        """The ids of all images, in their order."""
        for part in self.parts:
            yield from part.ids.tolist()

    def shown_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """The different pairs of an image's number and the label of an object, without crowd regions; (P,) int64 both,
        in ascending order."""
        pairs, start = [np.zeros((2, 0), dtype=np.int64)], 0
        for part in self.parts:
            image_of = np.arange(start, start + len(part)).repeat(np.diff(part.first))
            pairs.append(np.unique(np.stack([image_of, part.labels])[:, part.crowd == 0], axis=1))
            start += len(part)
        rows, labels = np.concatenate(pairs, axis=1)
        return rows, labels


class Images(Sequence[CocoImage]):
    """The images of `Rows`."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[CocoImage]: ...

    def __getitem__(self, index: int | slice) -> CocoImage | list[CocoImage]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        part, row = self.rows.find(range(len(self))[index])  # an IndexError for one that is out of range
        return part.image(row)


class Objects(Mapping[int, list[CocoObject]]):
    """The objects of each image of `Rows`, by the image's id."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __getitem__(self, image_id: int) -> list[CocoObject]:
        part, row = self.rows.find(self.rows.row_of(image_id))
        return part.objects(row)

    def __iter__(self) -> Iterator[int]:
        return self.rows.ids()

    def __len__(self) -> int:
        return len(self.rows)
