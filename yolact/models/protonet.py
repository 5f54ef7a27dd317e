"""Protonet: image-sized prototype masks from P3 (paper section 3.1, figure 3)."""

from __future__ import annotations

from torch import Tensor, nn

from yolact.models.separable import conv3x3


class Protonet(nn.Sequential):
    """3x3 convolutions, bilinear x2, one more, and a 1x1 to the prototypes; ReLU after each.

    The ReLU after the upsampling has no effect; it keeps the numbering of the published key names.

    Args:
        channels: of P3 and of all maps up to the last convolution.
        num_prototypes: K.
        convs: 3x3 convolutions before the upsampling.
        separable: whether all 3x3 convolutions are separable.
    """

    def __init__(self, channels: int, num_prototypes: int, convs: int = 3, separable: bool = False) -> None:
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [conv3x3(channels, separable), nn.ReLU(inplace=True)]
        layers += [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), nn.ReLU(inplace=True)]
        layers += [conv3x3(channels, separable), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(channels, num_prototypes, 1), nn.ReLU(inplace=True)]
        super().__init__(*layers)

    def forward(self, p3: Tensor) -> Tensor:
        """Map P3 (B, channels, h, w) to prototypes (B, 2h, 2w, K), 0 or more."""
        return super().forward(p3).permute(0, 2, 3, 1)
