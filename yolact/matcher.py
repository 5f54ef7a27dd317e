"""Which anchor learns which object (the published code's matching; SSD section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolact.boxes import box_iou, cxcywh_to_xyxy, intersection_over_first
from yolact.structures import Targets

BACKGROUND = 0
NEUTRAL = -1


@dataclass
class Matches:
    """The role of every anchor of one image."""

    classes: Tensor
    """(A,) int64: class + 1 for positives, 0 for background, -1 for neutral anchors, which are not trained."""
    objects: Tensor
    """(A,) int64: index of the matched object; meaningful where ``classes`` is greater than 0."""


def match(targets: Targets, anchors: Tensor, positive_iou: float, negative_iou: float, crowd_overlap: float) -> Matches:
    """Match one image's objects to anchors.

    Every anchor takes its best object: positive from ``positive_iou``, background below ``negative_iou``, neutral
    in between. Besides, every object gets one anchor of its own whatever the IoU, best pairs first. An anchor
    that is not positive and lies by more than ``crowd_overlap`` of its area in a crowd region is neutral.

    Args:
        targets: of one image; crowd rows take part only in the crowd rule.
        anchors: (A, 4) cxcywh, relative.
    """
    corners = cxcywh_to_xyxy(anchors)
    boxes = targets.boxes[~targets.crowd]
    labels = targets.labels[~targets.crowd]
    if len(boxes):
        iou = box_iou(boxes, corners)  # (N, A)
        best_iou, objects = iou.max(dim=0)  # (A,)
        _force_matches(iou, best_iou, objects)
        classes = labels[objects] + 1
        classes[best_iou < positive_iou] = NEUTRAL
        classes[best_iou < negative_iou] = BACKGROUND
    else:
        objects = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        classes = torch.full_like(objects, BACKGROUND)

    crowd_boxes = targets.boxes[targets.crowd]
    if len(crowd_boxes):
        inside = intersection_over_first(corners, crowd_boxes).amax(dim=1)  # (A,)
        classes[(classes <= BACKGROUND) & (inside > crowd_overlap)] = NEUTRAL
    return Matches(classes, objects)


def _force_matches(iou: Tensor, best_iou: Tensor, objects: Tensor) -> None:
    """Give each object a distinct anchor, best remaining pair first; writes into ``best_iou`` and ``objects``."""
    remaining = iou.clone()  # (N, A)
    for _ in range(len(iou)):
        per_object, anchor_of = remaining.max(dim=1)  # (N,)
        chosen = per_object.argmax()
        anchor = anchor_of[chosen]
        best_iou[anchor] = 2
        objects[anchor] = chosen
        remaining[:, anchor] = -1
        remaining[chosen, :] = -1
