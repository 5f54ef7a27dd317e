"""Average precision of boxes and masks, as pycocotools computes it.

All numbers come from pycocotools' ``COCOeval`` with its default parameters (IoU 0.50 to 0.95 in steps of 0.05,
101 recall points, at most 100 detections per image), so they match the COCO server and the paper's COCO tables (its
PASCAL table uses YOLACT's own AP, which differs in detail).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from yolact.data.coco import CocoInstances
from yolact.distributed import World
from yolact.errors import DataError
from yolact.inference.predictor import ImagePredictor, Predictor
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION

log = logging.getLogger(__name__)

IouType = Literal["box", "mask"]
IOU_TYPES: tuple[IouType, ...] = ("box", "mask")

_PYCOCOTOOLS_IOU_TYPE = {"box": "bbox", "mask": "segm"}
_RESULT_KEY = {"box": "bbox", "mask": "segmentation"}
_ALL_AREAS = 0  # index into COCOeval.params.areaRng
_MAX_100 = -1  # index into COCOeval.params.maxDets, which is 1, 10, 100

BATCH_COUNT_MULTIPLE = 16
"""The number of batches of a data set is a multiple of this, see `cut_evenly`."""


@dataclass(frozen=True)
class ClassAp:
    """Average precision of one class, 0 to 1; None if the ground truth has no (non-crowd) object of it."""

    AP: float | None
    AP50: float | None
    AP70: float | None
    num_instances: int
    """Objects in the ground truth, without crowd regions."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision over recall at IoU 0.50, all sizes, at most 100 detections per image."""

    recall: np.ndarray
    """(101,) float64, 0 to 1 in steps of 0.01."""
    mean: np.ndarray | None
    """(101,) float64 precision, mean over the classes with ground truth; None if no class has any."""
    per_class: dict[str, np.ndarray | None]
    """Class name to (101,) float64 precision; None for a class without ground truth."""


@dataclass(frozen=True)
class ApSummary:
    """Average precision (AP) and recall (AR) for one IoU type, 0 to 1; None without ground truth.

    Means exclude classes without ground truth, as in pycocotools.
    """

    iou_type: IouType
    AP: float | None
    """Mean over the IoU thresholds 0.50, 0.55, ... 0.95."""
    AP50: float | None
    AP75: float | None
    AP70: float | None
    """At IoU 0.70, which the paper's PASCAL table reports next to AP50 (table 3)."""
    AP_small: float | None
    """Objects under 32 x 32 pixels of area."""
    AP_medium: float | None
    AP_large: float | None
    """Objects over 96 x 96 pixels of area."""
    AR_100: float | None
    """Highest recall with 100 detections per image, mean over the IoU thresholds."""
    per_class: dict[str, ClassAp]
    """In the order of the category ids."""
    curve: PrecisionRecall

    def metrics(self) -> dict[str, float | None]:
        """Means over classes by name, in the order of reports."""
        names = ("AP", "AP50", "AP75", "AP70", "AP_small", "AP_medium", "AP_large", "AR_100")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """The section of ``metrics/eval.json``: full precision, null without ground truth, never NaN."""
        per_class = {
            name: {"AP": ap.AP, "AP50": ap.AP50, "AP70": ap.AP70, "instances": ap.num_instances}
            for name, ap in self.per_class.items()
        }
        return {**self.metrics(), "per_class": per_class}


def load_ground_truth(annotations: Path | str) -> COCO:
    """Load a COCO instances file with pycocotools, without its output on stdout.

    Raises:
        DataError: an annotation has the id 0, which pycocotools confuses with "not matched": a true positive would
            silently count as a false one.
    """
    with output_to_log():
        ground_truth = COCO(str(annotations))
    _check_annotation_ids(ground_truth, str(annotations))
    return ground_truth


def index_ground_truth(instances: dict[str, Any], origin: str) -> COCO:
    """Turn the parsed JSON of a COCO instances file into pycocotools' form, without modifying it.

    Args:
        instances: ``images``, ``categories`` and ``annotations``.
        origin: source of the data, for messages.

    Raises:
        DataError: as `load_ground_truth`.
    """
    ground_truth = COCO()
    # pycocotools writes into the annotations
    ground_truth.dataset = {**instances, "annotations": [dict(item) for item in instances["annotations"]]}
    with output_to_log():
        ground_truth.createIndex()
    _check_annotation_ids(ground_truth, origin)
    return ground_truth


def _check_annotation_ids(ground_truth: COCO, origin: str) -> None:
    if 0 in ground_truth.anns:
        raise DataError(f"{origin}: annotation id 0 cannot be evaluated with pycocotools; number them from 1")


@dataclass(frozen=True)
class Predictions:
    """Detections of a data set."""

    rows: list[dict[str, Any]]
    """COCO results, see `Detections.to_coco`."""
    seconds: float
    """Time in the predictor, without reading images and encoding masks."""


def predict_dataset(
    predictor: ImagePredictor,
    data: CocoInstances,
    world: World | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Run the predictor over all images of a data set, in order, with a progress bar on terminals.

    Several processes share the batches of `cut_evenly`, which do not depend on the number of processes: each image is
    computed in the same batch, so the rows are bit-identical.

    Args:
        world: the processes that share the work; each receives all rows.
        on_batch: called after each batch of this process.

    Raises:
        DataError: an image cannot be read.
    """
    world = world or World()
    batches = cut_evenly(len(data.images), predictor.batch_size)
    first, end = (len(batches) * part // world.size for part in (world.rank, world.rank + 1))
    parts = world.gather(_predict_batches(predictor, data, batches[first:end], on_batch, show=world.is_main))
    by_start = {start: rows for rows_of, _ in parts for start, rows in rows_of.items()}
    rows = [row for batch in batches for row in by_start[batch.start]]
    return Predictions(rows, max(seconds for _, seconds in parts))


def cut_evenly(images: int, batch_size: int) -> list[range]:
    """Batches of at most ``batch_size`` images whose lengths differ by at most 1.

    Their number is a multiple of `BATCH_COUNT_MULTIPLE`: 2, 4, 8 or 16 processes get equally many batches, and their
    numbers of images differ by at most 1 per batch. With fewer images than that, each image is a batch.
    """
    wanted = -(-images // (batch_size * BATCH_COUNT_MULTIPLE)) * BATCH_COUNT_MULTIPLE
    count = min(wanted, images)
    return [range(images * part // count, images * (part + 1) // count) for part in range(count)]


def _predict_batches(
    predictor: ImagePredictor,
    data: CocoInstances,
    batches: Sequence[range],
    on_batch: Callable[[], None],
    *,
    show: bool,
) -> tuple[dict[int, list[dict[str, Any]]], float]:
    """COCO results of these batches, by the index of their first image, and the seconds spent."""
    found_by_start: dict[int, list[dict[str, Any]]] = {}
    seconds = 0.0
    hidden = not (show and sys.stderr.isatty())
    with tqdm(total=sum(map(len, batches)), desc="evaluate", unit="img", leave=False, disable=hidden) as progress:
        for place, numbers in enumerate(batches):
            rows = found_by_start[numbers.start] = []
            data.store.fetch_ahead(data.images[number] for some in batches[place : place + 2] for number in some)
            batch = data.images[numbers.start : numbers.stop]
            images = [data.read_image(image) for image in batch]
            began = time.perf_counter()
            found = predictor.predict(images)
            seconds += time.perf_counter() - began
            for image, detections in zip(batch, found, strict=True):
                rows += detections.to_coco(image.id, data.category_ids)
            progress.update(len(batch))
            on_batch()
    return found_by_start, seconds


class Validation:
    """Evaluates a network during training, always with `DEFAULT_DETECTION`.

    Args:
        data: the validation images.
        annotations: the file that ``data`` was read from.
        batch_size: maximum number of images per forward pass.
        world: the processes that share the work; each must call this.
        on_batch: see `predict_dataset`.
    """

    def __init__(
        self,
        data: CocoInstances,
        annotations: Path,
        batch_size: int,
        world: World | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.data = data
        self.world = world or World()
        self.ground_truth = load_ground_truth(annotations) if self.world.is_main else None
        self.batch_size = batch_size
        self.on_batch = on_batch
        self.rows: list[dict[str, Any]] = []
        """Detections of the last call, see `Predictions.rows`."""

    def __call__(self, model: Yolact) -> dict[str, float]:
        """AP and AP50 of boxes and masks: ``box_AP``, ``box_AP50``, ``mask_AP``, ``mask_AP50``.

        NaN if the images have no objects, or crowd regions alone.
        """
        predictor = Predictor(model, self.data.class_names, DEFAULT_DETECTION, batch_size=self.batch_size)
        self.rows = predict_dataset(predictor, self.data, self.world, self.on_batch).rows
        metrics: dict[str, float] = {}
        if self.ground_truth is not None:
            for iou_type in IOU_TYPES:
                summary = evaluate_coco(self.ground_truth, self.rows, iou_type)
                for name, value in (("AP", summary.AP), ("AP50", summary.AP50)):
                    metrics[f"{iou_type}_{name}"] = math.nan if value is None else value
        shared: dict[str, float] = self.world.broadcast(metrics)
        return shared


def evaluate_coco(ground_truth: COCO, results: Sequence[dict[str, Any]], iou_type: IouType) -> ApSummary:
    """Compare detections with the ground truth of all its images.

    Args:
        ground_truth: an instances file, see `load_ground_truth`; crowd regions are ignored.
        results: rows of `Detections.to_coco` for any number of its images, or none; not modified.
        iou_type: ``box`` compares ``bbox`` and ranks by ``score``; ``mask`` compares ``segmentation`` and ranks by
            ``mask_score`` if a row has it.

    Raises:
        DataError: a row belongs to an image or a category that is not in the ground truth.
    """
    evaluation = prepare_evaluation(ground_truth, results, iou_type)
    with output_to_log():
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., _ALL_AREAS, _MAX_100]  # (10 IoU thresholds, 101, C)
    at_50, at_70 = (precision[_threshold_index(evaluation, iou)] for iou in (0.5, 0.7))  # (101, C)
    names = [ground_truth.cats[category_id]["name"] for category_id in evaluation.params.catIds]
    counts = _count_instances(ground_truth)
    per_class = {
        name: ClassAp(
            AP=_mean(precision[:, :, k]),
            AP50=_mean(at_50[:, k]),
            AP70=_mean(at_70[:, k]),
            num_instances=counts.get(category_id, 0),
        )
        for k, (name, category_id) in enumerate(zip(names, evaluation.params.catIds, strict=True))
    }
    ap, ap50, ap75, ap_small, ap_medium, ap_large, _, _, ar_100 = map(_known, evaluation.stats[:9])
    return ApSummary(
        iou_type=iou_type,
        AP=ap,
        AP50=ap50,
        AP75=ap75,
        AP70=_mean(at_70),
        AP_small=ap_small,
        AP_medium=ap_medium,
        AP_large=ap_large,
        AR_100=ar_100,
        per_class=per_class,
        curve=_curve(np.array(evaluation.params.recThrs), at_50, names),
    )


@dataclass(frozen=True)
class ClassAgnosticAp:
    """Average precision, 0 to 1, when all classes count as one; None without ground truth.

    The difference to `ApSummary` is what naming the class costs, besides the mean over classes, which here weighs each
    object the same.
    """

    AP: float | None
    AP50: float | None


def evaluate_class_agnostic(
    ground_truth: COCO, results: Sequence[dict[str, Any]], iou_type: IouType
) -> ClassAgnosticAp:
    """Compare detections with the ground truth regardless of their classes, with pycocotools' ``useCats = 0``.

    Args and errors as `evaluate_coco`. With one class the result is that of `evaluate_coco`.
    """
    evaluation = prepare_evaluation(ground_truth, results, iou_type)
    evaluation.params.useCats = 0
    with output_to_log():
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return ClassAgnosticAp(*map(_known, evaluation.stats[:2]))


def prepare_evaluation(ground_truth: COCO, results: Sequence[dict[str, Any]], iou_type: IouType) -> COCOeval:
    """Set up pycocotools' evaluation with its default parameters, without running it; see `evaluate_coco`."""
    _check_ids(ground_truth, results)
    with output_to_log():
        return COCOeval(ground_truth, _as_coco(ground_truth, results, iou_type), _PYCOCOTOOLS_IOU_TYPE[iou_type])


def _check_ids(ground_truth: COCO, results: Sequence[dict[str, Any]]) -> None:
    for key, known, place in (("image_id", ground_truth.imgs, "images"), ("category_id", ground_truth.cats, "classes")):
        unknown = sorted({row[key] for row in results} - set(known))
        if unknown:
            raise DataError(
                f"detections: {key} {unknown[0]} ({len(unknown)} such) is not among the {len(known)} {place} of the "
                "ground truth; evaluate detections against the file they were made for"
            )


def _as_coco(ground_truth: COCO, results: Sequence[dict[str, Any]], iou_type: IouType) -> COCO:
    """Detections in pycocotools' form.

    A row keeps only what is compared: with ``bbox`` present, pycocotools would take a mask's area from its box and
    assign it to the wrong size class.
    """
    if not results:  # COCO.loadRes fails on an empty list
        empty = COCO()
        empty.dataset = {key: ground_truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
        empty.createIndex()
        return empty
    kept = ("image_id", "category_id", _RESULT_KEY[iou_type])
    ranked_by = "mask_score" if iou_type == "mask" else "score"
    return ground_truth.loadRes(
        [{key: row[key] for key in kept} | {"score": row.get(ranked_by, row["score"])} for row in results]
    )


def _threshold_index(evaluation: COCOeval, iou: float) -> int:
    (index,) = np.flatnonzero(np.isclose(evaluation.params.iouThrs, iou))
    return int(index)


def _count_instances(ground_truth: COCO) -> dict[int, int]:
    counts: dict[int, int] = {}
    for annotation in ground_truth.anns.values():
        if not annotation.get("iscrowd", 0):
            counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + 1
    return counts


def _known(value: float) -> float | None:
    """pycocotools returns -1 without ground truth."""
    return None if value == -1 else float(value)


def _mean(values: np.ndarray) -> float | None:
    """Mean as in ``COCOeval.summarize``: absent classes (-1) are left out."""
    present = values[values > -1]
    return float(np.mean(present)) if present.size else None


def _curve(recall: np.ndarray, precision: np.ndarray, names: Sequence[str]) -> PrecisionRecall:
    """``precision`` is (101, C), -1 in the columns of absent classes."""
    present = precision[0] > -1
    return PrecisionRecall(
        recall=recall,
        mean=precision[:, present].mean(axis=1) if present.any() else None,
        per_class={name: precision[:, k].copy() if present[k] else None for k, name in enumerate(names)},
    )


@contextlib.contextmanager
def output_to_log() -> Iterator[None]:
    """Redirect pycocotools' output to the log at debug level."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            log.debug("pycocotools: %s", line.strip())
