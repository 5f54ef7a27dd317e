"""`yolact runs`: a table of runs with their key metrics and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from yolact_cli.models import PIPED_WIDTH
from yolact_ops.comparison.runs import ALL_EXPERIMENTS, SHORT, RunRow, list_runs
from yolact_ops.reports.formatting import duration, percent
from yolact_ops.settings.params import load_params
from yolact_ops.tracking.store import connect, shown_uri

PARAMS = Path("params.yaml")

NUMBERS = {"mask AP", "AP50", "box AP", "steps", "trained"}
"""Right-aligned columns."""

FIRST_TO_GO = ("steps", "started (UTC)", "data", "code", "status", "trained", "box AP", "network")
"""Columns that are dropped in a narrow terminal, in this order."""


def run(experiment: str | None, limit: int, filter_string: str, *, as_json: bool) -> None:
    """Print the newest runs.

    Args:
        experiment: its name, or `ALL_EXPERIMENTS`; None: that of ``params.yaml``, or all if there is no such file.
        limit: maximum number of runs.
        filter_string: MLflow's filter.
        as_json: print a JSON list of objects.

    Raises:
        SettingsError: ``params.yaml`` is invalid.
        TrackingError: the store fails or has no such experiment, or the filter is invalid.
    """
    if experiment is None:
        experiment = load_params(PARAMS).register_.experiment if PARAMS.is_file() else ALL_EXPERIMENTS
    rows = list_runs(connect(), experiment=experiment, limit=limit, filter_string=filter_string)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    console = make_console()
    if not rows:
        where = "any experiment" if experiment == ALL_EXPERIMENTS else f"the experiment {experiment!r}"
        console.print(escape(f"{shown_uri()} has no such run in {where}. `dvc repro` makes one."), soft_wrap=True)
        return
    cells = _cells(rows)
    if experiment != ALL_EXPERIMENTS:
        del cells["experiment"]
    left_out: list[str] = []
    endless = console.options.update(max_width=10_000)  # else tables are measured as no wider than the terminal
    while console.measure(_table(cells), options=endless).maximum > console.width and len(left_out) < len(FIRST_TO_GO):
        left_out.append(FIRST_TO_GO[len(left_out)])
        del cells[left_out[-1]]
    console.print(_table(cells))
    console.print("\n* uncommitted code. Compare two: yolact compare RUN RUN")
    if left_out:
        console.print(f"Columns left out: {', '.join(left_out)}. A wider terminal or --json shows all.", soft_wrap=True)


def make_console() -> Console:
    """A console that is wide enough for tables when its output is redirected."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 2 * PIPED_WIDTH))


def _cells(rows: Sequence[RunRow]) -> dict[str, list[str]]:
    """The cells of each column by its heading."""
    sizes = ["" if row.image_size is None else f" {row.image_size} px" for row in rows]
    dirty = ["*" if row.git_dirty else "" for row in rows]
    return {
        "run": [escape(row.name) for row in rows],
        "id": [row.run_id[:SHORT] for row in rows],
        "experiment": [escape(row.experiment) for row in rows],
        "started (UTC)": [row.started[:16].replace("T", " ") for row in rows],
        "status": [row.status.lower() for row in rows],
        "mask AP": [percent(row.mask_ap) for row in rows],
        "AP50": [percent(row.mask_ap50) for row in rows],
        "box AP": [percent(row.box_ap) for row in rows],
        "steps": ["-" if row.steps is None else f"{row.steps:,}" for row in rows],
        "trained": [duration(row.train_seconds) for row in rows],
        "network": [escape(f"{row.backbone or '-'}{size}") for row, size in zip(rows, sizes, strict=True)],
        "data": [(row.data_digest or "-")[:SHORT] for row in rows],
        "code": [(row.git_commit or "-")[:SHORT] + mark for row, mark in zip(rows, dirty, strict=True)],
        "registered": [escape("\n".join(row.versions)) for row in rows],
    }


def _table(cells: Mapping[str, Sequence[str]]) -> Table:
    columns = [Column(name, no_wrap=True, justify="right" if name in NUMBERS else "left") for name in cells]
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table
