"""The mask loss and the loss of mask re-scoring: masks assembled from prototypes compared with the true masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.boxes import crop_mask
from yolact.losses.matcher import Matches
from yolact.models.maskiou import MaskIouNet
from yolact.structures import Targets


@dataclass
class MaskSamples:
    """The positives that enter the mask loss, at the true masks' resolution, in P slots for each image."""

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
    """(B, P) bool; the other slots are undefined."""
    scale: Tensor
    """(B, 1) float32: the image's positives divided by those in slots; 1 if all are used."""

    def masks(self) -> Tensor:
        """(B, P, Hp, Wp) 0 to 1; zero outside the true box."""
        return torch.sigmoid(self.logits) * self.inside


@dataclass
class MaskIouSamples:
    """A batch's training samples for the mask re-scoring, in M slots."""

    masks: Tensor
    """(M, Hp, Wp) assembled masks, soft and cropped; gradients flow back through them."""
    labels: Tensor
    """(M,) int64 true classes, 0 to C - 1."""
    ious: Tensor
    """(M,) 0 to 1: IoU of each binarised mask with the true mask."""
    chosen: Tensor
    """(M,) bool; the other slots are not used."""


def mask_samples(
    prototypes: Tensor,
    coefficients: Tensor,
    matches: Matches,
    targets: Targets,
    priorities: Tensor,
    max_masks: int,
    upsampling: int = 1,
) -> MaskSamples:
    """Assemble the masks of the positives (paper equation 1) and gather the true masks.

    Args:
        prototypes: (B, Hp, Wp, K).
        coefficients: (B, A, K).
        priorities: (B, A); the positives of an image with the highest priorities are taken.
        max_masks: maximum number of positives per image.
        upsampling: the masks' sides as a multiple of the prototypes'; the assembled masks are enlarged bilinearly.

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
    logits = (chosen @ prototypes.flatten(1, 2).mT).view(batch, slots, height, width)
    if upsampling > 1:
        height, width = upsampling * height, upsampling * width
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return MaskSamples(
        logits=logits,
        truth=targets.masks[objects],
        inside=crop_mask(boxes.flatten(0, 1), height, width).view(batch, slots, height, width),
        boxes=boxes,
        labels=targets.labels[objects],
        filled=positive.gather(1, anchors),
        scale=(counts / max_masks).clamp(min=1),
    )


def _slots(counts: Tensor, targets: Targets, max_masks: int) -> int:
    """Slots for each image's masks: on a CPU, where reading is free, as many as needed, else the upper bound."""
    if not len(targets.boxes):
        return 0
    return min(max_masks, int(counts.max())) if counts.device.type == "cpu" else max_masks


def mask_loss(samples: MaskSamples) -> Tensor:
    """Pixel cross-entropy of assembled masks inside the true box, divided by that box's area, summed.

    The area is in prototype pixels. A true pixel outside the crop costs 100, the clamp of PyTorch's cross-entropy.
    If only some of an image's positives are used, their sum is scaled up to all of them.
    """
    height, width = samples.logits.shape[2:]
    cost = _CroppedCrossEntropy.apply(samples.logits, samples.truth, samples.inside)  # (B, P)
    sides = samples.boxes[..., 2:] - samples.boxes[..., :2]
    area = (sides[..., 0] * width) * (sides[..., 1] * height)
    return (cost * torch.where(samples.filled, samples.scale / area, 0.0)).sum()


def dice_loss(samples: MaskSamples) -> Tensor:
    """1 minus the Dice coefficient of each assembled mask and the true one (Milletari et al. 2016), summed.

    One pixel is added to numerator and denominator, so that two empty masks agree. Masks that are left out count as in
    `mask_loss`.
    """
    masks, truth = samples.masks(), samples.truth
    shared = (masks * truth).sum(dim=(2, 3))  # (B, P)
    dice = (2 * shared + 1) / (masks.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    return ((1 - dice) * torch.where(samples.filled, samples.scale, 0.0)).sum()


class _CroppedCrossEntropy(torch.autograd.Function):
    """``F.binary_cross_entropy(sigmoid(logits) * inside, truth)``, summed over the pixels of each mask.

    Values and gradients are those of PyTorch's functions, their clamps included: logarithms are clamped at -100, and a
    pixel's gradient vanishes where the sigmoid is saturated. A single autograd function because the pixels are many,
    and because PyTorch's cross-entropy fails on NaN (on a GPU with a device assertion), which here has to propagate to
    the loss.
    """

    SMALLEST = 1e-12
    """Smallest divisor in the gradient of PyTorch's cross-entropy (ATen, ``EPSILON``)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
        predicted = torch.sigmoid(logits).mul_(inside)
        ctx.save_for_backward(predicted, truth)
        # The predicted probability of the true value: p where truth is 1, else 1 - p.
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
        samples: the samples of the mask loss.
        min_area: objects with at most this many prototype pixels are left out, as published.
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
    """Smooth-L1 (beta 1) between the predicted and the measured IoU of each mask with the true mask, summed.

    Without samples the loss is zero, and so are the gradients of ``maskiou_net``; the published code omits the term
    then, which is not possible in distributed training.
    """
    labels = torch.where(samples.chosen, samples.labels, 0)
    predicted = maskiou_net(samples.masks).gather(1, labels[:, None]).squeeze(1)
    return (F.smooth_l1_loss(predicted, samples.ious, reduction="none") * samples.chosen).sum()
