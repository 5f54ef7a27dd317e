"""Box and mask algebra used only by comparisons with the published code; the rest is in `yolact.boxes`."""

from __future__ import annotations

import torch
from torch import Tensor

from yolact.boxes import box_area, intersection


def integer_pixel_bounds(first: Tensor, second: Tensor, size: int, padding: int) -> tuple[Tensor, Tensor]:
    """`pixel_bounds` in whole pixels, as in the published code: coordinates are truncated, then padded.

    Returns:
        Lower and upper bounds, both (N,) int64.
    """
    first, second = (first * size).long(), (second * size).long()
    low = (torch.minimum(first, second) - padding).clamp(min=0)
    high = (torch.maximum(first, second) + padding).clamp(max=size)
    return low, high


def intersection_over_first(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Share (..., N, M) of each first box that is inside each second one; xyxy. Used for crowd regions."""
    return intersection(boxes_a, boxes_b) / box_area(boxes_a)[..., :, None]


def mask_intersection(masks_a: Tensor, masks_b: Tensor) -> Tensor:
    """Pixels (N, M) shared by each pair of (N, H, W) and (M, H, W) masks, 0 or 1 of any dtype; float32."""
    return masks_a.flatten(1).float() @ masks_b.flatten(1).float().T


def mask_iou(masks_a: Tensor, masks_b: Tensor) -> Tensor:
    """Intersection over union (N, M) of (N, H, W) and (M, H, W) masks; two empty masks give NaN, as 0 / 0 does."""
    shared = mask_intersection(masks_a, masks_b)
    return shared / (_mask_area(masks_a)[:, None] + _mask_area(masks_b) - shared)


def mask_intersection_over_first(masks_a: Tensor, masks_b: Tensor) -> Tensor:
    """Share (N, M) of each first mask's pixels that belong to each second one. Used for crowd regions."""
    return mask_intersection(masks_a, masks_b) / _mask_area(masks_a)[:, None]


def _mask_area(masks: Tensor) -> Tensor:
    return masks.flatten(1).float().sum(dim=1)
