"""Agreement of two backends' results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolact.boxes import box_iou
from yolact_bench.speed.backends import Found

TOLERANCE = 1e-4
"""Largest difference that counts as equal: for raw outputs, relative to the tensor's largest value; for scores,
absolute; for boxes, relative to the image's longer side; for masks, differing pixels over the masks' pixels."""


@dataclass(frozen=True)
class Agreement:
    """Differences of a backend's results from the reference's, over the images of the first batch."""

    raw_errors: dict[str, float | None] | None
    """Largest absolute difference over largest absolute value, by tensor; None for a tensor of another shape or with
    values that are not finite; None as a whole if one of the two does not report its outputs."""
    detections: int
    reference_detections: int
    matched: int
    """Pairs of detections with the same label whose boxes are equal within the tolerance or have an IoU over 0.5."""
    unmatched: int
    """Detections of either side without a partner, except those with scores as low as the other side's lowest: rounding
    decides which of these pass."""
    score_difference: float
    """Largest over all pairs."""
    box_difference: float
    """Largest over all pairs, pixels."""
    mask_difference: float
    """Pixels in which the pairs' masks differ, over the pixels of the reference's masks."""
    tolerance: float
    equal: bool
    """Whether everything is within the tolerance and nothing is unmatched."""


def compare(
    found: Sequence[Found],
    reference: Sequence[Found],
    raw: dict[str, Tensor] | None,
    reference_raw: dict[str, Tensor] | None,
    *,
    integer_boxes: bool,
) -> Agreement:
    """Compare two backends' detections on the same images, as sets.

    Args:
        found: a backend's detections, image by image.
        reference: the reference's detections.
        raw: the backend's raw outputs.
        reference_raw: the reference's raw outputs.
        integer_boxes: boxes are truncated to whole pixels, which rounding may move by one.
    """
    errors = None if raw is None or reference_raw is None else _raw_errors(raw, reference_raw)
    images = [_match(one, other, integer_boxes) for one, other in zip(found, reference, strict=True)]
    wrong = sum(image.wrong_pixels for image in images)
    pixels = sum(image.pixels for image in images)
    unmatched = sum(image.unmatched for image in images)
    mask_difference = wrong / pixels if pixels else float(wrong > 0)
    equal = unmatched == 0 and mask_difference <= TOLERANCE and all(image.within for image in images)
    return Agreement(
        raw_errors=errors,
        detections=sum(len(one.scores) for one in found),
        reference_detections=sum(len(one.scores) for one in reference),
        matched=sum(image.matched for image in images),
        unmatched=unmatched,
        score_difference=max((image.score_difference for image in images), default=0.0),
        box_difference=max((image.box_difference for image in images), default=0.0),
        mask_difference=mask_difference,
        tolerance=TOLERANCE,
        equal=equal and all(error is not None and error <= TOLERANCE for error in (errors or {}).values()),
    )


def _raw_errors(raw: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float | None]:
    return {name: _relative_error(raw[name], expected) for name, expected in reference.items()}


def _relative_error(values: Tensor, expected: Tensor) -> float | None:
    if values.shape != expected.shape:
        return None
    largest = float(expected.abs().max())
    error = float((values - expected).abs().max()) / (largest or 1.0)
    return error if math.isfinite(error) else None


@dataclass(frozen=True)
class _Matches:
    matched: int
    unmatched: int
    within: bool
    """Whether scores and boxes of all pairs are equal within the tolerance."""
    score_difference: float
    box_difference: float
    wrong_pixels: int
    pixels: int


def _match(found: Found, reference: Found, integer_boxes: bool) -> _Matches:
    """Pair each detection of the reference with the nearest one that may be the same object."""
    side = max(reference.masks.shape[1:])
    box_tolerance = TOLERANCE * side + (1 if integer_boxes else 0)
    overlap = box_iou(reference.boxes, found.boxes)  # (N, M)
    free = torch.ones(len(found.scores), dtype=torch.bool)
    alone = torch.zeros(len(reference.scores), dtype=torch.bool)
    scores, boxes, wrong, pixels = [0.0], [0.0], 0, 0
    for row, mask in enumerate(reference.masks):
        score_difference = (found.scores - reference.scores[row]).abs()
        box_difference = (found.boxes - reference.boxes[row]).abs().amax(dim=1)
        near = (score_difference <= TOLERANCE) & (box_difference <= box_tolerance)  # boxes without area have no overlap
        possible = free & (found.labels == reference.labels[row]) & (near | (overlap[row] > 0.5))
        if not bool(possible.any()):
            alone[row] = True
            continue
        distance = torch.where(possible, box_difference / side + score_difference, torch.inf)
        partner = int(distance.argmin())
        free[partner] = False
        scores.append(float(score_difference[partner]))
        boxes.append(float(box_difference[partner]))
        wrong += int((found.masks[partner] != mask).sum())
        pixels += int(mask.sum())
    return _Matches(
        matched=len(scores) - 1,
        unmatched=_certain(reference.scores[alone], found.scores) + _certain(found.scores[free], reference.scores),
        within=max(scores) <= TOLERANCE and max(boxes) <= box_tolerance,
        score_difference=max(scores),
        box_difference=max(boxes),
        wrong_pixels=wrong,
        pixels=pixels,
    )


def _certain(alone: Tensor, other: Tensor) -> int:
    """How many of the scores ``alone`` are clearly above the lowest of ``other``."""
    lowest = float(other.min()) if len(other) else 0.0
    return int((alone > lowest * (1 + TOLERANCE)).sum())
