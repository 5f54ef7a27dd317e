"""AP numbers against hand calculations and against pycocotools called directly."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact.errors import DataError
from yolact.evaluation.evaluator import cut_evenly, evaluate_class_agnostic, evaluate_coco, load_ground_truth
from yolact.inference.detections import Detections

SIDE = 200


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def rectangle(x: int, y: int, width: int, height: int, side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def true_object(image: int, category: int, mask: np.ndarray, crowd: int = 0) -> dict[str, Any]:
    segmentation = rle(mask)
    return {
        "image_id": image,
        "category_id": category,
        "bbox": mask_utils.toBbox(segmentation).tolist(),
        "area": float(mask.sum()),
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


def detection(image: int, category: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    segmentation = rle(mask)
    box = mask_utils.toBbox(segmentation).tolist()
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "score": score,
        "segmentation": segmentation,
    }


def ground_truth(folder: Path, objects: list[dict[str, Any]], images: int = 1, classes: int = 1) -> COCO:
    tree = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(1, images + 1)],
        "categories": [{"id": 10 * k, "name": f"class{k}"} for k in range(1, classes + 1)],
        "annotations": [{"id": number, **item} for number, item in enumerate(objects, start=1)],
    }
    path = folder / "val.json"
    path.write_text(json.dumps(tree))
    return load_ground_truth(path)


SQUARE = rectangle(0, 0, 100, 100)


@pytest.mark.parametrize("iou_type", ["box", "mask"])
class TestHandCalculated:
    def test_perfect_detections_have_ap_1(self, tmp_path, iou_type):
        objects = [(1, 10, SQUARE), (1, 20, rectangle(120, 10, 50, 70)), (2, 20, rectangle(5, 5, 20, 20))]
        truth = ground_truth(tmp_path, [true_object(*item) for item in objects], images=2, classes=2)
        summary = evaluate_coco(truth, [detection(*item, 0.9) for item in objects], iou_type)
        assert all(value == pytest.approx(1.0) for value in summary.metrics().values())
        assert [ap.AP for ap in summary.per_class.values()] == pytest.approx([1.0, 1.0])
        assert [ap.num_instances for ap in summary.per_class.values()] == [1, 2]

    def test_no_detections_have_ap_0_and_no_failure(self, tmp_path, iou_type):
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)], classes=2)
        summary = evaluate_coco(truth, [], iou_type)
        assert (summary.AP, summary.AP50, summary.AP75, summary.AP70, summary.AR_100) == (0, 0, 0, 0, 0)
        assert summary.AP_large == 0  # 100 x 100 is more than 96 x 96
        assert summary.AP_small is None
        assert summary.per_class["class1"].AP == 0
        assert summary.per_class["class2"].AP is None
        assert summary.curve.mean.tolist() == [0.0] * 101

    def test_iou_of_072_counts_at_070_and_not_at_075(self, tmp_path, iou_type):
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)])
        found = detection(1, 10, rectangle(0, 0, 100, 72), 0.8)  # 7200 / 10000
        summary = evaluate_coco(truth, [found], iou_type)
        assert summary.AP50 == pytest.approx(1)
        assert summary.AP70 == pytest.approx(1)
        assert summary.AP75 == 0
        assert summary.AP == pytest.approx(0.5)  # right at 0.50, 0.55, 0.60, 0.65, 0.70 of ten thresholds
        assert summary.per_class["class1"].AP70 == pytest.approx(1)

    def test_iou_of_068_does_not_count_at_070(self, tmp_path, iou_type):
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)])
        summary = evaluate_coco(truth, [detection(1, 10, rectangle(0, 0, 100, 68), 0.8)], iou_type)
        assert summary.AP50 == pytest.approx(1)
        assert summary.AP70 == 0
        assert summary.AP == pytest.approx(0.4)

    def test_false_positive_above_a_true_one_halves_precision(self, tmp_path, iou_type):
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)])
        found = [detection(1, 10, rectangle(150, 150, 40, 40), 0.9), detection(1, 10, SQUARE, 0.8)]
        assert evaluate_coco(truth, found, iou_type).AP50 == pytest.approx(0.5)

    def test_false_positive_between_two_true_ones(self, tmp_path, iou_type):
        other = rectangle(120, 0, 60, 60)
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE), true_object(1, 10, other)])
        found = [
            detection(1, 10, SQUARE, 0.9),
            detection(1, 10, rectangle(150, 150, 40, 40), 0.8),
            detection(1, 10, other, 0.7),
        ]
        summary = evaluate_coco(truth, found, iou_type)
        # Precision 1 up to recall 0.5 (51 of 101 points), then 2 right of 3.
        assert summary.AP50 == pytest.approx((51 + 50 * 2 / 3) / 101)
        assert summary.curve.mean[50] == pytest.approx(1)
        assert summary.curve.mean[51] == pytest.approx(2 / 3)

    def test_mean_is_over_classes_that_have_ground_truth(self, tmp_path, iou_type):
        small = rectangle(120, 120, 20, 20)
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE), true_object(1, 20, small)], classes=3)
        found = [detection(1, 10, SQUARE, 0.9), detection(1, 30, SQUARE, 0.9)]
        summary = evaluate_coco(truth, found, iou_type)
        assert summary.AP50 == pytest.approx(0.5)  # 1 and 0; class3 has no ground truth
        assert summary.per_class["class3"].AP50 is None
        assert summary.per_class["class3"].num_instances == 0
        assert summary.curve.per_class["class3"] is None
        assert summary.AP_small == 0
        assert summary.AP_medium is None
        assert summary.AP_large == pytest.approx(1)

    def test_detection_inside_a_crowd_is_not_a_false_positive(self, tmp_path, iou_type):
        crowd = rectangle(110, 110, 80, 80)
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE), true_object(1, 10, crowd, crowd=1)])
        found = [detection(1, 10, rectangle(120, 120, 30, 30), 0.95), detection(1, 10, SQUARE, 0.5)]
        summary = evaluate_coco(truth, found, iou_type)
        assert summary.AP50 == pytest.approx(1)
        assert summary.per_class["class1"].num_instances == 1

    def test_no_ground_truth_at_all_gives_null_and_never_nan(self, tmp_path, iou_type):
        summary = evaluate_coco(ground_truth(tmp_path, []), [detection(1, 10, SQUARE, 0.9)], iou_type)
        assert set(summary.metrics().values()) == {None}
        assert summary.curve.mean is None
        assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["per_class"]["class1"] == {
            "AP": None,
            "AP50": None,
            "AP70": None,
            "instances": 0,
        }

    def test_without_classes_a_wrong_name_counts_as_right_and_each_object_weighs_the_same(self, tmp_path, iou_type):
        other, missed = rectangle(120, 0, 60, 60), rectangle(120, 120, 20, 20)
        objects = [(1, 10, SQUARE), (1, 10, other), (1, 20, missed)]
        truth = ground_truth(tmp_path, [true_object(*item) for item in objects], classes=2)
        found = [detection(1, 20, SQUARE, 0.9), detection(1, 10, other, 0.8)]
        assert evaluate_coco(truth, found, iou_type).AP50 == pytest.approx((51 / 101 + 0) / 2)
        ap = evaluate_class_agnostic(truth, found, iou_type)
        assert ap.AP == ap.AP50 == pytest.approx(67 / 101)  # recall 2/3, nothing wrong

    @pytest.mark.parametrize("found", [[], [detection(1, 10, rectangle(0, 0, 100, 72), 0.8)]])
    def test_without_classes_is_the_same_with_one_class(self, tmp_path, iou_type, found):
        truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE), true_object(1, 10, rectangle(120, 0, 60, 60))])
        with_classes, without = evaluate_coco(truth, found, iou_type), evaluate_class_agnostic(truth, found, iou_type)
        assert (without.AP, without.AP50) == (with_classes.AP, with_classes.AP50)

    def test_without_classes_and_objects_is_null(self, tmp_path, iou_type):
        ap = evaluate_class_agnostic(ground_truth(tmp_path, []), [detection(1, 10, SQUARE, 0.9)], iou_type)
        assert (ap.AP, ap.AP50) == (None, None)


def test_size_class_of_a_mask_is_by_its_own_area_not_its_boxs(tmp_path):
    def diagonal(offset: int) -> np.ndarray:  # 60 x 8 pixels of area, in a box of over 60 x 60
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        for step in range(60):
            mask[step, offset + step : offset + step + 8] = True
        return mask

    truth = ground_truth(tmp_path, [true_object(1, 10, diagonal(0))])
    found = [detection(1, 10, diagonal(100), 0.9), detection(1, 10, diagonal(0), 0.8)]
    summary = evaluate_coco(truth, found, "mask")
    assert summary.AP_small == pytest.approx(0.5)  # by its box, the false positive would not be small and not count


def random_scene(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Objects and detections of 12 images and 3 classes: near misses, false positives, crowds, many ties."""
    rng = np.random.default_rng(seed)

    def some_rectangle() -> np.ndarray:
        x, y = rng.integers(0, 150, 2)
        return rectangle(x, y, *rng.integers(8, 120, 2))

    objects, found = [], []
    for image in range(1, 13):
        for _ in range(rng.integers(0, 6)):
            category = 10 * int(rng.integers(1, 4))
            mask = some_rectangle()
            objects.append(true_object(image, category, mask, crowd=int(rng.random() < 0.1)))
            if rng.random() < 0.8:
                moved = np.roll(mask, rng.integers(-6, 7, 2), axis=(0, 1))
                found.append(detection(image, category, moved, float(np.float32(rng.integers(1, 20) / 20))))
        if rng.random() < 0.7:
            found.append(detection(image, 10 * int(rng.integers(1, 4)), some_rectangle(), float(rng.random())))
    return objects, found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("iou_type", "pycoco_type", "key"), [("box", "bbox", "bbox"), ("mask", "segm", "segmentation")]
)
def test_equals_pycocotools_to_the_last_digit(tmp_path, seed, iou_type, pycoco_type, key):
    objects, found = random_scene(seed)
    truth = ground_truth(tmp_path, objects, images=12, classes=4)  # class4 occurs nowhere
    summary = evaluate_coco(truth, found, iou_type)

    results = tmp_path / "results.json"
    results.write_text(json.dumps([{k: row[k] for k in ("image_id", "category_id", "score", key)} for row in found]))
    fresh = COCO(str(tmp_path / "val.json"))
    oracle = COCOeval(fresh, fresh.loadRes(str(results)), pycoco_type)
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()

    ours = [summary.AP, summary.AP50, summary.AP75, summary.AP_small, summary.AP_medium, summary.AP_large]
    ours.append(summary.AR_100)
    theirs = [*oracle.stats[:6], oracle.stats[8]]
    assert [-1 if value is None else value for value in ours] == theirs

    only_70 = COCOeval(fresh, fresh.loadRes(str(results)), pycoco_type)
    only_70.params.iouThrs = np.array([oracle.params.iouThrs[4]])
    only_70.evaluate()
    only_70.accumulate()
    precision = only_70.eval["precision"][0, :, :, 0, 2]
    assert summary.AP70 == np.mean(precision[precision > -1])

    for k, ap in enumerate(summary.per_class.values()):
        alone = COCOeval(fresh, fresh.loadRes(str(results)), pycoco_type)
        alone.params.catIds = [10 * (k + 1)]
        alone.evaluate()
        alone.accumulate()
        alone.summarize()
        assert [-1 if value is None else value for value in (ap.AP, ap.AP50)] == alone.stats[:2].tolist()


def test_results_are_not_modified_and_nothing_is_printed(tmp_path, capsys):
    objects, found = random_scene(9)
    truth = ground_truth(tmp_path, objects, images=12, classes=3)
    before = copy.deepcopy(found)
    first = evaluate_coco(truth, found, "mask")
    evaluate_coco(truth, found, "box")
    assert found == before
    assert evaluate_coco(truth, found, "mask").to_json() == first.to_json()
    assert capsys.readouterr().out == ""


def test_unknown_image_and_category_are_named(tmp_path):
    truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)])
    with pytest.raises(DataError, match="image_id 7"):
        evaluate_coco(truth, [detection(7, 10, SQUARE, 0.9)], "box")
    with pytest.raises(DataError, match="category_id 99"):
        evaluate_coco(truth, [detection(1, 99, SQUARE, 0.9)], "box")


def test_annotation_id_0_is_rejected(tmp_path):
    tree = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": SIDE, "height": SIDE}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 0, **true_object(1, 1, SQUARE)}],
    }
    (tmp_path / "zero.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"zero\.json: annotation id 0"):
        load_ground_truth(tmp_path / "zero.json")


@pytest.mark.parametrize(("iou_type", "expected"), [("box", 1.0), ("mask", 0.5)])
def test_masks_are_ranked_by_their_own_score(tmp_path, iou_type, expected):
    """With mask re-scoring a mask's rank is not its box's: here the false positive is first among the masks."""
    truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)])
    found = [
        detection(1, 10, SQUARE, 0.9) | {"mask_score": 0.2},
        detection(1, 10, rectangle(150, 150, 40, 40), 0.8) | {"mask_score": 0.3},
    ]
    assert evaluate_coco(truth, found, iou_type).AP50 == pytest.approx(expected)


def test_masks_without_a_score_of_their_own_are_ranked_by_their_boxes(tmp_path):
    truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)])
    found = [detection(1, 10, SQUARE, 0.25), detection(1, 10, rectangle(150, 150, 40, 40), 0.8) | {"mask_score": 0.2}]
    assert evaluate_coco(truth, found, "mask").AP50 == pytest.approx(1)
    assert evaluate_coco(truth, found, "box").AP50 == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(2))
def test_mask_ap_of_rescored_detections_is_pycocotools_of_their_mask_scores(tmp_path, seed):
    objects, found = random_scene(seed)
    rng = np.random.default_rng(100 + seed)
    rescored = [row | {"mask_score": float(rng.random())} for row in found]
    truth = ground_truth(tmp_path, objects, images=12, classes=3)
    fresh = COCO(str(tmp_path / "val.json"))
    kept = ("image_id", "category_id", "segmentation")
    oracle = COCOeval(
        fresh,
        fresh.loadRes([{key: row[key] for key in kept} | {"score": row["mask_score"]} for row in rescored]),
        "segm",
    )
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    summary = evaluate_coco(truth, rescored, "mask")
    assert [summary.AP, summary.AP50, summary.AP75] == oracle.stats[:3].tolist()
    assert summary.AP != evaluate_coco(truth, found, "mask").AP
    assert evaluate_coco(truth, rescored, "box").metrics() == evaluate_coco(truth, found, "box").metrics()


def test_detections_of_the_network_are_evaluated_end_to_end(tmp_path):
    """End to end: from Detections (as the predictor returns them) to AP, with an exact match."""
    truth = ground_truth(tmp_path, [true_object(1, 10, SQUARE)])
    found = Detections.from_masks(
        boxes=torch.tensor([[0.0, 0.0, 100.0, 100.0]]),
        scores=torch.tensor([0.7]),
        labels=torch.tensor([0]),
        masks=torch.from_numpy(SQUARE)[None],
    )
    rows = found.to_coco(1, [10])
    assert evaluate_coco(truth, rows, "box").AP == pytest.approx(1)
    assert evaluate_coco(truth, rows, "mask").AP == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 4, 8, 32, 64])
@pytest.mark.parametrize("images", [0, 1, 15, 16, 17, 65, 120, 1449])
def test_images_are_divided_into_equal_batches_that_can_be_shared_evenly(images: int, batch_size: int) -> None:
    batches = cut_evenly(images, batch_size)
    assert [number for batch in batches for number in batch] == list(range(images))
    lengths = [len(batch) for batch in batches]
    assert max(lengths, default=0) <= batch_size
    assert max(lengths, default=0) - min(lengths, default=0) <= 1
    assert len(batches) % 16 == 0 or set(lengths) == {1}
