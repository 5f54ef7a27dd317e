"""Outlines that tests draw themselves, and the comparison of what a format reads with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

from yolact.formats.dataset import AnnotatedImage, Dataset
from yolact.formats.registry import read_dataset

SIZE = (60, 40)
"""Width and height of the images."""

FINER = 8
"""Scale at which masks are drawn."""

Outline = Sequence[tuple[float, float]]

LEFT: Outline = ((5, 5), (25, 5), (25, 30), (15, 36), (5, 30))
RIGHT: Outline = ((35, 8), (55, 12), (50, 33), (33, 25))


def mask(*outlines: Outline, holes: Sequence[Outline] = (), size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) bool: the outlines filled by Pillow, at a larger scale, as it fills the pixels of the edges too."""
    image = Image.new("L", (FINER * size[0], FINER * size[1]))
    draw = ImageDraw.Draw(image)
    for outlines_of, fill in ((outlines, 1), (holes, 0)):
        for outline in outlines_of:
            draw.polygon([(FINER * x, FINER * y) for x, y in outline], fill=fill)
    cells = np.asarray(image).reshape(size[1], FINER, size[0], FINER)
    return np.asarray(cells.mean(axis=(1, 3)) > 0.5)


def save_image(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "grey").save(path, exif=exif)


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def read_all(folder: Path) -> tuple[Dataset, dict[str, AnnotatedImage]]:
    """The data set of a folder, and all its images, by id."""
    dataset = read_dataset(folder)
    return dataset, {source.image_id: source.read() for found in dataset.splits.values() for source in found}


def ids(dataset: Dataset) -> dict[str, list[str]]:
    return {split: sorted(source.image_id for source in found) for split, found in dataset.splits.items()}


def assert_objects(dataset: Dataset, image: AnnotatedImage, *wanted: tuple[str, np.ndarray]) -> None:
    """An image has exactly these objects, in this order, with masks that differ at their edges only."""
    names = list(dataset.classes.values())
    assert [names[instance.class_index - 1] for instance in image.instances] == [name for name, _ in wanted]
    for instance, (name, expected) in zip(image.instances, wanted, strict=True):
        found = mask_utils.decode(instance.rle()).astype(bool)
        assert found.shape == expected.shape
        overlap = (found & expected).sum() / (found | expected).sum()
        assert overlap > 0.85, f"{name}: IoU {overlap:.2f}"
