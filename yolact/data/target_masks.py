"""Target masks at the resolutions of the losses, computed directly from RLE.

A mask is processed in two steps: resized with the image to the network's input and rounded, then reduced to the
prototypes' and P3's resolution (`yolact.structures.targets_from_masks`). The reduction is bilinear without
antialiasing, so it reads two rows and two columns of the input-sized mask per pixel; that mask is computed only there,
and only around the object. The result is exactly that of the two full steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from yolact.crop import View, VisiblePart, length
from yolact.masks import InstanceMasks, Rle


@dataclass(frozen=True)
class Grids:
    """Sides of a batch's square tensors, in pixels or cells."""

    image: int
    """S, the network's input."""
    masks: int
    """The prototypes, or a multiple of them."""
    semantic: int
    """P3."""

    @classmethod
    def of_input(cls, size: int, mask_upsampling: int = 1) -> Grids:
        """Grids of a network with an input of ``size`` pixels, and masks ``mask_upsampling`` times the prototypes.

        P3 has an eighth of that, rounded up (`yolact.models.yolact.Yolact.level_sizes`), and the prototypes twice P3's
        (paper, figure 3).
        """
        cells = -(-size // 8)
        return cls(size, 2 * cells * mask_upsampling, cells)


@dataclass(frozen=True)
class Taps:
    """The two samples that make up each pixel of a bilinearly resized axis, and their weights."""

    low: np.ndarray
    high: np.ndarray
    """(n,) integers."""
    low_weight: np.ndarray
    high_weight: np.ndarray
    """(n,) int32; the two of a pixel add up to ``total``."""
    total: int


def bilinear_taps(samples: int, size: int, pixels: np.ndarray) -> Taps:
    """Integer weights with half-pixel centres, without antialiasing.

    Pixel k of ``size`` is at (k + 1/2) samples / size - 1/2, a fraction over 2 size, clamped to the first sample.

    Args:
        samples: length of the axis before resizing.
        size: length after resizing.
        pixels: (n,) indices of the wanted pixels, 0 to size - 1.
    """
    position = ((2 * pixels.astype(np.int64) + 1) * samples - size).clip(min=0)
    low, high_weight = (part.astype(np.int32) for part in np.divmod(position, 2 * size))
    return Taps(low, np.minimum(low + 1, samples - 1), np.int32(2 * size) - high_weight, high_weight, 2 * size)


def sample_mask(mask: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """Pixels (rows, columns) uint8 of a resized mask.

    Args:
        mask: (H, W) uint8, 0 or 1; fastest if its columns are contiguous, as pycocotools decodes masks.
    """
    across = mask.T  # (W, H)
    sums = across[columns.low] * columns.low_weight[:, None] + across[columns.high] * columns.high_weight[:, None]
    sums = np.ascontiguousarray(sums.T)  # (H, columns)
    sums = sums[rows.low] * rows.low_weight[:, None] + sums[rows.high] * rows.high_weight[:, None]
    return (sums >= rows.total * columns.total // 2).view(np.uint8)


@dataclass(frozen=True)
class _Reduction:
    """The two pixels that make up each of n cells, and their weights."""

    pixels: np.ndarray
    """(2 n,) int64, ascending: the lower and the higher pixel of each cell."""
    weights: np.ndarray
    """(2 n,) float32."""


@lru_cache(maxsize=64)
def _reduction(size: int, cells: int) -> _Reduction:
    """How `F.interpolate` reduces ``size`` pixels to ``cells``, measured on single pixels."""
    unit = torch.eye(size)[None, None]
    shares = F.interpolate(unit, size=(cells, size), mode="bilinear", align_corners=False)[0, 0].numpy()
    low = (shares != 0).argmax(axis=1)  # (cells,)
    high = size - 1 - (shares != 0)[:, ::-1].argmax(axis=1)
    row = np.arange(cells)
    weights = np.stack([shares[row, low], np.where(high > low, shares[row, high], np.float32(0))], axis=1)
    return _Reduction(np.stack([low, high], axis=1).reshape(-1), weights.reshape(-1))


@dataclass(frozen=True)
class _ObjectSpan:
    """The part of one axis that contains an object."""

    source: slice
    """The image pixels to read."""
    cells: slice
    """The cells that may contain the object."""
    taps: Taps
    """For the cells' pixels, relative to ``source``; an extra sample at the end stands for everything outside it."""
    weights: np.ndarray
    """(2 cells,) float32, from `_Reduction`."""


@dataclass(frozen=True)
class _Axis:
    """The pixels read along one axis of the input-sized mask, and their positions in the image."""

    taps: Taps
    """For the pixels of `_Reduction`, (2 n,) each, in image coordinates; weight 0 outside the image."""
    visible: np.ndarray
    """(2 n,) bool: whether the pixel is inside the image."""
    source: slice
    """Visible image pixels."""
    weights: np.ndarray
    """(2 n,) float32, from `_Reduction`."""

    @classmethod
    def make(cls, source: slice, target: slice, size: int, cells: int, *, mirrored: bool) -> _Axis:
        reduction = _reduction(size, cells)
        pixels = size - 1 - reduction.pixels if mirrored else reduction.pixels
        visible = (pixels >= target.start) & (pixels < target.stop)
        shown = length(target)
        taps = bilinear_taps(length(source), shown, (pixels - target.start).clip(0, shown - 1))
        start = np.int32(source.start)
        taps = Taps(
            taps.low + start, taps.high + start, taps.low_weight * visible, taps.high_weight * visible, taps.total
        )
        return cls(taps, visible, source, reduction.weights)

    def object_span(self, start: int, stop: int) -> _ObjectSpan | None:
        """What to read of an object between two image pixels; None if it is not visible."""
        taps, start, stop = self.taps, max(start, self.source.start), min(stop, self.source.stop)
        touched = (self.visible & (taps.low < stop) & (taps.high >= start)).nonzero()[0]
        if start >= stop or not len(touched):
            return None
        cells = slice(int(touched[0]) // 2, int(touched[-1]) // 2 + 1)
        pixels = slice(2 * cells.start, 2 * cells.stop)
        beside = np.uint32(stop - start)
        low, high = (
            np.minimum((samples[pixels] - np.int32(start)).view(np.uint32), beside)  # negative numbers become large
            for samples in (taps.low, taps.high)
        )
        taps = Taps(low, high, taps.low_weight[pixels], taps.high_weight[pixels], taps.total)
        return _ObjectSpan(slice(start, stop), cells, taps, self.weights[pixels])


class MaskReducer:
    """Reduces masks of one image, seen through a crop, to ``cells`` x ``cells``."""

    def __init__(self, part: VisiblePart, size: int, cells: int, *, mirrored: bool) -> None:
        self._rows = _Axis.make(part.source_rows, part.target_rows, size, cells, mirrored=False)
        self._columns = _Axis.make(part.source_columns, part.target_columns, size, cells, mirrored=mirrored)

    def reduce(self, mask: np.ndarray, box: tuple[int, int, int, int], out: np.ndarray) -> None:
        """Set the pixels of an object in ``out``.

        Args:
            mask: (H, W) uint8, 0 or 1, in the image's size.
            box: xyxy, whole pixels: the mask is empty outside.
            out: (cells, cells) uint8; only ones are written.
        """
        left, top, right, bottom = box
        rows, columns = self._rows.object_span(top, bottom), self._columns.object_span(left, right)
        if rows is None or columns is None:
            return
        seen = np.zeros((length(columns.source) + 1, length(rows.source) + 1), dtype=np.uint8).T
        seen[:-1, :-1] = mask[rows.source, columns.source]
        pixels = sample_mask(seen, rows.taps, columns.taps)  # (2 rows, 2 columns)
        low, high = columns.weights[0::2], columns.weights[1::2]
        across = pixels[:, 0::2] * low + pixels[:, 1::2] * high  # (2 rows, columns) float32
        low, high = rows.weights[0::2, None], rows.weights[1::2, None]
        values = across[0::2] * low + across[1::2] * high  # (rows, columns)
        out[rows.cells, columns.cells] |= values > np.float32(0.5)


def reduce_masks(
    masks: Sequence[Rle],
    labels: np.ndarray,
    crowd: np.ndarray,
    view: View,
    num_classes: int,
    mask_upsampling: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of one image's objects, seen through a crop, at the resolutions of the losses.

    Args:
        masks: N RLEs in the image's size; those of crowd regions are not decoded.
        labels: (N,) int64, 0 to C - 1.
        crowd: (N,) bool.
        view: the network's view of the image.
        mask_upsampling: Hp and Wp are this many times the prototypes' sides.

    Returns:
        (N, Hp, Wp) uint8, 0 or 1, empty for crowd regions; and (C, H3, W3) uint8, the union of each class's objects
        without crowd regions.

    Raises:
        ValueError: a mask cannot be decoded.
    """
    grids, part = Grids.of_input(view.size, mask_upsampling), view.part
    reduced = np.zeros((len(masks), grids.masks, grids.masks), dtype=np.uint8)
    semantic = np.zeros((num_classes, grids.semantic, grids.semantic), dtype=np.uint8)
    if part is None:
        return reduced, semantic
    to_masks, to_semantic = (
        MaskReducer(part, view.size, cells, mirrored=view.crop.mirrored) for cells in (grids.masks, grids.semantic)
    )
    for index in np.flatnonzero(~crowd).tolist():
        rle = masks[index]
        mask = coco_mask.decode(rle)  # (H, W) uint8, columns contiguous; first, because it checks the run lengths
        left, top, width, height = coco_mask.toBbox(rle).astype(int).tolist()
        box = (left, top, left + width, top + height)
        to_masks.reduce(mask, box, reduced[index])
        to_semantic.reduce(mask, box, semantic[labels[index]])
    return reduced, semantic


def masks_in_input(masks: Sequence[Rle], view: View) -> InstanceMasks:
    """Masks of one image's objects, seen through a crop, at the size of the network's input.

    Raises:
        ValueError: a mask cannot be decoded.
    """
    windows = [_window_in_input(rle, view) for rle in masks]
    return InstanceMasks(view.size, view.size, [corner for corner, _ in windows], [window for _, window in windows])


NOTHING: tuple[tuple[int, int], np.ndarray] = ((0, 0), np.zeros((0, 0), dtype=bool))
"""The corner and window of a mask that is not visible."""


def _window_in_input(rle: Rle, view: View) -> tuple[tuple[int, int], np.ndarray]:
    """Top and left of a window of the network's input around an object, pixels; and its (h, w) bool mask there."""
    mask, part = coco_mask.decode(rle), view.part
    if part is None:
        return NOTHING
    left, top, width, height = coco_mask.toBbox(rle).astype(int).tolist()
    rows = _resized_span(top, top + height, part.source_rows, part.target_rows)
    columns = _resized_span(left, left + width, part.source_columns, part.target_columns)
    if not len(rows) or not len(columns):
        return NOTHING
    row_taps, column_taps = (
        bilinear_taps(length(source), length(target), pixels - target.start)
        for source, target, pixels in (
            (part.source_rows, part.target_rows, rows),
            (part.source_columns, part.target_columns, columns),
        )
    )
    window = sample_mask(mask[part.source_rows, part.source_columns], row_taps, column_taps).astype(bool)
    corner = (int(rows[0]), int(columns[0]))
    if view.crop.mirrored:
        window, corner = window[:, ::-1], (corner[0], view.size - corner[1] - window.shape[1])
    return corner, window


def _resized_span(start: int, stop: int, source: slice, target: slice) -> np.ndarray:
    """Pixels of one axis of the input that read an image pixel from ``start`` to ``stop``, or a few more; ascending."""
    ratio = length(target) / length(source)
    low = math.floor((start - source.start - 0.5) * ratio - 0.5) + target.start
    high = math.ceil((stop - source.start + 0.5) * ratio + 0.5) + target.start
    return np.arange(max(low, target.start), min(high, target.stop))
