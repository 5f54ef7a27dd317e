"""The losses of YOLACT and YOLACT++ (paper sections 3.3 and 5; normalisers as in the published code)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.boxes import crop_mask, encode
from yolact.config import LossConfig
from yolact.matcher import BACKGROUND, Matches, match
from yolact.models.maskiou import MaskIouNet
from yolact.structures import RawOutputs, Targets


@dataclass
class Losses:
    """The terms of the training loss, weighted and normalised; each a scalar."""

    classification: Tensor
    box: Tensor
    mask: Tensor
    semantic: Tensor
    mask_iou: Tensor | None
    """Of mask re-scoring; None where the network has none."""

    @property
    def total(self) -> Tensor:
        first, *others = self.as_dict().values()
        return sum(others, start=first)

    def as_dict(self) -> dict[str, Tensor]:
        """The terms that there are, by name, without the total."""
        terms = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: term for name, term in terms.items() if term is not None}


@dataclass
class MaskSamples:
    """The positives of one image that enter the mask loss, at the prototypes' resolution."""

    predicted: Tensor
    """(P, Hp, Wp) 0 to 1; zero outside the true box, see `yolact.boxes.crop_mask`."""
    truth: Tensor
    """(P, Hp, Wp) float, 0 or 1."""
    boxes: Tensor
    """(P, 4) true boxes, xyxy, relative."""
    labels: Tensor
    """(P,) int64 true classes, 0 to C - 1."""
    weight: float
    """Positives of the image over P: 1 where all of them take part."""


@dataclass
class MaskIouSamples:
    """What one batch teaches the mask re-scoring."""

    masks: Tensor
    """(M, Hp, Wp) assembled masks, soft and cropped; gradients flow back through them."""
    labels: Tensor
    """(M,) int64 true classes, 0 to C - 1."""
    ious: Tensor
    """(M,) 0 to 1: how well each mask, binarised, fits the true one."""


class YolactLoss(nn.Module):
    """Matching and the loss terms of a batch.

    N, the normaliser of all terms but the semantic one, is the number of positive anchors in the whole batch (1 where
    there is none: then only the semantic term is not zero).
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: RawOutputs, targets: list[Targets], maskiou_net: MaskIouNet | None = None) -> Losses:
        """Compute the terms.

        Args:
            outputs: of a network in training mode, any floating dtype; the losses are computed in float32.
            targets: one entry per image, on the outputs' device.
            maskiou_net: that network's mask re-scoring, if it has one; it takes part in training only through here.
        """
        assert outputs.semantic_logits is not None, "the loss needs a network in training mode"
        config = self.config
        matches = [
            match(target, outputs.anchors, config.positive_iou, config.negative_iou, config.crowd_overlap)
            for target in targets
        ]
        classes = torch.stack([m.classes for m in matches])  # (B, A)
        num_positives = (classes > 0).sum().clamp(min=1)
        with torch.autocast(outputs.boxes.device.type, enabled=False):
            masks = mask_samples(
                outputs.prototypes.float(),
                outputs.mask_coefficients.float(),
                matches,
                targets,
                config.max_masks_per_image,
            )
            return Losses(
                classification=config.class_weight
                * classification_loss(outputs.class_logits.float(), classes, config.negatives_per_positive)
                / num_positives,
                box=config.box_weight
                * box_loss(outputs.boxes.float(), outputs.anchors, matches, targets)
                / num_positives,
                mask=config.mask_weight * mask_loss(masks) / num_positives,
                semantic=config.semantic_weight * semantic_loss(outputs.semantic_logits.float(), targets),
                mask_iou=None
                if maskiou_net is None
                else config.mask_iou_weight
                * mask_iou_loss(maskiou_net, mask_iou_samples(masks, config.mask_iou_min_area))
                / num_positives,
            )


def classification_loss(logits: Tensor, classes: Tensor, negatives_per_positive: int) -> Tensor:
    """Softmax cross-entropy over positives and the hardest background anchors (OHEM, SSD section 2.2), summed.

    An anchor's hardness is ``-log p(background)``. Per image, the hardest ``negatives_per_positive`` times as many
    anchors as there are positives are ranked (positives and neutrals with hardness 0), and the background ones
    among them are taken.

    Args:
        logits: (B, A, C + 1), background first.
        classes: (B, A) of `Matches.classes`.
    """
    hardness = torch.logsumexp(logits.detach(), dim=-1) - logits.detach()[..., BACKGROUND]  # (B, A)
    hardness = torch.where(classes == BACKGROUND, hardness, torch.zeros_like(hardness))
    order = hardness.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    positive = classes > 0
    quota = (negatives_per_positive * positive.sum(dim=1, keepdim=True)).clamp(max=classes.shape[1] - 1)
    selected = positive | ((rank < quota) & (classes == BACKGROUND))
    return F.cross_entropy(logits[selected], classes[selected], reduction="sum")


def box_loss(encoded: Tensor, anchors: Tensor, matches: list[Matches], targets: list[Targets]) -> Tensor:
    """Smooth-L1 (beta 1) between predicted and true offsets of the positives, summed over the 4 coordinates.

    Args:
        encoded: (B, A, 4) predicted offsets.
        anchors: (A, 4) cxcywh, relative.
    """
    total = encoded.new_zeros(())
    for prediction, matched, target in zip(encoded, matches, targets, strict=True):
        positive = matched.classes > 0
        boxes = _objects_of(target).boxes[matched.objects[positive]]
        truth = encode(boxes, anchors[positive])
        total = total + F.smooth_l1_loss(prediction[positive], truth, reduction="sum")
    return total


def mask_samples(
    prototypes: Tensor, coefficients: Tensor, matches: list[Matches], targets: list[Targets], max_masks: int
) -> list[MaskSamples]:
    """Assemble and crop the masks of each image's positives beside the true masks.

    Masks are assembled and cropped at the prototypes' resolution (paper equation 1), inside the true box; the true
    masks are reduced bilinearly to it and binarised.

    Args:
        prototypes: (B, Hp, Wp, K).
        coefficients: (B, A, K).
        max_masks: positives per image that take part; of more, as many are drawn at random.

    Returns:
        One entry per image; anchors ascend, or have the order in which they were drawn.
    """
    height, width = prototypes.shape[1:3]
    samples = []
    for prototype, coefficient, matched, target in zip(prototypes, coefficients, matches, targets, strict=True):
        positive = (matched.classes > 0).nonzero().squeeze(1)
        count = len(positive)
        if count > max_masks:
            positive = positive[torch.randperm(count, device="cpu").to(positive.device)[:max_masks]]
        objects = _objects_of(target)
        index = matched.objects[positive]
        boxes = objects.boxes[index]
        predicted = torch.sigmoid(coefficient[positive] @ prototype.reshape(height * width, -1).T)
        samples.append(
            MaskSamples(
                predicted=predicted.reshape(-1, height, width) * crop_mask(boxes, height, width),
                truth=downsample_masks(objects.masks, height, width)[index],
                boxes=boxes,
                labels=objects.labels[index],
                weight=max(1.0, count / max_masks),
            )
        )
    return samples


def mask_loss(samples: list[MaskSamples]) -> Tensor:
    """Pixel cross-entropy of assembled masks inside the true box, divided by that box's area, summed.

    The area is in prototype pixels. A true pixel outside the crop costs 100, the clamp of PyTorch's cross-entropy.
    Where only some of an image's positives take part, their sum is scaled up to all of them.
    """
    total = samples[0].predicted.new_zeros(())
    for image in samples:
        height, width = image.predicted.shape[1:]
        cost = F.binary_cross_entropy(image.predicted.nan_to_num(), image.truth, reduction="none")
        # binary_cross_entropy refuses NaN (on a GPU by a device assertion); the trainer has to see it, to report it.
        loss = torch.where(image.predicted.isnan(), image.predicted, cost).sum(dim=(1, 2))  # (P,)
        sides = image.boxes[:, 2:] - image.boxes[:, :2]
        total = total + image.weight * (loss / (sides[:, 0] * width) / (sides[:, 1] * height)).sum()
    return total


def mask_iou_samples(samples: list[MaskSamples], min_area: int) -> MaskIouSamples:
    """The masks of a batch that train its mask re-scoring (YOLACT++ paper, "Fast Mask Re-Scoring Network").

    Args:
        samples: those of the mask loss, image by image.
        min_area: objects of no more prototype pixels are left out, as published.
    """
    masks = torch.cat([image.predicted for image in samples])
    truth = torch.cat([image.truth for image in samples])
    labels = torch.cat([image.labels for image in samples])
    large = truth.sum(dim=(1, 2)) > min_area
    masks, truth, labels = masks[large], truth[large], labels[large]
    binary = (masks > 0.5).float()
    shared = (binary * truth).sum(dim=(1, 2))
    union = binary.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) - shared
    return MaskIouSamples(masks, labels, shared / union)


def mask_iou_loss(maskiou_net: MaskIouNet, samples: MaskIouSamples) -> Tensor:
    """Smooth-L1 (beta 1) between predicted and measured IoU of each mask with the true one, summed.

    Without samples it is zero, and so are the gradients of ``maskiou_net``: the published code leaves the term out
    then, which processes that train together could not.
    """
    predicted = maskiou_net(samples.masks).gather(1, samples.labels[:, None]).squeeze(1)
    return F.smooth_l1_loss(predicted, samples.ious, reduction="sum")


def semantic_loss(logits: Tensor, targets: list[Targets]) -> Tensor:
    """Per-pixel, per-class binary cross-entropy against the union of each class's masks (paper section 5).

    Args:
        logits: (B, C, h, w) at P3's resolution.

    Returns:
        Sum over images, classes and pixels, divided by h * w and by B.
    """
    batch, _, height, width = logits.shape
    truth = torch.zeros_like(logits)
    for image, target in enumerate(targets):
        objects = _objects_of(target)
        for label, mask in zip(objects.labels, downsample_masks(objects.masks, height, width), strict=True):
            truth[image, label] = torch.maximum(truth[image, label], mask)
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / (height * width) / batch


def downsample_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Reduce (N, S, S) 0/1 masks bilinearly (no antialiasing, as published); (N, height, width) float 0 or 1."""
    if not len(masks):
        return masks.new_zeros((0, height, width), dtype=torch.float32)
    reduced = F.interpolate(masks[None].float(), size=(height, width), mode="bilinear", align_corners=False)[0]
    return (reduced > 0.5).float()


def _objects_of(target: Targets) -> Targets:
    """The rows that are not crowd regions; `Matches.objects` counts these."""
    keep = ~target.crowd
    return Targets(target.boxes[keep], target.labels[keep], target.masks[keep], target.crowd[keep])
