"""Box algebra. Each function's name or docstring states its box format.

``xyxy`` is left, top, right, bottom; ``cxcywh`` is centre and size. Relative boxes are fractions of the
image's width and height.
"""

from __future__ import annotations

import torch
from torch import Tensor

CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2
"""Scales of the encoded offsets (SSD; YOLACT keeps them)."""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from centre and size to corners."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes; the inverse of `cxcywh_to_xyxy`."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...) of (..., 4) xyxy boxes; sides may be negative."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]


def intersection(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Areas (..., N, M) shared by each pair of (..., N, 4) and (..., M, 4) xyxy boxes."""
    low = torch.maximum(boxes_a[..., :, None, :2], boxes_b[..., None, :, :2])  # (..., N, M, 2)
    high = torch.minimum(boxes_a[..., :, None, 2:], boxes_b[..., None, :, 2:])
    size = (high - low).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union (..., N, M) of (..., N, 4) and (..., M, 4) xyxy boxes.

    Two boxes without area give NaN, as 0 / 0 does.
    """
    shared = intersection(boxes_a, boxes_b)
    union = box_area(boxes_a)[..., :, None] + box_area(boxes_b)[..., None, :] - shared
    return shared / union


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets that turn anchors into boxes (SSD equation 2, with variances).

    Args:
        boxes: (..., 4) xyxy, relative, sides greater than 0.
        anchors: (..., 4) cxcywh, relative.

    Returns:
        (..., 4): (Δcentre / anchor size) / 0.1 and ln(size / anchor size) / 0.2.
    """
    target = xyxy_to_cxcywh(boxes)
    shift = (target[..., :2] - anchors[..., :2]) / (CENTER_VARIANCE * anchors[..., 2:])
    stretch = torch.log(target[..., 2:] / anchors[..., 2:]) / SIZE_VARIANCE
    return torch.cat([shift, stretch], dim=-1)


def decode(encoded: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from offsets; the inverse of `encode`.

    Args:
        encoded: (..., 4).
        anchors: (..., 4) cxcywh, relative.

    Returns:
        (..., 4) xyxy, relative, not clipped to the image.
    """
    center = anchors[..., :2] + encoded[..., :2] * CENTER_VARIANCE * anchors[..., 2:]
    size = anchors[..., 2:] * torch.exp(encoded[..., 2:] * SIZE_VARIANCE)
    low = center - size / 2
    return torch.cat([low, low + size], dim=-1)


def pixel_bounds(first: Tensor, second: Tensor, size: int, padding: float) -> tuple[Tensor, Tensor]:
    """Ordered, padded pixel bounds of relative coordinates along one axis.

    Args:
        first, second: (N,) relative coordinates, in either order.
        size: length of the axis, pixels.
        padding: pixels added on both sides.

    Returns:
        Lower bounds, at least 0, and upper bounds, at most ``size``; both (N,), float.
    """
    low = (torch.minimum(first, second) * size - padding).clamp(min=0)
    high = (torch.maximum(first, second) * size + padding).clamp(max=size)
    return low, high


def crop_mask(boxes: Tensor, height: int, width: int, padding: float = 1) -> Tensor:
    """Which pixels of an (height, width) grid belong to each box (paper section 3.3, "Cropping Masks").

    Args:
        boxes: (N, 4) xyxy, relative, in either corner order.
        padding: pixels by which the box grows on every side; the published code uses 1.

    Returns:
        (N, height, width) bool: column c is inside where ``low <= c < high``, rows alike.
    """
    left, right = pixel_bounds(boxes[:, 0], boxes[:, 2], width, padding)
    top, bottom = pixel_bounds(boxes[:, 1], boxes[:, 3], height, padding)
    columns = torch.arange(width, device=boxes.device, dtype=boxes.dtype)
    rows = torch.arange(height, device=boxes.device, dtype=boxes.dtype)
    inside_x = (columns >= left[:, None]) & (columns < right[:, None])  # (N, W)
    inside_y = (rows >= top[:, None]) & (rows < bottom[:, None])  # (N, H)
    return inside_y[:, :, None] & inside_x[:, None, :]
