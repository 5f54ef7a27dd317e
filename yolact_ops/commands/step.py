"""Command line of a step, as ``python -m components.train.step``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import yaml

from yolact_ops.commands.container import keep_to_container
from yolact_ops.commands.errors import clear_errors
from yolact_ops.commands.project import ProjectCommand
from yolact_ops.commands.secrets import read_secrets
from yolact_ops.settings.params import Params, load_params

DVC_LOCK = Path("dvc.lock")
"""Outputs of each stage's last successful run, as `dvc repro` records them."""


def run_command(step: str, work: Callable[[Params], object], *, outputs: Sequence[Path] = ()) -> None:
    """Read ``--params FILE`` from the command line and call ``work`` with the checked settings; its result is dropped.

    Errors are reported as `yolact_ops.commands.errors.clear_errors` describes.

    Args:
        step: the step's name.
        work: the step's work.
        outputs: folders that the step writes. `dvc repro` removes a stage's outputs before it runs its command: if
            folders are missing after a failure but existed before, the message says how to restore them.
    """

    def command(params: Annotated[Path, typer.Option(help="Settings file.")] = Path("params.yaml")) -> None:
        start_log(step)
        keep_to_container()
        with clear_errors(step, partial(_how_to_restore, step, outputs)):
            read_secrets()
            work(load_params(params))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=ProjectCommand)(command)
    app()


def start_log(step: str, *, force: bool = False) -> None:
    """Log to standard error, each line after ``[step] ``, without what libraries say of themselves.

    Args:
        step: the step's name.
        force: replace handlers that another library has set.
    """
    logging.basicConfig(level=logging.INFO, format=f"[{step}] %(message)s", stream=sys.stderr, force=force)
    for library in ("botocore", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _how_to_restore(step: str, outputs: Sequence[Path]) -> str:
    """How to restore the outputs that DVC removed and has cached; empty if there are none."""
    recorded: set[Path] = set()
    with suppress(OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):  # not a DVC lock file
        stage = yaml.safe_load(DVC_LOCK.read_text(encoding="utf-8"))["stages"][step]
        recorded = {Path(out["path"]) for out in stage["outs"]}
    missing = [path.as_posix() for path in outputs if path in recorded and not path.exists()]
    if not missing:
        return ""
    return (
        f"\nMissing now: {', '.join(missing)}. `dvc repro` removes a step's outputs before it runs the step. "
        f"Restore the earlier data with `dvc checkout {' '.join(missing)}`."
    )
