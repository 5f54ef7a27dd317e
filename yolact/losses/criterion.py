"""The losses of YOLACT and YOLACT++ (paper sections 3.3 and 5; normalisers as in the published code).

All terms are computed for the whole batch at once, and nothing waits for a GPU: shapes never depend on what is computed
there. Where several processes train together, the normalisers are those of the batch that they share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.boxes import crop_mask, encode
from yolact.losses.matcher import BACKGROUND, Matches, match
from yolact.models.maskiou import MaskIouNet
from yolact.settings import LossConfig
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
    """The positives that enter the mask loss, at the prototypes' resolution, in P slots for each image."""

    logits: Tensor
    """(B, P, Hp, Wp) assembled masks before sigmoid and crop (paper equation 1)."""
    truth: Tensor
    """(B, P, Hp, Wp) uint8, 0 or 1."""
    inside: Tensor
    """(B, P, Hp, Wp) bool: the true box, see `yolact.boxes.crop_mask`."""
    boxes: Tensor
    """(B, P, 4) true boxes, xyxy, relative."""
    labels: Tensor
    """(B, P) int64 true classes, 0 to C - 1."""
    filled: Tensor
    """(B, P) bool; the other slots have no meaning."""
    scale: Tensor
    """(B, 1) float32: positives of the image over those in slots: 1 where all of them take part."""

    def masks(self) -> Tensor:
        """(B, P, Hp, Wp) 0 to 1; zero outside the true box."""
        return torch.sigmoid(self.logits) * self.inside


@dataclass
class MaskIouSamples:
    """What one batch teaches the mask re-scoring, in M slots."""

    masks: Tensor
    """(M, Hp, Wp) assembled masks, soft and cropped; gradients flow back through them."""
    labels: Tensor
    """(M,) int64 true classes, 0 to C - 1."""
    ious: Tensor
    """(M,) 0 to 1: how well each mask, binarised, fits the true one."""
    chosen: Tensor
    """(M,) bool; the other slots teach nothing."""


class YolactLoss(nn.Module):
    """Matching and the loss terms of a batch.

    N, the normaliser of all terms but the semantic one, is the number of positive anchors in the whole batch (1 where
    there is none: then only the semantic term is not zero).

    Where processes train together (`torch.distributed` is initialised), each has its share of the batch. N and the
    number of images are then summed over all processes and divided by how many these are, so that the mean of their
    gradients, which `torch.nn.parallel.DistributedDataParallel` takes, is the gradient of the whole batch in one
    process; likewise the mean of their terms is that batch's term. All must call the loss equally often.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        outputs: RawOutputs,
        targets: Targets,
        maskiou_net: MaskIouNet | None = None,
        priorities: Tensor | None = None,
    ) -> Losses:
        """Compute the terms.

        Args:
            outputs: of a network in training mode, any floating dtype; the losses are computed in float32.
            targets: of the batch, on the outputs' device.
            maskiou_net: that network's mask re-scoring, if it has one; it takes part in training only through here.
            priorities: (B, A) float32; of an image with more positives than may enter the mask loss, those with the
                greatest enter. Random if None: with several processes that have equally many images and whose
                generators agree, those of the whole batch, the first process's first. See `random_priorities`.
        """
        assert outputs.semantic_logits is not None, "the loss needs a network in training mode"
        config = self.config
        matches = match(targets, outputs.anchors, config.positive_iou, config.negative_iou, config.crowd_overlap)
        if priorities is None:
            priorities = _own_priorities(matches.classes)
        num_positives, num_images = batch_sizes(matches.classes)
        with torch.autocast(outputs.boxes.device.type, enabled=False):
            masks = mask_samples(
                outputs.prototypes.float(),
                outputs.mask_coefficients.float(),
                matches,
                targets,
                priorities,
                config.max_masks_per_image,
            )
            return Losses(
                classification=config.class_weight
                * classification_loss(outputs.class_logits.float(), matches.classes, config.negatives_per_positive)
                / num_positives,
                box=config.box_weight
                * box_loss(outputs.boxes.float(), outputs.anchors, matches, targets)
                / num_positives,
                mask=config.mask_weight * mask_loss(masks) / num_positives,
                semantic=config.semantic_weight
                * semantic_loss(outputs.semantic_logits.float(), targets.semantic)
                / num_images,
                mask_iou=None
                if maskiou_net is None
                else config.mask_iou_weight
                * mask_iou_loss(maskiou_net, mask_iou_samples(masks, config.mask_iou_min_area))
                / num_positives,
            )


def batch_sizes(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Positive anchors (at least 1) and images of the whole batch over the number of processes that share it; float32.

    Args:
        classes: (B, A) of `Matches.classes`; this process's share.
    """
    positives = (classes > 0).sum()
    sizes = torch.stack([positives, torch.full_like(positives, len(classes))])
    _, processes = _process()
    if processes > 1:
        dist.all_reduce(sizes)
    positives, images = (sizes.clamp(min=1) / processes).unbind()
    return positives, images


def _process() -> tuple[int, int]:
    """This process's number among those that train together, and how many these are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def random_priorities(images: int, anchors: int, device: torch.device) -> Tensor:
    """(images, anchors) float32 random numbers, 0 to 1, on the device.

    They are drawn there, from a seed out of PyTorch's generator of the CPU: to keep that one's state is enough to draw
    the same again. Draw once for a whole batch, and take rows for its parts: then how it is divided, into passes or
    among processes, does not change which masks are chosen.
    """
    seed = int(torch.randint(2**62, (), device="cpu"))
    generator = torch.Generator(device).manual_seed(seed)
    return torch.rand(images, anchors, generator=generator, device=device)


def _own_priorities(classes: Tensor) -> Tensor:
    rank, processes = _process()
    images, anchors = classes.shape
    return random_priorities(processes * images, anchors, classes.device)[rank * images : (rank + 1) * images]


def classification_loss(logits: Tensor, classes: Tensor, negatives_per_positive: int) -> Tensor:
    """Softmax cross-entropy over positives and the hardest background anchors (OHEM, SSD section 2.2), summed.

    An anchor's hardness is ``-log p(background)``. Per image, the hardest ``negatives_per_positive`` times as many
    anchors as there are positives are ranked (positives and neutrals with hardness 0), and the background ones
    among them are taken.

    Args:
        logits: (B, A, C + 1), background first.
        classes: (B, A) of `Matches.classes`.
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
    return F.nll_loss(log_probabilities.flatten(0, 1), chosen.flatten(), ignore_index=ignored, reduction="sum")


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


def mask_samples(
    prototypes: Tensor,
    coefficients: Tensor,
    matches: Matches,
    targets: Targets,
    priorities: Tensor,
    max_masks: int,
) -> MaskSamples:
    """Assemble the masks of the positives (paper equation 1) beside the true masks.

    Args:
        prototypes: (B, Hp, Wp, K).
        coefficients: (B, A, K).
        priorities: (B, A); of the positives of an image, those with the greatest are taken.
        max_masks: positives per image that take part at most.

    Returns:
        Each image's positives by descending priority, filled slots first.
    """
    batch, height, width, _ = prototypes.shape
    positive = matches.classes > 0
    counts = positive.sum(dim=1, keepdim=True)  # (B, 1)
    slots = _slots(counts, targets, min(max_masks, positive.shape[1]))
    anchors = torch.where(positive, priorities, -torch.inf).topk(slots, dim=1).indices  # (B, P)
    objects = matches.objects.gather(1, anchors)
    boxes = targets.boxes[objects]
    chosen = coefficients.gather(1, anchors[..., None].expand(-1, -1, coefficients.shape[2]))  # (B, P, K)
    return MaskSamples(
        logits=(chosen @ prototypes.flatten(1, 2).mT).view(batch, slots, height, width),
        truth=targets.masks[objects],
        inside=crop_mask(boxes.flatten(0, 1), height, width).view(batch, slots, height, width),
        boxes=boxes,
        labels=targets.labels[objects],
        filled=positive.gather(1, anchors),
        scale=(counts / max_masks).clamp(min=1),
    )


def _slots(counts: Tensor, targets: Targets, max_masks: int) -> int:
    """Slots for each image's masks: the most that an image can need, or on a CPU, where looking is free, does need."""
    if not len(targets.boxes):
        return 0
    return min(max_masks, int(counts.max())) if counts.device.type == "cpu" else max_masks


def mask_loss(samples: MaskSamples) -> Tensor:
    """Pixel cross-entropy of assembled masks inside the true box, divided by that box's area, summed.

    The area is in prototype pixels. A true pixel outside the crop costs 100, the clamp of PyTorch's cross-entropy.
    Where only some of an image's positives take part, their sum is scaled up to all of them.
    """
    height, width = samples.logits.shape[2:]
    cost = _CroppedCrossEntropy.apply(samples.logits, samples.truth, samples.inside)  # (B, P)
    sides = samples.boxes[..., 2:] - samples.boxes[..., :2]
    area = (sides[..., 0] * width) * (sides[..., 1] * height)
    return (cost * torch.where(samples.filled, samples.scale / area, 0.0)).sum()


class _CroppedCrossEntropy(torch.autograd.Function):
    """``F.binary_cross_entropy(sigmoid(logits) * inside, truth)``, summed over the pixels of each mask.

    Values and gradients are those of PyTorch's functions, their clamps included: logarithms end at -100, and the
    gradient of a pixel vanishes where the sigmoid is saturated. Written as one function because the pixels are many,
    and because PyTorch's cross-entropy stops at NaN (on a GPU by a device assertion), which here has to reach the loss.
    """

    SMALLEST = 1e-12
    """Least divisor in the gradient of PyTorch's cross-entropy (ATen, ``EPSILON``)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
        predicted = torch.sigmoid(logits).mul_(inside)
        ctx.save_for_backward(predicted, truth)
        # The probability given to what is true: p where truth is 1, else 1 - p.
        right = torch.where(truth != 0, predicted, 1 - predicted)
        return right.log_().clamp_(min=-100).sum(dim=(-2, -1)).neg_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        predicted, truth = ctx.saved_tensors
        slope = predicted * (1 - predicted)  # of the sigmoid; 0 outside the crop
        gradient = (predicted - truth).mul_(slope).div_(slope.clamp(min=_CroppedCrossEntropy.SMALLEST))
        return gradient.mul_(gradients[0][..., None, None]), None, None


def mask_iou_samples(samples: MaskSamples, min_area: int) -> MaskIouSamples:
    """The masks of a batch that train its mask re-scoring (YOLACT++ paper, "Fast Mask Re-Scoring Network").

    Args:
        samples: those of the mask loss.
        min_area: objects of no more prototype pixels are left out, as published.
    """
    masks, truth = samples.masks().flatten(0, 1), samples.truth.flatten(0, 1)
    binary = masks > 0.5
    area = truth.sum(dim=(1, 2))
    shared = (binary & (truth != 0)).sum(dim=(1, 2))
    union = binary.sum(dim=(1, 2)) + area - shared
    return MaskIouSamples(
        masks=masks,
        labels=samples.labels.flatten(),
        ious=shared / union.clamp(min=1),
        chosen=samples.filled.flatten() & (area > min_area),
    )


def mask_iou_loss(maskiou_net: MaskIouNet, samples: MaskIouSamples) -> Tensor:
    """Smooth-L1 (beta 1) between predicted and measured IoU of each mask with the true one, summed.

    Without samples it is zero, and so are the gradients of ``maskiou_net``: the published code leaves the term out
    then, which processes that train together could not.
    """
    labels = torch.where(samples.chosen, samples.labels, 0)
    predicted = maskiou_net(samples.masks).gather(1, labels[:, None]).squeeze(1)
    return (F.smooth_l1_loss(predicted, samples.ious, reduction="none") * samples.chosen).sum()


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
