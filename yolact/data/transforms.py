"""From a photo to the network's input, without randomness."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN_RGB = (123.68, 116.78, 103.94)
STD_RGB = (58.40, 57.12, 57.38)
"""ImageNet statistics on the 0 to 255 scale, as the published code has them."""


def normalize(images: Tensor) -> Tensor:
    """Turn (B, 3, H, W) RGB values on the 0 to 255 scale, any dtype, into the network's float32 input."""
    mean = torch.tensor(MEAN_RGB, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD_RGB, device=images.device).view(3, 1, 1)
    return (images.float() - mean) / std


def to_square(image: np.ndarray, size: int) -> Tensor:
    """Resize an (H, W, 3) uint8 RGB photo to (3, size, size) float32, 0 to 255, without keeping its aspect ratio.

    Bilinear with half-pixel centres, no antialiasing and no rounding, as published.
    """
    pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1).float()
    return F.interpolate(pixels[None], size=(size, size), mode="bilinear", align_corners=False)[0]
