"""The networks that studies measure, as text."""

from __future__ import annotations

import re

from yolact.settings import ModelConfig
from yolact_ops.settings.presets import BASE, choose


def network_config(text: str) -> ModelConfig:
    """A preset's network from scratch.

    Args:
        text: ``PRESET``, ``PRESET,KEY=VALUE,...`` or ``KEY=VALUE,...`` with settings of ``model``; without a preset
            they differ from ``conf/base.yaml``. With another ``image_size``, the preset's anchors are scaled to it.

    Raises:
        SettingsError: there is no such preset, or a setting is unknown or wrong.
    """
    first, *rest = re.split(r",(?=\w+=)", text)
    preset, settings = (BASE, [first, *rest]) if "=" in first else (first, rest)
    from_scratch = ["model.backbone_weights=none", "train.layer_decay=1"]  # lower values need pretrained weights
    overrides = [*from_scratch, *(f"model.{setting}" for setting in settings)]
    before, config = choose(preset).model, choose(preset, overrides=overrides).model
    if config.image_size == before.image_size or config.anchor_scales != before.anchor_scales:
        return config
    scales = [[int(scale * config.image_size / before.image_size) for scale in row] for row in before.anchor_scales]
    return choose(preset, overrides=[*overrides, f"model.anchor_scales={scales}"]).model
