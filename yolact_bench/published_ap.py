"""Average precision as the published YOLACT computes it, for comparison with the paper's PASCAL table (table 3).

It differs from COCO's AP (`yolact.evaluation.evaluator`):

- Boxes of detections are truncated to whole pixels before they are compared.
- A detection needs an IoU strictly above the threshold; detections per image are not limited.
- Objects whose width or height is at most 4/550 of the image's are dropped (`MIN_RELATIVE_SIDE`).
- Crowd regions have no effect: a detection on one is a false positive.
- The objects of an image without any detection are not counted as missed.
- A class with detections but without objects counts as AP 0; a class with neither is excluded from the mean.

Source: ``prep_metrics``, ``APDataObject`` and ``calc_map`` in ``eval.py`` of dbolya/yolact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from yolact.boxes import box_iou
from yolact.evaluation.evaluator import IOU_TYPES, IouType
from yolact.inference.detections import Detections
from yolact_bench.boxes import mask_iou

IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
MIN_RELATIVE_SIDE = 4 / 550
RECALL_POINTS = np.array([point / 100 for point in range(101)])


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of an image of H x W pixels."""

    boxes: Tensor
    """(M, 4) xyxy, relative to the image (0 to 1)."""
    labels: Tensor
    """(M,) int64, 0 to C - 1; ignored where ``crowd`` is true."""
    masks: Tensor
    """(M, H, W), 0 or 1."""
    crowd: Tensor
    """(M,) bool."""

    def __getitem__(self, rows: Tensor) -> GroundTruth:
        """The annotations that an (M,) bool index selects."""
        return GroundTruth(self.boxes[rows], self.labels[rows], self.masks[rows], self.crowd[rows])


@dataclass(frozen=True)
class PublishedAp:
    """Average precision of boxes or masks, 0 to 1, for T thresholds and C classes."""

    thresholds: tuple[float, ...]
    """T IoU thresholds."""
    per_class: np.ndarray
    """(T, C) float64; 0 for a class without objects."""
    num_objects: np.ndarray
    """(C,) int64 objects in the images that have a detection."""
    num_detections: np.ndarray
    """(C,) int64."""

    def mean(self) -> np.ndarray:
        """(T,) means over the classes with an object or a detection; 0 without any."""
        counted = (self.num_objects > 0) | (self.num_detections > 0)
        return self.per_class[:, counted].mean(axis=1) if counted.any() else np.zeros(len(self.thresholds))

    def percent(self) -> dict[str, float]:
        """The row of the published table: ``all`` (mean over the thresholds), ``50``, ``55``, ..., to two decimals."""
        means = 100 * self.mean()
        named = {str(round(100 * at)): float(mean) for at, mean in zip(self.thresholds, means, strict=True)}
        return {name: round(value, 2) for name, value in {"all": float(means.mean()), **named}.items()}


class PublishedEvaluation:
    """Collects the detections of a data set image by image, and computes the published AP.

    Args:
        num_classes: classes without background.
        thresholds: IoU thresholds.
        min_relative_side: objects of at most this width or height are dropped.
    """

    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float] = IOU_THRESHOLDS,
        min_relative_side: float = MIN_RELATIVE_SIDE,
    ) -> None:
        self.num_classes = num_classes
        self.thresholds = tuple(thresholds)
        self.min_relative_side = min_relative_side
        self._num_objects = np.zeros(num_classes, dtype=np.int64)
        self._ranked: dict[IouType, dict[int, list[_Ranked]]] = {kind: defaultdict(list) for kind in IOU_TYPES}

    def add(self, detections: Detections, truth: GroundTruth) -> None:
        """Match an image's detections with its objects.

        As published, images without annotations or without detections are skipped.

        Args:
            detections: in image pixels, with full-size masks; boxes may have fractions.
            truth: all annotations of the image, including crowd regions.
        """
        if not len(detections) or not len(truth.labels):
            return
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        objects = truth[~truth.crowd & (sides > self.min_relative_side).all(dim=1)]
        labels, object_labels = detections.labels.numpy(), objects.labels.numpy()
        for label in object_labels:
            self._num_objects[label] += 1
        height, width = truth.masks.shape[1:]
        boxes = objects.boxes.float() * objects.boxes.new_tensor([width, height, width, height]).float()
        overlap = {
            "box": box_iou(detections.boxes.trunc().float(), boxes),
            "mask": mask_iou(detections.masks, objects.masks),
        }
        scores = {"box": detections.scores.numpy(), "mask": detections.mask_scores.numpy()}
        by_box_score = np.argsort(-scores["box"], kind="stable")
        for kind in IOU_TYPES:
            iou = overlap[kind].nan_to_num(0.0).numpy().astype(np.float64)  # NaN where both masks are empty
            order = by_box_score[np.argsort(-scores[kind][by_box_score], kind="stable")]
            for label in np.unique(labels):
                rows = order[labels[order] == label]
                correct = _match(iou[np.ix_(rows, object_labels == label)], self.thresholds)
                self._ranked[kind][int(label)].append(_Ranked(scores[kind][rows], correct))

    def result(self, iou_type: IouType) -> PublishedAp:
        """AP over all images that were added."""
        per_class = np.zeros((len(self.thresholds), self.num_classes))
        num_detections = np.zeros(self.num_classes, dtype=np.int64)
        for label, images in self._ranked[iou_type].items():
            scores = np.concatenate([image.scores for image in images])
            correct = np.concatenate([image.correct for image in images], axis=1)
            num_detections[label] = len(scores)
            per_class[:, label] = [average_precision(scores, row, int(self._num_objects[label])) for row in correct]
        return PublishedAp(self.thresholds, per_class, self._num_objects.copy(), num_detections)


@dataclass(frozen=True)
class _Ranked:
    """Detections of one class in one image, best first."""

    scores: np.ndarray
    """(n,)."""
    correct: np.ndarray
    """(T, n) bool: whether each matched an object, at each threshold."""


def _match(iou: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Match detections, best first, to one object each by (n, m) IoU; (T, n) bool, whether each found one."""
    limits = np.array(thresholds)
    count, num_objects = iou.shape
    correct = np.zeros((len(limits), count), dtype=bool)
    if num_objects == 0:
        return correct
    free = np.ones((len(limits), num_objects), dtype=bool)
    for row in range(count):
        left = np.where(free, iou[row], -1.0)  # (T, m)
        best = left.argmax(axis=1)
        found = left.max(axis=1) > limits
        correct[:, row] = found
        free[found, best[found]] = False
    return correct


def average_precision(scores: np.ndarray, correct: np.ndarray, num_objects: int) -> float:
    """Area under the precision-recall curve, sampled at 101 recalls.

    Precision at a recall is the highest one at that recall or above, and 0 if no detection reaches it.

    Args:
        scores: (n,), in any order.
        correct: (n,) bool.
        num_objects: 0 gives 0.
    """
    if num_objects == 0 or len(scores) == 0:
        return 0.0
    ranked = np.asarray(correct, dtype=bool)[np.argsort(-np.asarray(scores), kind="stable")]
    found = ranked.cumsum()
    recall = found / num_objects
    precision = np.maximum.accumulate((found / np.arange(1, len(ranked) + 1))[::-1])[::-1]
    reached = np.searchsorted(recall, RECALL_POINTS, side="left")
    return float(np.append(precision, 0.0)[reached].mean())
