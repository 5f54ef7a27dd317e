"""The train step: COCO instances in, trained network out.

Reads ``data/processed/``; writes ``models/model.safetensors``, ``models/model.json`` and ``models/run.json``,
``metrics/train.json`` and ``plots/train/``; keeps its checkpoints in ``models/checkpoints/``. The training
(`components.train.training`) runs in a child process, which is started again after a crash, a kill or a hang. This
process does not import PyTorch: it stays small, and survives when memory runs out. Several processes train together
under ``torchrun --nproc-per-node N -m components.train.step``, which restarts them itself (``--max-restarts``).
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

from components.train.supervisor import CrashedError, supervise, supervised
from yolact.engine.checkpoint_files import newest_checkpoint
from yolact_ops.commands.errors import clear_errors
from yolact_ops.commands.step import run_command, start_log
from yolact_ops.settings.params import Params, parse_params
from yolact_ops.tracking.journal import FOLDER
from yolact_ops.tracking.run_record import RUN_FILE
from yolact_ops.tracking.runs import journals_of
from yolact_ops.tracking.sync import sync

CHILD = "--supervised"
"""First command-line argument of the child process; the second is its end of the socket."""


def run(
    params: Params,
    *,
    processed_dir: Path,
    model_dir: Path,
    metrics_path: Path,
    plots_dir: Path,
    checkpoints_dir: Path | None = None,
) -> None:
    """Train under a supervisor, see `components.train.training.run` for the arguments.

    Without one if ``runtime.max_restarts`` is 0, and in the processes of ``torchrun``.

    Raises:
        SystemExit: the training ended with an error, which it has printed.
        CrashedError: it crashed, was killed or hung, ``runtime.max_restarts`` times in a row without a new checkpoint.
        InterruptedRunError: SIGTERM or SIGINT was received before the training could act on it.
    """
    if params.runtime.max_restarts == 0 or "WORLD_SIZE" in os.environ:
        from components.train import training

        training.run(
            params,
            processed_dir=processed_dir,
            model_dir=model_dir,
            metrics_path=metrics_path,
            plots_dir=plots_dir,
            checkpoints_dir=checkpoints_dir,
        )
        return
    paths = {
        "processed_dir": str(processed_dir),
        "model_dir": str(model_dir),
        "metrics_path": str(metrics_path),
        "plots_dir": str(plots_dir),
    } | ({} if checkpoints_dir is None else {"checkpoints_dir": str(checkpoints_dir)})
    run_file = model_dir / RUN_FILE
    old_record = run_file.read_text(encoding="utf-8") if run_file.is_file() else ""
    try:
        code = _supervise(params, paths, old_record, checkpoints_dir or model_dir / "checkpoints")
    except CrashedError:
        for _ in sync(checkpoints_dir / FOLDER if checkpoints_dir else journals_of(run_file)):
            pass  # the run ends as KILLED
        raise
    if code:
        raise SystemExit(code)


def _supervise(params: Params, paths: dict[str, str], old_record: str, checkpoints: Path) -> int:
    return supervise(
        [sys.executable, "-m", "components.train.step", CHILD],
        json.dumps([params.model_dump(mode="json", by_alias=True), paths, old_record]),
        newest_checkpoint=partial(newest_checkpoint, checkpoints),
        max_restarts=params.runtime.max_restarts,
        hang_timeout=params.runtime.hang_timeout,
    )


def _train_supervised(socket_number: int) -> None:
    """The child process of `run`."""
    start_log("train")
    with supervised(socket_number) as (work, sign_of_life), clear_errors("train"):
        from components.train import training

        settings, paths, old_record = json.loads(work)
        training.run(
            parse_params(settings),
            **{name: Path(path) for name, path in paths.items()},
            on_alive=sign_of_life,
            old_record=old_record,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        _train_supervised(int(sys.argv[2]))
    else:
        run_command(
            "train",
            lambda params: run(
                params,
                processed_dir=Path("data/processed"),
                model_dir=Path("models"),
                metrics_path=Path("metrics/train.json"),
                plots_dir=Path("plots/train"),
            ),
        )
