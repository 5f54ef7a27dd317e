"""Prediction head, shared by all pyramid levels (paper section 3.2, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolact.models.separable import SeparableConv2d, conv3x3


class Predictions(NamedTuple):
    """The head's output, with a = cells * anchors per cell."""

    boxes: Tensor
    """(B, a, 4) encoded offsets."""
    class_logits: Tensor
    """(B, a, C + 1), background first."""
    mask_coefficients: Tensor
    """(B, a, K), -1 to 1."""


class PredictionHead(nn.Module):
    """Shared 3x3 convolutions, one as published, then a convolution each for boxes, classes and mask coefficients.

    Args:
        channels: of each level, and between the convolutions.
        anchors_per_cell: number of anchors at each cell.
        num_classes: classes without background, C.
        num_prototypes: K.
        convs: shared convolutions.
        separable: whether the shared convolutions are separable; the outputs are then 1x1 convolutions instead of 3x3.
    """

    def __init__(
        self,
        channels: int,
        anchors_per_cell: int,
        num_classes: int,
        num_prototypes: int,
        convs: int = 1,
        separable: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convs):
            # Separable convolutions return views of one tensor, which cannot be changed in place.
            layers += [conv3x3(channels, separable), nn.ReLU(inplace=not separable)]
        self.upfeature = nn.Sequential(*layers)
        outputs = (anchors_per_cell * size for size in (4, num_classes + 1, num_prototypes))
        kernel = 1 if separable else 3
        self.bbox_layer, self.conf_layer, self.mask_layer = (
            nn.Conv2d(channels, output, kernel, padding=kernel // 2) for output in outputs
        )
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes

    def forward(self, pyramid: Sequence[Tensor]) -> Predictions:
        """Predict for all levels, each (B, channels, h, w): level after level, cells row-major, anchors innermost."""
        levels = [self._outputs(level) for level in self._shared(pyramid)]
        return Predictions(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))

    def _shared(self, pyramid: Sequence[Tensor]) -> Sequence[Tensor]:
        """The levels after the shared convolutions."""
        for layer in self.upfeature:
            if isinstance(layer, SeparableConv2d):
                pyramid = layer.over_levels(pyramid)
            else:
                pyramid = [layer(level) for level in pyramid]
        return pyramid

    def _outputs(self, level: Tensor) -> Predictions:
        return Predictions(
            boxes=per_anchor(self.bbox_layer(level), 4),
            class_logits=per_anchor(self.conf_layer(level), self.num_classes + 1),
            mask_coefficients=per_anchor(self.mask_layer(level), self.num_prototypes).tanh(),
        )


def per_anchor(output: Tensor, size: int) -> Tensor:
    """(B, anchors per cell * size, h, w) -> (B, h * w * anchors per cell, size)."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, size)
