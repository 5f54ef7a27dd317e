"""The result of `yolact anchors` as a table or JSON."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yolact.anchor_fit import RECALL_IOU, AnchorReport, Coverage, as_yaml, fit_anchors
from yolact.config import load_params
from yolact.data.coco import CocoInstances

GAIN = 0.005
"""A suggestion that gains less in mean IoU is called none."""


def run(data: Path, params: Path, *, as_json: bool, console: Console | None = None) -> None:
    """Measure the anchors of a settings file on a data set, and print what would be better.

    Args:
        data: a folder that preprocess wrote (its ``train.json`` is read) or a COCO instances file.

    Raises:
        DataError: the data cannot be read, or has no object.
        SettingsError: see `load_params`.
    """
    path = data / "train.json" if data.is_dir() else data
    report = fit_anchors(CocoInstances.load(path, path.parent / "images"), load_params(params).model)
    if as_json:
        print(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        print_report(report, console or Console(highlight=False))


def print_report(report: AnchorReport, console: Console) -> None:
    """A table of both choices, by size and by level, and the suggestion as lines of params.yaml."""
    present, suggested = report.present, report.suggested
    size = report.image_size
    resized = f"so that the longer side is {size} px" if report.keep_aspect_ratio else f"to {size} x {size} px"
    console.print(f"{report.measured} of {report.boxes} boxes, photos resized {resized}")
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
    assert present.all.mean_iou is not None
    assert suggested.all.mean_iou is not None
    if suggested.all.mean_iou < present.all.mean_iou + GAIN:
        console.print("The present anchors fit as well as any that were found.")
        return
    console.print("To try the suggested anchors, set in params.yaml, under model (with square_anchors: false):")
    console.print(as_yaml(suggested.scales, suggested.ratios), soft_wrap=True)
    console.print("Weights that were trained with other anchors have to be trained anew with these.")


def _cells(coverage: Coverage) -> list[str]:
    values = (coverage.recall, coverage.mean_iou)
    return [str(coverage.boxes), *("-" if value is None else f"{value:.3f}" for value in values)]
