"""torchvision's classification networks, cut at strides 8, 16 and 32, under torchvision's tensor names.

torchvision is imported only when one is built, as in `yolact.models.backbones.deformable`. Stochastic depth, which some
of them have, is off: a training that is resumed or split across processes gives the same weights.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from yolact.models.backbones.base import Backbone, build_with_storage, sequential_pairs
from yolact.models.backbones.hub import torchvision_address, torchvision_weights


class TorchvisionBackbone(Backbone):
    """A network of torchvision without its classifier. The last three stages return C3, C4 and C5.

    Args:
        name: torchvision's name of the network.
    """

    ENDS: ClassVar[tuple[int, ...]]
    """For each stage, the number of `layers` up to its end; the stem is the first layer."""
    UNUSED: ClassVar[tuple[str, ...]]
    """Prefixes of torchvision's tensors that are left out."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._take_layers(name)
        # The last parameter of a stage is the bias of its output.
        c3, c4, c5 = (list(stage.parameters())[-1].shape[0] for stage in self.stage_modules()[-3:])
        self.channels = (c3, c4, c5)

    @abc.abstractmethod
    def _take_layers(self, name: str) -> None:
        """Build torchvision's network and keep the layers."""

    @abc.abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The layers in the order in which they run."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5, at strides 8, 16 and 32."""
        x = images
        features = []
        for number, layer in enumerate(self.layers(), start=1):
            x = self._run(layer, x)
            if number in self.ENDS[-3:]:
                features.append(x)
        c3, c4, c5 = features
        return c3, c4, c5

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = layer(x)
        return out

    def stem_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return [self.layers()[0]]

    def stage_modules(self) -> list[nn.Module]:
        """See `Backbone`; a stage is all layers of one stride."""
        layers = self.layers()
        return [nn.Sequential(*layers[start:end]) for start, end in itertools.pairwise((1, *self.ENDS))]

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """See `Backbone`."""
        return sequential_pairs(self)

    def imagenet_weights(self, name: str, version: int) -> dict[str, Tensor]:
        """torchvision's; see `Backbone`."""
        return torchvision_weights(name, version)

    def imagenet_address(self, name: str, version: int) -> str:
        """torchvision's; see `Backbone`."""
        return torchvision_address(name, version)

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the classifier; the names are torchvision's."""
        return {name: tensor for name, tensor in state.items() if not name.startswith(self.UNUSED)}


class MobileNetV3(TorchvisionBackbone):
    """MobileNetV3-Large (Howard et al. 2019, table 1) without its last 1x1 convolution: C5 has 160 channels."""

    ENDS: ClassVar[tuple[int, ...]] = (2, 4, 7, 13, 16)
    UNUSED: ClassVar[tuple[str, ...]] = ("features.16.", "classifier.")

    def _take_layers(self, name: str) -> None:
        self.features = _network(name).features[: self.ENDS[-1]]

    def layers(self) -> list[nn.Module]:
        """See `TorchvisionBackbone`."""
        return list(self.features)


class EfficientNet(TorchvisionBackbone):
    """EfficientNet-B0 to B2 (Tan and Le 2019, table 1) without the last 1x1 convolution."""

    ENDS: ClassVar[tuple[int, ...]] = (2, 3, 4, 6, 8)
    UNUSED: ClassVar[tuple[str, ...]] = ("features.8.", "classifier.")

    def _take_layers(self, name: str) -> None:
        self.features = _network(name, stochastic_depth_prob=0.0).features[: self.ENDS[-1]]

    def layers(self) -> list[nn.Module]:
        """See `TorchvisionBackbone`."""
        return list(self.features)


class RegNet(TorchvisionBackbone):
    """RegNetY (Radosavovic et al. 2020, section 4)."""

    ENDS: ClassVar[tuple[int, ...]] = (2, 3, 4, 5)
    UNUSED: ClassVar[tuple[str, ...]] = ("fc.",)

    def _take_layers(self, name: str) -> None:
        network = _network(name)
        self.stem, self.trunk_output = network.stem, network.trunk_output

    def layers(self) -> list[nn.Module]:
        """See `TorchvisionBackbone`."""
        return [self.stem, *self.trunk_output]


class ConvNeXt(TorchvisionBackbone):
    """ConvNeXt (Liu et al. 2022, section 2).

    Its convolutions that reduce the size read patches of 4 or 2 cells. A row or column that does not fill a patch is
    padded with zeros, right and below, which torchvision drops; at multiples of 32 px there is none.
    """

    ENDS: ClassVar[tuple[int, ...]] = (2, 4, 6, 8)
    UNUSED: ClassVar[tuple[str, ...]] = ("classifier.",)

    def _take_layers(self, name: str) -> None:
        self.features = _network(name, stochastic_depth_prob=0.0).features

    def layers(self) -> list[nn.Module]:
        """See `TorchvisionBackbone`."""
        return list(self.features)

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        for part in cast(nn.Sequential, layer):
            if isinstance(part, nn.Conv2d):  # those of the blocks are inside their blocks
                x = _filled_up(x, part.stride[0])
            x = part(x)
        return x


def _filled_up(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) with zeros, right and below, to multiples."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple)) if height % multiple or width % multiple else x


def _network(name: str, **options: float) -> Any:
    """torchvision's network with random weights."""
    from torchvision.models import get_model

    return build_with_storage(lambda: get_model(name, weights=None, **options))  # RegNet computes its widths
