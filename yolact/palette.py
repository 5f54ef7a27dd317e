"""The colours of PASCAL VOC's palette PNGs."""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def voc_palette() -> np.ndarray:
    """The devkit's colour map (VOCcode ``VOClabelcolormap``).

    Returns:
        (256, 3) uint8 RGB. Bit i of red, green and blue, from the top, are bits 3i, 3i + 1 and 3i + 2 of the index.
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    palette.flags.writeable = False  # cached and shared
    return palette
