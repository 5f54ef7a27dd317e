"""Backbones: ResNets (with deformable convolutions for YOLACT++) and Darknet-53, under the published key names.

torchvision is imported only for deformable convolutions: that takes longer than PyTorch's own import, and some 170 MiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.settings import ModelConfig


def _draw_weights(weight: Tensor, **how: Any) -> None:
    """`nn.init.kaiming_normal_`, but not on the device "meta": there it draws nothing, and loads PyTorch's compiler."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, **how)


class DeformableConv2d(nn.Module):
    """A modulated deformable 3x3 convolution (Zhu et al. 2019), as the published YOLACT++ has it.

    Each of the nine sampling points is moved by a predicted offset and weighted by a predicted modulation. Both start
    from zero weights, so the layer starts as half of the plain convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        from torchvision.ops import deform_conv2d  # not as late as in forward: an exporter has looked round by then

        self.sample = deform_conv2d
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 27, 3, stride=stride, padding=1)
        _draw_weights(self.weight, mode="fan_out", nonlinearity="relu")  # as the ResNets'
        nn.init.zeros_(self.conv_offset_mask.weight)
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        predicted = self.conv_offset_mask(x)
        # Offsets are dy0, dx0, dy1, dx1, ... over the kernel's points in row-major order.
        offsets, modulation = predicted[:, :18], predicted[:, 18:].sigmoid()
        # In float32 whatever the network's precision: not every device samples in others.
        tensors = [tensor.float() for tensor in (x, offsets, self.weight, self.bias)]
        out: Tensor = self.sample(*tensors, self.stride, padding=1, mask=modulation.float())
        return out.to(x.dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 5 left).

    The parameters are named, and start, as in torchvision.

    Args:
        in_channels: of the input.
        width: channels inside; the output has `EXPANSION` times as many.
        stride: of the block.
    """

    EXPANSION: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _resnet_conv(in_channels, width, 3, stride)
        self.conv2, self.bn2 = _resnet_conv(width, width, 3)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.bn2(self.conv2(F.relu_(self.bn1(self.conv1(x)))))
        out += shortcut
        return F.relu_(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2016, figure 5 right); see `BasicBlock`.

    The 3x3 convolution has the stride, as in torchvision and in published YOLACT; in the paper the first one has it.
    """

    EXPANSION: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _resnet_conv(in_channels, width, 1)
        self.conv2: nn.Module
        self.conv2, self.bn2 = _resnet_conv(width, width, 3, stride)
        self.conv3, self.bn3 = _resnet_conv(width, width * self.EXPANSION, 1)
        self.downsample = _projection(in_channels, width * self.EXPANSION, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 4 * width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu_(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu_(self.bn2(self.conv2(out)))))
        out += shortcut
        return F.relu_(out)


def _resnet_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    _draw_weights(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(out_channels)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut where the block changes size or channels."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(*_resnet_conv(in_channels, out_channels, 1, stride))


class ResNetBackbone(nn.Module):
    """The convolutional part of a ResNet (He et al. 2016, table 1), without its classifier.

    The parameters are named ``conv1``, ``bn1`` and ``layers.S.B...`` with S from 0 to 3, as in published YOLACT
    weights; torchvision calls the stages ``layer1`` to ``layer4``.

    Args:
        block: residual block.
        blocks: residual blocks of each of the four stages.
        deformable: per stage, the blocks whose 3x3 convolution is deformable; empty for none.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        deformable: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        channels = 64
        self.conv1, self.bn1 = _resnet_conv(3, channels, 7, 2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.ModuleList()
        for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            stage_blocks = []
            for index in range(count):
                stage_blocks.append(block(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = width * block.EXPANSION
            self.layers.append(nn.Sequential(*stage_blocks))
        for stage, chosen in enumerate(deformable):
            for index in chosen:
                bottleneck = cast(nn.Sequential, self.layers[stage])[index]
                assert isinstance(bottleneck, Bottleneck)
                plain = cast(nn.Conv2d, bottleneck.conv2)
                bottleneck.conv2 = DeformableConv2d(plain.in_channels, plain.out_channels, plain.stride[0])
        self.channels = tuple(width * block.EXPANSION for width in (128, 256, 512))
        """Channels of C3, C4 and C5."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5, at strides 8, 16 and 32."""
        x = self.maxpool(F.relu_(self.bn1(self.conv1(images))))
        c2 = self.layers[0](x)
        c3 = self.layers[1](c2)
        c4 = self.layers[2](c3)
        c5 = self.layers[3](c4)
        return c3, c4, c5


class DarknetBackbone(nn.Module):
    """The convolutional part of Darknet-53 (Redmon and Farhadi 2018, table 1).

    Args:
        blocks: residual blocks of each of the five stages.
    """

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
        """Channels of C3, C4 and C5."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) images, 0 to 1, to C3, C4 and C5, at strides 8, 16 and 32."""
        x = self._preconv(images)
        features = []
        for stage in self.layers:
            x = stage(x)
            features.append(x)
        c3, c4, c5 = features[-3:]
        return c3, c4, c5


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


def _darknet_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    _draw_weights(conv.weight, a=0.1, nonlinearity="leaky_relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.1, inplace=True))


def build_backbone(config: ModelConfig) -> ResNetBackbone | DarknetBackbone:
    """The backbone that ``config`` names, with random weights."""
    if config.backbone == "darknet53":
        return DarknetBackbone(config.blocks)
    block = BasicBlock if config.backbone in ("resnet18", "resnet34") else Bottleneck
    return ResNetBackbone(block, config.blocks, config.deformable_blocks)
