"""Results for the eye: drawings over the images, and every object cut out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from yolact.inference.detections import Detections
from yolact.results.image import ResultClasses, ResultImage
from yolact.visualize import draw_detections

JPEG_QUALITY = 92

MAX_JPEG_SIDE = 65_500
"""Largest width and height that libjpeg writes, pixels; larger pictures are PNG files."""


class Pictures:
    """The image with masks, boxes, classes and scores: ``pictures/NAME.jpg``."""

    def __init__(self, folder: Path, classes: ResultClasses) -> None:
        self._folder, self._classes = folder / "pictures", classes

    def add(self, image: ResultImage, found: Detections) -> None:
        """As `ResultWriter.add`."""
        self._folder.mkdir(exist_ok=True)
        picture = Image.fromarray(draw_detections(image.array, found, self._classes.names))
        if max(picture.size) > MAX_JPEG_SIDE:
            picture.save(self._folder / f"{image.name}.png")
        else:
            picture.save(self._folder / f"{image.name}.jpg", quality=JPEG_QUALITY)

    def close(self) -> None:
        """As `ResultWriter.close`."""


class CutOuts:
    """Each object as ``cutouts/NAME_K.png``, transparent outside of its mask; K counts from 1, best score first.

    The file has the smallest rectangle that holds the mask; an object without pixels has no file.
    """

    def __init__(self, folder: Path, classes: ResultClasses) -> None:
        self._folder = folder / "cutouts"

    def add(self, image: ResultImage, found: Detections) -> None:
        """As `ResultWriter.add`."""
        masks = found.instance_masks
        for number, ((top, left), crop) in enumerate(zip(masks.corners, masks.crops, strict=True), 1):
            if not crop.any():
                continue
            self._folder.mkdir(exist_ok=True)
            rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
            tight = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            mask = crop[tight]
            y, x = top + rows[0], left + columns[0]
            colors = image.array[y : y + mask.shape[0], x : x + mask.shape[1]] * mask[..., None]
            pixels = np.dstack([colors, mask.astype(np.uint8) * 255])
            Image.fromarray(pixels).save(self._folder / f"{image.name}_{number}.png")

    def close(self) -> None:
        """As `ResultWriter.close`."""
