"""`yolact compare`: two runs side by side: settings, metrics with intervals, classes, and a page with images."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from yolact.data.processed import EVAL
from yolact_cli.runs import make_console
from yolact_ops.comparison.comparison import Compared, compare
from yolact_ops.comparison.report import find_images, write_report
from yolact_ops.comparison.sides import open_side
from yolact_ops.comparison.tables import (
    ClassRow,
    MetricRow,
    as_json,
    class_rows,
    common_rows,
    empty_classes,
    metric_rows,
)
from yolact_ops.reports.formatting import percent, percentage_points

MOST_CLASSES = 20
"""Most classes in the terminal; the page has all."""


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    a: str
    b: str
    data: Path
    output: Path
    samples: int
    images: int
    min_score: float
    as_json: bool


def run(options: Options) -> None:
    """Compare two sides, write the page and print its tables.

    Raises:
        DataError: a side's files are missing or damaged, or several runs match.
        TrackingError: no run matches, it has not been evaluated, or the store fails.
    """
    a, client = open_side(options.a, None)
    b, _ = open_side(options.b, client)
    compared = compare(a, b, samples=options.samples, min_score=options.min_score)
    images = find_images(compared, options.data / EVAL)
    write_report(options.output, compared, images, top=options.images, min_score=options.min_score)
    if options.as_json:
        print(json.dumps(as_json(compared, options.images), indent=2))
        return
    console = make_console()
    _print(console, compared)
    if images.reason:
        console.print(f"\n[yellow]No images on the page.[/yellow] {escape(images.reason)}", soft_wrap=True)
    console.print(f"\npage: {escape(os.path.join(options.output, 'index.html'))}", soft_wrap=True)


def _print(console: Console, compared: Compared) -> None:
    for letter, side in (("A", compared.a), ("B", compared.b)):
        facts = ", ".join(f"{key} {value}" for key, value in side.facts.items())
        console.print(f"[bold]{letter}[/bold]  {escape(side.name)}  [dim]{escape(facts)}[/dim]", soft_wrap=True)
    for warning in compared.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    console.print()
    _print_params(console, compared)
    metrics = [*metric_rows(compared), *common_rows(compared)]
    console.print(_table("metric (percent)", [row for row in metrics if row.a is not None or row.b is not None]))
    if compared.paired:
        comparison = compared.paired.comparisons["mask"]
        console.print(
            f"[dim]{100 * comparison.confidence:g} % intervals: paired bootstrap over the {comparison.images} "
            f"evaluated images, {comparison.samples} draws. They do not cover the randomness of training.[/dim]",
            soft_wrap=True,
        )
    console.print()
    classes = class_rows(compared)
    console.print(_table("class (mask AP, percent)", classes[:MOST_CLASSES]))
    if len(classes) > MOST_CLASSES:
        console.print(f"[dim]and {len(classes) - MOST_CLASSES} more on the page[/dim]")
    empty = empty_classes(compared)
    if empty:
        console.print(f"[dim]without objects in the evaluated images: {escape(', '.join(empty))}[/dim]", soft_wrap=True)
    for letter, others in (("A", compared.only_a), ("B", compared.only_b)):
        if others:
            console.print(f"only {letter} has: {escape(', '.join(others))}", soft_wrap=True)


def _print_params(console: Console, compared: Compared) -> None:
    if not compared.params:
        console.print("No setting differs.\n")
        return
    table = Table(
        Column("setting", no_wrap=True),
        Column("A", overflow="fold"),
        Column("B", overflow="fold"),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for change in compared.params:
        table.add_row(escape(change.key), *("-" if value is None else escape(value) for value in (change.a, change.b)))
    console.print(table)
    console.print()


def _table(title: str, rows: list[MetricRow] | list[ClassRow]) -> Table:
    with_intervals = any(row.gain for row in rows)
    with_objects = any(isinstance(row, ClassRow) for row in rows)
    table = Table(
        Column(title, no_wrap=True),
        *([Column("objects", justify="right")] if with_objects else []),
        *(Column(name, justify="right") for name in ("A", "B", "B - A")),
        *([Column("interval", no_wrap=True)] if with_intervals else []),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for row in rows:
        cells = [escape(row.name), *([f"{row.objects:,}"] if isinstance(row, ClassRow) else [])]
        cells += [percent(row.a), percent(row.b), percentage_points(row.difference)]
        if with_intervals:
            cells.append(row.interval())
        certain = row.gain is not None and row.gain.excludes_zero
        better = row.difference is not None and row.difference > 0
        table.add_row(*cells, style=("green" if better else "red") if certain else None)
    return table
