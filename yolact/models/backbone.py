"""Backbones: torchvision's ResNets, cut to their four stages, under the published key names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]


@dataclass(frozen=True)
class ResNetDesign:
    """Residual block and blocks per stage (He et al. 2016, table 1)."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]


RESNETS: dict[BackboneName, ResNetDesign] = {
    "resnet18": ResNetDesign(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNetDesign(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNetDesign(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetDesign(Bottleneck, (3, 4, 23, 3)),
}


class ResNetBackbone(nn.Module):
    """The convolutional part of a ResNet.

    The parameters are named ``conv1``, ``bn1`` and ``layers.S.B...`` with S from 0 to 3, as in published YOLACT
    weights; torchvision calls the stages ``layer1`` to ``layer4``.
    """

    def __init__(self, design: ResNetDesign) -> None:
        super().__init__()
        full: ResNet = resnet.ResNet(design.block, list(design.blocks))
        self.conv1 = full.conv1
        self.bn1 = full.bn1
        self.relu = full.relu
        self.maxpool = full.maxpool
        self.layers = nn.ModuleList([full.layer1, full.layer2, full.layer3, full.layer4])
        self.channels = tuple(width * design.block.expansion for width in (128, 256, 512))
        """Channels of C3, C4 and C5."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5, at strides 8, 16 and 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c2 = self.layers[0](x)
        c3 = self.layers[1](c2)
        c4 = self.layers[2](c3)
        c5 = self.layers[3](c4)
        return c3, c4, c5
