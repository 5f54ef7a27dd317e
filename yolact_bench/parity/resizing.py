"""Resizing as in the published code, and training's resizing of masks at the input's size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolact.data.target_masks import bilinear_taps, sample_mask


def aspect_ratio_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of about ``size`` x ``size`` pixels in all, with an image's aspect ratio; truncated.

    The published code's formula for its switch ``preserve_aspect_ratio``, which no published configuration turns on.
    """
    ratio = math.sqrt(width / height)
    return int(size * ratio), int(size / ratio)


def resize_masks(masks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (N, H, W) masks of 0 and 1 bilinearly to (N, *shape) uint8, without antialiasing, rounded once at the end.

    Computed in integers: a pixel of exactly one half is 1. torch's own uint8 resizing rounds after each axis, which
    thickens masks of one or two pixels.
    """
    rows = bilinear_taps(masks.shape[1], shape[0], np.arange(shape[0]))
    columns = bilinear_taps(masks.shape[2], shape[1], np.arange(shape[1]))
    return np.stack([sample_mask(mask, rows, columns) for mask in masks]) if len(masks) else np.zeros((0, *shape), "u1")


def resize_planes_like_opencv(planes: Tensor, shape: tuple[int, int]) -> Tensor:
    """`resize_masks` with the rounding of OpenCV's ``cv2.resize`` for uint8, which published training uses on masks.

    OpenCV (``modules/imgproc/src/resize.cpp``) works in integers: weights are multiples of 1/2048, a row's sums
    lose 4 bits and each row's share of a pixel is truncated to quarters before the two are added. So a pixel of a 0/1
    mask may need up to 0.75 instead of 0.5 to stay set, and corners and diagonals lose some pixels.
    """
    rows = _fixed_point_weights(planes.shape[1], shape[0])
    columns = _fixed_point_weights(planes.shape[2], shape[1])
    source = planes.cpu().numpy().astype(np.int64)
    sums = source[:, :, columns.low] * columns.low_weight + source[:, :, columns.high] * columns.high_weight
    sums >>= 4  # (P, H, shape[1])
    low = (sums[:, rows.low] * rows.low_weight[:, None]) >> 16
    high = (sums[:, rows.high] * rows.high_weight[:, None]) >> 16
    return torch.from_numpy(((low + high + 2) >> 2).clip(0, 255).astype(np.uint8)).to(planes.device)


@dataclass(frozen=True)
class _FixedPointWeights:
    """The two samples that make up each of ``size`` pixels, and their weights in 1/2048; each (size,) int64."""

    low: np.ndarray
    high: np.ndarray
    low_weight: np.ndarray
    high_weight: np.ndarray


def _fixed_point_weights(samples: int, size: int) -> _FixedPointWeights:
    position = ((np.arange(size) + 0.5) * (samples / size) - 0.5).astype(np.float32)
    low = np.floor(position)
    fraction = position - low
    low_weight, high_weight = (np.rint(part * 2048).astype(np.int64) for part in (1 - fraction, fraction))
    low = low.astype(np.int64)
    return _FixedPointWeights(low.clip(0, samples - 1), (low + 1).clip(0, samples - 1), low_weight, high_weight)
