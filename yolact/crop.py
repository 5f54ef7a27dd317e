"""The part of a image that becomes the network's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """The part of the plane that becomes the network's input, in image pixels; it may reach beyond the image."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool = False

    def squared(self) -> Window:
        """The smallest square window with the same content at its left and top, as the network sees it.

        It grows to the right, or to the left where it is mirrored.
        """
        side = max(self.width, self.height)
        left = self.left + self.width - side if self.mirrored else self.left
        return Window(left, self.top, side, side, self.mirrored)


@dataclass(frozen=True)
class VisiblePart:
    """The image's pixels inside a window, and where they go in the network's input before that is mirrored."""

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
    """Pixels of a slice with both ends."""
    return int(part.stop - part.start)


def inside(points: np.ndarray, window: Window) -> np.ndarray:
    """Which of (N, 2) points lie strictly inside the window; (N,) bool."""
    low = np.array([window.left, window.top])
    high = low + [window.width, window.height]
    return np.asarray(((points > low) & (points < high)).all(axis=1))


def filled_share(height: int, width: int) -> tuple[float, float]:
    """Shares of the rows and of the columns of a square input that a image fills whose aspect ratio is kept, 0 to 1."""
    side = max(height, width)
    return height / side, width / side


def visible_part(window: Window, height: int, width: int, size: int) -> VisiblePart | None:
    """What of a height x width image a network with an input of ``size`` pixels sees; None where that is nothing."""
    rows = _visible_along(window.top, window.height, height, size)
    columns = _visible_along(window.left, window.width, width, size)
    return None if rows is None or columns is None else VisiblePart(rows[0], columns[0], rows[1], columns[1])


def _visible_along(start: int, extent: int, image: int, size: int) -> tuple[slice, slice] | None:
    """Source and target of one axis."""
    low, high = max(start, 0), min(start + extent, image)
    if low >= high:
        return None
    target = slice(round((low - start) * size / extent), round((high - start) * size / extent))
    return None if target.start >= target.stop else (slice(low, high), target)
