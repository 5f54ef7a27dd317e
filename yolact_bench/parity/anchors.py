"""Anchor settings in the form that fixtures store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from yolact.errors import DataError
from yolact.models.checkpoints import infer_model_config
from yolact.settings import ModelConfig


@dataclass(frozen=True)
class AnchorSettings:
    """Settings that determine the anchors of a configuration."""

    image_size: int
    scales: list[list[float]]
    ratios: list[float]
    square: bool

    @classmethod
    def of_model(cls, config: ModelConfig) -> AnchorSettings:
        """Settings of a network."""
        return cls(config.image_size, config.anchor_scales, config.anchor_ratios, config.square_anchors)

    @classmethod
    def of_stored(cls, stored: dict[str, Any]) -> AnchorSettings:
        """Settings of an entry in a list of configurations.

        Raises:
            DataError: no published configuration has such anchors, and this project cannot generate them.
        """
        if stored.get("preapply_sqrt", False) or not stored.get("use_pixel_scales", True):
            raise DataError("anchors with preapply_sqrt on or use_pixel_scales off are not supported")
        ratios = stored["pred_aspect_ratios"]
        while isinstance(ratios[0], list):
            if any(level != ratios[0] for level in ratios):
                raise DataError("levels with different aspect ratios are not supported: the head is shared")
            ratios = ratios[0]
        return cls(
            image_size=int(stored["max_size"]),
            scales=[[float(scale) for scale in level] for level in stored["pred_scales"]],
            ratios=[float(ratio) for ratio in ratios],
            square=bool(stored.get("use_square_anchors", False)),
        )

    def model_config(self, state: dict[str, Tensor]) -> ModelConfig:
        """Infer the configuration of a network with these tensors and anchors.

        Raises:
            WeightsError: see `infer_model_config`.
        """
        return infer_model_config(
            state,
            image_size=self.image_size,
            anchor_scales=self.scales,
            anchor_ratios=self.ratios,
            square_anchors=self.square,
        )
