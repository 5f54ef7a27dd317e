"""The comparison as one HTML page: metrics, classes, settings, and the images on which the sides disagree most."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact.data.coco import CocoInstances, decode_masks
from yolact.data.columns import CocoImage
from yolact.errors import DataError
from yolact.files import write_json_atomic, write_text_atomic
from yolact.inference.detections import Detections
from yolact.visualize import draw_detections, draw_ground_truth
from yolact_ops.comparison.comparison import Compared, ImageDifference, Paired, restrict
from yolact_ops.comparison.tables import MetricRow, as_json, class_rows, common_rows, empty_classes, metric_rows
from yolact_ops.reports.formatting import percentage_points
from yolact_ops.reports.pages import data_uri, jpeg_bytes, narrowed, render_page
from yolact_ops.tracking.evaluations import content, evaluated_annotations

PICTURE_WIDTH = 640
"""Width of each of the three drawings of an image, pixels."""

_TEMPLATE = Path(__file__).with_name("compare.html.j2")


@dataclass(frozen=True)
class Images:
    """The images of the evaluated split, or why there are none to show."""

    data: CocoInstances | None
    reason: str = ""


@dataclass(frozen=True)
class Shown:
    """An image on the page."""

    image: ImageDifference
    pictures: list[str]
    """Drawings of ground truth, A and B, as data URIs."""


@dataclass(frozen=True)
class Bar:
    """An interval drawn on a scale from 0 to 100, in percent of the drawing's width."""

    low: float
    high: float
    value: float
    zero: float
    verdict: str
    """``better``, ``worse`` or ``open``, for the colour."""


def find_images(compared: Compared, eval_data_dir: Path) -> Images:
    """Find the images in ``eval_data_dir``, if its evaluated split is the one that both sides were evaluated on."""
    if compared.paired is None:
        return Images(None, "A and B were evaluated on different images, so they have no images in common.")
    path = evaluated_annotations(eval_data_dir)
    fix = (
        "Get that data (`git checkout` of the commit that the run names, then `dvc pull`, or `dvc repro preprocess` "
        "with its settings), and name its folder with --data."
    )
    try:
        data = CocoInstances.load(path)
        tree = json.loads(path.read_text(encoding="utf-8"))
    except DataError as error:
        return Images(None, f"The images are not here: {error} {fix}")
    truth = compared.paired.ground_truth
    if content(restrict(tree, compared.classes)) != content(truth):
        return Images(None, f"{path} is not the split that A and B were evaluated on. {fix}")
    return Images(data)


def write_report(folder: Path, compared: Compared, images: Images, *, top: int, min_score: float) -> None:
    """Write the self-contained ``index.html`` and ``comparison.json``; other files in ``folder`` are kept.

    Args:
        folder: created if necessary.
        compared: what to show.
        images: see `find_images`.
        top: maximum number of images.
        min_score: detections below it are not drawn; use that of `compare`.

    Raises:
        DataError: an image cannot be read.
    """
    shown = _draw(compared.paired, images.data, top, min_score) if compared.paired and images.data else []
    rows = [*metric_rows(compared), *common_rows(compared)]
    page = render_page(
        _TEMPLATE,
        compared=compared,
        sides=[("A", compared.a), ("B", compared.b)],
        cards=[row for row in rows if row.name.split(",")[0] in ("mask AP", "mask AP50", "mask AP75", "box AP")],
        metrics=_with_bars(rows),
        points=percentage_points,
        classes=_with_bars(class_rows(compared)),
        empty=empty_classes(compared),
        shown=shown,
        no_images=images.reason,
        min_score=min_score,
        disagreeing=len(compared.paired.images) if compared.paired else 0,
        comparison=compared.paired.comparisons["mask"] if compared.paired else None,
    )
    write_text_atomic(folder / "index.html", page)
    write_json_atomic(folder / "comparison.json", as_json(compared, top))


def _with_bars(rows: Sequence[MetricRow]) -> list[tuple[Any, Bar | None]]:
    """Each row with its interval, on one scale for all rows."""
    gains = [row.gain for row in rows if row.gain is not None]
    reach = max((abs(end) for gain in gains for end in (gain.low, gain.high)), default=0.0) or 1.0

    def at(value: float) -> float:
        return 50 + 48 * value / reach

    bars: list[tuple[Any, Bar | None]] = []
    for row in rows:
        gain = row.gain
        if gain is None:
            bars.append((row, None))
            continue
        verdict = "open" if not gain.excludes_zero else "better" if gain.value > 0 else "worse"
        bars.append((row, Bar(at(gain.low), at(gain.high), at(gain.value), at(0), verdict)))
    return bars


def _draw(paired: Paired, data: CocoInstances, top: int, min_score: float) -> list[Shown]:
    image_of = {image.file_name: image for image in data.images}
    rows_a, rows_b = _by_image(paired.rows_a), _by_image(paired.rows_b)
    shown = []
    for difference in paired.images[:top]:
        image = image_of[difference.file_name]
        pixels = data.read_image(image)
        found = [_found(paired, image, rows[difference.image_id], pixels, min_score) for rows in (rows_a, rows_b)]
        pictures = [_true(data, image, pixels), *found]
        shown.append(
            Shown(difference, [data_uri(jpeg_bytes(narrowed(p, PICTURE_WIDTH), 80), "jpeg") for p in pictures])
        )
    return shown


def _by_image(rows: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["image_id"]].append(row)
    return grouped


def _true(data: CocoInstances, image: CocoImage, pixels: np.ndarray) -> np.ndarray:
    objects = data.objects[image.id]
    return draw_ground_truth(
        pixels,
        np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
        [item.label for item in objects],
        decode_masks(objects, image.height, image.width),
        data.class_names,
        crowd=[item.crowd for item in objects],
    )


def _found(
    paired: Paired, image: CocoImage, rows: Sequence[dict[str, Any]], pixels: np.ndarray, min_score: float
) -> np.ndarray:
    categories = sorted(paired.ground_truth["categories"], key=lambda item: item["id"])
    detections = Detections.from_coco(rows, [item["id"] for item in categories], image.height, image.width)
    return draw_detections(pixels, detections.above(min_score), [item["name"] for item in categories])
