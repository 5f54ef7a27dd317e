"""Runs in a table, with the figures by which they are told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cli.models import PIPED_WIDTH
from components.common.tracking import connect, shown_uri
from components.compare.runs import ALL_EXPERIMENTS, SHORT, RunRow, list_runs
from yolact.config import load_params

PARAMS = Path("params.yaml")


def run(experiment: str | None, limit: int, filter_string: str, *, as_json: bool) -> None:
    """Print the newest runs.

    Args:
        experiment: its name, or `ALL_EXPERIMENTS`; that of ``params.yaml``, or all where there is none, if None.
        limit: most runs.
        filter_string: MLflow's filter.
        as_json: print a list of objects.

    Raises:
        SettingsError: ``params.yaml`` is faulty.
        TrackingError: the store fails or has no such experiment, or the filter is not one.
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
    console.print(_table(rows, show_experiment=experiment == ALL_EXPERIMENTS))
    console.print("\n* code that was not committed. Compare two: yolact compare RUN RUN")


def make_console() -> Console:
    """A console that is not too narrow for tables when its output goes to a file or another program."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 2 * PIPED_WIDTH))


def percent(value: float | None) -> str:
    """As in the papers: 0 to 100 with one decimal."""
    return "-" if value is None else f"{100 * value:.1f}"


def _table(rows: Sequence[RunRow], *, show_experiment: bool) -> Table:
    columns = [
        Column("run", no_wrap=True),
        Column("id", no_wrap=True),
        *([Column("experiment")] if show_experiment else []),
        Column("started (UTC)", no_wrap=True),
        Column("status"),
        *(Column(name, justify="right") for name in ("mask AP", "AP50", "box AP", "steps", "trained")),
        Column("network"),
        Column("data", no_wrap=True),
        Column("code", no_wrap=True),
        Column("registered"),
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        size = "" if row.image_size is None else f" {row.image_size} px"
        table.add_row(
            escape(row.name),
            row.run_id[:SHORT],
            *([escape(row.experiment)] if show_experiment else []),
            row.started[:16].replace("T", " "),
            row.status.lower(),
            percent(row.mask_ap),
            percent(row.mask_ap50),
            percent(row.box_ap),
            "-" if row.steps is None else f"{row.steps:,}",
            _duration(row.train_seconds),
            escape(f"{row.backbone or '-'}{size}"),
            (row.data_digest or "-")[:SHORT],
            "-" if row.git_commit is None else row.git_commit[:SHORT] + ("*" if row.git_dirty else ""),
            escape("\n".join(row.versions)),
        )
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"
