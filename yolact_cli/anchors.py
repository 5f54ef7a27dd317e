"""`yolact anchors`: how well the anchors fit a data set, as a table or JSON."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from yolact.data.coco import CocoInstances
from yolact.data.processed import annotations_of
from yolact.engine.anchor_fit import RECALL_IOU, AnchorFit, AnchorReport, Coverage, as_yaml, fit_anchors
from yolact_cli.output import print_json
from yolact_ops.settings.params import load_params

GAIN = 0.005
"""Smallest gain in recall or mean IoU that makes a suggestion worth showing."""
LOW_RECALL = 0.9
"""Recall below which many objects are hard to learn, which the output says."""


def run(data: Path, params: Path, *, as_json: bool, console: Console | None = None) -> None:
    """Measure how well the anchors of a settings file fit a data set, and print better ones.

    Args:
        data: folder that preprocess wrote (its training images are read), or a COCO instances file.

    Raises:
        DataError: the data cannot be read, or have no object.
        SettingsError: see `load_params`.
    """
    path = annotations_of(data, "train") if data.is_dir() else data
    report = fit_anchors(CocoInstances.load(path), load_params(params).model)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report, console or Console(highlight=False))


def print_report(report: AnchorReport, console: Console) -> None:
    """Print a table of the present and the suggested anchors by size and level, and the suggestion as YAML."""
    present, suggested = report.present, report.suggested
    size = report.image_size
    resized = f"to a longer side of {size} px" if report.keep_aspect_ratio else f"to {size} x {size} px"
    console.print(f"{report.measured} of {report.boxes} boxes, images resized {resized}")
    table = Table()
    table.add_column("boxes")
    for name in ("number", f"recall at {RECALL_IOU:g}", "mean IoU", "with suggested anchors", "mean IoU"):
        table.add_column(name, justify="right")
    table.add_row("all", *_cells(present.all), *_cells(suggested.all)[1:])
    for name, coverage in present.by_size.items():
        table.add_row(name, *_cells(coverage), *_cells(suggested.by_size[name])[1:])
    for name, coverage in present.by_level.items():
        table.add_row(f"best at {name}", *_cells(coverage), "", "")
    console.print(table)
    if _gains(present.all, suggested.all):
        console.print("With train.fit_anchors: true, training takes the suggested anchors. To set them yourself, in")
        console.print("params.yaml, under model (with square_anchors: false, and train.fit_anchors: false):")
        console.print(as_yaml(suggested.scales, suggested.ratios), soft_wrap=True)
        for name, before in present.by_size.items():
            after = suggested.by_size[name]
            if before.recall is not None and after.recall is not None and after.recall < before.recall:
                console.print(f"They lower the recall of {name} boxes from {before.recall:.3f} to {after.recall:.3f}.")
        console.print("Models trained with other anchors must be trained again with these.")
    else:
        console.print("No anchors with as many scales and ratios fit clearly better than the present ones.")
    _print_low_recall(suggested, console)


def _gains(present: Coverage, suggested: Coverage) -> bool:
    assert present.recall is not None
    assert present.mean_iou is not None
    assert suggested.recall is not None
    assert suggested.mean_iou is not None
    return suggested.recall >= present.recall + GAIN or suggested.mean_iou >= present.mean_iou + GAIN


def _print_low_recall(best: AnchorFit, console: Console) -> None:
    """Print which boxes even the best anchors miss and what helps, if they are many."""
    assert best.all.recall is not None
    if best.all.recall >= LOW_RECALL:
        return
    missed = {name: round(c.boxes * (1 - (c.recall or 0))) for name, c in best.by_size.items() if c.boxes}
    console.print(
        f"Even the best anchors leave {1 - best.all.recall:.0%} of the boxes without an anchor of IoU {RECALL_IOU:g} "
        f"or more ({', '.join(f'{count} {name}' for name, count in missed.items() if count)}), which "
        "are hard to learn. For small boxes, a larger model.image_size helps (with anchor_scales in proportion): they "
        "then span more of the cells in which anchors are centred. For others, add scales per level to "
        "model.anchor_scales, or model.anchor_ratios.",
        soft_wrap=True,
    )


def _cells(coverage: Coverage) -> list[str]:
    values = (coverage.recall, coverage.mean_iou)
    return [str(coverage.boxes), *("-" if value is None else f"{value:.3f}" for value in values)]
