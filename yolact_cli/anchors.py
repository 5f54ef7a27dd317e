"""The result of `yolact anchors` as a table or JSON."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yolact.data.coco import CocoInstances
from yolact.engine.anchor_fit import RECALL_IOU, AnchorFit, AnchorReport, Coverage, as_yaml, fit_anchors
from yolact_ops.settings.params import load_params

GAIN = 0.005
"""A suggestion that gains less in both recall and mean IoU is called none."""
LOW_RECALL = 0.9
"""Below it, many objects are hard to learn, and the output says so."""


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
        console.print("To try the suggested anchors, set in params.yaml, under model (with square_anchors: false):")
        console.print(as_yaml(suggested.scales, suggested.ratios), soft_wrap=True)
        for name, before in present.by_size.items():
            after = suggested.by_size[name]
            if before.recall is not None and after.recall is not None and after.recall < before.recall:
                console.print(f"They lose recall on {name} boxes: {before.recall:.3f} becomes {after.recall:.3f}.")
        console.print("Weights that were trained with other anchors have to be trained again with these.")
    else:
        console.print("Of as many scales and ratios, none were found that fit clearly better than the present ones.")
    _print_low_recall(suggested, console)


def _gains(present: Coverage, suggested: Coverage) -> bool:
    assert present.recall is not None
    assert present.mean_iou is not None
    assert suggested.recall is not None
    assert suggested.mean_iou is not None
    return suggested.recall >= present.recall + GAIN or suggested.mean_iou >= present.mean_iou + GAIN


def _print_low_recall(best: AnchorFit, console: Console) -> None:
    """Say that even the best anchors leave many boxes out, which ones, and what helps."""
    assert best.all.recall is not None
    if best.all.recall >= LOW_RECALL:
        return
    missed = {name: round(c.boxes * (1 - (c.recall or 0))) for name, c in best.by_size.items() if c.boxes}
    console.print(
        f"Even the best anchors found leave {1 - best.all.recall:.0%} of the boxes without an anchor that overlaps by "
        f"{RECALL_IOU:g} or more ({', '.join(f'{count} {name}' for name, count in missed.items() if count)}), which "
        "are hard to learn. What helps: for small boxes a larger model.image_size (with anchor_scales in proportion), "
        "so that they span more of the cells that anchors are centred in; else more scales for each level in "
        "model.anchor_scales, or more model.anchor_ratios.",
        soft_wrap=True,
    )


def _cells(coverage: Coverage) -> list[str]:
    values = (coverage.recall, coverage.mean_iou)
    return [str(coverage.boxes), *("-" if value is None else f"{value:.3f}" for value in values)]
