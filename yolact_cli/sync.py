"""`yolact sync`: send MLflow what runs could not log while its server was unavailable."""

from __future__ import annotations

from pathlib import Path

from yolact.errors import DataError
from yolact_ops.tracking.journal import FOLDER
from yolact_ops.tracking.sync import sync


def run(model_dir: Path) -> int:
    """Send every journal of ``model_dir`` and print the outcome of each.

    Returns:
        The exit code: 1 if something is left, else 0.

    Raises:
        DataError: there is no such folder.
    """
    if not model_dir.is_dir():
        raise DataError(f"{model_dir}: no such folder; name the folder of run.json, or change to the project's folder")
    outcomes = []
    for outcome in sync(model_dir / FOLDER):
        outcomes.append(outcome)
        print(f"run {outcome.folder.name}: sent {outcome.sent}", flush=True)
        for line in outcome.problem.splitlines():
            print(f"  {line}")
    if not outcomes:
        print(f"{model_dir / FOLDER}: nothing to send")
    return int(any(outcome.problem for outcome in outcomes))
