"""The images that the cost of the steps is measured on: as many as wanted, and no two alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from yolact.formats.dataset import ReadOptions
from yolact.formats.registry import read_dataset
from yolact_bench.studies.scale import make_sample, make_source, write_copy


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_copies_of_an_image_differ_also_beyond_256(tmp_path: Path) -> None:
    Image.fromarray(np.full((96, 96, 3), 128, np.uint8)).save(tmp_path / "original.jpg")
    numbers = [0, 1, 2, 255, 256, 257, 512, 5120]
    for number in numbers:
        write_copy(tmp_path / "original.jpg", tmp_path / f"{number}.jpg", number)
    assert len({pixels(tmp_path / f"{number}.jpg") for number in numbers}) == len(numbers)


def test_a_source_has_the_wanted_images_a_tenth_for_validation(tmp_path: Path) -> None:
    make_sample(tmp_path / "sample", 20)
    make_source(tmp_path / "sample", tmp_path / "source", 50)
    dataset = read_dataset(tmp_path / "source", ReadOptions(splits=("train", "val")))
    assert {split: len(found) for split, found in dataset.splits.items()} == {"train": 45, "val": 5}
    images = list((tmp_path / "source").rglob("*.jpg"))
    assert len({pixels(path) for path in images}) == len(images) == 50
