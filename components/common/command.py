"""How every step becomes a command: settings in, clear errors out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from yolact.config import Params, load_params
from yolact.errors import YolactError

log = logging.getLogger(__name__)


def run_command(step: str, work: Callable[[Params], object]) -> None:
    """Read ``--params FILE`` from the command line and call ``work`` with the checked settings; its result is dropped.

    Errors that a user can mend (`YolactError`, a file that cannot be read or written) end the process with
    their exit code (1 unless they say otherwise) and their message on standard error; anything else is a fault of ours
    and keeps its traceback.
    """

    def command(params: Annotated[Path, typer.Option(help="Settings file.")] = Path("params.yaml")) -> None:
        logging.basicConfig(level=logging.INFO, format=f"[{step}] %(message)s", stream=sys.stderr)
        with clear_errors(step):
            work(load_params(params))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


@contextmanager
def clear_errors(step: str) -> Iterator[None]:
    """End the process on errors that a user can mend, see `run_command`."""
    try:
        yield
    except (YolactError, OSError) as error:
        print(f"\n{step} failed: {_explain(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error


def _explain(error: YolactError | OSError) -> str:
    if not (isinstance(error, OSError) and error.strerror and error.filename):
        return str(error) or type(error).__name__
    path = Path(str(error.filename))
    if isinstance(error, PermissionError):
        if path.suffix == ".part":  # a temporary name; what the user knows is the folder
            path = path.parent
        way_out = "Give yourself the right to read and write it, or work in another folder."
        return f"{path}: {error.strerror.lower()}. {way_out}"
    return f"{path}: {error.strerror}"
