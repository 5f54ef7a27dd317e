"""The published AP against numbers computed by hand, one test per difference from COCO's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from yolact.inference.detections import Detections
from yolact_bench.published_ap import GroundTruth, PublishedAp, PublishedEvaluation, average_precision

SIDE = 100


def rectangles(boxes: list[list[int]]) -> Tensor:
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return masks


def objects(*rows: tuple[int, list[int]], crowd: tuple[int, ...] = ()) -> GroundTruth:
    """Filled rectangles, each a class and a box in pixels; ``crowd`` has the indices of crowd regions."""
    boxes = [box for _, box in rows]
    return GroundTruth(
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) / SIDE,
        labels=torch.tensor([label for label, _ in rows], dtype=torch.int64),
        masks=rectangles(boxes),
        crowd=torch.tensor([row in crowd for row in range(len(rows))], dtype=torch.bool),
    )


def found(*rows: tuple[int, float, list[float]], mask_scores: list[float] | None = None) -> Detections:
    """Detections: a class, a score and a box in pixels, which the mask fills (in whole pixels)."""
    boxes = [box for _, _, box in rows]
    return Detections.from_masks(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for label, _, _ in rows], dtype=torch.int64),
        rectangles([[int(edge) for edge in box] for box in boxes]),
        mask_scores=None if mask_scores is None else torch.tensor(mask_scores),
    )


def evaluate(*images: tuple[Detections, GroundTruth], num_classes: int = 2) -> tuple[PublishedAp, PublishedAp]:
    evaluation = PublishedEvaluation(num_classes)
    for detections, truth in images:
        evaluation.add(detections, truth)
    return evaluation.result("box"), evaluation.result("mask")


# --- the area under the curve ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "num_objects", "expected"),
    [
        ([True, True], 2, 1.0),
        ([True], 2, 51 / 101),  # recall 0.5: the points 0, 0.01 ... 0.50
        ([False, True], 1, 0.5),  # precision 1/2 at every recall
        ([True, False, True], 2, (51 + 50 * 2 / 3) / 101),
        ([False, True, True], 2, 2 / 3),  # the dip to 1/2 at recall 0.5 is filled by the 2/3 beyond
        ([False, False], 3, 0.0),
        ([], 3, 0.0),
        ([True], 0, 0.0),
    ],
)
def test_area_by_hand(correct: list[bool], num_objects: int, expected: float) -> None:
    scores = np.linspace(0.9, 0.1, len(correct))
    shuffled = np.random.default_rng(0).permutation(len(correct))
    ranked = np.array(correct, dtype=bool)
    assert average_precision(scores[shuffled], ranked[shuffled], num_objects) == pytest.approx(expected, abs=1e-12)


# --- matching -------------------------------------------------------------------------------------------------------


def test_perfect_detections_have_an_ap_of_one_at_every_threshold() -> None:
    image = (
        found((0, 0.9, [10, 10, 50, 50]), (1, 0.8, [60, 0, 90, 30])),
        objects((0, [10, 10, 50, 50]), (1, [60, 0, 90, 30])),
    )
    for result in evaluate(image):
        assert result.per_class.tolist() == [[1.0, 1.0]] * 10
        assert result.thresholds == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
        assert result.num_objects.tolist() == result.num_detections.tolist() == [1, 1]
        assert result.percent() == {"all": 100.0} | {str(percent): 100.0 for percent in range(50, 100, 5)}


def test_an_overlap_equal_to_the_threshold_is_not_enough() -> None:
    """50 of 100 columns: the IoU is 0.5; COCO would count it at 0.50."""
    box, mask = evaluate((found((0, 0.9, [0, 0, 50, 100])), objects((0, [0, 0, 100, 100]))))
    assert box.per_class[0, 0] == mask.per_class[0, 0] == 0
    box, _ = evaluate((found((0, 0.9, [0, 0, 51, 100])), objects((0, [0, 0, 100, 100]))))
    assert box.per_class[:, 0].tolist() == [1.0] + [0.0] * 9


def test_boxes_are_truncated_to_whole_pixels() -> None:
    """The box is 0.509 of the object, but 0.5 when it is cut to [0, 50]."""
    box, _ = evaluate((found((0, 0.9, [0.9, 0, 50.9, 100])), objects((0, [0, 0, 100, 100]))))
    assert box.per_class[0, 0] == 0


def test_each_object_is_found_once_by_the_best_detection() -> None:
    detections = found((0, 0.6, [0, 0, 40, 40]), (0, 0.9, [0, 0, 40, 38]))
    box, _ = evaluate((detections, objects((0, [0, 0, 40, 40]))))
    # At 0.50 to 0.90 the better-scored one (IoU 0.95) is right and the other is a second find: AP 1. At 0.95 it is too
    # little, so that the order is false, right: AP 1/2.
    assert box.per_class[:, 0].tolist() == [1.0] * 9 + [0.5]


def test_a_detection_takes_the_free_object_that_it_fits_best() -> None:
    truth = objects((0, [0, 0, 40, 40]), (0, [0, 0, 40, 30]))
    detections = found((0, 0.9, [0, 0, 40, 31]), (0, 0.8, [0, 0, 40, 31]))
    box, _ = evaluate((detections, truth))
    # The first takes the second object (IoU 30/31); the second gets the other one (31/40 = 0.775).
    assert box.per_class[:, 0].tolist() == [1.0] * 6 + [pytest.approx(51 / 101)] * 4


def test_a_detection_of_another_class_matches_nothing() -> None:
    box, _ = evaluate((found((1, 0.9, [0, 0, 40, 40])), objects((0, [0, 0, 40, 40]))))
    assert box.per_class[0].tolist() == [0, 0]
    assert box.num_objects.tolist() == [1, 0]
    assert box.num_detections.tolist() == [0, 1]


def test_masks_are_ranked_by_their_own_score() -> None:
    detections = found((0, 0.9, [60, 60, 90, 90]), (0, 0.8, [0, 0, 40, 40]), mask_scores=[0.1, 0.7])
    box, mask = evaluate((detections, objects((0, [0, 0, 40, 40]))))
    assert box.per_class[0, 0] == 0.5
    assert mask.per_class[0, 0] == 1.0


def test_empty_masks_match_nothing() -> None:
    truth = objects((0, [0, 0, 40, 40]), (0, [60, 60, 90, 90]))
    truth.masks[1] = 0
    detections = found((0, 0.9, [60, 60, 60, 60]), (0, 0.8, [0, 0, 40, 40]))
    _, mask = evaluate((detections, truth))
    assert mask.per_class[0, 0] == pytest.approx(51 / 101 / 2)


# --- what the published code leaves out -----------------------------------------------------------------------------


def test_objects_of_an_image_without_detections_are_not_counted() -> None:
    first = (found((0, 0.9, [0, 0, 40, 40])), objects((0, [0, 0, 40, 40])))
    second = (found(), objects((0, [0, 0, 40, 40])))
    for result in evaluate(first, second):
        assert result.per_class[0, 0] == 1.0
        assert result.num_objects[0] == 1


def test_an_image_without_annotations_is_not_evaluated() -> None:
    first = (found((0, 0.5, [0, 0, 40, 40])), objects((0, [0, 0, 40, 40])))
    second = (found((0, 0.9, [0, 0, 40, 40])), objects())
    for result in evaluate(first, second):
        assert result.per_class[0, 0] == 1.0
        assert result.num_detections[0] == 1


def test_a_detection_on_a_crowd_is_a_false_positive_and_the_crowd_is_not_counted() -> None:
    truth = objects((0, [60, 60, 90, 90]), (0, [0, 0, 40, 40]), crowd=(1,))
    detections = found((0, 0.9, [0, 0, 40, 40]), (0, 0.8, [60, 60, 90, 90]))
    for result in evaluate((detections, truth)):
        assert result.per_class[0, 0] == 0.5
        assert result.num_objects[0] == 1


def test_narrow_objects_are_dropped() -> None:
    """4/550 of the image is 0.727 of its 100 pixels."""
    truth = objects((0, [0, 0, 40, 40]), (1, [50, 50, 51, 90]))
    truth.boxes[1] = torch.tensor([0.5, 0.5, 0.507, 0.9])
    result, _ = evaluate((found((0, 0.9, [0, 0, 40, 40])), truth))
    assert result.num_objects.tolist() == [1, 0]
    evaluation = PublishedEvaluation(2, min_relative_side=0)
    evaluation.add(found((0, 0.9, [0, 0, 40, 40])), truth)
    assert evaluation.result("box").num_objects.tolist() == [1, 1]


def test_the_mean_counts_classes_that_were_only_detected_and_leaves_out_absent_ones() -> None:
    detections = found((0, 0.9, [0, 0, 40, 40]), (1, 0.9, [60, 60, 90, 90]))
    result, _ = evaluate((detections, objects((0, [0, 0, 40, 40]))), num_classes=3)
    assert result.mean().tolist() == [0.5] * 10
    assert result.percent()["all"] == 50.0


def test_the_mean_without_images_is_zero() -> None:
    assert PublishedEvaluation(2).result("mask").percent()["all"] == 0.0


def test_detections_of_all_images_are_ranked_together() -> None:
    """By score: true, false, true positive, of three objects."""
    first = (
        found((0, 0.9, [0, 0, 40, 40]), (0, 0.5, [50, 50, 90, 90])),
        objects((0, [0, 0, 40, 40]), (0, [50, 50, 90, 90])),
    )
    second = (found((0, 0.7, [0, 0, 40, 40])), objects((0, [50, 50, 90, 90])))
    result, _ = evaluate(first, second)
    assert result.per_class[0, 0] == pytest.approx((34 + 33 * 2 / 3) / 101)  # recalls to 1/3, then to 2/3
