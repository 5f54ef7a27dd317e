"""Objects kept on disk between reading the photos and writing COCO instances JSON, so that memory stays flat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from yolact.formats.prepare import PhotoSummary


class Records:
    """The JSON rows of each photo's objects, in a file that is removed at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Records:
        self._file: IO[bytes] = self._path.open("xb+")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, photo_id: str, rows: Sequence[str]) -> None:
        """Keep the rows of one photo; a row has no line break."""
        self._places[photo_id] = (self._file.seek(0, 2), len(rows))
        self._file.writelines(f"{row}\n".encode() for row in rows)

    def objects(self, photo_id: str) -> list[dict[str, Any]]:
        """The rows of a photo, read; without ids."""
        return [json.loads(f"{{{row}") for row in self.rows(photo_id)]

    def rows(self, photo_id: str) -> list[str]:
        """What was added for a photo."""
        start, count = self._places[photo_id]
        self._file.seek(start)
        return [self._file.readline().decode()[:-1] for _ in range(count)]


def write_coco(
    path: Path,
    photos: Sequence[PhotoSummary],
    records: Records,
    numbers: Mapping[str, int],
    categories: Mapping[int, str],
    description: str,
) -> None:
    """Write COCO's instances format (cocodataset.org, "Data format"), a line for each photo and each object.

    Args:
        path: a new file.
        photos: in the order to write.
        records: has the objects of each.
        numbers: COCO's image id by photo id.
        categories: name by category id.
        description: what the data is.
    """
    head = {
        "info": {"description": description},
        "licenses": [],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(head)[:-1])
        for name, rows in (
            ("images", _images(photos, numbers)),
            ("annotations", _annotations(photos, records, numbers)),
        ):
            file.write(f',\n"{name}": [')
            for place, row in enumerate(rows):
                file.write(f"{',' if place else ''}\n{row}")
            file.write("\n]")
        file.write("}\n")


def _images(photos: Sequence[PhotoSummary], numbers: Mapping[str, int]) -> Iterator[str]:
    for photo in photos:
        row = {
            "id": numbers[photo.photo_id],
            "file_name": photo.file_name,
            "width": photo.width,
            "height": photo.height,
        }
        yield json.dumps(row)


def _annotations(photos: Sequence[PhotoSummary], records: Records, numbers: Mapping[str, int]) -> Iterator[str]:
    number = 0
    for photo in photos:
        for row in records.rows(photo.photo_id):
            number += 1  # from 1: pycocotools' evaluation takes id 0 for "not matched"
            yield f'{{"id": {number}, "image_id": {numbers[photo.photo_id]}, {row}'
