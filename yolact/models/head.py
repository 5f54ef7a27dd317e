"""Prediction head, shared by all pyramid levels (paper section 3.2, figure 4)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class LevelPredictions(NamedTuple):
    """The head's output for one level, with a = cells * anchors per cell."""

    boxes: Tensor
    """(B, a, 4) encoded offsets."""
    class_logits: Tensor
    """(B, a, C + 1), background first."""
    mask_coefficients: Tensor
    """(B, a, K), -1 to 1."""


class PredictionHead(nn.Module):
    """One shared 3x3 convolution, then a 3x3 convolution each for boxes, classes and mask coefficients."""

    def __init__(self, channels: int, anchors_per_cell: int, num_classes: int, num_prototypes: int) -> None:
        super().__init__()
        self.upfeature = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True))
        self.bbox_layer = nn.Conv2d(channels, anchors_per_cell * 4, 3, padding=1)
        self.conf_layer = nn.Conv2d(channels, anchors_per_cell * (num_classes + 1), 3, padding=1)
        self.mask_layer = nn.Conv2d(channels, anchors_per_cell * num_prototypes, 3, padding=1)
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes

    def forward(self, level: Tensor) -> LevelPredictions:
        """Predict for one level (B, channels, h, w); cells are row-major, anchors innermost."""
        shared = self.upfeature(level)
        return LevelPredictions(
            boxes=per_anchor(self.bbox_layer(shared), 4),
            class_logits=per_anchor(self.conf_layer(shared), self.num_classes + 1),
            mask_coefficients=per_anchor(self.mask_layer(shared), self.num_prototypes).tanh(),
        )


def per_anchor(output: Tensor, size: int) -> Tensor:
    """(B, anchors per cell * size, h, w) -> (B, h * w * anchors per cell, size)."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, size)
