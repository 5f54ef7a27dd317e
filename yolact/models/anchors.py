"""Anchors: the boxes that the head's offsets are relative to (paper section 4, "YOLACT Detector")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from yolact.settings import ModelConfig


def level_anchors(
    height: int, width: int, scales: Sequence[float], ratios: Sequence[float], image_size: int, square: bool
) -> Tensor:
    """Anchors of one pyramid level.

    Args:
        height, width: cells of the level.
        scales: sides of the square anchor, network pixels.
        ratios: width / height.
        image_size: side of the network input, pixels.
        square: make the height equal to the width (a bug of the published code that the v1.0 weights rely on;
            the three ratios then give three squares).

    Returns:
        (height * width * len(scales) * len(ratios), 4) float32 cxcywh, relative, not clipped; ordered by row,
        column, scale, ratio. Computed in double precision, as published.
    """
    center_y, center_x = torch.meshgrid(
        (torch.arange(height, dtype=torch.float64) + 0.5) / height,
        (torch.arange(width, dtype=torch.float64) + 0.5) / width,
        indexing="ij",
    )
    sizes = []
    for scale in scales:
        for ratio in ratios:
            box_width = scale * math.sqrt(ratio) / image_size
            box_height = box_width if square else scale / math.sqrt(ratio) / image_size
            sizes.append((box_width, box_height))
    per_cell = torch.tensor(sizes, dtype=torch.float64)  # (k, 2)
    centers = torch.stack([center_x, center_y], dim=-1).reshape(-1, 1, 2).expand(-1, len(sizes), 2)
    grid = torch.cat([centers, per_cell.expand(height * width, -1, 2)], dim=-1)  # (cells, k, 4)
    return grid.reshape(-1, 4).float()


def pyramid_anchors(
    level_sizes: Sequence[tuple[int, int]],
    scales: Sequence[Sequence[float]],
    ratios: Sequence[float],
    image_size: int,
    square: bool,
) -> Tensor:
    """Anchors (A, 4) of all levels, P3 first; ``level_sizes`` are (height, width) in cells. See `level_anchors`."""
    return torch.cat(
        [
            level_anchors(height, width, level_scales, ratios, image_size, square)
            for (height, width), level_scales in zip(level_sizes, scales, strict=True)
        ]
    )


def config_anchors(config: ModelConfig, level_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Anchors (A, 4) of a network for these level sizes; see `pyramid_anchors`."""
    return pyramid_anchors(
        level_sizes, config.anchor_scales, config.anchor_ratios, config.image_size, config.square_anchors
    )


class AnchorCache:
    """Anchors of one network, computed once per input shape."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._known: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def __call__(self, level_sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
        """Anchors (A, 4) cxcywh, relative, float32, for levels of (height, width) cells."""
        known = self._known.get(level_sizes)
        if known is None or known.device != device:
            known = config_anchors(self._config, level_sizes).to(device)
            self._known[level_sizes] = known
        return known
