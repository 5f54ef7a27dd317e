"""An image whose detections are written, and what a writer of a format is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from yolact.inference.detections import Detections


@dataclass(frozen=True)
class ResultImage:
    """An image, or a frame of a video."""

    id: int
    """From 1, in the order of the inputs: the image's id in COCO files."""
    name: str
    """File name without suffix of the image's results; no other image has it, in any letter case."""
    file_name: str
    """What COCO files call the image: its path below the folder that was named, or the frame of a video."""
    pixels: Tensor
    """(3, H, W) uint8 RGB, upright."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def array(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, sharing the pixels' memory."""
        return self.pixels.permute(1, 2, 0).numpy()

    def entry(self) -> dict[str, object]:
        """The image's row in COCO files."""
        height, width = self.size
        return {"id": self.id, "file_name": self.file_name, "width": width, "height": height}


@dataclass(frozen=True)
class ResultClasses:
    """The classes of a model."""

    names: tuple[str, ...]
    """Of label 0, 1, ..."""
    category_ids: tuple[int, ...]
    """COCO's category id of label 0, 1, ..."""


class ResultWriter(Protocol):
    """Writes one format into a folder that exists.

    A writer is made by ``Writer(folder, classes)``, gets every image once, and is then closed, which completes its
    files.
    """

    def __init__(self, folder: Path, classes: ResultClasses) -> None: ...

    def add(self, image: ResultImage, found: Detections) -> None:
        """Write the detections of an image; their masks are as large as the image."""

    def close(self) -> None:
        """Complete the files."""
