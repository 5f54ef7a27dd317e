"""How every step becomes a command: settings in, clear errors out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
import yaml

from yolact.errors import YolactError
from yolact_ops.settings.params import Params, load_params

log = logging.getLogger(__name__)


DVC_LOCK = Path("dvc.lock")
"""What each stage wrote when it last succeeded, as `dvc repro` records it."""


def run_command(step: str, work: Callable[[Params], object], *, output: Path | None = None) -> None:
    """Read ``--params FILE`` from the command line and call ``work`` with the checked settings; its result is dropped.

    Where ``output``, the folder that the step writes, is not there after a failure but was after the last success of
    `dvc repro`, which removes a stage's outputs before it runs its command, the message says how to have it back.

    Errors that a user can mend (`YolactError`, a file that cannot be read or written) end the process with
    their exit code (1 unless they say otherwise) and their message on standard error; anything else is a fault of ours
    and keeps its traceback.
    """

    def command(params: Annotated[Path, typer.Option(help="Settings file.")] = Path("params.yaml")) -> None:
        logging.basicConfig(level=logging.INFO, format=f"[{step}] %(message)s", stream=sys.stderr)
        with clear_errors(step, output):
            work(load_params(params))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


@contextmanager
def clear_errors(step: str, output: Path | None = None) -> Iterator[None]:
    """End the process on errors that a user can mend, see `run_command`."""
    try:
        yield
    except (YolactError, OSError) as error:
        print(f"\n{step} failed: {_explain(error)}{_way_back(step, output)}", file=sys.stderr)
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


def _way_back(step: str, output: Path | None) -> str:
    """A line about the output of before, where DVC removed it and can bring it back; else empty."""
    if output is None or output.exists():
        return ""
    recorded = False
    with suppress(OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):  # no lock file of DVC's
        stage = yaml.safe_load(DVC_LOCK.read_text(encoding="utf-8"))["stages"][step]
        recorded = any(Path(out["path"]) == output for out in stage["outs"])
    if not recorded:
        return ""
    return (
        f"\n{output} is not there now: `dvc repro` removes what a step wrote before it runs the step. "
        f"`dvc checkout {output.as_posix()}` brings back the data of before."
    )
