"""Evaluation per image, and how much two networks differ on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from yolact.evaluation.evaluator import IouType, output_to_log, prepare_evaluation

MATCH_IOU = 0.5
"""IoU at which a detection matches an object of its class."""


@dataclass(frozen=True)
class ImageResult:
    """Matches of one image."""

    found: dict[int, float]
    """By annotation id of each object (no crowd regions): IoU with its matched detection, or 0."""
    false: int
    """False positives, without those in crowd regions."""

    @property
    def num_found(self) -> int:
        return sum(iou > 0 for iou in self.found.values())


def measure_images(
    ground_truth: COCO, rows: Sequence[dict[str, Any]], min_score: float, iou_type: IouType = "mask"
) -> dict[int, ImageResult]:
    """Match the detections of each image with its objects, as pycocotools does at an IoU of `MATCH_IOU`.

    Args:
        ground_truth: see `yolact.evaluation.evaluator.index_ground_truth`.
        rows: COCO results.
        min_score: detections with a lower score are left out.
        iou_type: boxes or masks.

    Returns:
        By image id; every image has an entry.

    Raises:
        DataError: a row belongs to an image or a category that is not in the ground truth.
    """
    evaluation = prepare_evaluation(ground_truth, [row for row in rows if row["score"] >= min_score], iou_type)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.params.maxDets = evaluation.params.maxDets[-1:]
    evaluation.params.iouThrs = np.array([MATCH_IOU])
    with output_to_log():
        evaluation.evaluate()
    found: dict[int, dict[int, float]] = {image: {} for image in ground_truth.imgs}
    false = dict.fromkeys(ground_truth.imgs, 0)
    for item in evaluation.evalImgs:
        if item is None:
            continue
        image = item["image_id"]
        ious = evaluation.ious[image, item["category_id"]]  # (D, G), objects in the order of the file
        columns = {truth["id"]: column for column, truth in enumerate(evaluation._gts[image, item["category_id"]])}
        rows_of = {detection: row for row, detection in enumerate(item["dtIds"])}
        for truth, ignored, match in zip(item["gtIds"], item["gtIgnore"], item["gtMatches"][0], strict=True):
            if not ignored:
                found[image][truth] = float(ious[rows_of[match], columns[truth]]) if match else 0.0
        false[image] += int(np.count_nonzero((item["dtMatches"][0] == 0) & ~item["dtIgnore"][0].astype(bool)))
    return {image: ImageResult(found[image], false[image]) for image in ground_truth.imgs}


def advantage(a: ImageResult, b: ImageResult) -> float:
    """How much better ``b`` is on an image: IoU gained over all objects, minus half of each additional false positive.

    A false positive weighs half an object, as in panoptic quality (Kirillov et al., *Panoptic Segmentation*, 2019,
    equation 1).
    """
    return sum(b.found[truth] - iou for truth, iou in a.found.items()) - (b.false - a.false) / 2


def disagreement(a: ImageResult, b: ImageResult) -> float:
    """How much two networks differ on an image, 0 or more: as `advantage`, but differences do not cancel."""
    return sum(abs(b.found[truth] - iou) for truth, iou in a.found.items()) + abs(b.false - a.false) / 2
