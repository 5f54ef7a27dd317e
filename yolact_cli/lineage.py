"""`yolact lineage`: the origin of a registered version and how to rebuild it."""

from __future__ import annotations

import json

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from yolact_cli.runs import make_console
from yolact_ops.registry.lineage_report import LineageReport, report_lineage
from yolact_ops.tracking.store import connect


def show(spec: str, *, as_json: bool) -> None:
    """Print the lineage of a version, ``NAME@ALIAS`` or ``NAME/NUMBER``."""
    report = report_lineage(connect(), spec)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    _print(report, make_console())


def _print(report: LineageReport, console: Console) -> None:
    aliases = f" ({', '.join(report.aliases)})" if report.aliases else ""
    console.print(f"{report.name} version {report.version}{aliases}", style="bold")
    table = Table(
        Column(no_wrap=True),
        Column(no_wrap=True),
        Column(overflow="fold"),
        show_header=False,
        box=None,
        padding=(0, 2, 0, 0),
    )
    for title, tags in report.groups().items():
        for tag, value in tags.items():
            if tag != "params_changes":  # a table of its own
                table.add_row(title, tag, escape(value))
            title = ""
    console.print(table)
    changed = report.changed_settings()
    if changed:
        console.print("\nsettings that differ from conf/base.yaml:")
        for key, value in changed.items():
            console.print(f"  {key}: {value}", markup=False, soft_wrap=True)
    console.print("\nto rebuild it:")
    for command in report.commands():
        console.print(f"  {command}", markup=False, soft_wrap=True)
    console.print("\nthe rebuild may be inexact:" if report.doubts() else "")
    for doubt in report.doubts():
        console.print(f"  - {doubt}", markup=False, soft_wrap=True)
