"""`yolact parity`: its result as tables or JSON."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yolact_bench.parity import TOLERANCE, FileReport, ParityReport, run_parity
from yolact_cli.output import print_json

PIPED_WIDTH = 1000
"""Width in columns without a terminal: enough for one line per tensor."""


def show(directory: Path, *, as_json: bool) -> int:
    """Check a directory of fixtures and print the result; returns the exit code, 1 if a comparison failed.

    Raises:
        DataError: see `run_parity`.
    """
    report = run_parity(directory)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    return 1 if report.failures else 0


def print_report(report: ParityReport, console: Console | None = None) -> None:
    """Print a table per file, what was not checked, and a summary line."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPED_WIDTH, highlight=False)
    for file in report.files:
        console.print(_table(file))
        for row in file.rows:
            if row.note:
                console.print(Text(f"{row.name}: {row.note}", style="" if row.passed else "red"), soft_wrap=True)
        if file.unused:
            line = f"Not checked: {_count(len(file.unused), 'array')} that no check uses: {', '.join(file.unused)}"
            console.print(Text(line, style="yellow"), soft_wrap=True)
        console.print()
    for line in report.unrecognised:
        console.print(Text(f"Not checked: {line}", style="yellow"), soft_wrap=True)
    console.print(_summary(report))


def _table(file: FileReport) -> Table:
    checks = _count(len(file.rows), "check")
    title = Text.assemble((file.file, "bold"), f": {file.kind}, {checks}, {len(file.failures)} failed")
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("tensor", "shape"):
        table.add_column(name, overflow="fold")
    for name in ("absolute error", "relative error"):
        table.add_column(name, overflow="fold", justify="right")
    table.add_column("result")
    for row in file.rows:
        shape = "" if row.shape is None else " x ".join(map(str, row.shape)) or "scalar"
        result = Text("pass", style="green") if row.passed else Text("FAIL", style="bold red")
        table.add_row(Text(row.name), Text(shape), _number(row.absolute_error), _number(row.relative_error), result)
    return table


def _number(value: float | None) -> Text:
    return Text("" if value is None else "0" if value == 0 else f"{value:.2e}")


def _summary(report: ParityReport) -> Text:
    line = (
        f"{_count(report.comparisons, 'check')} in {_count(len(report.files), 'file')}, {report.failures} failed "
        f"(a relative error up to {TOLERANCE:.0e} passes)."
    )
    left = [(report.unused, "array"), (len(report.unrecognised), "file")]
    if any(number for number, _ in left):
        line += f" Not checked: {', '.join(_count(number, noun) for number, noun in left if number)}."
    return Text(line, style="bold red" if report.failures else "bold green")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
