"""Printing that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Column, Table
from rich.text import Text


def print_json(tree: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Print indented JSON; NaN and infinity, which JSON lacks, raise `ValueError`.

    Args:
        default: converts values that JSON does not know.
    """
    print(json.dumps(tree, indent=2, default=default, allow_nan=False))


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values in two columns without borders; long values wrap."""
    table = Table(Column(style="bold", no_wrap=True), Column(overflow="fold"), show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table
