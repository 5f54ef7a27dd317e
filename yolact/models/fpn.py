"""Feature pyramid (Lin et al. 2017) as YOLACT changes it: P3 to P7, no P2 (paper section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from yolact.models.separable import conv3x3


class FPN(nn.Module):
    """Turns C3, C4, C5 into P3 to P7 with equal channels.

    The published key names count from the deepest level: ``lat_layers.0`` and ``pred_layers.0`` belong to C5.

    Args:
        in_channels: of C3, C4 and C5.
        channels: of each level.
        separable: smooth P3 to P5 with separable convolutions. P6 and P7 are too small for it to matter.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, separable: bool = False) -> None:
        super().__init__()
        self.lat_layers = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in reversed(in_channels))
        self.pred_layers = nn.ModuleList(conv3x3(channels, separable) for _ in in_channels)
        self.downsample_layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map (C3, C4, C5) to [P3, P4, P5, P6, P7], each (B, channels, h, w).

        P3 to P5 end in ReLU; P6 and P7 do not, and P6 is made from the ReLU'd P5.
        """
        pyramid: list[Tensor] = []
        merged: Tensor | None = None
        for lateral, smooth, feature in zip(self.lat_layers, self.pred_layers, reversed(features), strict=True):
            side = lateral(feature)
            if merged is None:
                merged = side
            else:
                merged = side + F.interpolate(merged, size=side.shape[-2:], mode="bilinear", align_corners=False)
            pyramid.insert(0, F.relu(smooth(merged)))
        for downsample in self.downsample_layers:
            pyramid.append(downsample(pyramid[-1]))
        return pyramid
