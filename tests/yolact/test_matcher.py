"""Matching against a plain-Python version with exact fractions.

Boxes lie on a grid of sixteenths, where float32 areas are exact, so that thresholds and ties can be met exactly.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact.matcher import Matches, match
from yolact.structures import Targets

GRID = 16
GridBox = tuple[int, int, int, int]
POSITIVE, NEGATIVE, CROWD = 0.5, 0.4, 0.7


def targets_of(boxes: list[GridBox], labels: list[int], crowd: list[bool]) -> Targets:
    count = len(boxes)
    return Targets(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / GRID,
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=torch.zeros(count, 8, 8, dtype=torch.uint8),
        crowd=torch.tensor(crowd, dtype=torch.bool),
    )


def anchors_of(boxes: list[GridBox]) -> torch.Tensor:
    rows = [((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
    return torch.tensor(rows, dtype=torch.float32) / GRID


def matched(boxes: list[GridBox], anchors: list[GridBox], crowd_boxes: list[GridBox] | None = None) -> Matches:
    """Objects are labelled 0, 1, 2, ... in their order."""
    regions = crowd_boxes or []
    targets = targets_of(
        boxes + regions, [*range(len(boxes)), *[-1] * len(regions)], [False] * len(boxes) + [True] * len(regions)
    )
    return match(targets, anchors_of(anchors), POSITIVE, NEGATIVE, CROWD)


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


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_matching_follows_the_rules(data: st.DataObject) -> None:
    objects = data.draw(st.lists(boxes_with_area(), max_size=4), label="objects")
    crowd_boxes = data.draw(st.lists(boxes_with_area(), max_size=2), label="crowd regions")
    anchors = data.draw(st.lists(boxes_with_area(), min_size=max(len(objects), 1), max_size=10), label="anchors")
    labels = data.draw(st.lists(st.integers(0, 4), min_size=len(objects), max_size=len(objects)), label="labels")

    crowd = [False] * len(objects) + [True] * len(crowd_boxes)
    rows = list(zip(objects + crowd_boxes, labels + [-1] * len(crowd_boxes), crowd, strict=True))
    # Crowd rows may stand anywhere; the objects keep their order.
    rows.sort(key=lambda row: row[2], reverse=data.draw(st.booleans(), label="crowd first"))
    targets = targets_of([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    result = match(targets, anchors_of(anchors), POSITIVE, NEGATIVE, CROWD)

    classes, own = plain_match(objects, labels, crowd_boxes, anchors)
    assert result.classes.tolist() == classes
    positive = [a for a, role in enumerate(classes) if role > 0]
    assert [result.objects[a].item() for a in positive] == [own[a] for a in positive]
    assert {own[a] for a in positive} == set(range(len(objects)))  # every object has an anchor


def test_thresholds_are_exact() -> None:
    thing = (0, 0, 10, 1)
    anchors = [
        (0, 0, 10, 1),  # IoU 1, the object's own anchor
        (0, 0, 5, 1),  # exactly 5 / 10: positive
        (0, 0, 4, 1),  # exactly 4 / 10: neutral
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
    """Both objects prefer the middle anchor; the second overlaps it more, so the first has to go elsewhere."""
    objects = [(0, 0, 4, 4), (3, 0, 7, 4)]
    anchors = [(3, 0, 6, 4), (0, 0, 1, 1)]
    result = matched(objects, anchors)
    assert result.classes.tolist() == [2, 1]


def test_an_object_far_from_all_anchors_still_gets_one() -> None:
    result = matched([(0, 0, 1, 1)], [(8, 8, 12, 12), (9, 9, 16, 16)])
    assert sorted(result.classes.tolist()) == [0, 1]


def test_anchors_inside_a_crowd_region_are_neutral() -> None:
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


def test_targets_are_left_as_they_are() -> None:
    targets = targets_of([(0, 0, 4, 4), (0, 0, 9, 9)], [3, -1], [False, True])
    before = [targets.boxes.clone(), targets.labels.clone(), targets.crowd.clone()]
    match(targets, anchors_of([(0, 0, 4, 4), (5, 5, 6, 6)]), POSITIVE, NEGATIVE, CROWD)
    assert all(torch.equal(a, b) for a, b in zip(before, [targets.boxes, targets.labels, targets.crowd], strict=True))
