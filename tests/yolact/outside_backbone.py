"""A backbone as another package would add it: three stages, group norm, and batch norm before its convolution."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.backbone_registry import BackboneSpec, find_backbone
from yolact.models.backbones.base import Backbone, Structure, sequential_pairs
from yolact.models.backbones.resnet import BasicResNet
from yolact.transforms import Normalization

SPEC = BackboneSpec("mixer3", "Mixer-3", (1, 2, 1), "tests.yolact.outside_backbone:Mixer")


class MixBlock(nn.Module):
    """``bn1`` comes before ``conv1``: folding by name would be wrong."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        out: Tensor = x + self.mix(F.silu(self.conv1(self.bn1(x))))
        return out


class Mixer(Backbone):
    """A stem of stride 4 and three stages, which are C3, C4 and C5."""

    normalization: Normalization = Normalization((128.0, 120.0, 110.0), (64.0, 60.0, 50.0))

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.GroupNorm(2, 8))
        self.stages = nn.ModuleList()
        channels = 8
        for count in blocks:
            down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
            channels *= 2
            down = nn.Sequential(down, nn.BatchNorm2d(channels), nn.SiLU(inplace=True))
            self.stages.append(nn.Sequential(down, *(MixBlock(channels) for _ in range(count))))
        self.channels = (channels // 4, channels // 2, channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone`."""
        c3 = self.stages[0](self.stem(images))
        c4 = self.stages[1](c3)
        return c3, c4, self.stages[2](c4)

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
        """Generated here instead of downloaded; named like a classifier's."""
        torch.manual_seed(5)
        blocks = find_backbone(name).blocks
        state = {f"trunk.{key}": tensor for key, tensor in Mixer(blocks).state_dict().items()}
        return state | {"head.weight": torch.zeros(10, 64)}

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the classifier."""
        return {name.removeprefix("trunk."): tensor for name, tensor in state.items() if not name.startswith("head.")}

    @classmethod
    def infer_structure(cls, names: Collection[str]) -> Structure | None:
        """See `Backbone`."""
        found = {tuple(name.split(".")[1:3]) for name in names if name.startswith("stages.")}
        blocks = tuple(sum(stage == str(number) and block != "0" for stage, block in found) for number in range(3))
        return Structure(blocks) if found else None


class PartialMixer(Mixer):
    """Does not run its modules as a whole: a stage's first activation is left out."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone`."""
        features, x = [], self.stem(images)
        for stage in self.stages:
            down, *blocks = stage
            x = nn.Sequential(down[0], down[1], *blocks)(x)
            features.append(x)
        return features[0], features[1], features[2]


class LoudResNet(BasicResNet):
    """A ResNet with doubled features."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone`."""
        c3, c4, c5 = super().forward(images)
        return 2 * c3, 2 * c4, 2 * c5
