"""What the loss is computed from in tests: published settings, targets of hand-made objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolact.losses.criterion import Losses, YolactLoss, random_priorities
from yolact.losses.terms import LOSS_TERMS
from yolact.models.maskiou import MaskIouNet
from yolact.settings import LossConfig
from yolact.structures import RawOutputs, Targets, targets_from_masks

PUBLISHED_WEIGHTS = {"classification": 1.0, "box": 1.5, "mask": 6.125, "semantic": 1.0, "mask_iou": 25.0}


def published_loss(**changes: object) -> LossConfig:
    """The published weights and thresholds of the loss; terms that were added have weight 0."""
    settings: dict[str, object] = {
        "weights": dict.fromkeys(LOSS_TERMS, 0.0) | PUBLISHED_WEIGHTS,
        "mask_iou_min_area": 25,
        "positive_iou": 0.5,
        "negative_iou": 0.4,
        "crowd_overlap": 0.7,
        "negatives_per_positive": 3,
        "max_masks_per_image": 100,
        "assignment": "iou",
        "class_targets": "one_hot",
        "box": "smooth_l1",
        "mask_dice": 0,
        "mask_upsampling": 1,
    }
    return LossConfig.model_validate(settings | changes)


@dataclass
class ImageObjects:
    """The objects of one image."""

    boxes: Tensor
    """(n, 4) xyxy, relative."""
    labels: Tensor
    """(n,)"""
    masks: Tensor
    """(n, S, S) uint8, 0 or 1."""
    crowd: Tensor
    """(n,) bool."""


def objects_of(
    boxes: list[list[float]], labels: list[int], masks: Tensor, crowd: list[bool] | None = None
) -> ImageObjects:
    """One image's objects from plain lists; none is a crowd region if ``crowd`` is None."""
    return ImageObjects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=masks.to(torch.uint8),
        crowd=torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
    )


def batch_of(
    images: list[ImageObjects], num_classes: int, mask_size: tuple[int, int], semantic_size: tuple[int, int] = (1, 1)
) -> Targets:
    """The images' targets as one batch."""
    return targets_from_masks(
        [image.boxes for image in images],
        [image.labels for image in images],
        [image.masks for image in images],
        [image.crowd for image in images],
        num_classes,
        mask_size,
        semantic_size,
    )


def batch_for(outputs: RawOutputs, images: list[ImageObjects]) -> Targets:
    """The images' targets at the resolutions of a network's outputs."""
    assert outputs.semantic_logits is not None
    _, num_classes, *semantic_size = outputs.semantic_logits.shape
    _, height, width, _ = outputs.prototypes.shape
    return batch_of(images, num_classes, (height, width), (semantic_size[0], semantic_size[1]))


def losses_of(
    criterion: YolactLoss,
    outputs: RawOutputs,
    targets: Targets,
    maskiou_net: MaskIouNet | None = None,
    priorities: Tensor | None = None,
) -> Losses:
    """The losses of a batch that one process has as a whole; masks are drawn at random if ``priorities`` is None."""
    if priorities is None:
        priorities = random_priorities(*outputs.boxes.shape[:2], outputs.boxes.device)
    return criterion(outputs, targets, criterion.match(targets, outputs.anchors), priorities, maskiou_net)
