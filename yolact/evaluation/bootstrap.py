"""Confidence intervals for differences of average precision: a paired bootstrap over the evaluated images.

Two networks evaluated on the same images are compared on resamples of them: as many images, drawn with replacement, the
same draw for both (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993; whole images are drawn because the
objects of one image are not independent). The spread of the differences over the draws estimates how much another
validation set of that size would change them.

The interval is the percentile interval (chapter 13 there). The coverage of 95 % intervals was simulated (two synthetic
networks, 3,000 images as the population, 150 validation sets of 40 and of 150 images each): for equal networks 92 and
95 % for AP (BCa, chapter 14: 91 and 93 %); for AP 0.17 apart 91 and 95 % (89 and 94 %); for a poor network against a
far better one 85 and 87 % (93 and 93 %), because repeated images raise a low AP. So it is most accurate where a
decision is close, and slightly too high where the sign is clear.

An image drawn twice counts twice. So a draw is a weight per image, detections are matched once, and AP is a cumulative
sum of weights over the detections in score order. With all weights 1 that is pycocotools' AP; otherwise it is what
pycocotools computes for a data set that repeats the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from yolact.errors import DataError
from yolact.evaluation.evaluator import IouType, index_ground_truth, output_to_log, prepare_evaluation

METRICS = ("AP", "AP50", "AP75")
"""Compared metrics: mean over the IoU thresholds 0.50, 0.55, ... 0.95, AP at 0.50, and AP at 0.75."""

_MAX_DETECTIONS = 100
"""Per image and class, the last of pycocotools' ``maxDets``."""

_PARAMETERS = Params(iouType="bbox")
"""pycocotools' defaults; those of masks are the same."""

_RECALLS = np.asarray(_PARAMETERS.recThrs)
"""0 to 1 in steps of 0.01."""

_AT_50, _AT_75 = (int(np.argmin(np.abs(_PARAMETERS.iouThrs - iou))) for iou in (0.5, 0.75))

_BLOCK_ELEMENTS = 1 << 20
"""Limit of draws x detections of a class in one array: 8 MiB of float64."""


@dataclass(frozen=True)
class Interval:
    """A difference with its confidence interval."""

    value: float
    """On the original images."""
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval has one sign."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Gain:
    """One metric of two networks, 0 to 1; all None without ground truth."""

    a: float | None
    b: float | None
    gain: Interval | None
    """``b - a``."""


@dataclass(frozen=True)
class ClassGain(Gain):
    """AP (mean over the IoU thresholds) of one class."""

    objects: int
    """Objects in the ground truth, without crowd regions."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of two sets of detections in the same images."""

    iou_type: IouType
    images: int
    samples: int
    confidence: float
    metrics: dict[str, Gain]
    """By name, see `METRICS`: means over the classes."""
    per_class: dict[str, ClassGain]
    """By class name, in the order of the category ids."""


def compare_detections(
    ground_truth: dict[str, Any],
    rows_a: Sequence[dict[str, Any]],
    rows_b: Sequence[dict[str, Any]],
    *,
    iou_type: IouType,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two sets of detections in the same images.

    Args:
        ground_truth: parsed JSON of a COCO instances file; not modified.
        rows_a: COCO results (`yolact.inference.detections.Detections.to_coco`) for any number of its images, or none.
        rows_b: the same of the other network.
        iou_type: see `yolact.evaluation.evaluator.evaluate_coco`.
        samples: bootstrap draws; at least 1.
        confidence: share of the draws' differences inside the intervals, between 0 and 1.
        seed: random seed of the draws.

    Raises:
        DataError: the ground truth has no images or an annotation with the id 0, or a row belongs to an image or a
            category that it does not have.
        ValueError: ``samples`` or ``confidence`` is out of range.
    """
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(f"samples must be 1 or more and confidence between 0 and 1, not {samples} and {confidence}")
    truth = index_ground_truth(ground_truth, "ground truth")
    if not truth.imgs:
        raise DataError("ground truth: has no images, so there is nothing to compare on")
    count = len(truth.imgs)
    weights = image_weights(count, samples=samples, seed=seed)
    matched = [match_detections(truth, rows, iou_type) for rows in (rows_a, rows_b)]
    ap_a, ap_b = (weighted_ap(classes, weights) for classes in matched)
    metrics = {
        name: _gain(mean_over_classes(ap_a[m]), mean_over_classes(ap_b[m]), confidence)
        for m, name in enumerate(METRICS)
    }
    per_class = {
        item.name: ClassGain(**vars(_gain(ap_a[0, :, k], ap_b[0, :, k], confidence)), objects=int(item.objects.sum()))
        for k, item in enumerate(matched[0])
    }
    return Comparison(iou_type, count, samples, confidence, metrics, per_class)


def _gain(a: np.ndarray, b: np.ndarray, confidence: float) -> Gain:
    """The metrics and their difference; ``a`` and ``b`` are (1 + samples,), the original value first.

    Draws without ground truth are NaN in both and do not count. A class that is in no draw has the interval -1 to 1:
    nothing is known.
    """
    if np.isnan(a[0]):
        return Gain(None, None, None)
    tail = 50 * (1 - confidence)
    difference = b - a
    drawn = difference[1:][~np.isnan(difference[1:])]
    low, high = np.percentile(drawn, [tail, 100 - tail]) if drawn.size else (-1.0, 1.0)
    return Gain(float(a[0]), float(b[0]), Interval(float(difference[0]), float(low), float(high)))


@dataclass(frozen=True)
class ClassMatches:
    """One class's detections in all images, in pycocotools' order of descending score, and what they match.

    T are pycocotools' IoU thresholds, D the detections, N the images in the order of their ids.
    """

    name: str
    objects: np.ndarray
    """(N,) int64: objects to find in each image."""
    image: np.ndarray
    """(D,) int64: index of the image."""
    score: np.ndarray
    """(D,) float64, descending."""
    true: np.ndarray
    """(T, D) bool: matches an object."""
    ignored: np.ndarray
    """(T, D) bool: in a crowd region, neither true nor false positive."""


def match_detections(ground_truth: COCO, rows: Sequence[dict[str, Any]], iou_type: IouType) -> list[ClassMatches]:
    """Match detections with the ground truth, as pycocotools does; one entry per class, in id order.

    Raises:
        DataError: a row belongs to an image or a category that is not in the ground truth.
    """
    evaluation = prepare_evaluation(ground_truth, rows, iou_type)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.params.maxDets = [_MAX_DETECTIONS]
    with output_to_log():
        evaluation.evaluate()
    names = [ground_truth.cats[category]["name"] for category in evaluation.params.catIds]
    images = len(evaluation.params.imgIds)
    return [_gather_class(name, evaluation.evalImgs[k * images : (k + 1) * images]) for k, name in enumerate(names)]


def _gather_class(name: str, by_image: Sequence[dict[str, Any] | None]) -> ClassMatches:
    """``by_image`` has None for an image with neither objects nor detections of the class."""
    known = [(index, item) for index, item in enumerate(by_image) if item is not None]
    objects = np.zeros(len(by_image), dtype=np.int64)
    for index, item in known:
        objects[index] = np.count_nonzero(item["gtIgnore"] == 0)
    score = np.array([score for _, item in known for score in item["dtScores"]], dtype=np.float64)
    image = np.array([index for index, item in known for _ in item["dtScores"]], dtype=np.int64)
    none = np.zeros((_PARAMETERS.iouThrs.size, 0), dtype=bool)
    matched = np.concatenate([none, *(item["dtMatches"] != 0 for _, item in known)], axis=1)
    ignored = np.concatenate([none, *(item["dtIgnore"].astype(bool) for _, item in known)], axis=1)
    order = np.argsort(-score, kind="stable")
    return ClassMatches(
        name=name,
        objects=objects,
        image=image[order],
        score=score[order],
        true=(matched & ~ignored)[:, order],
        ignored=ignored[:, order],
    )


def image_weights(images: int, *, samples: int, seed: int) -> np.ndarray:
    """How often each image counts: (1 + samples, images) int64, ones in the first row, then the bootstrap draws."""
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    return np.concatenate([np.ones((1, images), dtype=np.int64), draws])


def weighted_ap(classes: Sequence[ClassMatches], weights: np.ndarray) -> np.ndarray:
    """AP of each class with each image counted as often as its weight says.

    Args:
        classes: C of them, see `match_detections`.
        weights: (S, N) int64, 0 or more: how often each image counts, for S data sets.

    Returns:
        (3, S, C) float64 in the order of `METRICS`, 0 to 1; NaN if a class has no objects.
    """
    found = np.full((len(METRICS), len(weights), len(classes)), np.nan)
    for k, item in enumerate(classes):
        tied = _TiesInOrder.of(item, most=int(weights.max(initial=1)))
        for rows in _blocks(len(weights), tied.image.size):
            found[:, rows, k] = _class_ap(item, tied, weights[rows])
    return found


def mean_over_classes(ap: np.ndarray) -> np.ndarray:
    """(S,) means of (S, C) over the classes that have objects (not NaN), as in pycocotools."""
    present = ~np.isnan(ap)
    with np.errstate(invalid="ignore"):  # no class present
        return np.where(present, ap, 0).sum(axis=1) / present.sum(axis=1)


@dataclass(frozen=True)
class _TiesInOrder:
    """The detections of a class in the order of a data set that repeats images.

    A detection of an image drawn three times becomes three equal ones in a row. But if an image has several of equal
    score, that group is repeated three times as a whole. So those are stored once for each draw.
    """

    source: np.ndarray
    """(E,) int64: which detection of `ClassMatches`."""
    image: np.ndarray
    """(E,) int64: its image."""
    draw: np.ndarray
    """(E,) int64: -1 counts with the image's weight; k counts once if the image is drawn more than k times."""

    @classmethod
    def of(cls, item: ClassMatches, most: int) -> _TiesInOrder:
        """``most`` is the largest weight."""
        image, score = item.image, item.score
        starts = np.ones(image.size, dtype=bool)
        starts[1:] = (np.diff(image) != 0) | (np.diff(score) != 0)
        group = np.cumsum(starts) - 1
        tied = np.bincount(group, minlength=1)[group] > 1
        source = np.repeat(np.arange(image.size), np.where(tied, most, 1))
        first = np.searchsorted(source, source)
        draw = np.where(tied[source], np.arange(source.size) - first, -1)
        order = np.lexsort((source, draw, group[source]))
        source, draw = source[order], draw[order]
        return cls(source, image[source], draw)

    def weigh(self, weights: np.ndarray) -> np.ndarray:
        """(B, E) float64: how often each detection counts, of (B, N) weights of the images."""
        of_image = weights[:, self.image]
        return np.where(self.draw < 0, of_image, of_image > self.draw).astype(np.float64)


def _blocks(samples: int, detections: int) -> Iterator[slice]:
    """Slices of data sets, which bound the memory for any number of samples and detections."""
    size = max(1, _BLOCK_ELEMENTS // max(detections, 1))
    return (slice(start, start + size) for start in range(0, samples, size))


def _class_ap(item: ClassMatches, tied: _TiesInOrder, weights: np.ndarray) -> np.ndarray:
    """(3, B) AP of one class for (B, N) weights.

    Precision at a recall level is the highest one at that recall or more. It rises only at true positives, so only
    they are evaluated.
    """
    objects = (weights @ item.objects).astype(np.float64)  # (B,)
    weight = tied.weigh(weights)  # (B, E)
    counted: dict[bytes, np.ndarray] = {}  # cumulative weights, by which detections are ignored
    at_iou = np.zeros((len(item.true), len(weights)))  # (T, B)
    for t, (true, ignored) in enumerate(zip(item.true[:, tied.source], item.ignored[:, tied.source], strict=True)):
        key = ignored.tobytes()
        if key not in counted:
            counted[key] = np.cumsum(np.where(ignored, 0, weight), axis=1)
        at_iou[t] = _interpolated_ap(np.cumsum(weight[:, true], axis=1), counted[key][:, true], objects)
    at_iou[:, objects == 0] = np.nan
    return np.stack([at_iou.mean(axis=0), at_iou[_AT_50], at_iou[_AT_75]])


def _interpolated_ap(found: np.ndarray, seen: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Mean over the 101 recall levels of the highest precision at that recall or more.

    Args:
        found: (B, P) float64: objects found up to and including each true positive.
        seen: (B, P) float64: detections up to there, without ignored ones.
        objects: (B,) float64: objects to find.

    Returns:
        (B,) float64; meaningless without objects.
    """
    precision = found / (seen + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(objects, 1)[:, None]
    reached = np.searchsorted(_RECALLS, recall, side="right")  # levels up to this recall
    return (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / _RECALLS.size
