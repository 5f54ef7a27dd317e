"""The backbones that settings can name. Importing this module does not import PyTorch.

A backbone is one class (`yolact.models.backbones.base.Backbone`) and one or more entries here, one per published size.
Another package adds a backbone through the entry point group `PLUGINS`, or by importing a module that calls
`register_backbone` before settings are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolact.errors import SettingsError
from yolact.plugins import load_plugins

PLUGINS = "yolact.backbones"
"""Entry point group: each entry names a module that calls `register_backbone` when it is imported."""


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
    """``module:Class``, a `yolact.models.backbones.base.Backbone`. Entries that share a class are one family and differ
    only in their blocks."""
    deformable: bool = False
    """Whether the class takes ``model.deformable_blocks``."""


_BASIC = "yolact.models.backbones.resnet:BasicResNet"
_BOTTLENECK = "yolact.models.backbones.resnet:BottleneckResNet"

# Blocks per stage: He et al. 2016, table 1; Redmon and Farhadi 2018, table 1.
_SPECS: dict[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        BackboneSpec("resnet18", "ResNet-18", (2, 2, 2, 2), _BASIC),
        BackboneSpec("resnet34", "ResNet-34", (3, 4, 6, 3), _BASIC),
        BackboneSpec("resnet50", "ResNet-50", (3, 4, 6, 3), _BOTTLENECK, deformable=True),
        BackboneSpec("resnet101", "ResNet-101", (3, 4, 23, 3), _BOTTLENECK, deformable=True),
        BackboneSpec("darknet53", "Darknet-53", (1, 2, 8, 8, 4), "yolact.models.backbones.darknet:Darknet"),
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

    Raises:
        SettingsError: no backbone has that name, or a plugin cannot be imported.
    """
    if name not in _SPECS:
        load_plugins(PLUGINS)
    if name not in _SPECS:
        raise SettingsError(f"must be one of {', '.join(_SPECS)}")
    return _SPECS[name]
