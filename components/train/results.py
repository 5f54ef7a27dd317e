"""Results of a finished training other than the model: ``metrics/train.json`` and ``plots/train/``."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from statistics import fmean

from yolact.engine.trainer import Metrics, TrainingResult
from yolact.files import write_text_atomic
from yolact.losses.terms import LOSS_TERMS


def summary(result: TrainingResult) -> dict[str, float | None]:
    """``metrics/train.json``: mean of the losses logged in the last epoch, the best validation and the speed."""
    last = result.history["steps"][-1]["epoch"]
    rows = [row for row in result.history["steps"] if row["epoch"] == last]
    losses = [_losses_of(row) for row in rows]
    return {
        "steps": result.steps,
        "best_val_mask_AP": result.best_score,
        "seconds_per_step": result.seconds_per_step,
        **{f"loss_{column}": fmean(row[column] for row in losses) for column in losses[0]},
    }


def _losses_of(row: Metrics) -> Metrics:
    """Total and unweighted terms of a logged step; a term that the network does not have has no column."""
    return {name: row[name] for name in ("total", *LOSS_TERMS) if name in row}


def write_plots(folder: Path, result: TrainingResult) -> None:
    """Write ``losses.csv``, ``lr.csv`` and ``ap.csv``, and ``loss_terms/NAME.csv`` for each term.

    Within one file DVC plots only named columns, but it plots every file of a folder; with one file per term, a new
    loss term is plotted automatically.
    """
    steps, epochs = result.history["steps"], result.history["epochs"]
    losses = [{"epoch": row["epoch"], "step": row["step"]} | _losses_of(row) for row in steps]
    _write_csv(folder / "losses.csv", losses)
    for name in losses[0].keys() & LOSS_TERMS.keys():
        _write_csv(folder / "loss_terms" / f"{name}.csv", [{"step": row["step"], "loss": row[name]} for row in losses])
    _write_csv(folder / "lr.csv", [{"step": row["step"], "lr": row["lr"]} for row in steps])
    _write_csv(folder / "ap.csv", [{name: value for name, value in row.items() if name != "step"} for row in epochs])


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """Write a table; the cell of a NaN is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if math.isnan(value) else value for name, value in row.items()} for row in rows)
    write_text_atomic(path, text.getvalue())
