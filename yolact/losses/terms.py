"""The table of loss terms, and all terms but the mask terms (paper section 3.3; normalisers as published).

A term is an entry in `LOSS_TERMS` and a weight in ``train.loss.weights``. The total, the logs, ``losses.csv``,
``metrics/train.json``, MLflow and checkpoints use this table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.boxes import box_area, decode, encode
from yolact.errors import SettingsError, suggestion
from yolact.losses.masks import MaskSamples, dice_loss, mask_iou_loss, mask_iou_samples, mask_loss, mask_samples
from yolact.losses.matcher import BACKGROUND, Matches
from yolact.models.maskiou import MaskIouNet
from yolact.plugins import load_plugins
from yolact.settings import LossConfig
from yolact.structures import RawOutputs, Targets

PLUGINS = "yolact.loss_terms"
"""Entry point group: each entry names a module that calls `register_loss_term` when it is imported."""

RESERVED = ("total", "lr", "epoch", "step")
"""Columns of the logs that are not loss terms."""

Normaliser = Literal["positives", "images"]
"""What a term is divided by: the positive anchors (at least 1) or the images of the whole batch."""


@dataclass
class LossContext:
    """What every loss term can read."""

    outputs: RawOutputs
    """Outputs of a network in training mode; float32."""
    targets: Targets
    matches: Matches
    priorities: Tensor
    """(B, A) float32, see `YolactLoss.forward`."""
    maskiou_net: MaskIouNet | None
    config: LossConfig

    @cached_property
    def masks(self) -> MaskSamples:
        """The assembled and the true masks of the positives; computed once for all terms."""
        return mask_samples(
            self.outputs.prototypes,
            self.outputs.mask_coefficients,
            self.matches,
            self.targets,
            self.priorities,
            self.config.max_masks_per_image,
            self.config.mask_upsampling,
        )


@dataclass(frozen=True)
class LossTerm:
    """One term of the training loss."""

    function: Callable[[LossContext], Tensor | None]
    """Sum over the batch, a float32 scalar, neither weighted nor normalised; None if the network has no such term. No
    shape may depend on values computed on a GPU: the host would wait for them."""
    normaliser: Normaliser


def classification_loss(
    logits: Tensor, classes: Tensor, negatives_per_positive: int, quality: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy over positives and the hardest background anchors (OHEM, SSD section 2.2), summed.

    An anchor's hardness is ``-log p(background)``. Per image, the hardest ``negatives_per_positive`` times as many
    anchors as there are positives are ranked (positive and ignored anchors with hardness 0), and the background ones
    among them are taken.

    Args:
        logits: (B, A, C + 1), background first.
        classes: (B, A) of `Matches.classes`.
        quality: (B, A) 0 to 1: the probability that a positive's class should get, the rest being background; None
            for 1. With the IoU of the predicted box, the score becomes an estimate of class and IoU at once, as in the
            quality focal loss (Li et al. 2020, section 3.2), here with softmax, whose background takes the rest.
    """
    log_probabilities = F.log_softmax(logits, dim=-1)
    hardness = -log_probabilities.detach()[..., BACKGROUND]  # (B, A)
    hardness = torch.where(classes == BACKGROUND, hardness, 0.0)
    order = hardness.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    positive = classes > 0
    quota = (negatives_per_positive * positive.sum(dim=1, keepdim=True)).clamp(max=classes.shape[1] - 1)
    selected = positive | ((rank < quota) & (classes == BACKGROUND))
    ignored = -100
    chosen = torch.where(selected, classes, ignored)
    if quality is not None:
        return _soft_cross_entropy(log_probabilities, chosen, torch.where(positive, quality, 1.0))
    return F.nll_loss(log_probabilities.flatten(0, 1), chosen.flatten(), ignore_index=ignored, reduction="sum")


def _soft_cross_entropy(log_probabilities: Tensor, classes: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy with ``share`` (B, A) of the target on the class and the rest on background, summed; negative
    classes are left out."""
    of_class = log_probabilities.gather(2, classes.clamp(min=0)[..., None]).squeeze(2)
    cost = share * of_class + (1 - share) * log_probabilities[..., BACKGROUND]
    return -torch.where(classes >= 0, cost, 0.0).sum()


def predicted_iou(encoded: Tensor, anchors: Tensor, matches: Matches, targets: Targets) -> Tensor:
    """(B, A) 0 to 1: IoU of each positive's decoded box with its object, without gradient; 0 for other anchors."""
    if not len(targets.boxes):
        return torch.zeros_like(encoded[..., 0])
    positive = matches.classes > 0
    boxes = decode(torch.where(positive[..., None], encoded.detach(), 0.0), anchors)
    truth = targets.boxes[matches.objects]
    low, high = torch.maximum(boxes[..., :2], truth[..., :2]), torch.minimum(boxes[..., 2:], truth[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = box_area(boxes) + box_area(truth) - shared
    return torch.where(positive, shared / union, 0.0)


IouLoss = Literal["giou", "diou", "ciou"]
"""A value of ``train.loss.box``."""

EPSILON = 1e-7
"""Keeps the complete IoU's weight defined for equal boxes."""


def iou_costs(boxes: Tensor, truth: Tensor, kind: IouLoss) -> Tensor:
    """1 minus the generalized, distance or complete IoU of each pair of (..., 4) xyxy boxes; (...).

    Generalized: Rezatofighi et al. 2019, algorithm 1. Distance and complete: Zheng et al. 2020, equations 7 and 10
    to 12. torchvision's functions for the same select elements with a mask, for which the host waits.
    """
    low, high = torch.maximum(boxes[..., :2], truth[..., :2]), torch.minimum(boxes[..., 2:], truth[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = box_area(boxes) + box_area(truth) - shared
    iou = shared / union
    hull = torch.maximum(boxes[..., 2:], truth[..., 2:]) - torch.minimum(boxes[..., :2], truth[..., :2])
    if kind == "giou":
        area = hull.prod(dim=-1)
        return 1 - iou + (area - union) / area
    apart = (boxes[..., :2] + boxes[..., 2:] - truth[..., :2] - truth[..., 2:]) / 2
    cost = 1 - iou + apart.square().sum(dim=-1) / hull.square().sum(dim=-1)
    if kind == "diou":
        return cost
    angles = [torch.atan2(*(sides[..., 2:] - sides[..., :2]).unbind(dim=-1)) for sides in (boxes, truth)]
    aspect = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    weight = (aspect / (1 - iou + aspect + EPSILON)).detach()
    return cost + weight * aspect


def box_iou_loss(encoded: Tensor, anchors: Tensor, matches: Matches, targets: Targets, kind: IouLoss) -> Tensor:
    """1 minus a generalized IoU of the positives' decoded boxes with their objects, summed.

    Args:
        encoded: (B, A, 4) predicted offsets.
        anchors: (A, 4) cxcywh, relative.
        kind: see `iou_costs`.
    """
    if not len(targets.boxes):
        return encoded[:0].sum()
    positive = matches.classes > 0
    # Other anchors are compared with themselves, so that neither value nor gradient can be infinite.
    boxes = decode(torch.where(positive[..., None], encoded, 0.0), anchors)
    truth = torch.where(positive[..., None], targets.boxes[matches.objects], boxes.detach())
    return torch.where(positive, iou_costs(boxes, truth, kind), 0.0).sum()


def box_loss(encoded: Tensor, anchors: Tensor, matches: Matches, targets: Targets) -> Tensor:
    """Smooth-L1 (beta 1) between predicted and true offsets of the positives, summed over the 4 coordinates.

    Args:
        encoded: (B, A, 4) predicted offsets.
        anchors: (A, 4) cxcywh, relative.
    """
    if not len(targets.boxes):
        return encoded[:0].sum()
    positive = (matches.classes > 0)[..., None]
    truth = torch.where(positive, encode(targets.boxes[matches.objects], anchors), 0.0)  # (B, A, 4)
    return F.smooth_l1_loss(torch.where(positive, encoded, 0.0), truth, reduction="sum")


def semantic_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Per-pixel, per-class binary cross-entropy against the union of each class's masks (paper section 5).

    Args:
        logits: (B, C, H3, W3).
        truth: (B, C, H3, W3) uint8, 0 or 1, see `Targets.semantic`.

    Returns:
        Sum over images, classes and pixels, divided by H3 * W3.
    """
    height, width = logits.shape[2:]
    return F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="sum") / (height * width)


def _classification(context: LossContext) -> Tensor:
    outputs, config, quality = context.outputs, context.config, None
    if config.class_targets == "iou":
        quality = predicted_iou(outputs.boxes, outputs.anchors, context.matches, context.targets)
    return classification_loss(outputs.class_logits, context.matches.classes, config.negatives_per_positive, quality)


def _box(context: LossContext) -> Tensor:
    outputs, kind = context.outputs, context.config.box
    if kind == "smooth_l1":
        return box_loss(outputs.boxes, outputs.anchors, context.matches, context.targets)
    return box_iou_loss(outputs.boxes, outputs.anchors, context.matches, context.targets, kind)


def _mask(context: LossContext) -> Tensor:
    weight = context.config.mask_dice
    loss = mask_loss(context.masks)
    return loss + weight * dice_loss(context.masks) if weight else loss


def _semantic(context: LossContext) -> Tensor:
    assert context.outputs.semantic_logits is not None
    return semantic_loss(context.outputs.semantic_logits, context.targets.semantic)


def _mask_iou(context: LossContext) -> Tensor | None:
    if context.maskiou_net is None:
        return None
    return mask_iou_loss(context.maskiou_net, mask_iou_samples(context.masks, context.config.mask_iou_min_area))


LOSS_TERMS: dict[str, LossTerm] = {
    "classification": LossTerm(_classification, "positives"),
    "box": LossTerm(_box, "positives"),
    "mask": LossTerm(_mask, "positives"),
    "semantic": LossTerm(_semantic, "images"),
    "mask_iou": LossTerm(_mask_iou, "positives"),
}
"""Every term by name, in the order in which the total adds them up."""


def register_loss_term(name: str, term: LossTerm) -> None:
    """Add a loss term; ``train.loss.weights`` then needs its weight.

    Raises:
        ValueError: there is another term of that name, or the name is a column that every log has.
    """
    if name in RESERVED:
        raise ValueError(f"a loss term cannot be called {name!r}: the logs have a column of that name")
    if LOSS_TERMS.setdefault(name, term) != term:
        raise ValueError(f"there is already a loss term {name!r}")


def check_weights(weights: Collection[str]) -> None:
    """Check that ``train.loss.weights`` names exactly the terms of `LOSS_TERMS`.

    Raises:
        SettingsError: a term has no weight, or a weight no term; or a plugin cannot be imported.
    """
    load_plugins(PLUGINS)
    for name in weights:
        if name not in LOSS_TERMS:
            hint = suggestion(name, LOSS_TERMS) or f"the terms are: {', '.join(LOSS_TERMS)}"
            raise SettingsError(f"train.loss.weights.{name}: unknown loss term; {hint}")
    missing = [name for name in LOSS_TERMS if name not in weights]
    if missing:
        raise SettingsError(
            f"train.loss.weights.{missing[0]}: missing; every loss term needs a weight (conf/base.yaml has the "
            "published ones; 0 leaves a term out of the total)"
        )
