"""The evaluation report: detections, tables, curves, drawings, and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from yolact.data.coco import CocoInstances, decode_masks
from yolact.data.columns import CocoImage
from yolact.evaluation.evaluator import ApSummary, ClassAgnosticAp, IouType
from yolact.files import fitting_name, write_bytes_atomic, write_json_atomic, write_text_atomic
from yolact.inference.detections import Detections
from yolact.visualize import contact_sheet, draw_detections, draw_ground_truth, side_by_side
from yolact_ops.reports.formatting import percent
from yolact_ops.reports.pages import EMBEDDED_WIDTH, data_uri, evenly_spaced, jpeg_bytes, narrowed, render_page
from yolact_ops.settings.params import Params

DETECTIONS_FILE = "detections.json"
PER_CLASS_TABLE = "per_class.json"
"""Per-class table in MLflow's format: ``{"columns": [...], "data": [[...]]}``."""
CONTACT_SHEET_IMAGES = 12
LEGEND_CLASSES = 20
"""Maximum number of classes with a legend in the curves."""

_TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Evaluation:
    """Results of one evaluated split."""

    split: str
    """``test`` or ``val``."""
    data: CocoInstances
    results: list[dict[str, Any]]
    """Rows of `Detections.to_coco` for all images."""
    box: ApSummary
    mask: ApSummary
    any_class: dict[IouType, ClassAgnosticAp]
    """The same detections when all classes count as one."""
    seconds: float
    """Total prediction time, without reading images."""
    device: str
    """The device used."""
    threads: int
    """CPU threads that PyTorch computed with."""


@dataclass(frozen=True)
class GalleryPlot:
    """One drawing of the gallery: ground truth left, prediction right."""

    file: str
    """Path inside the report folder."""
    caption: str
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB, at most `EMBEDDED_WIDTH` wide."""


def write_report(folder: Path, evaluation: Evaluation, params: Params) -> None:
    """Write the report into an existing, empty folder; ``index.html`` needs no other file.

    Args:
        folder: where to write.
        evaluation: the results to show.
        params: the settings; reads ``evaluate``.
    """
    write_text_atomic(folder / DETECTIONS_FILE, json.dumps(evaluation.results, allow_nan=False))
    write_json_atomic(folder / "report.json", _run_facts(evaluation, params))
    _write_csv(folder / "per_class.csv", PER_CLASS_COLUMNS, per_class_rows(evaluation))
    table = {"columns": PER_CLASS_COLUMNS, "data": per_class_rows(evaluation)}
    write_text_atomic(folder / PER_CLASS_TABLE, json.dumps(table, allow_nan=False) + "\n")
    curves = _curves_png(evaluation)
    write_bytes_atomic(folder / "pr_curves.png", curves)
    gallery = _write_gallery(folder, evaluation, params)
    write_text_atomic(folder / "index.html", _page(evaluation, params, curves, gallery))


def write_plots(folder: Path, evaluation: Evaluation) -> None:
    """Write the tables that ``dvc plots`` draws: ``pr_curve.csv`` (means over classes) and ``per_class.csv``."""
    curves = {"mask": evaluation.mask.curve, "box": evaluation.box.curve}
    shown = {kind: curve.mean.tolist() for kind, curve in curves.items() if curve.mean is not None}
    points = zip(evaluation.mask.curve.recall.tolist(), *shown.values(), strict=True)
    _write_csv(folder / "pr_curve.csv", ("recall", *shown), points)
    rows = [
        (name, ap.AP50, evaluation.mask.per_class[name].AP50)
        for name, ap in evaluation.box.per_class.items()
        if ap.AP50 is not None
    ]
    _write_csv(folder / "per_class.csv", ("class", "box_AP50", "mask_AP50"), rows)


PER_CLASS_COLUMNS = (
    "class",
    "instances",
    "detections",
    "mask_AP",
    "mask_AP50",
    "mask_AP70",
    "box_AP",
    "box_AP50",
    "box_AP70",
)


def per_class_rows(evaluation: Evaluation) -> list[tuple[Any, ...]]:
    """One row of `PER_CLASS_COLUMNS` per class; None if a class has no ground truth."""
    name_of = dict(zip(evaluation.data.category_ids, evaluation.data.class_names, strict=True))
    found = Counter(name_of[row["category_id"]] for row in evaluation.results)
    rows = []
    for name, box in evaluation.box.per_class.items():
        mask = evaluation.mask.per_class[name]
        rows.append((name, box.num_instances, found[name], mask.AP, mask.AP50, mask.AP70, box.AP, box.AP50, box.AP70))
    return rows


def _run_facts(evaluation: Evaluation, params: Params) -> dict[str, Any]:
    """``report.json``: values that may differ between identical runs, and the settings."""
    images = len(evaluation.data.images)
    return {
        "images": images,
        "detections": len(evaluation.results),
        "device": evaluation.device,
        "threads": evaluation.threads,
        "seconds": evaluation.seconds,
        "seconds_per_image": evaluation.seconds / images,
        "settings": params.evaluate.model_dump(mode="json"),
    }


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # None becomes an empty cell
    write_text_atomic(path, text.getvalue())


# Precision-recall curves


def _curves_png(evaluation: Evaluation) -> bytes:
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, summary in zip(axes, (evaluation.mask, evaluation.box), strict=True):
        _draw_curves(axis, summary)
    axes[0].set_ylabel("precision")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})  # identical runs give identical bytes
    return png.getvalue()


def _draw_curves(axis: Axes, summary: ApSummary) -> None:
    curve = summary.curve
    present = {name: precision for name, precision in curve.per_class.items() if precision is not None}
    colors = [f"C{index}" for index in range(10)]
    for index, (name, precision) in enumerate(present.items()):
        label = name if len(present) <= LEGEND_CLASSES else None
        style = "-" if index < len(colors) else "--"
        axis.plot(curve.recall, precision, style, color=colors[index % 10], lw=1.1, alpha=0.75, label=label)
    if curve.mean is not None:
        axis.plot(curve.recall, curve.mean, color="black", lw=2.6, label="mean")
    ap50 = "no ground truth" if summary.AP50 is None else f"AP50 {percent(summary.AP50)}"
    axis.set_title(f"{summary.iou_type}: {ap50}", fontsize=12)
    axis.set_xlabel("recall")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


# Gallery


def _write_gallery(folder: Path, evaluation: Evaluation, params: Params) -> list[GalleryPlot]:
    """Write ``gallery/NN_<name>.jpg`` and ``gallery.jpg``; nothing if ``gallery_images`` is 0."""
    images = evaluation.data.images
    chosen = [images[index] for index in evenly_spaced(len(images), params.evaluate.gallery_images)]
    rows_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in evaluation.results:
        rows_of[row["image_id"]].append(row)
    gallery = []
    for number, image in enumerate(chosen, start=1):
        plot, caption = _compare(evaluation, image, rows_of[image.id], params.evaluate.gallery_score)
        file = "gallery/" + fitting_name(f"{number:02d}_{Path(image.file_name).stem}", ".jpg")
        write_bytes_atomic(folder / file, jpeg_bytes(plot, quality=90))
        gallery.append(GalleryPlot(file=file, caption=caption, pixels=narrowed(plot, EMBEDDED_WIDTH)))
    if gallery:
        few = [gallery[index].pixels for index in evenly_spaced(len(gallery), CONTACT_SHEET_IMAGES)]
        write_bytes_atomic(
            folder / "gallery.jpg", jpeg_bytes(contact_sheet(few, columns=2, cell_width=900), quality=88)
        )
    return gallery


def _compare(
    evaluation: Evaluation, image: CocoImage, rows: Sequence[dict[str, Any]], score: float
) -> tuple[np.ndarray, str]:
    """Ground truth and prediction of one image side by side, and a caption."""
    data = evaluation.data
    pixels = data.read_image(image)
    objects = data.objects[image.id]
    true = draw_ground_truth(
        pixels,
        np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
        [item.label for item in objects],
        decode_masks(objects, image.height, image.width),
        data.class_names,
        crowd=[item.crowd for item in objects],
    )
    detections = Detections.from_coco(rows, data.category_ids, image.height, image.width).above(score)
    found = draw_detections(pixels, detections, data.class_names)
    caption = f"{image.file_name}: {len(objects)} objects, {len(detections)} detections with a score above {score:g}"
    return side_by_side([true, found], ["ground truth", "prediction"]), caption


# Page


def _page(evaluation: Evaluation, params: Params, curves: bytes, gallery: Sequence[GalleryPlot]) -> str:
    return render_page(
        _TEMPLATE,
        evaluation=evaluation,
        facts=_run_facts(evaluation, params),
        columns=PER_CLASS_COLUMNS[3:],
        rows=per_class_rows(evaluation),
        curves=data_uri(curves, "png"),
        gallery=[(item.caption, data_uri(jpeg_bytes(item.pixels, quality=80), "jpeg")) for item in gallery],
    )
