"""From raw outputs to detections: score test, NMS, mask assembly (paper sections 3.3 and 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.boxes import box_iou, crop_mask, decode
from yolact.config import DetectConfig
from yolact.structures import Detections, RawOutputs

ENLARGED_PIXELS = 2**25
"""Mask pixels that are enlarged at once, as float32: bounds the memory that large photos take."""


@dataclass
class Candidates:
    """Detections of one image whose masks are not assembled yet, best score first."""

    boxes: Tensor
    """(N, 4) xyxy, relative, not clipped."""
    scores: Tensor
    """(N,) 0 to 1."""
    labels: Tensor
    """(N,) int64, 0 to C - 1."""
    mask_coefficients: Tensor
    """(N, K)."""


def detect(outputs: RawOutputs, config: DetectConfig) -> list[Candidates]:
    """Find each image's best boxes.

    Unlike the published code, a box's score in its own class must pass ``score_threshold`` too, so no tail of
    tiny scores fills the list up to ``max_detections``.

    Args:
        outputs: raw network outputs of B images.

    Returns:
        B entries, each with at most ``max_detections`` boxes.
    """
    probabilities = outputs.class_logits.float().softmax(dim=-1)[..., 1:]  # (B, A, C)
    boxes = decode(outputs.boxes.float(), outputs.anchors)  # (B, A, 4)
    found = []
    for image_scores, image_boxes, coefficients in zip(
        probabilities, boxes, outputs.mask_coefficients.float(), strict=True
    ):
        # A box that is not finite would suppress all worse ones: its IoU is NaN.
        kept = (image_scores.amax(dim=1) > config.score_threshold) & image_boxes.isfinite().all(dim=1)
        suppress = fast_nms if config.nms == "fast" else cross_class_fast_nms
        anchors, labels, scores = suppress(image_boxes[kept], image_scores[kept], config.nms_iou, config.top_k)
        passed = scores > config.score_threshold
        anchors, labels, scores = anchors[passed], labels[passed], scores[passed]
        order = scores.argsort(descending=True, stable=True)[: config.max_detections]
        anchors = anchors[order]
        found.append(Candidates(image_boxes[kept][anchors], scores[order], labels[order], coefficients[kept][anchors]))
    return found


def fast_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS per class (paper section 5): a box goes when any better one of its class overlaps it too much.

    Boxes that are themselves suppressed still suppress others, which is what lets the test run in parallel.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N, C).
        iou_threshold: boxes with a greater IoU are suppressed.
        top_k: best boxes per class that take part.

    Returns:
        Indices into ``boxes``, labels and scores of the survivors, all (M,), grouped by class.
    """
    sorted_scores, order = scores.T.sort(dim=1, descending=True, stable=True)  # (C, N)
    sorted_scores, order = sorted_scores[:, :top_k], order[:, :top_k]
    overlap = box_iou(boxes[order], boxes[order]).triu(diagonal=1)  # (C, k, k)
    survives = overlap.amax(dim=1) <= iou_threshold if order.shape[1] else torch.zeros_like(order, dtype=torch.bool)
    labels = torch.arange(scores.shape[1], device=scores.device)[:, None].expand_as(order)
    return order[survives], labels[survives], sorted_scores[survives]


def cross_class_fast_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS over all classes at once: each box stands for its best class only. See `fast_nms`."""
    best, labels = scores.max(dim=1) if len(scores) else (scores.new_zeros(0), scores.new_zeros(0, dtype=torch.int64))
    order = best.argsort(descending=True, stable=True)[:top_k]
    overlap = box_iou(boxes[order], boxes[order]).triu(diagonal=1)  # (k, k)
    survivors = order[overlap.amax(dim=0) <= iou_threshold] if len(order) else order
    return survivors, labels[survivors], best[survivors]


def assemble_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Combine prototypes into masks of the photo's size (paper section 3.3, equation 1).

    Sigmoid and crop happen at the prototypes' resolution, then bilinear enlargement, then the test for > 0.5,
    as published.

    Args:
        prototypes: (Hp, Wp, K).
        coefficients: (N, K).
        boxes: (N, 4) xyxy, relative.
        height, width: of the photo, pixels.

    Returns:
        (N, height, width) bool.
    """
    if not len(coefficients):
        return torch.zeros((0, height, width), dtype=torch.bool, device=prototypes.device)
    rows, columns = prototypes.shape[:2]
    soft = torch.sigmoid(coefficients @ prototypes.float().reshape(rows * columns, -1).T).reshape(-1, rows, columns)
    soft = soft * crop_mask(boxes, rows, columns)
    at_once = max(1, ENLARGED_PIXELS // (height * width))
    parts = [
        F.interpolate(part[None], size=(height, width), mode="bilinear", align_corners=False)[0] > 0.5
        for part in soft.split(at_once)
    ]
    return torch.cat(parts)


def to_photo_frame(candidates: Candidates, prototypes: Tensor, height: int, width: int) -> Detections:
    """Bring one image's candidates into the photo's frame; boxes outside the photo are dropped.

    Args:
        prototypes: (Hp, Wp, K) of the image.
        height, width: of the photo, pixels.
    """
    scale = candidates.boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum((candidates.boxes * scale).clamp(min=0), scale)
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = assemble_masks(prototypes, candidates.mask_coefficients[visible], candidates.boxes[visible], height, width)
    return Detections(boxes[visible], candidates.scores[visible], candidates.labels[visible], masks)
