"""How a study starts as a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from yolact_ops.commands.errors import clear_errors


def run_study(main: Callable[..., Any]) -> None:
    """Run ``main`` with the command line's arguments, as `typer.run` does; `clear_errors` reports user errors."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    with clear_errors():
        app()
