"""The scan of one part of a data set: its prepared images in tar files, and what was found in each.

Written by scan, merged by preprocess. A folder with

- ``scan.json``: which part of how many, the SHA-256 of the data set's listing (but for its folder), and in the first
  part the listing;
- ``images.jsonl``: a line for each image, as `ScanWriter` writes it;
- ``images-000000.tar`` and so on, see `yolact.data.shards`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from yolact.data.shards import LocalShards, Part, Place, ShardPlan, shard_name, write_shard
from yolact.errors import DataError
from yolact.files import write_json_atomic
from yolact.formats.dataset import Dataset
from yolact.formats.preparation import COLUMNS, ImageSummary, PreparedImage, RejectedImage
from yolact_ops.scanning.listing import listing_from_json, listing_to_json, problems_from_json, problems_to_json

HEAD, LINES, TAR = "scan.json", "images.jsonl", "images"

IMAGES_PER_TAR = 1000
"""Maximum number of images in a tar file, and of results that `ScanWriter` keeps in memory."""

_HASHES, _PROBLEMS = ("sha256", "source_sha256"), ("warnings", "dropped")
"""Fields of `ImageSummary` that are bytes and problems."""


@dataclass(frozen=True)
class StoredImage:
    """A prepared image and where its file is."""

    prepared: PreparedImage
    place: Place


StoredResult = StoredImage | RejectedImage


@dataclass(frozen=True)
class StoredReadings:
    """An image that only the others can decide, with its masks read as drawn on the upright image and as stored."""

    upright: StoredResult
    as_stored: StoredResult

    @property
    def image_id(self) -> str:
        """The image's id."""
        return self.upright.image_id if isinstance(self.upright, RejectedImage) else _name(self.upright)

    def reading(self, upright: bool) -> StoredResult:
        """One of the two."""
        return self.upright if upright else self.as_stored


def _name(stored: StoredImage) -> str:
    return stored.prepared.summary.image_id


class ScanWriter:
    """Writes the scan of one part into an existing folder."""

    def __init__(self, folder: Path, dataset: Dataset, part: int, parts: int) -> None:
        """Write the head.

        Args:
            folder: an empty folder.
            dataset: the whole data set.
            part: number of the part, from 0.
            parts: number of all parts.
        """
        self._folder = folder
        self.images = folder / ".images"
        """Folder that images are prepared in."""
        self.images.mkdir()
        self._waiting: list[Sequence[PreparedImage | RejectedImage]] = []
        self._tars = 0
        listing = listing_to_json(dataset)
        anywhere = listing | {"root": ""}  # each scan may have fetched the data set into a folder of its own
        digest = hashlib.sha256(json.dumps(anywhere, sort_keys=True).encode()).hexdigest()
        head = {"part": part, "parts": parts, "listing_sha256": digest}
        write_json_atomic(folder / HEAD, head | ({"listing": listing} if part == 0 else {}))

    def __enter__(self) -> ScanWriter:
        self._file: IO[str] = (self._folder / LINES).open("x", encoding="utf-8", newline="\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
            self.images.rmdir()
        self._file.close()

    def add(self, result: PreparedImage | RejectedImage) -> None:
        """Store a result; the file of a prepared image is in `images`, and is moved."""
        self._add([result])

    def add_readings(self, upright: PreparedImage | RejectedImage, as_stored: PreparedImage | RejectedImage) -> None:
        """Store both readings of an image that only the others can decide; the one file serves both."""
        self._add([upright, as_stored])

    def _add(self, results: Sequence[PreparedImage | RejectedImage]) -> None:
        self._waiting.append(results)
        if len(self._waiting) == IMAGES_PER_TAR:
            self.flush()

    def flush(self) -> None:
        """Move the images of all results so far into a tar file."""
        names = [found[0].summary.file_name for found in self._waiting if isinstance(found[0], PreparedImage)]
        places: Iterator[Place] = iter(())
        if names:
            path = self._folder / shard_name(TAR, self._tars)
            places = iter(write_shard(ShardPlan(path, self._tars, 0, [self.images / name for name in names])))
            self._tars += 1
        for found in self._waiting:
            place = next(places) if isinstance(found[0], PreparedImage) else None
            self._file.write(json.dumps([_to_json(result, place) for result in found]) + "\n")
        self._waiting.clear()


@dataclass(frozen=True)
class Scan:
    """What `ScanWriter` wrote."""

    folder: Path
    part: int
    parts: int
    listing_sha256: str
    listing: Dataset | None
    """The whole data set; in the first part only."""

    @classmethod
    def open(cls, folder: Path) -> Scan:
        """Read the head of a scan.

        Raises:
            DataError: the folder is not a scan.
        """
        try:
            head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
            listing = listing_from_json(head["listing"]) if "listing" in head else None
            return cls(folder, int(head["part"]), int(head["parts"]), str(head["listing_sha256"]), listing)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder / HEAD, error) from error

    def results(self) -> Iterator[tuple[int, StoredResult | StoredReadings]]:
        """Each line's position in the file, and what it says of its image.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            with (self.folder / LINES).open("rb") as file:
                position = 0
                for line in file:
                    yield position, _from_line(line)
                    position += len(line)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(self.folder / LINES, error) from error

    def readings_at(self, position: int) -> StoredReadings:
        """The readings that `results` gave at this position."""
        with (self.folder / LINES).open("rb") as file:
            file.seek(position)
            found = _from_line(file.readline())
        assert isinstance(found, StoredReadings)
        return found

    def image(self, place: Place) -> bytes:
        """An image's file.

        Raises:
            DataError: it is missing or damaged.
        """
        part = Part(shard_name(TAR, place.shard), place.offset, place.length, place.crc32)
        data = LocalShards(self.folder).read(part)
        if not part.is_in(data):
            raise _damaged(self.folder / part.shard, "its checksum differs")
        return data


def open_scans(folders: Sequence[Path]) -> tuple[Dataset, list[Scan]]:
    """The data set as listed, and the scans of all its parts in their order, whatever the order of the folders.

    Raises:
        DataError: a part is missing, is there twice, or is of another data set.
    """
    scans = sorted((Scan.open(folder) for folder in folders), key=lambda scan: scan.part)
    found = [(scan.part, scan.parts, scan.listing_sha256) for scan in scans]
    listing = scans[0].listing if scans else None
    if listing is None or found != [(part, len(scans), scans[0].listing_sha256) for part in range(len(scans))]:
        listed = ", ".join(f"{part} of {parts} ({digest[:8]})" for part, parts, digest in found) or "none"
        raise DataError(f"the scans are not all parts of one data set, but parts {listed}. Run the pipeline again.")
    return listing, scans


def _damaged(path: Path, error: object) -> DataError:
    return DataError(f"{path}: not what the scan step writes ({error!r}). Run it again.")


def _to_json(result: PreparedImage | RejectedImage, place: Place | None) -> dict[str, Any]:
    if isinstance(result, RejectedImage):
        return {"image": result.image_id, "problems": problems_to_json(result.problems)}
    summary = {field.name: getattr(result.summary, field.name) for field in fields(ImageSummary)}
    summary |= {name: summary[name].hex() for name in _HASHES}
    summary |= {name: problems_to_json(summary[name]) for name in _PROBLEMS}
    summary["instances"] = result.summary.instances.tolist()  # exact: float32 in float64; NaN as JSON's extension
    assert place is not None
    return {"summary": summary, "rows": result.rows, "file": result.file, "place": list(place)}


def _from_line(line: bytes) -> StoredResult | StoredReadings:
    found = [_from_json(tree) for tree in json.loads(line)]
    return found[0] if len(found) == 1 else StoredReadings(*found)


def _from_json(tree: Mapping[str, Any]) -> StoredResult:
    if "problems" in tree:
        return RejectedImage(tree["image"], problems_from_json(tree["problems"]))
    entries = dict(tree["summary"])
    entries |= {name: bytes.fromhex(entries[name]) for name in _HASHES}
    entries |= {name: problems_from_json(entries[name]) for name in _PROBLEMS}
    entries["instances"] = np.array(entries["instances"], dtype=np.float32).reshape(-1, COLUMNS)
    entries["other_classes"] = tuple(entries["other_classes"])
    summary = ImageSummary(**entries)
    return StoredImage(PreparedImage(summary, tuple(tree["rows"]), tree["file"]), Place(*tree["place"]))
