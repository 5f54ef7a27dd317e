"""Protonet: image-sized prototype masks from P3 (paper section 3.1, figure 3)."""

from __future__ import annotations

from torch import Tensor, nn


class Protonet(nn.Sequential):
    """Three 3x3 convolutions, bilinear x2, one more, and a 1x1 to the prototypes; ReLU after each.

    The ReLU after the upsampling has no effect; it keeps the numbering of the published key names.
    """

    def __init__(self, channels: int, num_prototypes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_prototypes, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, p3: Tensor) -> Tensor:
        """Map P3 (B, channels, h, w) to prototypes (B, 2h, 2w, K), 0 or more."""
        return super().forward(p3).permute(0, 2, 3, 1)
