"""The paired bootstrap against pycocotools on data sets whose images are really repeated."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from yolact.errors import DataError
from yolact.evaluation.bootstrap import (
    METRICS,
    Comparison,
    compare_detections,
    match_detections,
    mean_over_classes,
    weighted_ap,
)
from yolact.evaluation.evaluator import evaluate_coco, index_ground_truth

SIDE = 64
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "cow"}]


def region(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle = mask_utils.encode(mask)
    return {
        "bbox": [float(x), float(y), float(width), float(height)],
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
    }


def true_object(image: int, category: int, place: tuple[int, int, int, int], crowd: int = 0) -> dict[str, Any]:
    area = float(place[2] * place[3])
    return {"image_id": image, "category_id": category, "iscrowd": crowd, "area": area, **region(*place)}


def found_object(image: int, category: int, place: tuple[int, int, int, int], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "score": score, **region(*place)}


def instances(images: int, objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(1, images + 1)],
        "categories": CATEGORIES,
        "annotations": [{"id": number, **item} for number, item in enumerate(objects, start=1)],
    }


def repeated(
    truth: dict[str, Any], rows: list[dict[str, Any]], weights: list[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data set with each image repeated according to its weight, and its detections."""
    copies = {i: [1000 * i + c for c in range(weight)] for i, weight in enumerate(weights, start=1)}
    images = [{**item, "id": new} for item in truth["images"] for new in copies[item["id"]]]
    objects = [{**item, "image_id": new} for item in truth["annotations"] for new in copies[item["image_id"]]]
    numbered = [{**item, "id": number} for number, item in enumerate(objects, start=1)]
    found = [{**row, "image_id": new} for row in rows for new in copies[row["image_id"]]]
    return {**truth, "images": images, "annotations": numbered}, found


places = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(9, 14), st.integers(9, 14))
classes = st.sampled_from([item["id"] for item in CATEGORIES])
scores = st.sampled_from([0.1, 0.3, 0.3, 0.5, 0.9, 0.9])  # ties within and across images


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    images = draw(st.integers(1, 5))
    of_image = st.integers(1, images)
    crowd = st.sampled_from([0, 0, 0, 1])
    objects = draw(st.lists(st.builds(true_object, of_image, classes, places, crowd), max_size=12))
    rows = draw(st.lists(st.builds(found_object, of_image, classes, places, scores), max_size=20))
    weights = draw(st.lists(st.integers(0, 4), min_size=images, max_size=images))
    return instances(images, objects), rows, weights


def ours(truth: dict[str, Any], rows: list[dict[str, Any]], weights: list[int], iou_type: Any) -> np.ndarray:
    """(3, C) AP with weights, computed by our code."""
    matched = match_detections(index_ground_truth(truth, "truth"), rows, iou_type)
    return weighted_ap(matched, np.array([weights]))[:, 0]


def none_to_nan(value: float | None) -> float:
    return np.nan if value is None else value


@pytest.mark.parametrize("iou_type", ["box", "mask"])
@settings(deadline=None, max_examples=60)
@given(case=data_sets())
def test_weights_equal_repeated_images(iou_type, case):
    truth, rows, weights = case
    big_truth, big_rows = repeated(truth, rows, weights)
    expected = evaluate_coco(index_ground_truth(big_truth, "truth"), big_rows, iou_type)
    got = ours(truth, rows, weights, iou_type)
    means = [none_to_nan(expected.metrics()[name]) for name in METRICS]
    np.testing.assert_allclose(mean_over_classes(got), means, rtol=0, atol=1e-12)
    for metric, row in (("AP", 0), ("AP50", 1)):
        by_class = [none_to_nan(getattr(ap, metric)) for ap in expected.per_class.values()]
        np.testing.assert_allclose(got[row], by_class, rtol=0, atol=1e-12)


def many_images(count: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Ground truth, the detections of a fair network, and those of one that misses and invents more."""
    random = np.random.default_rng(seed)
    objects, fair, poor = [], [], []
    for image in range(1, count + 1):
        for _ in range(random.integers(0, 4)):
            category = CATEGORIES[random.integers(0, 2)]["id"]  # no cows
            x, y, width, height = (int(v) for v in random.integers([0, 0, 10, 10], [30, 30, 30, 30]))
            objects.append(true_object(image, category, (x, y, width, height)))
            for rows, error, missed in ((fair, 2, 0.2), (poor, 4, 0.4)):
                if random.random() > missed:
                    shift = random.integers(0, error, 2)
                    place = (x + int(shift[0]), y + int(shift[1]), width, height)
                    rows.append(found_object(image, category, place, round(float(random.random()), 2)))
    return instances(count, objects), fair, poor


class TestComparison:
    @pytest.mark.parametrize("iou_type", ["box", "mask"])
    def test_metrics_match_the_evaluator(self, iou_type):
        truth, fair, poor = many_images(60)
        got = compare_detections(truth, poor, fair, iou_type=iou_type, samples=5)
        indexed = index_ground_truth(truth, "truth")
        a, b = (evaluate_coco(indexed, rows, iou_type) for rows in (poor, fair))
        for name in METRICS:
            expected = (a.metrics()[name], b.metrics()[name])
            assert (got.metrics[name].a, got.metrics[name].b) == pytest.approx(expected, abs=1e-12)
            assert got.metrics[name].gain.value == pytest.approx(expected[1] - expected[0], abs=1e-12)
        for name in ("cat", "dog"):
            assert got.per_class[name].a == pytest.approx(a.per_class[name].AP, abs=1e-12)
            assert got.per_class[name].b == pytest.approx(b.per_class[name].AP, abs=1e-12)
            assert got.per_class[name].objects == a.per_class[name].num_instances
        cow = got.per_class["cow"]
        assert (cow.a, cow.b, cow.gain, cow.objects) == (None, None, None, 0)
        assert (got.images, got.samples, got.iou_type) == (60, 5, iou_type)

    def test_intervals_are_percentiles_of_pycocotools_on_the_drawn_images(self):
        truth, fair, poor = many_images(12)
        got = compare_detections(truth, poor, fair, iou_type="box", samples=20, confidence=0.8, seed=3)
        differences: dict[str, list[float]] = {name: [] for name in METRICS}
        draws = np.random.default_rng(3).multinomial(12, [1 / 12] * 12, size=20)
        for weights in draws.tolist():
            a, b = (
                evaluate_coco(index_ground_truth(big, "truth"), found, "box")
                for big, found in (repeated(truth, rows, weights) for rows in (poor, fair))
            )
            for name in METRICS:
                differences[name].append(b.metrics()[name] - a.metrics()[name])
        for name in METRICS:
            low, high = np.percentile(differences[name], [10, 90])
            assert (got.metrics[name].gain.low, got.metrics[name].gain.high) == pytest.approx((low, high), abs=1e-12)

    def test_a_better_network_is_significant_and_swapping_the_two_mirrors_the_intervals(self):
        truth, fair, poor = many_images(150)
        better = compare_detections(truth, poor, fair, iou_type="mask", samples=200)
        worse = compare_detections(truth, fair, poor, iou_type="mask", samples=200)
        gain, loss = better.metrics["AP"].gain, worse.metrics["AP"].gain
        assert gain.low > 0
        assert gain.excludes_zero
        assert loss.excludes_zero
        assert gain.low <= gain.value <= gain.high
        assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low), abs=1e-12)

    def test_identical_detections_have_a_difference_of_exactly_zero(self):
        truth, fair, _ = many_images(30)
        got = compare_detections(truth, fair, copy.deepcopy(fair), iou_type="mask", samples=50)
        for gain in [*got.metrics.values(), *got.per_class.values()]:
            assert gain.gain is None or (gain.gain.value, gain.gain.low, gain.gain.high) == (0, 0, 0)
        assert not got.metrics["AP"].gain.excludes_zero

    def test_a_seed_repeats_the_intervals_and_more_confidence_widens_them(self):
        truth, fair, poor = many_images(40)

        def gain(**changes: Any) -> Comparison:
            return compare_detections(truth, poor, fair, **({"iou_type": "box", "samples": 100} | changes))

        assert gain(seed=1) == gain(seed=1)
        assert gain(seed=1).metrics["AP"].gain != gain(seed=2).metrics["AP"].gain
        wide, narrow = (gain(confidence=c).metrics["AP"].gain for c in (0.99, 0.5))
        assert wide.low < narrow.low < narrow.high < wide.high

    def test_memory_blocks_do_not_change_the_result(self, monkeypatch):
        truth, fair, poor = many_images(40)
        whole = compare_detections(truth, poor, fair, iou_type="box", samples=30)
        monkeypatch.setattr("yolact.evaluation.bootstrap._BLOCK_ELEMENTS", 100)
        assert compare_detections(truth, poor, fair, iou_type="box", samples=30) == whole

    def test_ground_truth_and_detections_are_not_modified(self):
        truth, fair, poor = many_images(5)
        before = copy.deepcopy((truth, fair, poor))
        compare_detections(truth, poor, fair, iou_type="mask", samples=2)
        assert (truth, fair, poor) == before


class TestAtTheEdges:
    def test_no_detections_at_all(self):
        truth, fair, _ = many_images(20)
        got = compare_detections(truth, [], fair, iou_type="mask", samples=50)
        assert got.metrics["AP"].a == 0
        assert got.metrics["AP"].gain.value == got.metrics["AP"].b > 0
        nothing = compare_detections(truth, [], [], iou_type="mask", samples=50).metrics["AP"]
        assert (nothing.a, nothing.b, nothing.gain.low, nothing.gain.high) == (0, 0, 0, 0)

    def test_without_objects_there_are_no_metrics(self):
        truth = instances(2, [])
        row = found_object(1, 3, (0, 0, 10, 10), 0.9)
        got = compare_detections(truth, [row], [], iou_type="box", samples=10)
        assert all((gain.a, gain.b, gain.gain) == (None, None, None) for gain in got.metrics.values())

    def test_a_class_that_is_in_no_draw_has_the_full_interval(self):
        truth, fair, _ = many_images(40)
        truth["annotations"].append({"id": 999, **true_object(40, 8, (0, 0, 20, 20))})  # the only cow
        draws = np.random.default_rng(0).multinomial(40, [1 / 40] * 40, size=1)
        assert draws[0, 39] == 0
        cow = compare_detections(truth, fair, fair, iou_type="box", samples=1).per_class["cow"]
        assert (cow.gain.value, cow.gain.low, cow.gain.high) == (0, -1, 1)

    def test_only_the_best_hundred_detections_of_an_image_and_a_class_count(self):
        truth = instances(1, [true_object(1, 3, (0, 0, 20, 20))])
        wrong = [found_object(1, 3, (40, 40, 10, 10), 0.9) for _ in range(100)]
        late = found_object(1, 3, (0, 0, 20, 20), 0.1)
        got = compare_detections(truth, [*wrong, late], [*wrong[:99], late], iou_type="box", samples=3)
        assert got.metrics["AP"].a == 0
        assert got.metrics["AP"].b == pytest.approx(1 / 100)

    @pytest.mark.parametrize(("key", "value"), [("image_id", 99), ("category_id", 99)])
    def test_rows_of_other_data_are_rejected(self, key, value):
        truth, fair, _ = many_images(5)
        with pytest.raises(DataError, match=f"{key} 99"):
            compare_detections(truth, fair, [{**fair[0], key: value}], iou_type="box", samples=1)

    def test_data_that_allows_no_comparison_is_rejected(self):
        with pytest.raises(DataError, match="no images"):
            compare_detections(instances(0, []), [], [], iou_type="box")
        truth, fair, _ = many_images(5)
        truth["annotations"][0]["id"] = 0
        with pytest.raises(DataError, match="annotation id 0"):
            compare_detections(truth, fair, fair, iou_type="box")

    @pytest.mark.parametrize("wrong", [{"samples": 0}, {"confidence": 0.0}, {"confidence": 1.0}])
    def test_wrong_arguments_are_rejected(self, wrong):
        with pytest.raises(ValueError, match="samples must be 1 or more"):
            compare_detections(instances(1, []), [], [], iou_type="box", **wrong)


@pytest.mark.parametrize("iou_type", ["box", "mask"])
def test_equal_scores_of_a_repeated_image_come_row_by_row(iou_type):
    truth = instances(1, [true_object(1, 3, (0, 0, 20, 20))])
    right, wrong = (found_object(1, 3, place, 0.5) for place in ((0, 0, 20, 20), (40, 40, 10, 10)))
    cat = ours(truth, [right, wrong], [3], iou_type)[0, 0]
    # right, wrong, right, wrong, right, wrong: precision 1 up to recall 1/3, then 2/3, then 3/5
    assert cat == pytest.approx((34 + 33 * 2 / 3 + 34 * 3 / 5) / 101, abs=1e-12)
