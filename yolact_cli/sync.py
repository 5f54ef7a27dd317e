"""What runs could not tell MLflow while its server was away, sent now."""

from __future__ import annotations

from pathlib import Path

from yolact.errors import DataError
from yolact_ops.tracking.journal import FOLDER
from yolact_ops.tracking.sync import sync


def run(model_dir: Path) -> int:
    """Send every journal of ``model_dir`` and say what became of each.

    Returns:
        The exit code: 1 where something is left, else 0.

    Raises:
        DataError: there is no such folder.
    """
    if not model_dir.is_dir():
        raise DataError(f"{model_dir}: no such folder. Name the one of run.json, or go to the project's folder.")
    outcomes = []
    for outcome in sync(model_dir / FOLDER):
        outcomes.append(outcome)
        print(f"run {outcome.folder.name}: sent {outcome.sent}", flush=True)
        for line in outcome.problem.splitlines():
            print(f"  {line}")
    if not outcomes:
        print(f"{model_dir / FOLDER}: nothing is left to send")
    return int(any(outcome.problem for outcome in outcomes))
