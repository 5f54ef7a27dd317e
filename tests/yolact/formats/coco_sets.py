"""Small COCO data sets that the tests write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from yolact.formats.coco import read_coco
from yolact.formats.dataset import AnnotatedImage, Dataset, ReadOptions

WIDTH, HEIGHT = 12, 8
SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]
"""A polygon of 4 x 4 pixels at (2, 1)."""
TWO_FORMS = {"size": [HEIGHT, WIDTH], "counts": [1, 2, HEIGHT * WIDTH - 3]}
"""Rows 1 and 2 of the first column."""


def annotation(**changes: Any) -> dict[str, Any]:
    row = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": SQUARE, "bbox": [2, 1, 4, 4], "iscrowd": 0}
    return {name: value for name, value in (row | changes).items() if value is not None}


def tree(*annotations: Any, **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": list(annotations),
    } | changes


def write(root: Path, content: Any, name: str = "instances.json") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def save_image(root: Path, name: str = "images/a.jpg", orientation: int = 1, colour: str = "grey") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT), colour).save(root / name, exif=exif)


def load(root: Path, content: Any, **options: Any) -> Dataset:
    return read_coco(root, [write(root, content)], ReadOptions(**options))


def read_one(root: Path, *annotations: Any, **changes: Any) -> AnnotatedImage:
    (source,) = load(root, tree(*annotations, **changes)).splits["train"]
    return source.read()


def kinds(dataset: Dataset) -> list[str]:
    return [warning.kind for warning in dataset.warnings]


def image_ids(dataset: Dataset) -> dict[str, list[str]]:
    return {split: [source.image_id for source in found] for split, found in dataset.splits.items()}
