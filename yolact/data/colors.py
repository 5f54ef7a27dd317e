"""Photometric augmentation (SSD section 2.2, published code), computed in float32 and rounded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 16384
"""Pixels processed at a time: their float32 planes fit into a core's own cache, which halves the time."""


@dataclass(frozen=True)
class ColorChange:
    """A colour change, applied in this order except for the contrast. The defaults change nothing."""

    brightness: float = 0.0
    """Added to every level, -32 to 32."""
    contrast: float = 1.0
    """Factor of every level, 0.5 to 1.5."""
    contrast_first: bool = True
    """Whether contrast is applied before saturation and hue, else after them."""
    saturation: float = 1.0
    """Factor of HSV's saturation, 0.5 to 1.5."""
    hue: float = 0.0
    """Added to HSV's hue, degrees, -18 to 18."""


def draw_colors(rng: np.random.Generator) -> ColorChange:
    """Choose brightness, contrast, saturation and hue, each with probability 0.5."""

    def draw(low: float, high: float, otherwise: float) -> float:
        return float(rng.uniform(low, high)) if rng.random() < 0.5 else otherwise

    brightness = draw(-32, 32, 0.0)
    contrast_first = bool(rng.random() < 0.5)
    contrast, saturation = draw(0.5, 1.5, 1.0), draw(0.5, 1.5, 1.0)
    return ColorChange(brightness, contrast, contrast_first, saturation, hue=draw(-18, 18, 0.0))


def change_colors(planes: np.ndarray, change: ColorChange) -> np.ndarray:
    """Apply a change to (3, H, W) uint8 RGB planes, contiguous in memory.

    Returns:
        The same shape and dtype; intermediate values are clipped to 0 to 255.
    """
    if change == ColorChange(contrast_first=change.contrast_first):
        return planes
    levels = planes.reshape(3, -1)
    changed = np.empty_like(levels)
    for start in range(0, levels.shape[1], BLOCK):
        block = levels[:, start : start + BLOCK].astype(np.float32)
        _change_block(block, change)
        block += np.float32(0.5)
        changed[:, start : start + BLOCK] = block  # truncation after adding 0.5 rounds
    return changed.reshape(planes.shape)


def _change_block(block: np.ndarray, change: ColorChange) -> None:
    """Change (3, n) float32 levels in place."""
    if change.brightness:
        block += np.float32(change.brightness)
        np.clip(block, 0, 255, out=block)
    if change.contrast != 1 and change.contrast_first:
        _scale_levels(block, change.contrast)
    if change.hue or change.saturation != 1:
        _change_hue_and_saturation(block, change.hue, change.saturation)
    if change.contrast != 1 and not change.contrast_first:
        _scale_levels(block, change.contrast)


def _scale_levels(block: np.ndarray, factor: float) -> None:
    block *= np.float32(factor)
    np.minimum(block, 255, out=block)


def _change_hue_and_saturation(block: np.ndarray, degrees: float, factor: float) -> None:
    """Shift HSV's hue and scale its saturation without computing either (see `_turn_hue`).

    Value is the greatest level V, saturation chroma / V, and each level is below V by a share of the chroma: scaling
    the saturation scales these differences. Saturation is at most 1, so the factor is at most V / chroma.
    """
    value, lowest = block.max(axis=0), block.min(axis=0)  # (n,)
    chroma = value - lowest
    if degrees:
        _turn_hue(block, value, lowest, chroma, degrees)
    if factor != 1:
        scale: np.ndarray | np.float32 = np.float32(factor)
        if factor > 1:
            scale = np.minimum(scale, value / np.maximum(chroma, np.float32(1e-6)))
        block -= value
        block *= scale
        block += value


def _turn_hue(block: np.ndarray, value: np.ndarray, lowest: np.ndarray, chroma: np.ndarray, degrees: float) -> None:
    """Rotate the hue by less than 60 degrees.

    Over the circle of hues, red minus the lowest level is a trapezoid: clip(u, 0, chroma), where u is 2 chroma at pure
    red and falls on both sides by one chroma per 60 degrees; green and blue likewise, shifted by 120 and 240 degrees
    (Smith 1978, "Color gamut transform pairs", hexcone model). In terms of R, G and B, u = V + R - G - B, and the sign
    of G - B says on which side of red the hue is. So rotating the hue adds a multiple of the chroma to u.
    """
    turn = chroma * np.float32(abs(degrees) / 60)
    rest = value - block.sum(axis=0)
    red, green, blue = block
    sides = [green - blue, blue - red, red - green]
    for plane, side in zip(block, sides, strict=True):
        if degrees < 0:
            np.negative(side, out=side)
        plane *= 2
        plane += rest  # u
        plane -= np.copysign(turn, side)  # at a side of 0, u is far enough outside its limits to stay there
        np.clip(plane, 0, chroma, out=plane)
        plane += lowest
