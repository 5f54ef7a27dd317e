"""Matching against a plain-Python version with exact fractions.

Boxes are on a grid of sixteenths, where float32 areas are exact, so thresholds and ties occur exactly.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolact.boxes import cxcywh_to_xyxy
from yolact.losses import matcher
from yolact.losses.matcher import match
from yolact.structures import Targets

GRID = 16
GridBox = tuple[int, int, int, int]
POSITIVE, NEGATIVE, CROWD = 0.5, 0.4, 0.7


@dataclass
class Image:
    """One image's objects and crowd regions, on the grid."""

    boxes: list[GridBox]
    labels: list[int]
    crowd: list[bool]


def targets_of(images: list[Image]) -> Targets:
    """Targets; masks and semantic maps do not matter."""
    counts = [len(image.boxes) for image in images]
    boxes = [box for image in images for box in image.boxes]
    return Targets(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / GRID,
        labels=torch.tensor([label for image in images for label in image.labels], dtype=torch.int64),
        crowd=torch.tensor([crowd for image in images for crowd in image.crowd], dtype=torch.bool),
        images=torch.tensor([number for number, count in enumerate(counts) for _ in range(count)], dtype=torch.int64),
        masks=torch.zeros(len(boxes), 1, 1, dtype=torch.uint8),
        semantic=torch.zeros(len(images), 1, 1, 1, dtype=torch.uint8),
        counts=counts,
    )


def anchors_of(boxes: list[GridBox]) -> torch.Tensor:
    rows = [((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
    return torch.tensor(rows, dtype=torch.float32) / GRID


@dataclass
class Matched:
    """The role of every anchor of one image."""

    classes: Tensor
    objects: Tensor


def matched(boxes: list[GridBox], anchors: list[GridBox], crowd_boxes: list[GridBox] | None = None) -> Matched:
    """Objects are labelled 0, 1, 2, ... in their order."""
    regions = crowd_boxes or []
    image = Image(
        boxes + regions, [*range(len(boxes)), *[-1] * len(regions)], [False] * len(boxes) + [True] * len(regions)
    )
    result = match(targets_of([image]), anchors_of(anchors), POSITIVE, NEGATIVE, CROWD)
    return Matched(result.classes[0], result.objects[0])


def area(box: GridBox) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def shared(a: GridBox, b: GridBox) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def plain_match(
    objects: list[GridBox], labels: list[int], crowd_boxes: list[GridBox], anchors: list[GridBox]
) -> tuple[list[int], list[int]]:
    """Classes and objects of the anchors; among equals the first counts."""
    iou = [[Fraction(shared(o, a), area(o) + area(a) - shared(o, a)) for a in anchors] for o in objects]
    own = [-1] * len(anchors)
    best = [Fraction(-1)] * len(anchors)
    for a in range(len(anchors)):
        for o in range(len(objects)):
            if iou[o][a] > best[a]:
                best[a], own[a] = iou[o][a], o

    free_objects, free_anchors = set(range(len(objects))), set(range(len(anchors)))
    while free_objects:
        pairs = [(o, a) for o in sorted(free_objects) for a in sorted(free_anchors)]
        o, a = max(pairs, key=lambda pair: iou[pair[0]][pair[1]])  # max keeps the first of equals
        best[a], own[a] = Fraction(2), o
        free_objects.remove(o)
        free_anchors.remove(a)

    classes = []
    for a, anchor in enumerate(anchors):
        if best[a] >= Fraction(1, 2):
            role = labels[own[a]] + 1
        elif best[a] >= Fraction(2, 5):
            role = -1
        else:
            role = 0
        share = max((Fraction(shared(anchor, c), area(anchor)) for c in crowd_boxes), default=Fraction(0))
        if role <= 0 and share > Fraction(7, 10):
            role = -1
        classes.append(role)
    return classes, own


@st.composite
def boxes_with_area(draw: st.DrawFn) -> GridBox:
    left, top = draw(st.integers(0, GRID - 1)), draw(st.integers(0, GRID - 1))
    right, bottom = draw(st.integers(left + 1, GRID)), draw(st.integers(top + 1, GRID))
    return left, top, right, bottom


@st.composite
def images_with(draw: st.DrawFn, max_objects: int, boxes: st.SearchStrategy[GridBox]) -> Image:
    """Images whose crowd regions may be anywhere among the objects."""
    objects = draw(st.lists(boxes, max_size=max_objects))
    regions = draw(st.lists(boxes_with_area(), max_size=2))
    rows = [(box, draw(st.integers(0, 4)), False) for box in objects] + [(box, -1, True) for box in regions]
    rows = draw(st.permutations(rows))
    return Image([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def check_against_the_rules(images: list[Image], anchors: list[GridBox]) -> None:
    result = match(targets_of(images), anchors_of(anchors), POSITIVE, NEGATIVE, CROWD)
    first = 0
    for number, image in enumerate(images):
        rows = [row for row, crowd in enumerate(image.crowd) if not crowd]
        classes, own = plain_match(
            [image.boxes[row] for row in rows],
            [image.labels[row] for row in rows],
            [box for box, crowd in zip(image.boxes, image.crowd, strict=True) if crowd],
            anchors,
        )
        assert result.classes[number].tolist() == classes
        positive = [a for a, role in enumerate(classes) if role > 0]
        assert [result.objects[number, a].item() for a in positive] == [first + rows[own[a]] for a in positive]
        assert {own[a] for a in positive} == set(range(len(rows)))  # every object has an anchor
        first += len(image.boxes)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_matching_follows_the_rules_in_every_image_of_a_batch(data: st.DataObject) -> None:
    images = data.draw(st.lists(images_with(4, boxes_with_area()), min_size=1, max_size=3), label="images")
    anchors = data.draw(st.lists(boxes_with_area(), min_size=4, max_size=10), label="anchors")
    check_against_the_rules(images, anchors)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_objects_competing_for_anchors_get_them_best_pairs_first(data: st.DataObject) -> None:
    """Few distinct boxes, so most overlaps have ties, and as many objects as anchors."""
    boxes = st.sampled_from([(0, 0, 4, 4), (2, 0, 6, 4), (4, 0, 8, 4), (0, 2, 4, 6), (1, 1, 5, 5), (12, 12, 16, 16)])
    images = data.draw(st.lists(images_with(9, boxes), min_size=1, max_size=2), label="images")
    anchors = data.draw(st.lists(boxes, min_size=9, max_size=12), label="anchors")
    check_against_the_rules(images, anchors)


def test_a_chain_of_displaced_objects_is_followed_to_its_end() -> None:
    """Equal boxes in a row, object, anchor, object, anchor and so on, each further from the one before.

    Every object but the first prefers the anchor before it, and must leave it when the object before it, displaced
        likewise, proposes to it: only one pair is settled per round.
    """
    count = 14
    starts = list(itertools.accumulate(range(700, 700 + 2 * count)))  # overlaps below the threshold
    row = [(start, 0, start + 1000, 1) for start in starts]
    objects, anchors = row[::2], row[1::2]
    check_against_the_rules([Image(objects, [0] * count, [False] * count)], anchors)
    assert matched(objects, anchors).objects.tolist() == list(range(count))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_chunk_size_does_not_change_the_matches(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(12, 4, generator=generator)
    low, high = corners[:, :2] * 0.6, 0.1 + corners[:, 2:] * 0.3
    targets = targets_of([Image([(0, 0, 1, 1)] * n, [0] * n, [False] * n) for n in (5, 0, 7)])
    targets.boxes = torch.cat([low, low + high], dim=1)
    targets.crowd[[2, 9]] = True
    anchors = torch.cat([torch.rand(60, 2, generator=generator), torch.rand(60, 2, generator=generator) * 0.4], dim=1)
    whole = match(targets, anchors, POSITIVE, NEGATIVE, CROWD)
    monkeypatch.setattr(matcher, "ROWS_AT_ONCE", rows)
    parts = match(targets, anchors, POSITIVE, NEGATIVE, CROWD)
    assert torch.equal(whole.classes, parts.classes)
    assert torch.equal(whole.objects, parts.objects)


def test_an_image_with_more_than_512_objects_gives_each_an_anchor() -> None:
    """A grid of 25 x 25 equal squares, with an anchor on each."""
    side = 25
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
    anchors = torch.cat([(places + 0.5) / side, torch.full((side**2, 2), 0.8 / side)], dim=1)
    targets = targets_of([Image([(0, 0, 1, 1)] * side**2, [3] * side**2, [False] * side**2)])
    targets.boxes = cxcywh_to_xyxy(anchors)
    result = match(targets, anchors, POSITIVE, NEGATIVE, CROWD)
    assert (result.classes == 4).all()
    assert result.objects[0].tolist() == list(range(side**2))


def test_thresholds_are_exact() -> None:
    thing = (0, 0, 10, 1)
    anchors = [
        (0, 0, 10, 1),  # IoU 1, the object's own anchor
        (0, 0, 5, 1),  # exactly 5 / 10: positive
        (0, 0, 4, 1),  # exactly 4 / 10: ignored
        (0, 0, 3, 1),  # 3 / 10: background
    ]
    assert matched([thing], anchors).classes.tolist() == [1, 1, -1, 0]


def test_identical_objects_get_an_anchor_each() -> None:
    thing = (2, 2, 6, 6)
    result = matched([thing] * 3, [(8, 8, 9, 9), (2, 2, 6, 6), (2, 2, 5, 6), (2, 3, 6, 6)])
    assert result.classes[1:].tolist() == [1, 2, 3]
    assert result.objects[1:].tolist() == [0, 1, 2]
    assert result.classes[0] == 0


def test_the_better_pair_takes_the_anchor_both_objects_want() -> None:
    """Both objects prefer the middle anchor; the second overlaps it more, so the first takes another."""
    objects = [(0, 0, 4, 4), (3, 0, 7, 4)]
    anchors = [(3, 0, 6, 4), (0, 0, 1, 1)]
    result = matched(objects, anchors)
    assert result.classes.tolist() == [2, 1]


def test_an_object_far_from_all_anchors_still_gets_one() -> None:
    result = matched([(0, 0, 1, 1)], [(8, 8, 12, 12), (9, 9, 16, 16)])
    assert sorted(result.classes.tolist()) == [0, 1]


def test_anchors_inside_a_crowd_region_are_ignored() -> None:
    anchors = [
        (0, 0, 2, 2),  # the object's
        (4, 0, 14, 1),  # 7 / 10 inside the region: not more than 0.7
        (4, 1, 14, 2),  # likewise
        (5, 0, 9, 1),  # wholly inside
    ]
    assert matched([(0, 0, 2, 2)], anchors, [(4, 0, 11, 2)]).classes.tolist() == [1, 0, 0, -1]


def test_a_positive_anchor_inside_a_crowd_region_stays_positive() -> None:
    assert matched([(0, 0, 4, 4)], [(0, 0, 4, 4)], [(0, 0, 16, 16)]).classes.tolist() == [1]


def test_an_image_without_objects_is_all_background() -> None:
    assert matched([], [(0, 0, 4, 4), (4, 4, 8, 8)]).classes.tolist() == [0, 0]


def test_an_image_with_only_a_crowd_region_has_no_positives() -> None:
    assert matched([], [(0, 0, 4, 4), (8, 8, 12, 12)], [(0, 0, 6, 6)]).classes.tolist() == [-1, 0]


def test_targets_are_not_modified() -> None:
    targets = targets_of([Image([(0, 0, 4, 4), (0, 0, 9, 9)], [3, -1], [False, True])])
    before = [targets.boxes.clone(), targets.labels.clone(), targets.crowd.clone()]
    match(targets, anchors_of([(0, 0, 4, 4), (5, 5, 6, 6)]), POSITIVE, NEGATIVE, CROWD)
    assert all(torch.equal(a, b) for a, b in zip(before, [targets.boxes, targets.labels, targets.crowd], strict=True))
