"""The differences between two sides: settings, metrics with intervals, classes, images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from yolact.errors import DataError
from yolact.evaluation.bootstrap import Comparison, compare_detections
from yolact.evaluation.evaluator import IOU_TYPES, ApSummary, IouType, evaluate_coco, index_ground_truth
from yolact.evaluation.image_results import ImageResult, advantage, disagreement, measure_images
from yolact_ops.comparison.sides import Side
from yolact_ops.tracking.evaluations import content, renumbered


@dataclass(frozen=True)
class ParamChange:
    """A setting that differs; None if a side does not have it."""

    key: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class ImageDifference:
    """One image on which both were evaluated."""

    image_id: int
    file_name: str
    a: ImageResult
    b: ImageResult
    objects: int
    disagreement: float
    """See `yolact.evaluation.image_results.disagreement`."""
    advantage: float
    """Advantage of B, see `yolact.evaluation.image_results.advantage`."""


@dataclass(frozen=True)
class Paired:
    """Both sides on the same images and objects."""

    comparisons: dict[IouType, Comparison]
    ground_truth: dict[str, Any]
    """The tree of COCO instances, of the common classes."""
    rows_a: list[dict[str, Any]]
    rows_b: list[dict[str, Any]]
    images: list[ImageDifference]
    """Images on which they disagree, largest disagreement first."""


@dataclass(frozen=True)
class Compared:
    """Two sides and their differences."""

    a: Side
    b: Side
    params: list[ParamChange]
    summaries: tuple[dict[IouType, ApSummary], dict[IouType, ApSummary]]
    """Summaries of A and B, each on all of its own images and classes."""
    classes: list[str]
    """Classes that both have, in A's order."""
    only_a: list[str]
    only_b: list[str]
    paired: Paired | None
    """None if they were evaluated on different images or objects."""
    warnings: list[str]


def compare(a: Side, b: Side, *, samples: int, min_score: float) -> Compared:
    """Compare two sides.

    They are paired if both were evaluated on the same images with the same objects of the classes that both have;
    otherwise their metrics are only shown side by side.

    Args:
        a: one side.
        b: the other; differences are ``b - a``.
        samples: number of bootstrap samples.
        min_score: detections below it do not count in the per-image results (AP counts all).

    Raises:
        DataError: a side's ground truth or detections are damaged.
    """
    _check_tree(a)
    _check_tree(b)
    names_a, names_b = _class_names(a.ground_truth), _class_names(b.ground_truth)
    classes = [name for name in names_a if name in set(names_b)]
    summaries = (_summaries(a), _summaries(b))
    paired = _pair(a, b, classes, samples, min_score)
    return Compared(
        a=a,
        b=b,
        params=param_changes(a.params, b.params),
        summaries=summaries,
        classes=classes,
        only_a=[name for name in names_a if name not in classes],
        only_b=[name for name in names_b if name not in classes],
        paired=paired,
        warnings=list(_warnings(a, b, is_paired=paired is not None)),
    )


def param_changes(a: dict[str, str], b: dict[str, str]) -> list[ParamChange]:
    """The settings that differ, in A's order, then those that only B has."""
    keys = [*a, *(key for key in b if key not in a)]
    return [ParamChange(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]


def _pair(a: Side, b: Side, classes: Sequence[str], samples: int, min_score: float) -> Paired | None:
    of_a, of_b = (_restricted(side, classes) for side in (a, b))
    if not classes or not of_a.ground_truth["images"] or content(of_a.ground_truth) != content(of_b.ground_truth):
        return None
    truth, rows_a = of_a.ground_truth, of_a.rows
    rows_b = renumbered(of_b.rows, of_b.ground_truth, truth)
    comparisons = {
        kind: compare_detections(truth, rows_a, rows_b, iou_type=kind, samples=samples) for kind in IOU_TYPES
    }
    return Paired(comparisons, truth, rows_a, rows_b, _image_differences(truth, rows_a, rows_b, min_score))


def _image_differences(
    truth: dict[str, Any], rows_a: list[dict[str, Any]], rows_b: list[dict[str, Any]], min_score: float
) -> list[ImageDifference]:
    indexed = index_ground_truth(truth, "ground truth")
    results_a, results_b = (measure_images(indexed, rows, min_score) for rows in (rows_a, rows_b))
    images = []
    for image in truth["images"]:
        result_a, result_b = results_a[image["id"]], results_b[image["id"]]
        images.append(
            ImageDifference(
                image_id=image["id"],
                file_name=image["file_name"],
                a=result_a,
                b=result_b,
                objects=len(result_a.found),
                disagreement=disagreement(result_a, result_b),
                advantage=advantage(result_a, result_b),
            )
        )
    return sorted((item for item in images if item.disagreement > 0), key=lambda item: -item.disagreement)


def _summaries(side: Side) -> dict[IouType, ApSummary]:
    truth = index_ground_truth(side.ground_truth, side.name)
    try:
        return {kind: evaluate_coco(truth, side.rows, kind) for kind in IOU_TYPES}
    except DataError as error:
        raise DataError(f"{side.name}: {error}") from error


def _warnings(a: Side, b: Side, *, is_paired: bool) -> Iterable[str]:
    yield from (side.remark for side in (a, b) if side.remark)
    if a.facts.get("run") and a.facts.get("run") == b.facts.get("run"):
        yield f"A and B are the same run ({a.name}), with one evaluation: there is nothing to compare."
    if not is_paired:
        images = " and ".join(str(len(side.ground_truth["images"])) for side in (a, b))
        yield (
            f"A and B were evaluated on different data ({images} images): the metrics are side by side, but "
            "their differences say as much about the data as about the networks, and have no interval. Evaluate "
            "both on the same data to compare them."
        )
    detect = [detection_settings(side) for side in (a, b)]
    if all(detect) and detect[0] != detect[1]:
        changed = [key for key in detect[0] if detect[0][key] != detect[1].get(key)]
        yield (
            f"A and B were evaluated with different detection settings ({', '.join(changed)}): the differences are "
            "those of network and settings together."
        )


def detection_settings(side: Side) -> dict[str, Any]:
    """Detection settings of the evaluation; empty if unknown."""
    detect: dict[str, Any] = side.evaluate.get("detect", {})
    return detect


def _check_tree(side: Side) -> None:
    tree = side.ground_truth
    for key in ("images", "categories", "annotations"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{side.name}: the ground truth is not COCO instances JSON: no list {key!r}")


def _class_names(tree: dict[str, Any]) -> list[str]:
    return [item["name"] for item in sorted(tree["categories"], key=lambda item: item["id"])]


def restrict(tree: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A tree of COCO instances with these classes only; the tree itself if these are all of its classes."""
    kept = {item["id"] for item in tree["categories"] if item["name"] in set(classes)}
    if len(kept) == len(tree["categories"]):
        return tree
    return tree | {
        "categories": [item for item in tree["categories"] if item["id"] in kept],
        "annotations": [item for item in tree["annotations"] if item["category_id"] in kept],
    }


def _restricted(side: Side, classes: Sequence[str]) -> Side:
    tree = restrict(side.ground_truth, classes)
    dropped = {item["id"] for item in side.ground_truth["categories"]} - {item["id"] for item in tree["categories"]}
    return replace(side, ground_truth=tree, rows=[row for row in side.rows if row["category_id"] not in dropped])
