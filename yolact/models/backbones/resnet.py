"""ResNets (He et al. 2016), with deformable convolutions for YOLACT++, under the names of the published weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from yolact.backbone_registry import find_backbone
from yolact.errors import WeightsError
from yolact.models.backbones.base import Backbone, Structure, draw_weights, sequential_pairs
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.backbones.hub import torchvision_address, torchvision_weights

_BLOCK = re.compile(r"layers\.(\d{1,4})\.(\d{1,4})\.")
_DEFORMABLE = re.compile(r"layers\.(\d{1,4})\.(\d{1,4})\.conv2\.conv_offset_mask\.")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 5 left).

    Parameter names and initialisation are torchvision's.

    Args:
        in_channels: channels of the input.
        width: channels inside; the output has `EXPANSION` times as many.
        stride: stride of the block.
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

    The 3x3 convolution has the stride, as in torchvision and in published YOLACT; in the paper it is in the first one.
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
    draw_weights(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(out_channels)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut if the block changes size or channels."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(*_resnet_conv(in_channels, out_channels, 1, stride))


class ResNet(Backbone):
    """The convolutional part of a ResNet (He et al. 2016, table 1), without its classifier.

    The parameters are named ``conv1``, ``bn1`` and ``layers.S.B...`` with S from 0 to 3, as in published YOLACT
    weights; torchvision calls the stages ``layer1`` to ``layer4``.

    Args:
        blocks: residual blocks of each of the four stages.
    """

    BLOCK: ClassVar[type[BasicBlock] | type[Bottleneck]]

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        channels = 64
        self.conv1, self.bn1 = _resnet_conv(3, channels, 7, 2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.ModuleList()
        for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            stage_blocks = []
            for index in range(count):
                stage_blocks.append(self.BLOCK(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = width * self.BLOCK.EXPANSION
            self.layers.append(nn.Sequential(*stage_blocks))
        c3, c4, c5 = (width * self.BLOCK.EXPANSION for width in (128, 256, 512))
        self.channels = (c3, c4, c5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5, at strides 8, 16 and 32."""
        x = self.maxpool(F.relu_(self.bn1(self.conv1(images))))
        c2 = self.layers[0](x)
        c3 = self.layers[1](c2)
        c4 = self.layers[2](c3)
        c5 = self.layers[3](c4)
        return c3, c4, c5

    def stem_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return [self.conv1, self.bn1]

    def stage_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return list(self.layers)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """``convN`` and ``bnN`` of the stem and of each block, and those of the shortcuts."""
        pairs = [("conv1", "bn1")]
        for name, module in self.named_modules():
            if type(module) in (BasicBlock, Bottleneck):
                numbers = [number for number in (1, 2, 3) if hasattr(module, f"conv{number}")]
                pairs.extend((f"{name}.conv{number}", f"{name}.bn{number}") for number in numbers)
        return pairs + sequential_pairs(self)

    def imagenet_weights(self, name: str, version: int) -> dict[str, Tensor]:
        """torchvision's; see `Backbone`."""
        self._require_standard_blocks(name)
        return torchvision_weights(name, version)

    def imagenet_address(self, name: str, version: int) -> str:
        """torchvision's; see `Backbone`."""
        self._require_standard_blocks(name)
        return torchvision_address(name, version)

    def _require_standard_blocks(self, name: str) -> None:
        blocks, standard = [len(cast(nn.Sequential, stage)) for stage in self.layers], find_backbone(name).blocks
        if blocks != list(standard):
            raise WeightsError(
                f"is for the {name} of blocks {list(standard)}, not {blocks}; name a file or set it to none"
            )

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``layer3.0.conv1.weight`` (torchvision) -> ``layers.2.0.conv1.weight`` (published); no classifier."""
        return {_published_name(name): tensor for name, tensor in state.items() if not name.startswith("fc.")}

    @classmethod
    def infer_structure(cls, names: Collection[str]) -> Structure | None:
        """See `Backbone`.

        Blocks are counted, so that a name with a huge number costs nothing; gaps are detected later, when names are
        compared.
        """
        found: dict[int, set[int]] = defaultdict(set)
        for match in filter(None, map(_BLOCK.match, names)):
            found[int(match[1])].add(int(match[2]))
        kind = Bottleneck if any(name.startswith("layers.") and ".conv3." in name for name in names) else BasicBlock
        if not found or kind is not cls.BLOCK:
            return None
        return Structure(tuple(max(1, len(found[stage])) for stage in range(4)))


class BasicResNet(ResNet):
    """ResNet-18 and ResNet-34."""

    BLOCK = BasicBlock


class BottleneckResNet(ResNet):
    """ResNet-50 and ResNet-101.

    Args:
        blocks: residual blocks of each of the four stages.
        deformable_blocks: per stage, the blocks whose 3x3 convolution is deformable; empty for none.
    """

    BLOCK = Bottleneck

    def __init__(self, blocks: Sequence[int], deformable_blocks: Sequence[Sequence[int]] = ()) -> None:
        super().__init__(blocks)
        for stage, chosen in enumerate(deformable_blocks):
            for index in chosen:
                bottleneck = cast(Bottleneck, cast(nn.Sequential, self.layers[stage])[index])
                plain = cast(nn.Conv2d, bottleneck.conv2)
                bottleneck.conv2 = DeformableConv2d(plain.in_channels, plain.out_channels, plain.stride[0])

    @classmethod
    def infer_structure(cls, names: Collection[str]) -> Structure | None:
        """See `Backbone`; a block is deformable if it has a layer of offsets."""
        structure = super().infer_structure(names)
        if structure is None:
            return None
        found = {(int(match[1]), int(match[2])) for match in filter(None, map(_DEFORMABLE.match, names))}
        chosen = tuple(
            tuple(block for block in range(count) if (stage, block) in found)
            for stage, count in enumerate(structure.blocks)
        )
        return Structure(structure.blocks, chosen if any(chosen) else ())


def _published_name(name: str) -> str:
    for stage in range(4):
        name = name.replace(f"layer{stage + 1}.", f"layers.{stage}.", 1)
    return name
