"""Deterministic preprocessing: from an image to the network's input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.crop import Crop, visible_part

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
    if normalization == UNIT_RANGE:  # by a scalar, as published: GPUs round a division by a tensor differently
        return images.float() / 255
    mean, std = (_per_channel(values, images.device) for values in (normalization.mean, normalization.std))
    return (images.float() - mean) / std


def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Values by channel, (3, 1, 1) float32 on the device, cached per device; do not modify them.

    Copying them to a GPU makes the host wait. During export they are not cached: those tensors have no values.
    """
    make = _new_per_channel.__wrapped__ if torch.compiler.is_compiling() else _new_per_channel
    return make(values, device)


@cache
def _new_per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a later caller may take gradients through them
        return torch.tensor(values, device=device).view(3, 1, 1)


def to_square(image: Tensor, size: int) -> Tensor:
    """Resize a (3, H, W) uint8 RGB image to (3, size, size) float32, 0 to 255, ignoring its aspect ratio.

    Bilinear with half-pixel centres, no antialiasing and no rounding, as published.
    """
    return F.interpolate(image[None].float(), size=(size, size), mode="bilinear", align_corners=False)[0]


def to_padded_square(image: Tensor, size: int) -> Tensor:
    """Resize a (3, H, W) uint8 RGB image to a longer side of ``size`` and pad; (3, size, size) float32, 0 to 255.

    Resizes as `to_square` does. The rest of the square, to the right or below, has the colour `MEAN_RGB`. An image so
    narrow that it would fill less than half a pixel does not appear.
    """
    height, width = image.shape[1:]
    square = _per_channel(MEAN_RGB, image.device).repeat(1, size, size)
    part = visible_part(Crop(0, 0, width, height).squared(), height, width, size)
    if part is not None:
        resized = F.interpolate(image[None].float(), size=part.shape, mode="bilinear", align_corners=False)[0]
        square[:, part.target_rows, part.target_columns] = resized
    return square
