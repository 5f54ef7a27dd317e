"""Outlines and bitmaps of annotation tools in COCO's forms: polygons [x0, y0, x1, y1, ...] and plain run lengths.

Values come from untrusted files: what is not a finite number becomes NaN or infinity, which `yolact.formats.coco_rows`
reports.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

MAX_DEVIATION = 0.05
"""Maximum distance of an ellipse and its polygon, pixels. Our choice."""

LEAST_ELLIPSE_POINTS, MAX_ELLIPSE_POINTS = 12, 720

MAX_PACKED = 64 << 20
"""Maximum size of a compressed bitmap when it is unpacked, bytes: a PNG of one object has some kilobytes."""

Size = tuple[int, int]
"""Width and height, pixels."""

Part = list[float] | dict[str, Any]
"""A polygon, or plain run lengths."""


class OutlineError(ValueError):
    """A shape has no outline or bitmap that can be read; the message continues its name."""

    def __init__(self, reason: str, kind: str = "shape that cannot be read") -> None:
        super().__init__(reason)
        self.kind = kind
        """See `yolact.formats.problems.Problem`."""


def number(value: Any) -> float:
    """A JSON number as float; NaN if it is none, infinity if it is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def points(values: Any) -> list[float] | None:
    """A list of [x, y] as a polygon; None if it is anything else."""
    if not isinstance(values, list) or not all(isinstance(point, list) and len(point) == 2 for point in values):
        return None
    return [number(side) for point in values for side in point]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """The polygon of a rectangle, from two opposite corners."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
    """The polygon of an ellipse with the half axes ``rx`` and ``ry``, turned by ``angle`` (radians, clockwise)."""
    largest = max(abs(rx), abs(ry))
    count = LEAST_ELLIPSE_POINTS
    if largest > 1:  # false for NaN
        fitting = math.pi * math.sqrt(min(largest, 1e9) / (2 * MAX_DEVIATION))  # the cosine's first terms
        count = min(max(count, math.ceil(fitting)), MAX_ELLIPSE_POINTS)
    turns = np.arange(count) * (2 * math.pi / count)
    with np.errstate(all="ignore"):
        along, across = rx * np.cos(turns), ry * np.sin(turns)
        cos, sin = (math.cos(angle), math.sin(angle)) if math.isfinite(angle) else (math.nan, math.nan)
        around = np.stack((cx + along * cos - across * sin, cy + along * sin + across * cos), axis=1)
    return [float(side) for side in around.ravel()]


def with_holes(outline: Sequence[float], holes: Sequence[Sequence[float]]) -> list[float]:
    """One polygon of an outline and its holes, which it reaches by lines there and back.

    pycocotools fills by the even-odd rule: what is inside both is empty, and a line there and back has no pixel.
    """
    usable = [hole for hole in holes if len(hole) >= 6]
    joined = [*outline, *outline[:2]] if usable else list(outline)
    for hole in usable:
        joined += [*hole, *hole[:2], *outline[:2]]
    return joined


def decoded_bitmap(text: Any, *, packed: bool = False) -> np.ndarray:
    """Decode a base64 PNG to a mask (H, W) bool: its alpha channel if it has one, otherwise all that is not 0.

    Args:
        text: base64 text.
        packed: whether the PNG is compressed with zlib.

    Raises:
        OutlineError: it is anything else, or too large.
    """
    if not isinstance(text, str):
        raise OutlineError("has no bitmap")
    try:
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text)
    except (ValueError, binascii.Error):
        raise OutlineError("has a bitmap that is not base64") from None
    if packed:
        unpacking = zlib.decompressobj()
        try:
            data = unpacking.decompress(data, MAX_PACKED)
        except zlib.error:
            raise OutlineError("has a bitmap that is not compressed by zlib") from None
        if unpacking.unconsumed_tail:
            raise OutlineError(f"has a bitmap that unpacks to more than {MAX_PACKED >> 20} MB")
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        pixels: np.ndarray = np.asarray(image)
    except Exception as error:  # decoders raise many types on damaged input
        raise OutlineError(f"has a bitmap that is not a PNG ({type(error).__name__})") from None
    if pixels.ndim == 3:
        pixels = pixels[:, :, -1] if image.mode in ("RGBA", "LA") else pixels.max(axis=2)
    return np.asarray(pixels > 0)


def placed_mask(mask: np.ndarray, left: int, top: int, size: Size) -> dict[str, Any]:
    """Plain run lengths of a mask (H, W) bool whose first pixel is at ``left``, ``top`` of a frame; clipped to it."""
    width, height = size
    inside = mask[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    rows, columns = inside.shape
    if not inside.any():
        return {"size": [height, width], "counts": [height * width]}
    flat = np.concatenate((inside.T, np.zeros((columns, 1), dtype=bool)), axis=1).ravel()  # runs end with their column
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False)).astype(np.int64)
    column, row = np.divmod(edges, rows + 1)
    places = (column + max(left, 0)) * height + row + max(top, 0)  # starts and ends in turn
    starts, ends = places[::2], places[1::2]
    apart = starts[1:] != ends[:-1]  # runs over the frame's full height meet
    starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    counts = np.diff(np.stack((starts, ends), axis=1).ravel(), prepend=0, append=height * width)
    return {"size": [height, width], "counts": counts[: len(counts) - (counts[-1] == 0)].tolist()}
