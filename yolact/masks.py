"""Instance masks, each stored as a window of the image around its object.

The mask of a small object in a large image is mostly empty. Storing only a window around the object takes a few hundred
kilobytes per image instead of tens of megabytes, and encoding to COCO's RLE skips the empty pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

PIXELS_AT_ONCE = 2**19
"""Window pixels encoded per pass: enough for many small masks, few enough to fit into the CPU cache."""


class Rle(TypedDict):
    """COCO's compressed run-length encoding (RLE), as in a results file."""

    size: list[int]
    """Height and width of the image."""
    counts: str


@dataclass(frozen=True)
class InstanceMasks:
    """N masks of one image."""

    height: int
    width: int
    corners: list[tuple[int, int]]
    """Top and left of each mask's window, pixels."""
    crops: list[np.ndarray]
    """N (h, w) bool: each mask inside its window; empty outside. A window may have no pixels."""

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, rows: Tensor | slice) -> InstanceMasks:
        """Select by a (N,) bool or (M,) int64 index, or by a slice."""
        chosen = torch.arange(len(self))[rows if isinstance(rows, slice) else rows.cpu()].tolist()
        return InstanceMasks(
            self.height, self.width, [self.corners[row] for row in chosen], [self.crops[row] for row in chosen]
        )

    @classmethod
    def from_tensor(cls, masks: Tensor) -> InstanceMasks:
        """From full-size (N, H, W) masks, non-zero inside the object."""
        _, height, width = masks.shape
        corners, crops = [], []
        for mask in masks.cpu().numpy() != 0:
            rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
            top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
            left, right = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
            corners.append((top, left))
            crops.append(mask[top:bottom, left:right].copy())
        return cls(height, width, corners, crops)

    def to_tensor(self) -> Tensor:
        """(N, H, W) bool, on the CPU."""
        masks = np.zeros((len(self), self.height, self.width), dtype=bool)
        for mask, (top, left), crop in zip(masks, self.corners, self.crops, strict=True):
            mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        return torch.from_numpy(masks)

    @classmethod
    def from_rle(cls, rles: Sequence[Any], height: int, width: int) -> InstanceMasks:
        """From compressed RLE of an image of ``height`` x ``width`` pixels; the inverse of `to_rle`."""
        if not rles:
            return cls(height, width, [], [])
        masks = coco_mask.decode(list(rles))  # (H, W, N)
        return cls.from_tensor(torch.from_numpy(np.ascontiguousarray(masks.transpose(2, 0, 1))))

    def to_rle(self) -> list[Rle]:
        """COCO's compressed RLE, identical to pycocotools' encoding of the full-size masks."""
        if not self.crops:
            return []
        size = [self.height, self.width]
        runs = [{"size": size, "counts": counts} for part in self._parts() for counts in _run_lengths(part)]
        return [
            {"size": [self.height, self.width], "counts": rle["counts"].decode("ascii")}
            for rle in coco_mask.frPyObjects(runs, self.height, self.width)
        ]

    def _parts(self) -> Iterator[InstanceMasks]:
        """The masks in chunks of about `PIXELS_AT_ONCE` pixels."""
        begin, pixels = 0, 0
        for end, crop in enumerate(self.crops):
            if end > begin and pixels + crop.size > PIXELS_AT_ONCE:
                yield self[begin:end]
                begin, pixels = end, 0
            pixels += crop.size
        yield self[begin:]

    def to_polygons(self) -> list[list[np.ndarray]]:
        """Outer contours of each mask, image pixels; see `outer_contours`."""
        return [
            [contour + np.array([left, top], dtype=np.float32) for contour in outer_contours(crop)]
            for crop, (top, left) in zip(self.crops, self.corners, strict=True)
        ]

    def to_exact_polygons(self) -> list[list[np.ndarray]]:
        """Polygons of each mask, image pixels, holes included; see `exact_polygons`."""
        return [
            [polygon + np.array([left, top], dtype=np.float32) for polygon in exact_polygons(crop)]
            for crop, (top, left) in zip(self.crops, self.corners, strict=True)
        ]

    def to_joined_outlines(self) -> list[np.ndarray]:
        """One outline of each mask, image pixels, holes included; see `joined_outline`."""
        return [
            joined_outline(crop) + np.array([left, top], dtype=np.float32)
            for crop, (top, left) in zip(self.crops, self.corners, strict=True)
        ]


_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Right, down, left, up: each is a right turn from the one before."""


def outer_contours(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a mask's connected parts, along pixel edges.

    The pixel in row r and column c is the square from (c, r) to (c + 1, r + 1). If it is in the mask or in a hole, its
    centre is inside at least one of the polygons (even-odd rule); otherwise inside none. Holes are filled, because
    COCO polygons have none; a gap that touches the outside at a corner is not a hole. Parts of the mask that touch only
    at a corner have separate contours.

    Args:
        mask: (H, W) bool.

    Returns:
        The corners of each part, (n, 2) float32 x and y, clockwise on a screen, starting at the topmost and then
        leftmost one, which is not repeated at the end.
    """
    return [contour for contour in _contours(mask) if _signed_area(contour) > 0]  # else the border of a hole


def exact_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons whose union is exactly the mask (H, W) bool: one per part, or a single one if there are holes.

    Returns:
        (n, 2) float32 x and y each, as of `outer_contours`; the single one as of `joined_outline`.
    """
    contours = _contours(mask)
    has_holes = any(_signed_area(contour) < 0 for contour in contours)
    return [_joined(contours)] if has_holes else contours


def joined_outline(mask: np.ndarray) -> np.ndarray:
    """One polygon of a mask: the outlines of all its parts and holes, joined by lines there and back.

    By the even-odd rule, its inside is exactly the mask: a line there and back has no pixel.

    Args:
        mask: (H, W) bool.

    Returns:
        (n, 2) float32 x and y; (0, 2) for an empty mask.
    """
    return _joined(_contours(mask))


def _joined(contours: Sequence[np.ndarray]) -> np.ndarray:
    if len(contours) <= 1:
        return contours[0] if contours else np.zeros((0, 2), dtype=np.float32)
    start = contours[0][:1]
    joined = [contours[0], start]
    for contour in contours[1:]:
        joined += [contour, contour[:1], start]
    return np.concatenate(joined[:-1])  # the polygon closes by itself


def _contours(mask: np.ndarray) -> list[np.ndarray]:
    """Borders of the parts of a mask (H, W) bool, clockwise, and of its holes, counter-clockwise: see
    `outer_contours`."""
    edges = _directed_edges(mask)
    contours, left = [], dict.fromkeys(edges)  # a dict keeps the order: top edges first, in reading order
    while left:
        loop = _loop(edges, next(iter(left)))
        for edge in loop:
            del left[edge]
        corners = [edge[:2] for before, edge in zip([loop[-1], *loop], loop, strict=False) if before[2] != edge[2]]
        contours.append(np.array(corners, dtype=np.float32))
    return contours


def _directed_edges(mask: np.ndarray) -> dict[tuple[int, int, int], None]:
    """Edges between mask and background, with the mask on their right: x and y of the start, index in `_STEPS`."""
    padded = np.pad(mask, 1)
    outside = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])  # above, right, below, left
    corner = ((0, 0), (1, 0), (1, 1), (0, 1))  # of the pixel, where its edge starts
    edges: dict[tuple[int, int, int], None] = {}
    for direction, (neighbour, (x, y)) in enumerate(zip(outside, corner, strict=True)):
        rows, columns = (mask & ~neighbour).nonzero()
        edges |= dict.fromkeys(
            (column + x, row + y, direction) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        )
    return edges


def _loop(edges: dict[tuple[int, int, int], None], start: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The closed loop of edges from ``start``; at a fork it turns right, which stays at the same pixel."""
    loop, edge = [start], start
    while True:
        x, y, direction = edge
        x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
        turns = ((x, y, (direction + turn) % 4) for turn in (1, 0, -1))
        edge = next(follower for follower in turns if follower in edges)
        if edge == start:
            return loop
        loop.append(edge)


def _signed_area(corners: np.ndarray) -> float:
    """Signed area of a polygon of (n, 2) x and y; positive if clockwise on a screen, where y points down."""
    x, y = corners.astype(np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _run_lengths(masks: InstanceMasks) -> list[np.ndarray]:
    """Alternating run lengths of zeros and ones down each mask's columns, zeros first.

    Masks are encoded in groups: most are small, and the overhead of a NumPy call equals about a thousand pixels.
    """
    tall = np.array([crop.shape[0] for crop in masks.crops])
    wide = np.array([crop.shape[1] for crop in masks.crops])
    top, left = np.array(masks.corners).T
    # Column by column, each closed by a zero, so no run continues into the next column.
    first = np.concatenate([[0], (wide * (tall + 1)).cumsum()])
    closed = np.zeros(first[-1] + 1, dtype=bool)
    columns = closed[1:]  # the element before it belongs to no mask
    for crop, start, end in zip(masks.crops, first[:-1], first[1:], strict=True):
        columns[start:end].reshape(-1, crop.shape[0] + 1)[:, :-1] = crop.T
    changes = np.flatnonzero(closed[1:] != closed[:-1])  # alternating starts and ends of runs of ones
    counts = np.diff(np.searchsorted(changes, first))
    mask = np.repeat(np.arange(len(masks)), counts)
    column, row = np.divmod(changes - first[mask], tall[mask] + 1)
    positions = (left[mask] + column) * masks.height + top[mask] + row
    # A run that reaches the bottom of the image may continue at the top of the next column: join the two.
    joined = np.flatnonzero((positions[1:-1:2] == positions[2::2]) & (mask[1:-1:2] == mask[2::2])) * 2 + 1
    positions = np.delete(positions, np.concatenate([joined, joined + 1]))
    counts -= 2 * np.bincount(mask[joined], minlength=len(masks))
    # Each mask's positions, framed by 0 and the image's end; two neighbours enclose a run.
    pixels = masks.height * masks.width
    after = (counts + 2).cumsum()
    before = after - counts - 2
    ends = np.empty(after[-1], dtype=np.uint32)
    is_position = np.ones(after[-1], dtype=bool)
    for places, value in ((before, 0), (after - 1, pixels)):
        ends[places], is_position[places] = value, False
    ends[is_position] = positions
    runs = np.diff(ends)
    after -= 1 + ((runs[after - 2] == 0) & (counts > 0))  # no empty run at the end
    return [runs[start:end] for start, end in zip(before, after, strict=True)]
