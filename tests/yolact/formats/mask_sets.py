"""Data sets of mask images, drawn for tests: squares of three classes, written in the ways of annotation tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from yolact.formats.dataset import AnnotatedImage, Dataset, ReadOptions
from yolact.formats.registry import dataset_files, read_dataset

SIZE = (24, 20)
"""Width and height, pixels."""

NAMES = ("bolt", "nut", "washer")


@dataclass(frozen=True)
class Drawn:
    """An image with its objects."""

    name: str
    numbers: np.ndarray
    """(20, 24) uint8 object numbers."""
    labels: tuple[int, ...]
    """Class (1 to 3) of each object, from number 1."""

    def classes(self) -> np.ndarray:
        """(20, 24) uint8 class indices."""
        return np.array([0, *self.labels], dtype=np.uint8)[self.numbers]


def drawn(count: int = 4) -> list[Drawn]:
    """Images with two to four squares, which touch; each class is in every image but one."""
    images = []
    for place in range(count):
        numbers = np.zeros(SIZE[::-1], dtype=np.uint8)
        number = 2 + place % 3
        for k in range(number):
            numbers[2 + k : 9 + k, 1 + 5 * k : 6 + 5 * k] = k + 1
        images.append(Drawn(f"img_{place:03}", numbers, tuple(1 + (place + k) % 3 for k in range(number))))
    return images


def put(path: Path, pixels: np.ndarray | Image.Image | bytes | str) -> None:
    """Write a file, an image by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, (bytes, str)):
        path.write_bytes(pixels if isinstance(pixels, bytes) else pixels.encode())
        return
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    with path.open("wb") as file:
        image.save(file, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")


def photo(seed: int = 0) -> np.ndarray:
    """(20, 24, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)


def colormap(count: int = 256) -> np.ndarray:
    """VOC's palette as labelme and CVAT compute it, independent of the code under test."""
    colours = np.zeros((count, 3), dtype=np.uint8)
    for index in range(count):
        rest, shift = index, 7
        while rest:
            for channel in range(3):
                colours[index, channel] |= ((rest >> channel) & 1) << shift
            rest, shift = rest >> 3, shift - 1
    return colours


def indexed(mask: np.ndarray, palette: np.ndarray | None = None) -> Image.Image:
    """A palette image of indices."""
    image = Image.fromarray(mask)
    image.putpalette((colormap() if palette is None else palette).tobytes())
    return image


def found(folder: Path, **options: object) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Class name and mask of each object by image, after the way through ingest."""
    dataset = ingested(folder, **options)
    images = [source.read() for sources in dataset.splits.values() for source in sources]
    assert not any(image.dropped for image in images)
    return {image.image_id: objects_of(image, dataset) for image in images}


def objects_of(image: AnnotatedImage, dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    """Class name and mask of each object."""
    names = list(dataset.classes.values())
    return [(names[item.class_index - 1], mask_utils.decode(item.rle()).astype(bool)) for item in image.instances]


def ingested(folder: Path, **options: object) -> Dataset:
    """Read a copy of the files that ingest brings."""
    raw = folder.with_name(f"{folder.name}.raw")
    for group in dataset_files(folder):
        for name in group.names:
            for path in [group.origin / name, *(group.origin / name).rglob("*")]:
                if path.is_file():
                    put(raw / group.target / path.relative_to(group.origin), path.read_bytes())
    return read_dataset(raw, ReadOptions(**options))  # type: ignore[arg-type]


def same(result: dict[str, list[tuple[str, np.ndarray]]], images: list[Drawn], names: tuple[str, ...] = NAMES) -> bool:
    """Whether all objects are there, each with its own mask and class."""
    if result.keys() != {image.name for image in images}:
        return False
    for image in images:
        expected = {(names[label - 1], (image.numbers == k).tobytes()) for k, label in enumerate(image.labels, 1)}
        objects = [(name, mask.tobytes()) for name, mask in result[image.name]]
        if len(objects) != len(expected) or set(objects) != expected:
            return False
    return True
