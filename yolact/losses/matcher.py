"""Which anchor learns which object (the published code's matching; SSD section 2.2), for a whole batch at once.

Nothing here waits for a GPU: shapes and loops depend on the number of objects, which `Targets.counts` has on the host,
    and never on computed values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolact.boxes import box_area, box_iou, cxcywh_to_xyxy, intersection
from yolact.structures import Targets

BACKGROUND = 0
IGNORED = -1

ROWS_AT_ONCE = 128
"""Objects whose overlaps with all anchors are held at a time, to bound memory for crowded images."""

CANDIDATES = 9
"""k of ATSS: cells per level (Zhang et al. 2020, section 4.4)."""

_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_NONE = -1
"""The key of no pair; less than that of any pair."""


@dataclass
class Matches:
    """The role of every anchor in every image."""

    classes: Tensor
    """(B, A) int64: class + 1 for positives, 0 for background, -1 for ignored anchors, which are not trained."""
    objects: Tensor
    """(B, A) int64: row of the matched object in `Targets`; meaningful where ``classes`` is greater than 0."""


def match(targets: Targets, anchors: Tensor, positive_iou: float, negative_iou: float, crowd_overlap: float) -> Matches:
    """Match the objects of each image to anchors, as published.

    Every anchor takes its best object: positive from ``positive_iou``, background below ``negative_iou``, ignored
    in between. In addition, every object gets one anchor of its own whatever the IoU, best pairs first. An anchor that
    is not positive is ignored if more than ``crowd_overlap`` of its area is in a crowd region. Ties go to the first
    object, then to the first anchor.

    Args:
        targets: the batch's targets, on the anchors' device; crowd rows take part only in the crowd rule.
        anchors: (A, 4) cxcywh, relative.
    """
    num_objects, num_anchors = len(targets.boxes), len(anchors)
    if not num_objects:
        return _all_background(len(targets.counts), anchors)
    overlaps = _overlaps(targets, anchors)
    own = _forced(targets, overlaps, num_anchors)  # (B, A)
    best = torch.where(own > _NONE, own, overlaps.best)
    objects = _reversed_index(best, num_objects)  # (B, A)
    iou = torch.where(own > _NONE, 2.0, _value(overlaps.best))
    classes = targets.labels[objects] + 1
    classes = torch.where(iou < positive_iou, IGNORED, classes)
    classes = torch.where(iou < negative_iou, BACKGROUND, classes)
    in_crowd = (classes <= BACKGROUND) & (overlaps.in_crowd > crowd_overlap)
    return Matches(torch.where(in_crowd, IGNORED, classes), objects)


def match_atss(targets: Targets, anchors: Tensor, cells: Sequence[int], crowd_overlap: float) -> Matches:
    """Match by adaptive training sample selection (Zhang et al. 2020, "ATSS", algorithm 1).

    An object's candidates are all anchors of the `CANDIDATES` cells nearest to its centre on each level. It takes those
    with an IoU of at least the mean plus the standard deviation (of a sample, as in the authors' code) of all its
    candidates' IoUs, and with their centre inside its box. An anchor that several objects take goes to the one with the
    greatest IoU. In addition, as in `match`, every object gets one anchor of its own, and crowd regions make anchors
    that are not positive ignored. All others are background.

    Args:
        targets: the batch's targets, on the anchors' device; crowd rows take part only in the crowd rule.
        anchors: (A, 4) cxcywh, relative, level by level; those of a cell have the same centre and follow each other.
        cells: number of cells of each level.
        crowd_overlap: see `match`.
    """
    num_objects, num_anchors = len(targets.boxes), len(anchors)
    if not num_objects:
        return _all_background(len(targets.counts), anchors)
    overlaps = _overlaps(targets, anchors)
    own = _forced(targets, overlaps, num_anchors)  # (B, A)
    taken = torch.full_like(own, _NONE)
    for rows in torch.arange(num_objects, device=anchors.device).split(ROWS_AT_ONCE):
        keys = _atss_keys(targets.boxes[rows], anchors, cells)
        keys = torch.where(targets.crowd[rows, None] | (keys == _NONE), _NONE, keys | (num_objects - 1 - rows)[:, None])
        taken.scatter_reduce_(0, targets.images[rows, None].expand_as(keys), keys, "amax")
    best = torch.where(own > _NONE, own, taken)
    objects = _reversed_index(best, num_objects)
    classes = torch.where(best > _NONE, targets.labels[objects] + 1, BACKGROUND)
    in_crowd = (classes == BACKGROUND) & (overlaps.in_crowd > crowd_overlap)
    return Matches(torch.where(in_crowd, IGNORED, classes), objects)


def _all_background(batch: int, anchors: Tensor) -> Matches:
    """The matches of a batch without objects."""
    classes = torch.full((batch, len(anchors)), BACKGROUND, dtype=torch.int64, device=anchors.device)
    return Matches(classes, torch.zeros_like(classes))


def _atss_keys(boxes: Tensor, anchors: Tensor, cells: Sequence[int]) -> Tensor:
    """(n, A) int64: the IoU of each object with the anchors that it takes, as keys with the index 0; else `_NONE`."""
    iou = box_iou(boxes, cxcywh_to_xyxy(anchors))
    per_cell = len(anchors) // sum(cells)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    centers = anchors[::per_cell, :2]  # (cells, 2)
    distances = (centers - (low + high) / 2).square().sum(dim=-1)  # (n, cells)
    first, nearest = 0, []
    for count in cells:
        order = distances[:, first : first + count].argsort(dim=1, stable=True)  # equally near: the first cell
        nearest.append(first + order[:, :CANDIDATES])
        first += count
    offsets = torch.arange(per_cell, device=anchors.device)
    candidates = (torch.cat(nearest, dim=1)[..., None] * per_cell + offsets).flatten(1)  # (n, candidates)
    found = iou.gather(1, candidates)
    threshold = found.mean(dim=1, keepdim=True) + found.std(dim=1, keepdim=True)
    points = anchors[candidates, :2]
    is_inside = ((points > low) & (points < high)).all(dim=-1)
    keys = found.view(torch.int32).long() << _INDEX_BITS
    return torch.full_like(iou, _NONE, dtype=torch.int64).scatter_(
        1, candidates, torch.where(is_inside & (found >= threshold), keys, _NONE)
    )


@dataclass
class _Overlaps:
    """A summary of the overlaps of N objects with A anchors.

    A key is a pair's IoU and an index in one number, so that the greatest key is the best pair and, among equals, the
    first one: the bits of a float32 that is not negative rise with it, and the index counts down.
    """

    best: Tensor
    """(B, A) int64: each anchor's best object, as a key with the object's row; of IoU 0 at least, see `_value`."""
    in_crowd: Tensor
    """(B, A) float32: the greatest share of the anchor's area inside one crowd region."""
    candidates: Tensor
    """(N, L) int64: each object's best anchors in descending order, as keys with the anchor; `_NONE` for crowd rows.

    L is the greatest number of objects in an image. That many are enough to find each object an anchor of its own.
    """


def _overlaps(targets: Targets, anchors: Tensor) -> _Overlaps:
    batch, num_objects, num_anchors = len(targets.counts), len(targets.boxes), len(anchors)
    length = min(max(targets.counts), num_anchors)
    corners, areas = cxcywh_to_xyxy(anchors), box_area(cxcywh_to_xyxy(anchors))
    objects = torch.arange(num_objects, device=anchors.device)
    countdown = torch.arange(num_anchors - 1, -1, -1, device=anchors.device)  # (A,)
    # Row b is for image b's objects, row B + b for its crowd regions.
    best = torch.full((2 * batch, num_anchors), _NONE, device=anchors.device)
    candidates = []
    for rows in objects.split(ROWS_AT_ONCE):
        crowd = targets.crowd[rows, None]
        boxes = targets.boxes[rows]
        shared = intersection(boxes, corners)  # (n, A)
        whole = torch.where(crowd, areas, box_area(boxes)[:, None] + areas - shared)
        keys = (shared / whole).abs().view(torch.int32).long() << _INDEX_BITS  # abs: no negative zero
        target_rows = (targets.images[rows] + batch * targets.crowd[rows])[:, None]
        best.scatter_reduce_(0, target_rows.expand_as(keys), keys | (num_objects - 1 - rows)[:, None], "amax")
        candidates.append(torch.where(crowd, _NONE, keys | countdown).topk(length, dim=1).values)
    return _Overlaps(best[:batch], _value(best[batch:]), torch.cat(candidates))


def _forced(targets: Targets, overlaps: _Overlaps, num_anchors: int) -> Tensor:
    """Give each object a distinct anchor, best remaining pair of an image first; (B, A) keys with the object's row.

    The pairs are those of a stable matching in which both sides prefer greater keys, so objects can propose all at
    once (Gale and Shapley 1962): each to its best anchor that no better pair holds. An object that loses its anchor
    proposes again in the next round. The n-th best pair is final after at most n rounds, so there are as many rounds as
    an image has objects; on a CPU, where checking is free, they end when nothing changes.
    """
    num_objects, length = overlaps.candidates.shape
    countdown = torch.arange(num_objects - 1, -1, -1, device=overlaps.candidates.device)[:, None]
    places = targets.images[:, None] * num_anchors + _reversed_index(overlaps.candidates, num_anchors)  # (N, L)
    keys = overlaps.candidates & ~_INDEX_MASK | countdown
    keys = torch.where(overlaps.candidates == _NONE, _NONE, keys)
    held = torch.full((len(targets.counts) * num_anchors,), _NONE, device=keys.device)
    for _ in range(length):
        before = held.clone() if held.device.type == "cpu" else None
        proposed, position = torch.where(keys >= held[places], keys, _NONE).max(dim=1)  # the first of equals
        held.scatter_reduce_(0, places.gather(1, position[:, None]).squeeze(1), proposed, "amax")
        if before is not None and torch.equal(held, before):
            break
    return held.view(-1, num_anchors)


def _value(keys: Tensor) -> Tensor:
    """The overlaps in keys, float32; 0 for `_NONE`."""
    return (keys.clamp(min=0) >> _INDEX_BITS).int().view(torch.float32)


def _reversed_index(keys: Tensor, size: int) -> Tensor:
    """The indices in keys, which count down from ``size`` - 1; 0 for `_NONE`."""
    return torch.where(keys == _NONE, 0, size - 1 - (keys & _INDEX_MASK))
