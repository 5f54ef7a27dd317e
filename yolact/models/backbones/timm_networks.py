"""Any network of the library timm that returns feature maps (its ``features_only``), by the name ``timm/NAME``.

timm is the optional extra ``timm``, and is imported only when such a network is built.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from yolact.backbone_registry import TIMM
from yolact.errors import SettingsError, WeightsError
from yolact.models.backbones.base import Backbone, build_with_storage
from yolact.transforms import Normalization

STRIDES = (8, 16, 32)


class TimmBackbone(Backbone):
    """A network of timm without its classifier, under timm's tensor names below ``network.``.

    Three stages end at C3, C4 and C5; all before them is the stem. No batch norm is folded: what runs between a
    convolution and a batch norm differs from network to network.

    Args:
        name: ``timm/`` and timm's name of the network.

    Raises:
        SettingsError: timm is not installed, does not know the name, or the network has no maps of `STRIDES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = build_with_storage(lambda: _create(name, pretrained=False))
        info = self.network.feature_info
        reductions = list(info.reduction())
        layout = str(getattr(self.network, "output_fmt", "NCHW")).rpartition(".")[2]
        if not set(STRIDES) <= set(reductions) or layout != "NCHW":
            raise SettingsError(
                f"model.backbone: {name}: its feature maps have strides {sorted(set(reductions))} in the order "
                f"{layout}; a backbone needs {list(STRIDES)} in the order NCHW"
            )
        self.places = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        c3, c4, c5 = (info.channels()[place] for place in self.places)
        self.channels = (c3, c4, c5)
        mean, std = (tuple(255.0 * value for value in self.network.pretrained_cfg[key]) for key in ("mean", "std"))
        self.normalization = Normalization(mean, std)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5, at strides 8, 16 and 32.

        Some networks round sizes down, others up. So images are padded with zeros, right and below, to multiples of 32,
        and cells that are outside the image are cut off.
        """
        height, width = images.shape[-2:]
        features = self.network(F.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1])))
        c3, c4, c5 = (
            features[place][..., : -(-height // stride), : -(-width // stride)]
            for place, stride in zip(self.places, STRIDES, strict=True)
        )
        return c3, c4, c5

    def stem_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return self._parts()[0]

    def stage_modules(self) -> list[nn.Module]:
        """See `Backbone`."""
        return [nn.ModuleList(modules) for modules in self._parts()[1:]]

    def _parts(self) -> list[list[nn.Module]]:
        """Modules with parameters of the stem and of the three stages.

        timm registers modules in the order in which they run.

        Raises:
            SettingsError: a module that returns a feature map is not part of the network.
        """
        named = [(_dotted(name), module) for name, module in self.network.named_modules() if name]
        sources = [_dotted(name) for name in self.network.feature_info.module_name()]
        before = [sources[self.places[0] - 1]] if self.places[0] else []
        ends = []
        for source in before + [sources[place] for place in self.places[:2]]:
            numbers = [number for number, (name, _) in enumerate(named) if f"{name}.".startswith(f"{source}.")]
            if not numbers:
                raise SettingsError(f"train.freeze: {self.name} has no known stages; set it to none or backbone")
            ends.append(numbers[-1] + 1)
        bounds = [0] * (2 - len(before)) + [*ends, len(named)]
        return [
            [module for _, module in named[start:end] if _has_own(module)] for start, end in itertools.pairwise(bounds)
        ]

    def imagenet_weights(self, name: str, version: int) -> dict[str, Tensor]:
        """timm's default weights; see `Backbone`."""
        if version != 1:
            raise WeightsError(f"there is no second version for {name}; use imagenet, or timm's name with a tag")
        try:
            return dict(_create(name, pretrained=True).state_dict())
        except Exception as error:  # of huggingface_hub's HTTP library, which changes
            page = self.network.pretrained_cfg.get("hf_hub_id")
            raise WeightsError(
                f"https://huggingface.co/{page} could not be downloaded or read ({error}). Without internet, download "
                "its model.safetensors elsewhere and name the file: model.backbone_weights=FILE"
            ) from error

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``stages.0.blocks.0.conv_dw.weight`` (a file of timm) -> ``network.stages_0.blocks.0.conv_dw.weight``; layers
        after the last feature map are left out."""
        own = {_dotted(name): f"network.{name}" for name in self.network.state_dict()}
        tops = {name for name, _ in self.network.named_children()}
        renamed = {}
        for key, tensor in state.items():
            name = key.removeprefix("network.")
            top = name.partition(".")[0]
            if top in tops or any(other.startswith(f"{top}_") for other in tops):
                renamed[own.get(_dotted(name), key)] = tensor
        return renamed


def _create(name: str, pretrained: bool) -> Any:
    try:
        import timm
    except ImportError as error:
        raise SettingsError(
            f"model.backbone: {name} needs timm, which cannot be imported ({error}). To install it: pip install "
            "'yolact-pipeline[timm]'"
        ) from error
    own_name = name.removeprefix(TIMM)
    if not timm.is_model(own_name):
        raise SettingsError(f"model.backbone: timm has no network {own_name}; see timm.list_models()")
    try:
        return timm.create_model(own_name, pretrained=pretrained, features_only=True)
    except RuntimeError as error:
        if pretrained:
            raise
        raise SettingsError(f"model.backbone: {name} cannot return feature maps: {error}") from error


def _dotted(name: str) -> str:
    """timm replaces some of the dots of the names of layers by underscores."""
    return re.sub(r"[._]", ".", name)


def _has_own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
