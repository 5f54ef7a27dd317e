"""Files of COCO instances: found by content, and read row by row, so that no file is in memory as a whole."""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from yolact.errors import DataError
from yolact.formats.coco_rows import has_outline, identity, is_crowd, is_number, parts_of
from yolact.formats.problems import Problem, writable

BLOCK = 1 << 20
"""Bytes that are read at once."""

LISTS = ("images", "annotations", "categories")

NORMALIZED_TOLERANCE = 1e-3
"""How far outside 0 to 1 a rounded fraction of an image's side may be."""

NAME_KEYS = ("file_name", "coco_url", "flickr_url", "path")
"""Where a row of ``images`` names its file, in this order; LVIS has only ``coco_url``."""

_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A usable row of ``images``."""

    number: int | str
    """Its id, see `identity`."""
    name: str
    size: tuple[int, int] | None
    """Width and height; None if they are not stated."""


@dataclass(frozen=True)
class CategoryRow:
    """A row of ``categories``."""

    number: int | str
    """Its id, see `identity`."""
    name: str
    parent: str
    """``supercategory``; empty if there is none."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows of ``annotations`` that stay in their file until they are needed."""

    path: Path
    starts: np.ndarray
    """(N,) uint64: offset of each row in the file, bytes."""
    lengths: np.ndarray
    """(N,) uint32: bytes."""

    def __iter__(self) -> Iterator[Any]:
        """The rows, parsed."""
        with self.path.open("rb") as file:
            for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
                file.seek(start)
                yield json.loads(file.read(length))


@dataclass
class InstancesFile:
    """The content of one instances file, without the rows of its annotations."""

    path: Path
    name: str
    """Relative to the data set's folder, with ``/``."""
    info: Any = None
    images: list[ImageRow] = field(default_factory=list)
    categories: list[CategoryRow] = field(default_factory=list)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    """Rows of ``images`` that cannot be used, by a substitute id."""
    rejected: set[int | str] = field(default_factory=set)
    """Ids of these rows."""
    warnings: list[Problem] = field(default_factory=list)
    used: Counter[int | str | None] = field(default_factory=Counter)
    """Number of annotations by `identity` of their category id."""
    annotations: int = 0
    outlines: int = 0
    """Annotations with a mask of any form."""
    crowds: int = 0
    """Annotations with ``iscrowd``."""
    cvat_masks: int = 0
    """Of these, those with CVAT's attribute ``occluded``."""
    normalized: bool = False
    """Whether all coordinates of polygons are fractions of the image's sides."""
    rows_of: Mapping[int | str | None, StoredRows] = field(default_factory=dict)
    """Rows of ``annotations`` by `identity` of their image id; None for those without one."""

    @cached_property
    def ids_of(self) -> dict[int | str, list[int | str]]:
        """For each image's id, the ids that its annotations state: also with leading zeros."""
        ids: dict[int | str, list[int | str]] = {row.number: [row.number] for row in self.images}
        for number in self.rows_of:
            if isinstance(number, str) and number not in ids and re.fullmatch("0[0-9]{1,17}", number):
                ids.get(int(number), []).append(number)
        return ids


def is_coco(path: Path) -> bool:
    """Whether a JSON file mentions images and annotations; without parsing it, as it may have half a gigabyte."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        encoding = "utf-16-le" if 0 in data[:4] else "utf-8"  # of big-endian text the pattern is found one byte later
        return all(data.find(f'"{name}"'.encode(encoding)) >= 0 for name in ("images", "annotations"))


def load_instances(path: Path, name: str) -> InstancesFile:
    """Read a file's images and categories, and where its annotations are.

    Raises:
        DataError: it is not instances JSON, or its categories are damaged; names the file.
    """
    found = InstancesFile(path, name)
    try:
        with path.open("rb") as file:
            _read_members(_Scanner(file), found)
    except DataError:  # a ValueError too
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}. Replace the file, or leave it out (data.annotations).") from None
    return found


def _read_members(scanner: _Scanner, found: InstancesFile) -> None:
    """Read the file's object member by member."""
    lists = set()
    rows = _RowTable()
    reader = _ImageRows(found)
    categories: list[Any] = []
    if scanner.next() == "{":
        for key in scanner.members():
            if key in LISTS and scanner.next() == "[":
                lists.add(key)
                for place, (row, start, end) in enumerate(scanner.elements()):
                    if key == "annotations":
                        rows.add(row, start, end, found)
                    elif key == "images":
                        reader.add(row, place)
                    else:
                        categories.append(row)
            else:
                lists.discard(key)
                value, _, _ = scanner.value()
                found.info = value if key == "info" else found.info
    else:
        scanner.value()
    scanner.end()
    if lists != set(LISTS):
        raise DataError(
            f"{found.path}: not COCO instances JSON: it needs the lists images, annotations and categories."
        )
    found.categories = [_category(found.path, place, row) for place, row in enumerate(categories)]
    found.normalized = rows.fractions > 0 and rows.normalized
    found.rows_of = rows.by_image(found.path)
    reader.finish()


class _Scanner:
    """Parses JSON from a file piece by piece.

    The text is decoded as Latin-1, so that positions in it are those in the file; JSON's own characters are ASCII, and
    values with others are decoded again as UTF-8.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.text, self.at, self.offset = file, "", 0, 0
        self._more()
        encoding = json.detect_encoding(self.text[:4].encode("latin-1"))
        if encoding not in ("utf-8", "utf-8-sig"):
            raise ValueError(f"it is stored as {encoding}; save it as UTF-8")
        self.at = 3 if encoding == "utf-8-sig" else 0

    def _more(self) -> bool:
        """Read on, at least as much as is left over; False, and nothing changes, at the end of the file."""
        block = self.file.read(max(BLOCK, len(self.text) - self.at))
        if block:
            self.offset += self.at
            self.text = self.text[self.at :] + block.decode("latin-1")
            self.at = 0
        return bool(block)

    def next(self) -> str:
        """The next character that is not white space, which stays; empty at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\n\r":
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Read one of the wanted characters."""
        found = self.next()
        if not found or found not in wanted:
            place = self.offset + self.at
            raise ValueError(f"expected {' or '.join(wanted)} at byte {place:,}, but there is {found or 'the end'!r}")
        self.at += 1
        return found

    def value(self) -> tuple[Any, int, int]:
        """The next value, with its first and end offset in the file."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # The value may go on in the next block: then the error is at the end, or an open string.
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated")
                if not cut or not self._more():
                    raise ValueError(f"{error.msg} at byte {self.offset + error.pos:,}") from None
                continue
            if end > len(self.text) - 3 and self._more():  # a number may go on: "1" with ".5" or "e+5"
                continue
            start, self.at = self.at, end
            if not self.text.isascii() and not (part := self.text[start:end]).isascii():
                value = json.loads(part.encode("latin-1"))
            return value, self.offset + start, self.offset + end

    def members(self) -> Iterator[str]:
        """The keys of an object; after each, the caller reads its value."""
        self.take("{")
        if self.next() == "}":
            self.at += 1
            return
        while True:
            key, _, _ = self.value()
            if not isinstance(key, str):
                raise ValueError(f"expected a name in quotes before byte {self.offset + self.at:,}")
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def elements(self) -> Iterator[tuple[Any, int, int]]:
        """The values of a list, with their offsets."""
        self.take("[")
        if self.next() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def end(self) -> None:
        """Check that nothing follows."""
        if self.next():
            raise ValueError(f"there is more after its end, at byte {self.offset + self.at:,}")


class _RowTable:
    """Where the rows of ``annotations`` are, and what they have in common."""

    def __init__(self) -> None:
        self.starts, self.lengths, self.images = array("Q"), array("L"), array("L")
        self.numbers: dict[int | str | None, int] = {}
        self.normalized, self.fractions = True, 0

    def add(self, row: Any, start: int, end: int, found: InstancesFile) -> None:
        """Note a row, and count what it is."""
        known = row if isinstance(row, dict) else {}
        image = identity(known.get("image_id"))
        self.starts.append(start)
        self.lengths.append(end - start)
        self.images.append(self.numbers.setdefault(image, len(self.numbers)))
        found.annotations += 1
        found.used[identity(known.get("category_id"))] += 1
        if has_outline(known):
            found.outlines += 1
            if self.normalized:
                self._check_normalized(known)
        if known.get("iscrowd") and is_crowd(known):
            found.crowds += 1
            attributes = known.get("attributes")
            found.cvat_masks += isinstance(attributes, dict) and "occluded" in attributes

    def _check_normalized(self, row: Mapping[str, Any]) -> None:
        for part in parts_of(row["segmentation"]):
            if isinstance(part, list):
                low, high = -NORMALIZED_TOLERANCE, 1 + NORMALIZED_TOLERANCE
                if not all(is_number(value) and low <= value <= high for value in part):
                    self.normalized = False
                    return
                self.fractions += any(value not in (0, 1) for value in part)

    def by_image(self, path: Path) -> dict[int | str | None, StoredRows]:
        """The rows of each image, in their order."""
        images = np.frombuffer(self.images, dtype=f"u{self.images.itemsize}") if self.images else np.zeros(0, int)
        order = np.argsort(images, kind="stable")
        starts = np.array(self.starts, dtype=np.uint64)[order]
        lengths = np.array(self.lengths, dtype=np.uint32)[order]
        ends = np.cumsum(np.bincount(images, minlength=len(self.numbers)))
        bounds = zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True) if len(ends) else iter(())
        return {
            number: StoredRows(path, starts[first:end], lengths[first:end])
            for number, (first, end) in zip(self.numbers, bounds, strict=True)
        }


class _ImageRows:
    """Reads the rows of ``images``."""

    def __init__(self, found: InstancesFile) -> None:
        self.found = found
        self.names: dict[int | str, str] = {}
        self.repeated = self.unsized = 0
        self.named_by: Counter[str] = Counter()

    def add(self, row: Any, place: int) -> None:
        """Keep a usable row; note why another cannot be used."""
        number = identity(row.get("id")) if isinstance(row, dict) else None
        reason, name = None, ""
        if number is None:
            stated = row.get("id") if isinstance(row, dict) else None
            reason = "has no id; give it one" if stated is None else f"has the id {stated!r:.80}; write a whole number"
        else:
            key = next((key for key in NAME_KEYS if _is_name(row.get(key))), None)
            if key is None:
                reason = "has no file_name; name its image"
            else:
                name = row[key]
                if number in self.names and self.names[number] == name:
                    self.repeated += 1
                    return
                if number in self.names:
                    reason = f"has the id {number!r} of another image; give each its own"
                elif key != "file_name":
                    self.named_by[key] += 1
        if reason is not None:
            problem = Problem(self.found.name, f"images[{place}] {reason}", "row of images that cannot be used")
            self.found.problems[f"{self.found.name} images[{place}]"] = [problem]
            if number is not None and number not in self.names:
                self.found.rejected.add(number)
            return
        assert number is not None
        self.names[number] = name
        width, height = row.get("width"), row.get("height")
        wide, high = _side(width), _side(height)
        self.unsized += (wide is None and width is not None) or (high is None and height is not None)
        size = (wide, high) if wide and high else None
        self.found.images.append(ImageRow(number, name, size))

    def finish(self) -> None:
        """Warn of what was taken although it was not written as COCO has it."""
        for key, count in self.named_by.items():
            self._warn(f"{count} rows of images have no file_name; their names are taken from {key}", "no file_name")
        if self.repeated:
            self._warn(f"{self.repeated} rows of images are there twice; they are read once", "repeated row of images")
        if self.unsized:
            reason = (
                f"{self.unsized} rows of images have a size that is not a number of pixels; the images' own is used"
            )
            self._warn(reason, "size that is not a number of pixels")

    def _warn(self, reason: str, kind: str) -> None:
        self.found.warnings.append(Problem(self.found.name, reason, kind))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _side(value: Any) -> int | None:
    """A side in pixels; None if it is not a positive whole number in any form."""
    side = identity(value)
    return side if isinstance(side, int) and 0 < side < 1_000_000 else None


def _category(path: Path, place: int, row: Any) -> CategoryRow:
    number = identity(row.get("id")) if isinstance(row, dict) else None
    name = row.get("name") if isinstance(row, dict) else None
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if number is None or not isinstance(name, str) or not name.strip() or writable(name) != name:
        raise DataError(f"{path}: categories[{place}] needs an id and a name, but is {str(row)[:80]}. Correct it.")
    parent = row.get("supercategory")
    return CategoryRow(number, name, parent if isinstance(parent, str) else "")
