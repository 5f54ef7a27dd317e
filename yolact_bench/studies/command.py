"""How a study starts as a command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from yolact_ops.commands.errors import clear_errors


def run_study(main: Callable[..., Any] | typer.Typer) -> None:
    """Run ``main``, a function or an app of several commands, with the command line's arguments.

    `clear_errors` reports user errors. SIGTERM ends the study as an exception does, so that it stops what it started;
    the exit code is then 143, as of a process without a handler in a shell.
    """
    if isinstance(main, typer.Typer):
        app = main
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(main)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with clear_errors():
            app()
    finally:
        signal.signal(signal.SIGTERM, before)
