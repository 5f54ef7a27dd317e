"""NMS, mask assembly and the image's frame against loops in plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from yolact.inference import postprocess
from yolact.inference.postprocess import (
    Candidates,
    assemble,
    cross_class_fast_nms,
    detect,
    enlarge_masks,
    fast_nms,
    to_image_frame,
    traditional_nms,
)
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_DETECTION, DetectConfig
from yolact.structures import RawOutputs

# --- NMS --------------------------------------------------------------------------------------------------------


def iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def plain_fast_nms(boxes: list[list[float]], scores: list[float], threshold: float, top_k: int) -> list[int]:
    """Indices of the survivors, best first: no better box among the top k overlaps them by more than the threshold."""
    ranked = sorted(range(len(boxes)), key=lambda i: -scores[i])[:top_k]
    return [
        index
        for place, index in enumerate(ranked)
        if all(iou(boxes[better], boxes[index]) <= threshold for better in ranked[:place])
    ]


def random_boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 0.6
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    return torch.cat([low, low + size], dim=1), torch.rand(count, 3, generator=generator, dtype=torch.float64)


def triples(result: tuple[Tensor, Tensor, Tensor]) -> list[tuple[int, int, float]]:
    indices, labels, scores = result
    return list(zip(indices.tolist(), labels.tolist(), scores.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top_k", [4, 200])
def test_fast_nms_runs_per_class(seed: int, top_k: int) -> None:
    boxes, scores = random_boxes(18, seed)
    expected = [
        (index, label, scores[index, label].item())
        for label in range(3)
        for index in plain_fast_nms(boxes.tolist(), scores[:, label].tolist(), 0.4, top_k)
    ]
    assert triples(fast_nms(boxes, scores, 0.4, top_k)) == expected
    assert len({label for _, label, _ in expected}) == 3
    assert len(expected) < 3 * min(top_k, 18)  # something was suppressed


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top_k", [4, 200])
def test_cross_class_nms_sees_the_best_class_of_each_box(seed: int, top_k: int) -> None:
    boxes, scores = random_boxes(18, seed)
    best = [max(row) for row in scores.tolist()]
    expected = [
        (index, scores[index].tolist().index(best[index]), best[index])
        for index in plain_fast_nms(boxes.tolist(), best, 0.4, top_k)
    ]
    assert triples(cross_class_fast_nms(boxes, scores, 0.4, top_k)) == expected


CHAIN = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])  # neighbours: IoU 7 / 13, ends: 4 / 16


def test_suppressed_boxes_still_suppress() -> None:
    """The first box suppresses the second; the third overlaps only the second and is suppressed nevertheless."""
    scores = torch.tensor([[0.9], [0.8], [0.7]])
    assert fast_nms(CHAIN, scores, 0.5, 200)[0].tolist() == [0]
    assert cross_class_fast_nms(CHAIN, scores, 0.5, 200)[0].tolist() == [0]


def test_an_overlap_equal_to_the_threshold_is_kept() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]), torch.tensor([[0.9], [0.8]])
    assert fast_nms(boxes, scores, 0.5, 200)[0].tolist() == [0, 1]
    assert cross_class_fast_nms(boxes, scores, 0.5, 200)[0].tolist() == [0, 1]
    assert fast_nms(boxes, scores, 0.499, 200)[0].tolist() == [0]


def test_two_classes_may_overlap_unless_nms_crosses_classes() -> None:
    boxes, scores = CHAIN[:1].repeat(2, 1), torch.tensor([[0.9, 0.0], [0.0, 0.8]])
    per_class = triples(fast_nms(boxes, scores, 0.5, 1))
    assert [(index, label) for index, label, _ in per_class] == [(0, 0), (1, 1)]
    assert cross_class_fast_nms(boxes, scores, 0.5, 200)[0].tolist() == [0]


def traditional(boxes: Tensor, scores: Tensor, threshold: float, _: int) -> tuple[Tensor, Tensor, Tensor]:
    return traditional_nms(boxes, scores, threshold, 0.05, None)


@pytest.mark.parametrize("nms", [fast_nms, cross_class_fast_nms, traditional])
def test_nms_of_no_boxes(nms: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    indices, labels, scores = nms(torch.zeros(0, 4), torch.zeros(0, 3), 0.5, 200)
    assert [len(part) for part in (indices, labels, scores)] == [0, 0, 0]
    assert labels.dtype == indices.dtype == torch.int64


# --- traditional NMS ------------------------------------------------------------------------------------------------


def plain_traditional_nms(
    boxes: list[list[float]], scores: list[float], threshold: float, least: float, pixels: float | None
) -> list[int]:
    """Best first; whole pixels make sides one longer, and then an overlap equal to the threshold suppresses."""

    def suppresses(a: list[float], b: list[float]) -> bool:
        if pixels is None:
            return iou(a, b) > threshold
        wide_a, wide_b = ([pixels * v + (i > 1) for i, v in enumerate(box)] for box in (a, b))
        return iou(wide_a, wide_b) >= threshold

    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if scores[index] > least and not any(suppresses(boxes[better], boxes[index]) for better in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pixels", [None, 4.0, 550.0])
def test_traditional_nms_goes_through_each_class_from_the_best_down(seed: int, pixels: float | None) -> None:
    boxes, scores = (part.float() for part in random_boxes(25, seed))
    found = traditional_nms(boxes, scores, 0.4, 0.2, pixels)
    expected = [
        (index, label, scores[index, label].item())
        for label in range(3)
        for index in plain_traditional_nms(boxes.tolist(), scores[:, label].tolist(), 0.4, 0.2, pixels)
    ]
    assert triples(found) == expected
    assert len({label for _, label, _ in expected}) == 3
    assert len(expected) < int((scores > 0.2).sum())  # something was suppressed


def test_the_two_conventions_of_traditional_nms_differ() -> None:
    """Ensures that the test above covers both: at 4 pixels per side, one pixel more matters."""
    boxes, scores = (part.float() for part in random_boxes(25, 0))
    assert triples(traditional_nms(boxes, scores, 0.4, 0.2, None)) != triples(
        traditional_nms(boxes, scores, 0.4, 0.2, 4.0)
    )


def test_boxes_that_were_suppressed_do_not_suppress_in_traditional_nms() -> None:
    scores = torch.tensor([[0.9], [0.8], [0.7]])
    assert traditional_nms(CHAIN, scores, 0.5, 0.0, None)[0].tolist() == [0, 2]


@pytest.mark.parametrize(("threshold", "last_row"), [(0.5, 4), (0.7, 6), (0.3, 2), (0.1, 0)])
def test_an_overlap_equal_to_the_threshold_suppresses_in_whole_pixels_only(threshold: float, last_row: int) -> None:
    """Ten columns and ten rows against the first few of these rows: 0.7 and 0.3 are no binary fractions."""
    scores = torch.tensor([[0.9], [0.8]])
    whole_pixels = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, last_row]])
    assert traditional_nms(whole_pixels, scores, threshold, 0.0, 1.0)[0].tolist() == [0]
    assert traditional_nms(whole_pixels, scores, threshold + 1e-3, 0.0, 1.0)[0].tolist() == [0, 1]
    edges = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])
    assert traditional_nms(edges, scores, 0.5, 0.0, None)[0].tolist() == [0, 1]
    assert traditional_nms(edges, scores, 0.499, 0.0, None)[0].tolist() == [0]


def test_traditional_nms_ignores_scores_not_above_the_threshold() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [2, 2, 3, 3]])
    scores = torch.tensor([[0.5, 0.9], [0.51, 0.1]])
    assert triples(traditional_nms(boxes, scores, 0.5, 0.5, None)) == [
        (1, 0, pytest.approx(0.51)),
        (0, 1, pytest.approx(0.9)),
    ]


# --- from outputs to candidates -----------------------------------------------------------------------------------

APART = [(0.1, 0.1), (0.3, 0.3), (0.5, 0.5), (0.7, 0.7), (0.9, 0.9)]
"""Centres of anchors with side 0.1: no two overlap."""


def outputs_of(images: list[list[list[float]]]) -> RawOutputs:
    """Outputs whose boxes are the anchors and whose foreground probabilities are the given ones."""
    foreground = torch.tensor(images)  # (B, A, C)
    probabilities = torch.cat([1 - foreground.sum(dim=-1, keepdim=True), foreground], dim=-1)
    batch, count = foreground.shape[:2]
    return RawOutputs(
        boxes=torch.zeros(batch, count, 4),
        class_logits=probabilities.log(),
        mask_coefficients=torch.arange(batch * count, dtype=torch.float32).reshape(batch, count, 1),
        prototypes=torch.zeros(batch, 4, 4, 1),
        anchors=torch.tensor([[x, y, 0.1, 0.1] for x, y in APART[:count]]),
        semantic_logits=None,
    )


SIZE = 550
"""Side of the network input: read by the published traditional NMS alone."""


def config(**changes: object) -> DetectConfig:
    return DEFAULT_DETECTION.model_copy(update=changes)


def test_candidates_are_sorted_over_classes_and_keep_their_coefficients() -> None:
    [found] = detect(outputs_of([[[0.2, 0.1], [0.0, 0.9], [0.5, 0.0]]]), config(), SIZE)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5, 0.2, 0.1]))
    assert found.labels.tolist() == [1, 0, 0, 1]
    assert found.mask_coefficients[:, 0].tolist() == [1, 2, 0, 0]
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.25, 0.25, 0.35, 0.35]))


def labels_and_anchors(found: Candidates) -> list[tuple[int, float]]:
    return list(zip(found.labels.tolist(), found.mask_coefficients[:, 0].tolist(), strict=True))


TAIL = [[[0.9, 0.04], [0.04, 0.03]]]
"""The first anchor is above the score threshold by one class only, the second by none."""


@pytest.mark.parametrize("nms", ["fast", "cross_class", "traditional"])
def test_a_class_below_the_score_threshold_is_not_reported_next_to_a_good_one(nms: str) -> None:
    [found] = detect(outputs_of(TAIL), config(nms=nms), SIZE)
    assert labels_and_anchors(found) == [(0, 0)]


@pytest.mark.parametrize(
    ("nms", "expected"), [("fast", [(0, 0), (1, 0)]), ("cross_class", [(0, 0)]), ("traditional", [(0, 0)])]
)
def test_a_low_score_tail_is_available_with_fast_nms_only(nms: str, expected: list[tuple[int, int]]) -> None:
    [found] = detect(outputs_of(TAIL), config(nms=nms, low_score_tail=True), SIZE)
    assert labels_and_anchors(found) == expected


def test_boxes_are_decoded_from_their_own_anchors() -> None:
    """Offset 5 moves the centre by half an anchor (variance 0.1); ln 2 / 0.2 doubles the width."""
    outputs = outputs_of([[[0.01], [0.9]]])
    outputs.boxes[0, 1] = torch.tensor([5.0, 0, math.log(2) / 0.2, 0])
    [found] = detect(outputs, config(), SIZE)
    torch.testing.assert_close(found.boxes, torch.tensor([[0.25, 0.25, 0.45, 0.35]]))


@pytest.mark.parametrize("nms", ["fast", "cross_class", "traditional"])
def test_only_the_best_detections_are_kept(nms: str) -> None:
    [found] = detect(outputs_of([[[0.3], [0.9], [0.5], [0.8], [0.2]]]), config(nms=nms, max_detections=3), SIZE)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.5]))


def test_the_limit_of_detections_holds_over_all_classes() -> None:
    [found] = detect(outputs_of([[[0.3, 0.6], [0.5, 0.4]]]), config(max_detections=3), SIZE)
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.5, 0.4]))


@pytest.mark.parametrize("nms", ["fast", "cross_class"])
def test_top_k_limits_the_candidates_of_nms(nms: str) -> None:
    [found] = detect(outputs_of([[[0.3], [0.9], [0.5], [0.8], [0.2]]]), config(nms=nms, top_k=2), SIZE)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8]))


@pytest.mark.parametrize("nms", ["fast", "cross_class", "traditional"])
def test_each_image_of_a_batch_has_its_own_list_which_may_be_empty(nms: str) -> None:
    found = detect(outputs_of([[[0.01, 0.02], [0.03, 0.0]], [[0.6, 0.1], [0.0, 0.7]]]), config(nms=nms), SIZE)
    assert [len(f.scores) for f in found] == [0, 2 if nms == "cross_class" else 3]
    assert found[0].boxes.shape == (0, 4)
    assert found[0].mask_coefficients.shape == (0, 1)


def test_the_nms_setting_chooses_the_routine() -> None:
    outputs = outputs_of([[[0.6, 0.3], [0.0, 0.01]]])
    assert len(detect(outputs, config(nms="fast"), SIZE)[0].scores) == 2
    assert len(detect(outputs, config(nms="cross_class"), SIZE)[0].scores) == 1
    overlapping = outputs_of([[[0.9], [0.8], [0.7]]])
    # Neighbours share 2/3 of a side of 0.1: IoU 1/2; the ends 1/3 of it: IoU 1/5.
    overlapping.anchors[:, :2] = torch.tensor([[0.3, 0.5], [0.333, 0.5], [0.366, 0.5]])
    for nms, survivors in (("fast", [0]), ("cross_class", [0]), ("traditional", [0, 2])):
        [found] = detect(overlapping, config(nms=nms, nms_iou=0.45), SIZE)
        assert found.mask_coefficients[:, 0].tolist() == survivors


@pytest.mark.parametrize(
    ("integer_boxes", "image_size", "count"),
    [
        (True, 10, 1),  # 10 x 5 of 10 x 10 whole pixels: exactly one half
        (True, 100, 2),  # 91 x 41 of 91 x 91
        (False, 10, 2),  # 0.9 x 0.4 of 0.9 x 0.9
    ],
)
def test_integer_boxes_select_traditional_nms_in_whole_pixels(integer_boxes: bool, image_size: int, count: int) -> None:
    outputs = outputs_of([[[0.9], [0.8]]])
    outputs.anchors[:] = torch.tensor([[0.45, 0.45, 0.9, 0.9], [0.45, 0.2, 0.9, 0.4]])
    [found] = detect(outputs, config(nms="traditional", integer_boxes=integer_boxes), image_size)
    assert len(found.scores) == count
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.0, 0, 0.9, 0.9]))  # relative again


def test_half_precision_outputs_give_float32_candidates() -> None:
    outputs = outputs_of([[[0.6, 0.3], [0.0, 0.01]]])
    half = RawOutputs(
        outputs.boxes.bfloat16(),
        outputs.class_logits.bfloat16(),
        outputs.mask_coefficients.bfloat16(),
        outputs.prototypes.bfloat16(),
        outputs.anchors,
        None,
    )
    [found] = detect(half, config(), SIZE)
    assert {found.boxes.dtype, found.scores.dtype, found.mask_coefficients.dtype} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [0.0, 0.002, 0.05, 0.3, 0.99])
def test_every_class_with_a_probability_above_the_threshold_is_found(threshold: float, dtype: torch.dtype) -> None:
    """Against the softmax of all anchors; logits from near ties to overflow, some in whole steps, which gives ties."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(4000, 6, generator=generator) * torch.logspace(-2, 2, 4000)[:, None]
    logits[::3] = logits[::3].round()
    logits[:2000, 0] += 4  # most anchors are background
    count = len(logits)
    outputs = RawOutputs(
        boxes=torch.zeros(1, count, 4),
        class_logits=logits[None].to(dtype),
        mask_coefficients=torch.arange(count, dtype=torch.float32).reshape(1, count, 1),
        prototypes=torch.zeros(1, 4, 4, 1),
        anchors=torch.tensor([[2.0 * index, 0, 1, 1] for index in range(count)]),  # no two overlap
        semantic_logits=None,
    )
    probabilities = logits.to(dtype).float().softmax(dim=1)[:, 1:]
    # Traditional NMS, since it looks at pairs of boxes of one class only where they are many.
    every = config(nms="traditional", score_threshold=threshold, max_detections=10**6)
    [found] = detect(outputs, every, SIZE)
    expected = {(int(anchor), int(label)) for anchor, label in (probabilities > threshold).nonzero().tolist()}
    anchors = found.mask_coefficients[:, 0].long()
    assert set(zip(anchors.tolist(), found.labels.tolist(), strict=True)) == expected
    assert len(found.scores) == len(expected) > 0
    torch.testing.assert_close(found.scores, probabilities[anchors, found.labels], rtol=1e-6, atol=0)


def test_half_precision_logits_are_compared_in_float32() -> None:
    """Their difference, -6.234375, needs one bit more than bfloat16 has: -6.25 would be below the threshold."""
    outputs = outputs_of([[[0.5]]])
    outputs.class_logits = torch.tensor([[[3.015625, -3.21875]]]).bfloat16()
    probability = 1 / (1 + math.exp(6.234375))
    assert math.exp(-6.25) < 0.00194 < probability
    [found] = detect(outputs, config(score_threshold=0.00194), SIZE)
    assert found.scores.tolist() == pytest.approx([probability])


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize("nms", ["fast", "cross_class", "traditional"])
def test_an_anchor_with_non_finite_logits_is_not_detected_and_does_not_affect_others(nms: str, fault: float) -> None:
    outputs = outputs_of([[[0.9], [0.8], [0.7]]])
    outputs.class_logits[0, 1, 1] = fault
    [found] = detect(outputs, config(nms=nms), SIZE)
    assert found.mask_coefficients[:, 0].tolist() == [0, 2]


# --- masks ------------------------------------------------------------------------------------------------------


def plain_logits(prototypes: Tensor, coefficients: list[float]) -> list[list[float]]:
    return [
        [sum(p * c for p, c in zip(pixel, coefficients, strict=True)) for pixel in row] for row in prototypes.tolist()
    ]


def plain_soft_mask(logits: list[list[float]], box: list[float]) -> list[list[float]]:
    """Sigmoid, zero outside the box enlarged by one pixel."""
    height, width = len(logits), len(logits[0])
    left, right = max(min(box[0], box[2]) * width - 1, 0), min(max(box[0], box[2]) * width + 1, width)
    top, bottom = max(min(box[1], box[3]) * height - 1, 0), min(max(box[1], box[3]) * height + 1, height)
    soft = [[0.0] * width for _ in range(height)]
    for row, column in itertools.product(range(height), range(width)):
        if left <= column < right and top <= row < bottom:
            soft[row][column] = 1 / (1 + math.exp(-logits[row][column]))
    return soft


def plain_bilinear(image: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Pixel centres at one half; beyond the outermost centres the edge value."""

    def place(position: int, new: int, old: int) -> tuple[int, int, float]:
        source = max((position + 0.5) * old / new - 0.5, 0.0)
        low = min(int(source), old - 1)
        return low, min(low + 1, old - 1), source - low

    result = []
    for row in range(height):
        r0, r1, fr = place(row, height, len(image))
        line = []
        for column in range(width):
            c0, c1, fc = place(column, width, len(image[0]))
            upper = image[r0][c0] * (1 - fc) + image[r0][c1] * fc
            lower = image[r1][c0] * (1 - fc) + image[r1][c1] * fc
            line.append(upper * (1 - fr) + lower * fr)
        result.append(line)
    return result


def plain_excess(
    logits: list[list[float]], box: list[float], height: int, width: int, *, crop_first: bool
) -> list[list[float]]:
    """Each image pixel's excess over the threshold: the mask is where this is greater than 0."""
    if crop_first:
        soft = plain_bilinear(plain_soft_mask(logits, box), height, width)
        return [[value - 0.5 for value in row] for row in soft]
    excess = plain_bilinear(logits, height, width)
    left, right = min(box[0], box[2]) * width, max(box[0], box[2]) * width
    top, bottom = min(box[1], box[3]) * height, max(box[1], box[3]) * height
    for row, column in itertools.product(range(height), range(width)):
        if not (left <= column + 0.5 < right and top <= row + 0.5 < bottom):
            excess[row][column] = -1.0
    return excess


BOXES = [
    [0.31, 0.33, 0.62, 0.61],
    [0.0, 0.21, 0.22, 0.91],
    [-0.4, -0.2, 1.3, 1.4],
    [0.52, 0.91, 0.31, 0.22],  # corners in the other order
    [0.47, 0.47, 0.47, 0.47],  # without area: as published, still a prototype pixel on every side
    [0.99, 0.41, 1.4, 0.82],  # all but outside; as published, a whole prototype pixel of it is kept
    [1.9, 0.4, 2.4, 0.8],  # far outside
    [-0.9, -0.9, -0.5, -0.5],
]


def random_mask_parts(rows: int, columns: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes, and coefficients and boxes of `BOXES`: masks with some pixels inside and some outside."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(rows, columns, 3, generator=generator) * 2
    coefficients = torch.rand(len(BOXES), 3, generator=generator) * 6 - 2.2
    coefficients[4:].abs_()  # only the crop keeps these from filling the image
    return prototypes, coefficients, torch.tensor(BOXES)


@pytest.mark.parametrize("crop_first", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"),
    [(4, 6, 9, 14), (4, 6, 4, 6), (7, 6, 3, 4), (5, 5, 37, 21), (6, 9, 1, 1), (1, 1, 4, 5), (8, 6, 5, 40)],
)
def test_masks_match_plain_loops(rows: int, columns: int, height: int, width: int, crop_first: bool) -> None:
    prototypes, coefficients, boxes = random_mask_parts(rows, columns)
    masks = enlarge_masks(assemble(prototypes, coefficients), boxes, height, width, crop_first=crop_first).to_tensor()
    assert masks.shape == (len(BOXES), height, width)
    checked = 0
    for mask, coefficient, box in zip(masks.tolist(), coefficients.tolist(), boxes.tolist(), strict=True):
        logits = plain_logits(prototypes, coefficient)
        excess = plain_excess(logits, box, height, width, crop_first=crop_first)
        for row, column in itertools.product(range(height), range(width)):
            if abs(excess[row][column]) > 1e-4:
                assert mask[row][column] == (excess[row][column] > 0)
                checked += 1
    assert checked > 0.95 * masks.numel()


def test_the_random_masks_have_an_inside_and_an_outside() -> None:
    """Ensures that the test above can fail."""
    for crop_first in (False, True):
        masks = enlarge_masks(
            assemble(*random_mask_parts(5, 5)[:2]), torch.tensor(BOXES), 37, 21, crop_first=crop_first
        )
        shares = masks.to_tensor().float().mean(dim=(1, 2))
        assert (shares[:4] > 0).all()
        assert shares[2] < 0.99
        assert (shares[4:] == 0).tolist() == [not crop_first, not crop_first, True, True]


def test_the_crop_is_sharp_by_default_and_blurred_as_published() -> None:
    """A mask that fills everything, 8 prototype pixels a side and 4 image pixels to each.

    The published crop keeps the prototype pixels c with low - 1 <= c < high + 1, and the enlarged ones reach to their
    edges, where the value is one half: one prototype pixel too much on both sides, or on one and a half.
    """
    logits = torch.full((1, 8, 8), 10.0)
    box = torch.tensor([[0.25, 0.0, 0.5, 1.0]])
    ours = enlarge_masks(logits, box, 32, 32, crop_first=False).to_tensor()[0]
    assert ours.any(dim=0).nonzero().squeeze(1).tolist() == list(range(8, 16))
    assert ours[:, 8:16].all()
    published = enlarge_masks(logits, box, 32, 32, crop_first=True).to_tensor()[0]
    assert published.any(dim=0).nonzero().squeeze(1).tolist() == list(range(4, 20))
    off_grid = torch.tensor([[0.25 - 1 / 16, 0.0, 0.5 + 1 / 16, 1.0]])  # half a prototype pixel more on both sides
    ours = enlarge_masks(logits, off_grid, 32, 32, crop_first=False).to_tensor()[0]
    assert ours.any(dim=0).nonzero().squeeze(1).tolist() == list(range(6, 18))
    published = enlarge_masks(logits, off_grid, 32, 32, crop_first=True).to_tensor()[0]
    assert published.any(dim=0).nonzero().squeeze(1).tolist() == list(range(4, 24))


@pytest.mark.parametrize("crop_first", [False, True])
@pytest.mark.parametrize(("height", "width"), [(37, 21), (3, 4), (5, 80), (100, 100)])
def test_full_size_masks_for_gpus_match_windowed_masks(
    height: int, width: int, crop_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prototypes, coefficients, boxes = random_mask_parts(6, 7)
    logits = assemble(prototypes, coefficients)
    windows = enlarge_masks(logits, boxes, height, width, crop_first=crop_first)
    monkeypatch.setattr(postprocess, "_cut_windows", postprocess._cut_whole)
    whole = enlarge_masks(logits, boxes, height, width, crop_first=crop_first)
    assert whole.corners == windows.corners
    assert [crop.shape for crop in whole.crops] == [crop.shape for crop in windows.crops]
    differ = whole.to_tensor() != windows.to_tensor()
    assert differ.sum() <= 2  # rounding may decide a pixel on the very edge
    assert whole.to_tensor().any()


def test_full_size_masks_in_parts_match_those_built_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prototypes, coefficients, boxes = random_mask_parts(6, 5)
    logits = assemble(prototypes, coefficients)
    monkeypatch.setattr(postprocess, "_cut_windows", postprocess._cut_whole)
    at_once = enlarge_masks(logits, boxes, 30, 20, crop_first=False).to_tensor()
    for pixels in (1, 30 * 20 * 3):  # one at a time; three, three and two
        monkeypatch.setattr(postprocess, "ENLARGED_PIXELS", pixels)
        assert torch.equal(enlarge_masks(logits, boxes, 30, 20, crop_first=False).to_tensor(), at_once)
    assert 0 < at_once.sum() < at_once.numel()


@pytest.mark.parametrize("cut", ["_cut_windows", "_cut_whole"])
def test_only_the_pixels_around_the_box_are_kept(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "_cut_windows", getattr(postprocess, cut))
    masks = enlarge_masks(torch.ones(1, 10, 10), torch.tensor([[0.4, 0.5, 0.6, 0.6]]), 500, 1000, crop_first=False)
    [crop] = masks.crops
    assert crop.shape == (50, 200)
    assert masks.corners == [(250, 400)]
    owner = crop
    while owner.base is not None:
        owner = owner.base
    assert owner.size == crop.size  # not a view of a full mask, which would keep that in memory


@pytest.mark.parametrize("cut", ["_cut_windows", "_cut_whole"])
def test_no_coefficients_give_no_masks(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "_cut_windows", getattr(postprocess, cut))
    logits = assemble(torch.zeros(4, 5, 2), torch.zeros(0, 2))
    assert logits.shape == (0, 4, 5)
    masks = enlarge_masks(logits, torch.zeros(0, 4), 7, 9, crop_first=False)
    assert masks.to_tensor().shape == (0, 7, 9)
    assert masks.to_rle() == []


def test_half_precision_prototypes_are_combined_in_float32() -> None:
    prototypes = torch.ones(4, 4, 2, dtype=torch.bfloat16)
    logits = assemble(prototypes, torch.tensor([[1.0, -0.999]]))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.full((1, 4, 4), 0.001), rtol=1e-4, atol=0)


# --- the image's frame --------------------------------------------------------------------------------------------

ONES = torch.ones(4, 4, 1)
"""Prototypes for which a coefficient of 1 gives a mask that fills its box."""


def candidates_of(boxes: list[list[float]]) -> Candidates:
    count = len(boxes)
    return Candidates(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.5, count),
        labels=torch.arange(count),
        mask_coefficients=torch.ones(count, 1),
    )


def test_boxes_are_scaled_to_the_image_and_clipped_to_it() -> None:
    found = to_image_frame(candidates_of([[0.25, 0.5, 0.5, 0.75], [-0.1, 0.2, 1.3, 1.01]]), ONES, 40, 80, config())
    torch.testing.assert_close(found.boxes, torch.tensor([[20.0, 20, 40, 30], [0, 8, 80, 40]]))
    assert found.masks.shape == (2, 40, 80)
    assert found.masks[1].sum() > found.masks[0].sum() > 0


def test_boxes_keep_fractions_of_pixels() -> None:
    found = to_image_frame(candidates_of([[0.123, 0.5, 0.456, 0.789]]), ONES, 10, 100, config())
    torch.testing.assert_close(found.boxes, torch.tensor([[12.3, 5, 45.6, 7.89]]))


OUTSIDE = [[1.1, 0.2, 1.4, 0.5], [0.2, -0.5, 0.4, -0.1], [-0.3, 0.1, 0.0, 0.5], [0.5, 0.2, 0.5, 0.4]]
"""To the right, above, to the left with an edge in common, and without area."""


def test_boxes_outside_the_image_are_dropped_with_all_their_fields() -> None:
    candidates = candidates_of([OUTSIDE[0], [0.2, 0.2, 0.4, 0.4], *OUTSIDE[1:], [math.nan, 0.1, 0.5, 0.5]])
    found = to_image_frame(candidates, ONES, 10, 10, config())
    torch.testing.assert_close(found.boxes, torch.tensor([[2.0, 2, 4, 4]]))
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.scores, candidates.scores[1:2])
    assert torch.equal(found.mask_scores, found.scores)
    assert len(found.masks) == len(found) == 1


def test_integer_boxes_are_truncated_reordered_and_kept_without_area() -> None:
    """By hand, for 10 x 20 pixels; beyond the right edge the left side stays where it is, as published."""
    boxes = [[0.26, 0.59, 0.51, 0.79], [0.51, 0.79, 0.26, 0.59], [0.31, 0.2, 0.39, 0.4], [-0.5, 0.5, -0.1, 1.5]]
    found = to_image_frame(candidates_of([*boxes, OUTSIDE[0]]), ONES, 20, 10, config(integer_boxes=True))
    assert found.boxes.dtype == torch.float32
    assert found.boxes.tolist() == [[2, 11, 5, 15], [2, 11, 5, 15], [3, 4, 3, 8], [0, 10, -1, 20], [11, 4, 10, 10]]
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert found.masks.shape == (5, 20, 10)


@pytest.mark.parametrize("crop_first", [False, True])
def test_the_setting_selects_how_masks_are_cropped(crop_first: bool) -> None:
    prototypes, coefficients, boxes = random_mask_parts(6, 7)
    inside = [0, 1, 2]
    candidates = Candidates(
        boxes[inside], torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), coefficients[inside]
    )
    found = to_image_frame(candidates, prototypes, 50, 41, config(crop_before_enlarging=crop_first))
    logits = assemble(prototypes, coefficients[inside])
    expected, other = (
        enlarge_masks(logits, boxes[inside], 50, 41, crop_first=first).to_tensor()
        for first in (crop_first, not crop_first)
    )
    assert torch.equal(found.masks, expected)
    assert not torch.equal(found.masks, other)


def test_masks_may_have_another_size_than_the_image() -> None:
    candidates = candidates_of([[0.25, 0.5, 0.5, 0.75], [1.1, 0.2, 1.4, 0.5]])
    found = to_image_frame(candidates, ONES, 400, 800, config(), mask_size=(13, 7))
    torch.testing.assert_close(found.boxes, torch.tensor([[200.0, 200, 400, 300]]))
    expected = enlarge_masks(torch.ones(1, 4, 4), candidates.boxes[:1], 13, 7, crop_first=False)
    assert torch.equal(found.masks, expected.to_tensor())


def test_no_candidates_give_empty_detections_of_the_images_size() -> None:
    found = to_image_frame(candidates_of([]), ONES, 5, 6, config())
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 5, 6)


@pytest.mark.parametrize("settings", [DEFAULT_DETECTION, PUBLISHED_DETECTION])
def test_candidates_are_not_modified(settings: DetectConfig) -> None:
    candidates = candidates_of([[-0.1, 0.2, 1.3, 1.01], [0.9, 0.9, 0.1, 0.1]])
    before = candidates.boxes.clone()
    to_image_frame(candidates, ONES, 40, 80, settings)
    assert torch.equal(candidates.boxes, before)


# --- mask re-scoring ------------------------------------------------------------------------------------------------


class FixedMaskIou(nn.Module):
    """Predicts tenths that identify detection and class, and records the masks that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, masks: Tensor) -> Tensor:
        self.seen.append(masks)
        return torch.arange(len(masks))[:, None] + torch.tensor([[0.1, 0.2, 0.3, 0.4]])


def test_mask_scores_are_scores_times_the_predicted_iou_of_the_detections_class() -> None:
    candidates = candidates_of([[0.1, 0.1, 0.6, 0.6], [0.2, 0.2, 0.9, 0.9], [0.0, 0.0, 0.5, 1.0]])
    candidates.labels = torch.tensor([3, 0, 1])
    found = to_image_frame(candidates, ONES, 40, 80, config(), FixedMaskIou())
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.5]))  # neither modified nor sorted again
    torch.testing.assert_close(found.mask_scores, torch.tensor([0.9 * 0.4, 0.7 * 1.1, 0.5 * 2.2]))


def test_dropped_boxes_are_not_rescored() -> None:
    candidates = candidates_of([OUTSIDE[0], [0.2, 0.2, 0.9, 0.9]])
    candidates.labels = torch.tensor([3, 1])
    found = to_image_frame(candidates, ONES, 40, 80, config(), FixedMaskIou())
    torch.testing.assert_close(found.mask_scores, torch.tensor([0.5 * 0.2]))


@pytest.mark.parametrize("settings", [DEFAULT_DETECTION, PUBLISHED_DETECTION])
def test_mask_rescoring_receives_soft_cropped_masks_at_prototype_resolution(settings: DetectConfig) -> None:
    prototypes, coefficients, boxes = random_mask_parts(6, 7)
    inside = [0, 1, 2]
    candidates = Candidates(
        boxes[inside], torch.full((3,), 0.9), torch.zeros(3, dtype=torch.int64), coefficients[inside]
    )
    net = FixedMaskIou()
    to_image_frame(candidates, prototypes, 50, 41, settings, net, mask_size=(9, 9))
    [seen] = net.seen
    expected = [
        plain_soft_mask(plain_logits(prototypes, coefficients[index].tolist()), BOXES[index]) for index in inside
    ]
    torch.testing.assert_close(seen, torch.tensor(expected))


def test_without_detections_nothing_is_rescored() -> None:
    net = FixedMaskIou()
    found = to_image_frame(candidates_of([]), ONES, 5, 6, config(), net)
    assert found.mask_scores.shape == (0,)
    assert net.seen == []


def test_a_box_that_is_not_finite_does_not_suppress_others() -> None:
    """Its IoU is NaN, and no comparison with NaN holds."""
    anchors = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]])
    outputs = RawOutputs(
        boxes=torch.tensor([[[0.0, 0.0, float("inf"), 0.0], [0.0, 0.0, 0.0, 0.0]]]),
        class_logits=torch.tensor([[[0.0, 9.0], [0.0, 5.0]]]),
        mask_coefficients=torch.ones(1, 2, 1),
        prototypes=torch.ones(1, 4, 4, 1),
        anchors=anchors,
        semantic_logits=None,
    )
    for nms in ("fast", "cross_class", "traditional"):
        (found,) = detect(outputs, config(nms=nms), SIZE)
        assert found.boxes.shape == (1, 4)
        assert found.boxes[0].tolist() == pytest.approx([0.65, 0.65, 0.75, 0.75])
