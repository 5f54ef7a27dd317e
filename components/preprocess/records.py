"""Keep objects on disk between reading the images and writing COCO instances JSON, so that memory use is constant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from yolact.formats.preparation import ImageSummary, parsed_rows


class Records:
    """JSON rows of each image's objects, in a temporary file."""

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

    def add(self, image_id: str, rows: Sequence[str]) -> None:
        """Store the rows of one image; rows have no line breaks."""
        self._places[image_id] = (self._file.seek(0, 2), len(rows))
        self._file.writelines(f"{row}\n".encode() for row in rows)

    def objects(self, image_id: str) -> list[dict[str, Any]]:
        """The parsed rows of an image, without ids."""
        return parsed_rows(self.rows(image_id))

    def rows(self, image_id: str) -> list[str]:
        """The stored rows of an image."""
        start, count = self._places[image_id]
        self._file.seek(start)
        return [self._file.readline().decode()[:-1] for _ in range(count)]


def write_coco(
    path: Path,
    images: Sequence[ImageSummary],
    records: Records,
    numbers: Mapping[str, int],
    categories: Mapping[int, str],
    description: str,
) -> None:
    """Write COCO instances JSON (cocodataset.org, "Data format"), one line per image and object.

    Args:
        path: a new file.
        images: images in the order to write.
        records: their objects.
        numbers: COCO's integer id by image id.
        categories: name by category id.
        description: description of the data.
    """
    head = {
        "info": {"description": description},
        "licenses": [],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(head)[:-1])
        for name, rows in (
            ("images", _images(images, numbers)),
            ("annotations", _annotations(images, records, numbers)),
        ):
            file.write(f',\n"{name}": [')
            for place, row in enumerate(rows):
                file.write(f"{',' if place else ''}\n{row}")
            file.write("\n]")
        file.write("}\n")


def _images(images: Sequence[ImageSummary], numbers: Mapping[str, int]) -> Iterator[str]:
    for image in images:
        row = {
            "id": numbers[image.image_id],
            "file_name": image.file_name,
            "width": image.width,
            "height": image.height,
        }
        yield json.dumps(row)


def _annotations(images: Sequence[ImageSummary], records: Records, numbers: Mapping[str, int]) -> Iterator[str]:
    number = 0
    for image in images:
        for row in records.rows(image.image_id):
            number += 1  # from 1: pycocotools' evaluation takes id 0 for "not matched"
            yield f'{{"id": {number}, "image_id": {numbers[image.image_id]}, {row}'
