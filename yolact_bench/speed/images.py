"""Images for the inference and training benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolact.formats.sample import generate_sample
from yolact.images import read_image
from yolact.settings import SampleConfig

HEIGHT, WIDTH = 375, 500
"""Usual size of a PASCAL VOC image, pixels."""


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Images as (H, W, 3) uint8 RGB arrays; without paths one image of the generated sample, 500 x 375.

    Raises:
        DataError: a file is missing or not an image.
    """
    if not paths:
        return [_example()]
    return [read_image(path).permute(1, 2, 0).contiguous().numpy() for path in paths]


def _example() -> np.ndarray:
    config = SampleConfig(seed=0, train_images=1, val_images=1, min_size=WIDTH, max_size=WIDTH, max_objects=3)
    with tempfile.TemporaryDirectory(prefix="yolact-bench-") as folder:
        generate_sample(Path(folder), config)
        [path, _] = sorted(Path(folder).rglob("*.jpg"))
        [image] = read_images([path])
    return image[:HEIGHT]
