"""Depthwise-separable 3x3 convolutions, the cheaper form of those in pyramid, protonet and head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SeparableConv2d(nn.Sequential):
    """A 3x3 convolution of each channel by itself, a 1x1 convolution over all channels, and batch norm (MobileNet,
    Howard et al. 2017, section 3.1; without norm and activation between the two, as in EfficientDet).

    With C channels it takes C + 9 multiplications per output where the plain 3x3 convolution takes 9 C.
    """

    def __init__(self, channels: int) -> None:
        layers: list[tuple[str, nn.Module]] = [
            ("depthwise", nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)),
            ("pointwise", nn.Conv2d(channels, channels, 1, bias=False)),
            ("norm", nn.BatchNorm2d(channels)),
        ]
        super().__init__(OrderedDict(layers))

    def over_levels(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, C, h, w) maps of several sizes to the like, with batch norm over the cells of all of them.

        With each level's own statistics, training and evaluation, which has one set of statistics, would differ.
        """
        depthwise, pointwise, norm = self.children()
        cells = torch.cat([depthwise(level).flatten(2) for level in levels], dim=2)
        joined = norm(pointwise(cells[..., None]))[..., 0]  # (B, C, cells of all levels)
        parts = joined.split([level.shape[2] * level.shape[3] for level in levels], dim=2)
        return [part.unflatten(2, level.shape[2:]) for part, level in zip(parts, levels, strict=True)]


def conv3x3(channels: int, separable: bool) -> nn.Module:
    """A 3x3 convolution of stride 1 that keeps size and number of channels: plain with a bias, or separable."""
    return SeparableConv2d(channels) if separable else nn.Conv2d(channels, channels, 3, padding=1)
