"""Backbones: ResNets (with deformable convolutions for YOLACT++) and Darknet-53, under the published key names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import deform_conv2d

from yolact.config import ModelConfig


class DeformableConv2d(nn.Module):
    """A modulated deformable 3x3 convolution (Zhu et al. 2019), as the published YOLACT++ has it.

    Each of the nine sampling points is moved by a predicted offset and weighted by a predicted modulation. Both start
    from zero weights, so the layer starts as half of the plain convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 27, 3, stride=stride, padding=1)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's ResNets
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
        return deform_conv2d(*tensors, self.stride, padding=1, mask=modulation.float()).to(x.dtype)


class ResNetBackbone(nn.Module):
    """The convolutional part of torchvision's ResNet, cut to its four stages.

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
        full: ResNet = resnet.ResNet(block, list(blocks))
        self.conv1 = full.conv1
        self.bn1 = full.bn1
        self.relu = full.relu
        self.maxpool = full.maxpool
        self.layers = nn.ModuleList([full.layer1, full.layer2, full.layer3, full.layer4])
        for stage, chosen in enumerate(deformable):
            for index in chosen:
                bottleneck = cast(nn.Sequential, self.layers[stage])[index]
                assert isinstance(bottleneck, Bottleneck)
                plain = cast(nn.Conv2d, bottleneck.conv2)
                bottleneck.conv2 = DeformableConv2d(plain.in_channels, plain.out_channels, plain.stride[0])
        self.channels = tuple(width * block.expansion for width in (128, 256, 512))
        """Channels of C3, C4 and C5."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5, at strides 8, 16 and 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
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
    nn.init.kaiming_normal_(conv.weight, a=0.1, nonlinearity="leaky_relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.1, inplace=True))


def build_backbone(config: ModelConfig) -> ResNetBackbone | DarknetBackbone:
    """The backbone that ``config`` names, with random weights."""
    if config.backbone == "darknet53":
        return DarknetBackbone(config.blocks)
    block = BasicBlock if config.backbone in ("resnet18", "resnet34") else Bottleneck
    return ResNetBackbone(block, config.blocks, config.deformable_blocks)
