"""Geometry of crops: which part of an image the network sees, and where in its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Crop:
    """The rectangle that becomes the network's input, in image pixels; it may extend beyond the image."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool = False

    def squared(self) -> Crop:
        """The smallest square crop that shows the same content at the left and top of the network's input.

        The crop is extended to the right, or to the left if mirrored.
        """
        side = max(self.width, self.height)
        left = self.left + self.width - side if self.mirrored else self.left
        return Crop(left, self.top, side, side, self.mirrored)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of (N, 2) points are strictly inside; (N,) bool."""
        low = np.array([self.left, self.top])
        high = low + [self.width, self.height]
        return np.asarray(((points > low) & (points < high)).all(axis=1))


@dataclass(frozen=True)
class VisiblePart:
    """The image pixels inside a crop, and where they go in the network's input before mirroring."""

    source_rows: slice
    source_columns: slice
    """In the image."""
    target_rows: slice
    target_columns: slice
    """In the network's input."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in the network's input."""
        return length(self.target_rows), length(self.target_columns)


def length(part: slice) -> int:
    """Pixels in a slice that has both bounds."""
    return int(part.stop - part.start)


def visible_part(crop: Crop, height: int, width: int, size: int) -> VisiblePart | None:
    """What a network with an input of ``size`` pixels sees of a height x width image; None if nothing."""
    rows = _visible_along(crop.top, crop.height, height, size)
    columns = _visible_along(crop.left, crop.width, width, size)
    return None if rows is None or columns is None else VisiblePart(rows[0], columns[0], rows[1], columns[1])


def _visible_along(start: int, extent: int, image: int, size: int) -> tuple[slice, slice] | None:
    """Source and target of one axis."""
    low, high = max(start, 0), min(start + extent, image)
    if low >= high:
        return None
    target = slice(round((low - start) * size / extent), round((high - start) * size / extent))
    return None if target.start >= target.stop else (slice(low, high), target)


@dataclass(frozen=True)
class View:
    """One image as the network sees it through a crop."""

    crop: Crop
    size: int
    """Side of the network's square input, pixels."""
    part: VisiblePart | None
    """None if the crop shows nothing of the image."""

    @classmethod
    def of(cls, crop: Crop, height: int, width: int, size: int) -> View:
        """View of a height x width image."""
        return cls(crop, size, visible_part(crop, height, width, size))


def filled_share(height: int, width: int) -> tuple[float, float]:
    """Shares (0 to 1) of a square input's rows and columns that an image fills when its aspect ratio is kept."""
    side = max(height, width)
    return height / side, width / side
