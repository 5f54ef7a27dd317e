"""Darknet-53 (Redmon and Farhadi 2018) under the names of the published weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from yolact.errors import WeightsError
from yolact.models.backbones.base import Backbone, Structure, draw_weights, sequential_pairs
from yolact.transforms import UNIT_RANGE, Normalization

_BLOCK = re.compile(r"layers\.(\d{1,4})\.(\d{1,4})\.")


class DarknetBlock(nn.Module):
    """Two convolutions around a shortcut; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _darknet_conv(channels, channels // 2, 1)
        self.conv2 = _darknet_conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        out: Tensor = x + self.conv2(self.conv1(x))
        return out


class Darknet(Backbone):
    """The convolutional part of Darknet-53 (Redmon and Farhadi 2018, table 1).

    Args:
        blocks: residual blocks of each of the five stages.
    """

    normalization: Normalization = UNIT_RANGE

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        channels = 32
        self._preconv = _darknet_conv(3, channels, 3)
        self.layers = nn.ModuleList()
        for count in blocks:
            down = _darknet_conv(channels, channels * 2, 3, stride=2)
            channels *= 2
            self.layers.append(nn.Sequential(down, *(DarknetBlock(channels) for _ in range(count))))
        self.channels = (channels // 4, channels // 2, channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) images, 0 to 1, to C3, C4 and C5, at strides 8, 16 and 32."""
        x = self._preconv(images)
        features = []
        for stage in self.layers:
            x = stage(x)
            features.append(x)
        c3, c4, c5 = features[-3:]
        return c3, c4, c5

    def stem_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return [self._preconv]

    def stage_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return list(self.layers)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """See `Backbone`."""
        return sequential_pairs(self)

    def imagenet_weights(self, name: str, version: int) -> dict[str, Tensor]:
        """Not available; see `Backbone`."""
        raise WeightsError(
            f"torchvision has no {name}; name a file, such as the darknet53.pth of the published YOLACT, or set it to "
            "none"
        )

    @classmethod
    def infer_structure(cls, names: Collection[str]) -> Structure | None:
        """See `Backbone`. Number 0 of each stage is the convolution that halves the size; the rest are blocks."""
        if not any(name.startswith("_preconv.") for name in names):
            return None
        found = {(int(match[1]), int(match[2])) for match in filter(None, map(_BLOCK.match, names))}
        return Structure(tuple(max(1, sum(s == stage and b > 0 for s, b in found)) for stage in range(5)))


def _darknet_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    draw_weights(conv.weight, a=0.1, nonlinearity="leaky_relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.1, inplace=True))
