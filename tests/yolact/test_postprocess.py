"""NMS, mask assembly and the photo's frame against loops in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from yolact.config import PUBLISHED_DETECTION, DetectConfig
from yolact.postprocess import Candidates, assemble_masks, cross_class_fast_nms, detect, fast_nms, to_photo_frame
from yolact.structures import RawOutputs

# --- NMS --------------------------------------------------------------------------------------------------------


def iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def plain_fast_nms(boxes: list[list[float]], scores: list[float], threshold: float, top_k: int) -> list[int]:
    """Indices that survive, best first: no better box among the top k overlaps them by more than the threshold."""
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
def test_fast_nms_is_decided_class_by_class(seed: int, top_k: int) -> None:
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
    """The second box falls to the first; the third overlaps only the second and falls all the same."""
    scores = torch.tensor([[0.9], [0.8], [0.7]])
    assert fast_nms(CHAIN, scores, 0.5, 200)[0].tolist() == [0]
    assert cross_class_fast_nms(CHAIN, scores, 0.5, 200)[0].tolist() == [0]


def test_an_overlap_equal_to_the_threshold_is_kept() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]), torch.tensor([[0.9], [0.8]])
    assert fast_nms(boxes, scores, 0.5, 200)[0].tolist() == [0, 1]
    assert cross_class_fast_nms(boxes, scores, 0.5, 200)[0].tolist() == [0, 1]
    assert fast_nms(boxes, scores, 0.499, 200)[0].tolist() == [0]


def test_one_place_may_hold_two_classes_unless_nms_crosses_classes() -> None:
    boxes, scores = CHAIN[:1].repeat(2, 1), torch.tensor([[0.9, 0.0], [0.0, 0.8]])
    per_class = triples(fast_nms(boxes, scores, 0.5, 1))
    assert [(index, label) for index, label, _ in per_class] == [(0, 0), (1, 1)]
    assert cross_class_fast_nms(boxes, scores, 0.5, 200)[0].tolist() == [0]


@pytest.mark.parametrize("nms", [fast_nms, cross_class_fast_nms])
def test_nms_of_no_boxes(nms: object) -> None:
    indices, labels, scores = nms(torch.zeros(0, 4), torch.zeros(0, 3), 0.5, 200)
    assert [len(part) for part in (indices, labels, scores)] == [0, 0, 0]
    assert labels.dtype == indices.dtype == torch.int64


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


def config(**changes: object) -> DetectConfig:
    return PUBLISHED_DETECTION.model_copy(update=changes)


def test_candidates_are_sorted_over_classes_and_keep_their_coefficients() -> None:
    [found] = detect(outputs_of([[[0.2, 0.1], [0.0, 0.9], [0.5, 0.0]]]), config())
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5, 0.2, 0.1]))
    assert found.labels.tolist() == [1, 0, 0, 1]
    assert found.mask_coefficients[:, 0].tolist() == [1, 2, 0, 0]
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.25, 0.25, 0.35, 0.35]))


def test_a_class_below_the_score_threshold_is_not_reported_beside_a_good_one() -> None:
    [found] = detect(outputs_of([[[0.9, 0.04], [0.04, 0.03]]]), config())
    assert list(zip(found.labels.tolist(), found.mask_coefficients[:, 0].tolist(), strict=True)) == [(0, 0)]


def test_boxes_are_decoded_from_their_own_anchors() -> None:
    """Offset 5 moves the centre by half an anchor (variance 0.1); ln 2 / 0.2 doubles the width."""
    outputs = outputs_of([[[0.01], [0.9]]])
    outputs.boxes[0, 1] = torch.tensor([5.0, 0, math.log(2) / 0.2, 0])
    [found] = detect(outputs, config())
    torch.testing.assert_close(found.boxes, torch.tensor([[0.25, 0.25, 0.45, 0.35]]))


@pytest.mark.parametrize("nms", ["fast", "cross_class"])
def test_only_the_best_detections_are_kept(nms: str) -> None:
    [found] = detect(outputs_of([[[0.3], [0.9], [0.5], [0.8], [0.2]]]), config(nms=nms, max_detections=3))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.5]))


def test_the_limit_of_detections_holds_over_all_classes() -> None:
    [found] = detect(outputs_of([[[0.3, 0.6], [0.5, 0.4]]]), config(max_detections=3))
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.5, 0.4]))


@pytest.mark.parametrize("nms", ["fast", "cross_class"])
def test_top_k_limits_what_enters_nms(nms: str) -> None:
    [found] = detect(outputs_of([[[0.3], [0.9], [0.5], [0.8], [0.2]]]), config(nms=nms, top_k=2))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8]))


@pytest.mark.parametrize("nms", ["fast", "cross_class"])
def test_each_image_of_a_batch_has_its_own_list_which_may_be_empty(nms: str) -> None:
    found = detect(outputs_of([[[0.01, 0.02], [0.03, 0.0]], [[0.6, 0.1], [0.0, 0.7]]]), config(nms=nms))
    assert [len(f.scores) for f in found] == [0, 3 if nms == "fast" else 2]
    assert found[0].boxes.shape == (0, 4)
    assert found[0].mask_coefficients.shape == (0, 1)


def test_the_nms_setting_chooses_the_routine() -> None:
    outputs = outputs_of([[[0.6, 0.3], [0.0, 0.01]]])
    assert len(detect(outputs, config(nms="fast"))[0].scores) == 2
    assert len(detect(outputs, config(nms="cross_class"))[0].scores) == 1


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
    [found] = detect(half, config())
    assert {found.boxes.dtype, found.scores.dtype, found.mask_coefficients.dtype} == {torch.float32}


# --- masks ------------------------------------------------------------------------------------------------------


def plain_soft_mask(prototypes: Tensor, coefficients: list[float], box: list[float]) -> list[list[float]]:
    height, width = prototypes.shape[:2]
    left, right = max(box[0] * width - 1, 0), min(box[2] * width + 1, width)
    top, bottom = max(box[1] * height - 1, 0), min(box[3] * height + 1, height)
    soft = [[0.0] * width for _ in range(height)]
    for row, column in itertools.product(range(height), range(width)):
        if left <= column < right and top <= row < bottom:
            logit = sum(p * c for p, c in zip(prototypes[row, column].tolist(), coefficients, strict=True))
            soft[row][column] = 1 / (1 + math.exp(-logit))
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


@pytest.mark.parametrize(("height", "width"), [(9, 14), (4, 6), (3, 4)])
def test_masks_are_combined_cropped_then_enlarged(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(3)
    prototypes = torch.rand(4, 6, 3, generator=generator) * 2
    coefficients = torch.rand(3, 3, generator=generator) * 6 - 2
    boxes = torch.tensor([[0.3, 0.3, 0.6, 0.6], [0.0, 0.2, 0.2, 0.9], [-0.4, -0.2, 1.3, 1.4]])
    masks = assemble_masks(prototypes, coefficients, boxes, height, width)
    assert masks.dtype == torch.bool
    assert masks.shape == (3, height, width)
    checked = 0
    for mask, coefficient, box in zip(masks, coefficients.tolist(), boxes.tolist(), strict=True):
        exact = plain_bilinear(plain_soft_mask(prototypes, coefficient, box), height, width)
        for row, column in itertools.product(range(height), range(width)):
            if abs(exact[row][column] - 0.5) > 1e-4:
                assert mask[row, column].item() == (exact[row][column] > 0.5)
                checked += 1
    assert checked > 0.95 * masks.numel()
    assert masks.any()
    assert not masks.all()


def test_half_precision_prototypes_are_combined_in_float32() -> None:
    prototypes = torch.ones(4, 4, 2, dtype=torch.bfloat16)
    box = torch.tensor([[0.0, 0, 1, 1]])
    assert assemble_masks(prototypes, torch.tensor([[1.0, -0.999]]), box, 4, 4).all()  # 1 - 0.999 > 0


def test_no_coefficients_give_no_masks() -> None:
    masks = assemble_masks(torch.zeros(4, 4, 2), torch.zeros(0, 2), torch.zeros(0, 4), 7, 9)
    assert masks.shape == (0, 7, 9)
    assert masks.dtype == torch.bool


# --- the photo's frame --------------------------------------------------------------------------------------------


def candidates_of(boxes: list[list[float]]) -> Candidates:
    count = len(boxes)
    return Candidates(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.5, count),
        labels=torch.arange(count),
        mask_coefficients=torch.ones(count, 1),
    )


def test_boxes_are_scaled_to_the_photo_and_clipped_to_it() -> None:
    found = to_photo_frame(candidates_of([[0.25, 0.5, 0.5, 0.75], [-0.1, 0.2, 1.3, 1.01]]), torch.ones(4, 4, 1), 40, 80)
    torch.testing.assert_close(found.boxes, torch.tensor([[20.0, 20, 40, 30], [0, 8, 80, 40]]))
    assert found.masks.shape == (2, 40, 80)
    assert found.masks[1].sum() > found.masks[0].sum() > 0


def test_boxes_outside_the_photo_are_dropped_with_all_that_belongs_to_them() -> None:
    outside = [[1.1, 0.2, 1.4, 0.5], [0.2, -0.5, 0.4, -0.1], [-0.3, 0.1, 0.0, 0.5], [math.nan, 0.1, 0.5, 0.5]]
    found = to_photo_frame(candidates_of([outside[0], [0.2, 0.2, 0.4, 0.4], *outside[1:]]), torch.ones(4, 4, 1), 10, 10)
    torch.testing.assert_close(found.boxes, torch.tensor([[2.0, 2, 4, 4]]))
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.scores, torch.tensor([0.8]))
    assert len(found.masks) == len(found) == 1


def test_no_candidates_give_empty_detections_of_the_photos_size() -> None:
    found = to_photo_frame(candidates_of([]), torch.ones(4, 4, 1), 5, 6)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 5, 6)


def test_candidates_are_left_as_they_are() -> None:
    candidates = candidates_of([[-0.1, 0.2, 1.3, 1.01]])
    before = candidates.boxes.clone()
    to_photo_frame(candidates, torch.ones(4, 4, 1), 40, 80)
    assert torch.equal(candidates.boxes, before)


def test_above_keeps_the_better_detections() -> None:
    found = to_photo_frame(candidates_of([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 1, 0.5]]), torch.ones(4, 4, 1), 8, 8)
    better = found.above(0.5)  # of 0.9, 0.7 and exactly 0.5
    assert better.labels.tolist() == [0, 1]
    assert better.masks.shape == (2, 8, 8)


def test_masks_enlarged_in_parts_are_those_enlarged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    prototypes = torch.rand(6, 5, 4, generator=generator)
    coefficients = torch.randn(7, 4, generator=generator)
    boxes = torch.tensor([[0.1, 0.1, 0.9, 0.8]]).expand(7, 4)
    at_once = assemble_masks(prototypes, coefficients, boxes, 30, 20)
    for pixels in (1, 30 * 20 * 3):  # one at a time; three, three and one
        monkeypatch.setattr("yolact.postprocess.ENLARGED_PIXELS", pixels)
        assert torch.equal(assemble_masks(prototypes, coefficients, boxes, 30, 20), at_once)
    assert 0 < at_once.sum() < at_once.numel()


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
    (found,) = detect(outputs, PUBLISHED_DETECTION)
    assert found.boxes.shape == (1, 4)
    assert found.boxes[0].tolist() == pytest.approx([0.65, 0.65, 0.75, 0.75])
