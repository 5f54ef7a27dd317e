"""Freeze the first layers of the backbone."""

from __future__ import annotations

from torch import nn

from yolact.models.backbones.base import Backbone
from yolact.models.yolact import Yolact


def freeze(model: Yolact, up_to: str) -> None:
    """Freeze the backbone up to and including a part: its parameters get no gradients.

    Freezing needs pretrained weights (`TrainingParams`); with them, batch norm is frozen in the whole backbone.

    Args:
        up_to: the setting ``train.freeze``: ``none``, ``stem``, ``stageN`` (from 1) or ``backbone``
            (`yolact.engine.automatic.resolve` replaces ``auto``).
    """
    for part in frozen_parts(model.backbone, up_to):
        part.requires_grad_(False)


def frozen_parts(backbone: Backbone, up_to: str) -> list[nn.Module]:
    """The modules that `freeze` freezes."""
    if up_to == "none":
        return []
    if up_to == "backbone":
        return [backbone]
    stages = 0 if up_to == "stem" else int(up_to.removeprefix("stage"))
    return [*backbone.stem_modules(), *backbone.stage_modules()[:stages]]
