"""Infer a network's architecture from the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from yolact.backbone_registry import backbones, find_backbone
from yolact.errors import WeightsError
from yolact.models.backbones.base import Structure, backbone_class
from yolact.models.state_dicts import shortened
from yolact.models.yolact import Yolact
from yolact.settings import PYRAMID_LEVELS, ModelConfig

PARTS = ("fpn.", "proto_net.", "prediction_layers.", "semantic_seg_conv.")
"""Prefixes of the tensors outside the backbone."""

COUNTER = ".num_batches_tracked"
"""Suffix of batch norm's counters. Files from before PyTorch 0.4.1 lack them, and they are never read here."""


@dataclass(frozen=True)
class Architecture:
    """The settings that determine the names and shapes of tensors, and the number of classes.

    Pyramid, protonet and head have the published layers (`model_config`).
    """

    backbone: str
    blocks: tuple[int, ...]
    deformable_blocks: tuple[tuple[int, ...], ...]
    """Empty for none."""
    fpn_channels: int
    num_prototypes: int
    anchors_per_cell: int
    mask_rescoring: bool
    num_classes: int

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Architecture:
        """The architecture of a network with these tensors; only names and shapes are read.

        A backbone with an unnamed depth is a ``resnet18`` or ``resnet50`` with other blocks.

        Raises:
            WeightsError: names or shapes are not those of a complete, consistent YOLACT.
        """
        if not any(name.startswith(PARTS) for name in state):
            raise WeightsError(
                f"is not a YOLACT: no key starts with {', '.join(PARTS)}; its keys are {shortened(list(state))}. "
                "To load a backbone's weights, use the setting model.backbone_weights"
            )
        backbone, (blocks, deformable_blocks) = _backbone(state)
        anchors_per_cell = _channels(state, "prediction_layers.0.bbox_layer") // 4
        architecture = cls(
            backbone=backbone,
            blocks=blocks,
            deformable_blocks=deformable_blocks,
            fpn_channels=_channels(state, "fpn.lat_layers.0"),
            num_prototypes=_channels(state, "proto_net.10"),
            anchors_per_cell=max(1, anchors_per_cell),
            mask_rescoring=any(name.startswith("maskiou_net.") for name in state),
            num_classes=_channels(state, "semantic_seg_conv"),
        )
        _check(state, architecture)
        return architecture

    @classmethod
    def of_config(cls, config: ModelConfig, num_classes: int) -> Architecture:
        """The architecture of a network with this configuration."""
        chosen = tuple(tuple(sorted(stage)) for stage in config.deformable_blocks)
        return cls(
            backbone=config.backbone,
            blocks=config.blocks,
            deformable_blocks=chosen if any(chosen) else (),
            fpn_channels=config.fpn_channels,
            num_prototypes=config.num_prototypes,
            anchors_per_cell=config.anchors_per_cell,
            mask_rescoring=config.mask_rescoring,
            num_classes=num_classes,
        )

    def model_config(
        self,
        image_size: int,
        anchor_scales: Sequence[Sequence[float]],
        anchor_ratios: Sequence[float],
        square_anchors: bool,
    ) -> ModelConfig:
        """The configuration with these anchors, for a network trained from ImageNet weights on stretched images.

        Raises:
            pydantic.ValidationError: a value is invalid, or the values are inconsistent.
        """
        named = self.blocks == find_backbone(self.backbone).blocks
        return ModelConfig(
            backbone=self.backbone,
            backbone_blocks=None if named else list(self.blocks),
            deformable_blocks=[list(stage) for stage in self.deformable_blocks],
            backbone_weights="imagenet",
            initial_weights="none",
            image_size=image_size,
            keep_aspect_ratio=False,
            fpn_channels=self.fpn_channels,
            separable_convs=False,
            head_convs=1,
            protonet_convs=3,
            num_prototypes=self.num_prototypes,
            anchor_scales=[[float(scale) for scale in level] for level in anchor_scales],
            anchor_ratios=[float(ratio) for ratio in anchor_ratios],
            square_anchors=square_anchors,
            mask_rescoring=self.mask_rescoring,
        )

    def differences(self, other: Architecture) -> list[str]:
        """The fields that differ, except the number of classes: ``blocks ..., not ...``."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        del pairs["num_classes"]
        return [
            f"{name} {_listed(ours)}, not {_listed(theirs)}" for name, (ours, theirs) in pairs.items() if ours != theirs
        ]


def _listed(value: object) -> object:
    """Tuples as lists, as settings spell them."""
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _backbone(state: Mapping[str, Tensor]) -> tuple[str, Structure]:
    """Name and structure, from the first class that recognises the tensor names.

    Classes registered last are asked first: a ResNet of basic blocks has the least specific names.
    """
    names = [name.removeprefix("backbone.") for name in state if name.startswith("backbone.")]
    specs = backbones()
    for implementation in dict.fromkeys(spec.implementation for spec in reversed(specs)):
        family = [spec for spec in specs if spec.implementation == implementation]
        structure = backbone_class(family[0]).infer_structure(names)
        if structure is not None:
            return next((spec.name for spec in family if spec.blocks == structure.blocks), family[0].name), structure
    return specs[0].name, Structure((1,) * len(specs[0].blocks))  # `_check` lists what is missing


def _channels(state: Mapping[str, Tensor], layer: str) -> int:
    """Output channels of a layer; 1 if it is missing or empty, which `_check` then reports."""
    shapes = (state[name].shape for name in (f"{layer}.weight", f"{layer}.bias") if name in state)
    return next((shape[0] for shape in shapes if len(shape) and shape[0]), 1)


def _check(state: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Reject an incomplete state, or one with inconsistent shapes."""
    anchors = [[1.0] * architecture.anchors_per_cell] * PYRAMID_LEVELS  # affect neither names nor shapes
    config = architecture.model_config(550, anchors, [1.0], square_anchors=True)
    with torch.device("meta"):
        expected = Yolact(config, architecture.num_classes).state_dict()
    missing, unknown = missing_names(state, expected), [name for name in state if name not in expected]
    problems = [
        f"{verb} {len(names)} {what}{'' if len(names) == 1 else 's'}: {shortened(names)}"
        for verb, names, what in (("lacks", missing, "key"), ("has", unknown, "unknown key"))
        if names
    ]
    if problems:
        raise WeightsError(f"{'; '.join(problems)}. Use the complete file, as published")
    misfits = [
        f"{name} is {tuple(state[name].shape)}, but the others need {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if misfits:
        raise WeightsError(f"has shapes that contradict each other: {shortened(misfits)}")


def missing_names(state: Collection[str], expected: Collection[str]) -> list[str]:
    """Required names that a state lacks; batch norm's counters are optional."""
    return [name for name in expected if name not in state and not name.endswith(COUNTER)]
