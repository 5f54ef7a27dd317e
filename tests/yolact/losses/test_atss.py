"""ATSS against a plain NumPy version of its algorithm."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loss_inputs import published_loss
from yolact.boxes import cxcywh_to_xyxy
from yolact.losses.criterion import YolactLoss
from yolact.losses.matcher import CANDIDATES, match, match_atss
from yolact.models.anchors import pyramid_anchors
from yolact.structures import Targets

LEVELS = ((6, 6), (3, 3), (2, 2))
CELLS = [36, 9, 4]
ANCHORS = pyramid_anchors(LEVELS, [[16], [32], [56]], [1.0, 0.5, 2.0], 64, square=False)


def targets_of(images: list[np.ndarray], crowd: list[bool] | None = None) -> Targets:
    """Targets of (n, 4) xyxy relative boxes; object number k of the batch has the label k."""
    counts = [len(boxes) for boxes in images]
    total = sum(counts)
    return Targets(
        boxes=torch.tensor(np.concatenate(images), dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(total),
        crowd=torch.tensor(crowd or [False] * total, dtype=torch.bool),
        images=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        masks=torch.zeros(total, 1, 1, dtype=torch.uint8),
        semantic=torch.zeros(len(counts), 1, 1, 1, dtype=torch.uint8),
        counts=counts,
    )


def plain_iou(box: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], anchors[:, :2]), np.minimum(box[2:], anchors[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(anchors[:, 2:] - anchors[:, :2], axis=1)
    return shared / (np.prod(box[2:] - box[:2]) + areas - shared)


def plain_atss(boxes: np.ndarray, cells: list[int], per_cell: int) -> dict[int, int]:
    """The object of each positive anchor of one image, without the anchor that each object gets in any case."""
    centers, corners = ANCHORS[:, :2].double().numpy(), cxcywh_to_xyxy(ANCHORS.double()).numpy()
    best: dict[int, tuple[float, int]] = {}
    for row, box in enumerate(boxes):
        middle, candidates, first = (box[:2] + box[2:]) / 2, [], 0
        for count in cells:
            found = [(np.hypot(*(centers[(first + cell) * per_cell] - middle)), cell) for cell in range(count)]
            nearest = [cell for _, cell in sorted(found)[:CANDIDATES]]
            candidates += [(first + cell) * per_cell + k for cell in nearest for k in range(per_cell)]
            first += count
        ious = plain_iou(box, corners[candidates])
        threshold = ious.mean() + ious.std(ddof=1)
        for anchor, iou in zip(candidates, ious, strict=True):
            inside = (centers[anchor] > box[:2]).all() and (centers[anchor] < box[2:]).all()
            if inside and iou >= threshold and iou > best.get(anchor, (0.0, 0))[0]:
                best[anchor] = (float(iou), row)
    return {anchor: row for anchor, (_, row) in best.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_the_positives_are_those_of_the_algorithm_and_each_object_s_best_anchor(seed: int, counts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for count in counts:
        centers, sides = rng.uniform(0.1, 0.9, (count, 2)), rng.uniform(0.05, 0.9, (count, 2))
        images.append(np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).clip(0, 1))
    targets = targets_of(images)
    if not sum(counts):
        assert not match_atss(targets, ANCHORS, CELLS, 0.7).classes.any()
        return
    found = match_atss(targets, ANCHORS, CELLS, 0.7)
    own = match(targets, ANCHORS, 1.0, 1.0, 0.7)  # with this threshold, only the anchor that each object gets itself
    first = 0
    for image, boxes in enumerate(images):
        forced = {a: int(own.objects[image, a]) - first for a in own.classes[image].gt(0).nonzero().flatten().tolist()}
        expected = plain_atss(boxes, CELLS, 3) | forced
        positive = found.classes[image].gt(0).nonzero().flatten().tolist()
        assert {anchor: int(found.objects[image, anchor]) - first for anchor in positive} == expected
        assert {int(found.classes[image, anchor]) - 1 for anchor in positive} == set(range(first, first + len(boxes)))
        assert set(found.classes[image].tolist()) <= {0, *range(1 + first, 1 + first + len(boxes))}
        first += len(boxes)


def test_one_object_by_hand() -> None:
    """One level of 2 x 2 cells, one anchor of half the side in each: all are candidates.

    The object is the top left anchor enlarged by a tenth of the side to the right: IoUs 5/6, 1/9 (0.05 / 0.45), 0, 0.
    Mean 0.236, standard deviation 0.401 (of a sample): only the first reaches the sum 0.637.
    """
    anchors = pyramid_anchors([(2, 2)], [[32]], [1.0], 64, square=False)
    targets = targets_of([np.array([[0.0, 0.0, 0.6, 0.5]])])
    assert match_atss(targets, anchors, [4], 0.7).classes.tolist() == [[1, 0, 0, 0]]


def test_crowd_regions_only_make_anchors_ignored() -> None:
    targets = targets_of([np.array([[0.0, 0.0, 1.0, 0.5], [0.1, 0.6, 0.4, 0.9]])], crowd=[True, False])
    found = match_atss(targets, ANCHORS, CELLS, 0.7)
    assert set(found.classes.unique().tolist()) == {-1, 0, 2}
    centers = ANCHORS[found.classes[0] == -1, 1]
    assert (centers < 0.5).all()


def test_the_setting_chooses_atss() -> None:
    targets = targets_of([np.array([[0.1, 0.2, 0.7, 0.8]])])
    loss = YolactLoss(published_loss(assignment="atss"))
    assert torch.equal(loss.match(targets, ANCHORS, CELLS).classes, match_atss(targets, ANCHORS, CELLS, 0.7).classes)
    published = YolactLoss(published_loss()).match(targets, ANCHORS)
    assert not torch.equal(loss.match(targets, ANCHORS, CELLS).classes, published.classes)
