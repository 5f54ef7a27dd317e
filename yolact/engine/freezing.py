"""Layers that training leaves as they are."""

from __future__ import annotations

from torch import nn

from yolact.models.backbone import DarknetBackbone
from yolact.models.yolact import Yolact


def freeze(model: Yolact, up_to: str) -> None:
    """Freeze the backbone up to and including a part: no gradients.

    Freezing needs pretrained weights (`TrainingParams`); with those, batch norm is frozen in the whole backbone.

    Args:
        up_to: the setting ``train.freeze``: ``none``, ``stem``, ``stageN`` (from 1) or ``backbone``.
    """
    for part in frozen_parts(model.backbone, up_to):
        part.requires_grad_(False)


def frozen_parts(backbone: nn.Module, up_to: str) -> list[nn.Module]:
    """The stem (what comes before the first stage of residual blocks) and the first stages, as `freeze` names them."""
    if up_to == "none":
        return []
    stages = backbone.layers
    assert isinstance(stages, nn.ModuleList)
    stem = [backbone._preconv] if isinstance(backbone, DarknetBackbone) else [backbone.conv1, backbone.bn1]
    count = {"stem": 0, "backbone": len(stages)}.get(up_to)
    if count is None:
        count = int(up_to.removeprefix("stage"))
    return [*stem, *stages[:count]]
