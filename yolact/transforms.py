"""From a image to the network's input, without randomness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.crop import Window, visible_part

MEAN_RGB = (123.68, 116.78, 103.94)
STD_RGB = (58.40, 57.12, 57.38)
"""ImageNet statistics on the 0 to 255 scale, as the published code has them."""


@dataclass(frozen=True)
class Normalization:
    """What a backbone expects: (x - mean) / std, per RGB channel, for x from 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization(MEAN_RGB, STD_RGB)
UNIT_RANGE = Normalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
"""Values from 0 to 1."""


def normalize(images: Tensor, normalization: Normalization) -> Tensor:
    """Turn (B, 3, H, W) RGB values on the 0 to 255 scale, any dtype, into the network's float32 input."""
    if normalization == UNIT_RANGE:  # by a number, as published: GPUs round that division otherwise
        return images.float() / 255
    mean, std = (_per_channel(values, images.device) for values in (normalization.mean, normalization.std))
    return (images.float() - mean) / std


def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Values by channel, (3, 1, 1) float32 on the device; not to be changed, since they are made once per device.

    To bring them to a GPU makes the host wait for it. While the network is exported they are no tensors to be kept.
    """
    make = _new_per_channel.__wrapped__ if torch.compiler.is_compiling() else _new_per_channel
    return make(values, device)


@cache
def _new_per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever comes first: gradients may be taken through them later
        return torch.tensor(values, device=device).view(3, 1, 1)


def to_square(image: Tensor, size: int) -> Tensor:
    """Resize a (3, H, W) uint8 RGB image to (3, size, size) float32, 0 to 255, without keeping its aspect ratio.

    Bilinear with half-pixel centres, no antialiasing and no rounding, as published.
    """
    return F.interpolate(image[None].float(), size=(size, size), mode="bilinear", align_corners=False)[0]


def to_padded_square(image: Tensor, size: int) -> Tensor:
    """Resize a (3, H, W) uint8 RGB image so that its longer side is ``size``; (3, size, size) float32, 0 to 255.

    Resizing is that of `to_square`. The rest of the square, to the right or below, has the colour `MEAN_RGB`. A image
    so narrow that it would fill less than half a pixel is not to be seen.
    """
    height, width = image.shape[1:]
    square = _per_channel(MEAN_RGB, image.device).repeat(1, size, size)
    part = visible_part(Window(0, 0, width, height).squared(), height, width, size)
    if part is not None:
        resized = F.interpolate(image[None].float(), size=part.shape, mode="bilinear", align_corners=False)[0]
        square[:, part.target_rows, part.target_columns] = resized
    return square


def aspect_ratio_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of about ``size`` x ``size`` pixels in all, with a image's aspect ratio; truncated.

    The published code's formula for its switch ``preserve_aspect_ratio``, which no published configuration turns on.
    """
    ratio = math.sqrt(width / height)
    return int(size * ratio), int(size / ratio)


@dataclass(frozen=True)
class Taps:
    """The two samples that each pixel of a bilinearly resized axis is made of, and their weights."""

    low: np.ndarray
    high: np.ndarray
    """(n,) whole numbers."""
    low_weight: np.ndarray
    high_weight: np.ndarray
    """(n,) int32; the two of a pixel add up to ``total``."""
    total: int


def bilinear_taps(samples: int, size: int, pixels: np.ndarray) -> Taps:
    """Exact weights with half-pixel centres, without antialiasing.

    Pixel k of ``size`` lies at (k + 1/2) samples / size - 1/2, a fraction over 2 size; it is moved onto the first
    sample where it lies before that.

    Args:
        samples: length of the axis before.
        size: length after.
        pixels: (n,) which pixels are wanted, 0 to size - 1.
    """
    position = ((2 * pixels.astype(np.int64) + 1) * samples - size).clip(min=0)
    low, high_weight = (part.astype(np.int32) for part in np.divmod(position, 2 * size))
    return Taps(low, np.minimum(low + 1, samples - 1), np.int32(2 * size) - high_weight, high_weight, 2 * size)


def resize_masks(masks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (N, H, W) masks of 0 and 1 bilinearly to (N, *shape) uint8, without antialiasing, rounded once at the end.

    In whole numbers: a pixel of exactly one half is 1. torch's own uint8 resizing rounds after each axis, which
    thickens masks of one or two pixels.
    """
    rows = bilinear_taps(masks.shape[1], shape[0], np.arange(shape[0]))
    columns = bilinear_taps(masks.shape[2], shape[1], np.arange(shape[1]))
    return np.stack([sample_mask(mask, rows, columns) for mask in masks]) if len(masks) else np.zeros((0, *shape), "u1")


def sample_mask(mask: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """The pixels (rows, columns) uint8 of a resized mask.

    Args:
        mask: (H, W) uint8, 0 or 1; fastest when its columns lie together in memory, as pycocotools decodes masks.
    """
    across = mask.T  # (W, H)
    sums = across[columns.low] * columns.low_weight[:, None] + across[columns.high] * columns.high_weight[:, None]
    sums = np.ascontiguousarray(sums.T)  # (H, columns)
    sums = sums[rows.low] * rows.low_weight[:, None] + sums[rows.high] * rows.high_weight[:, None]
    return (sums >= rows.total * columns.total // 2).view(np.uint8)


def resize_planes_like_opencv(planes: Tensor, shape: tuple[int, int]) -> Tensor:
    """`resize_masks` with the rounding of OpenCV's ``cv2.resize`` for uint8, which published training uses on masks.

    OpenCV (``modules/imgproc/src/resize.cpp``) works in whole numbers: weights are multiples of 1/2048, a row's sums
    lose 4 bits and each row's share of a pixel is truncated to quarters before the two are added. So a pixel of a 0/1
    mask may need up to 0.75 instead of 0.5 to stay, and corners and diagonals lose some pixels.
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
    """Which two samples each of ``size`` pixels is made of, and their weights in 1/2048; each (size,) int64."""

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
