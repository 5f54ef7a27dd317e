"""The train step: COCO instances in, trained network out.

Reads ``data/processed/train/`` and, for validation, ``data/processed/eval/``; writes ``models/model.safetensors``,
``models/model.json`` and ``models/run.json``, ``metrics/train.json`` and ``plots/train/``; keeps its checkpoints in
``models/checkpoints/``. The training (`components.train.training`) runs in a child process, or in several, one for each
GPU (``runtime.processes``), which are started again after a crash, a kill or a hang. This process does not import
PyTorch: it stays small, and survives when memory runs out. Processes that ``torchrun`` has started train in themselves.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from components.train.supervisor import CrashedError, supervise, supervised
from yolact.data.processed import EVAL, PROCESSED, TRAIN
from yolact.engine.checkpoint_files import newest_checkpoint
from yolact.errors import SettingsError
from yolact.files import locked
from yolact_ops.commands.errors import clear_errors
from yolact_ops.commands.step import run_command, start_log
from yolact_ops.settings.params import Params, parse_params
from yolact_ops.tracking.journal import FOLDER
from yolact_ops.tracking.run_record import RUN_FILE
from yolact_ops.tracking.runs import journals_of
from yolact_ops.tracking.sync import sync

NODES_VARIABLE = "PET_NNODES"
"""Number of nodes that train together, for torchrun; the Kubeflow Trainer sets it."""

CHILD = "--supervised"
"""Command-line argument of the child process, and of the processes that it launches."""


def run(
    params: Params,
    *,
    train_data_dir: Path,
    eval_data_dir: Path,
    model_dir: Path,
    metrics_path: Path,
    plots_dir: Path,
    checkpoints_dir: Path | None = None,
) -> None:
    """Train under a supervisor, see `components.train.training.run` for the arguments.

    Without one if ``runtime.max_restarts`` is 0 and one process trains, and in the processes of ``torchrun``. As one of
    several nodes nothing is started again here: a single node cannot rejoin the others, so what started them has to
    start all of them again.

    Raises:
        BusyError: another training writes to ``model_dir``.
        SystemExit: the training ended with an error, which it has printed.
        CrashedError: it crashed, was killed or hung, ``runtime.max_restarts`` times in a row without a new checkpoint.
        InterruptedRunError: SIGTERM or SIGINT was received before the training could act on it.
    """
    # Checkpoints elsewhere are those of one pipeline run or trial, perhaps on a volume that keeps a lost node's lock.
    # Of several nodes or processes that train together in one folder, the first one locks.
    rank = os.environ.get("RANK") or os.environ.get("PET_NODE_RANK", "0")
    is_locked = checkpoints_dir is None and rank == "0"
    with locked(model_dir) if is_locked else nullcontext():
        if "WORLD_SIZE" in os.environ or (params.runtime.max_restarts == 0 and _is_one_process(params)):
            from components.train import training

            training.run(
                params,
                train_data_dir=train_data_dir,
                eval_data_dir=eval_data_dir,
                model_dir=model_dir,
                metrics_path=metrics_path,
                plots_dir=plots_dir,
                checkpoints_dir=checkpoints_dir,
            )
            return
        paths = {
            "train_data_dir": str(train_data_dir),
            "eval_data_dir": str(eval_data_dir),
            "model_dir": str(model_dir),
            "metrics_path": str(metrics_path),
            "plots_dir": str(plots_dir),
        } | ({} if checkpoints_dir is None else {"checkpoints_dir": str(checkpoints_dir)})
        run_file = model_dir / RUN_FILE
        old_record = run_file.read_text(encoding="utf-8") if run_file.is_file() else ""
        try:
            code = _supervise(params, paths, old_record, checkpoints_dir or model_dir / "checkpoints")
        except CrashedError:
            if _nodes() == 1:  # nobody starts it again
                for _ in sync(checkpoints_dir / FOLDER if checkpoints_dir else journals_of(run_file)):
                    pass  # the run ends as KILLED
            raise
        if code:
            raise SystemExit(code)


def _nodes() -> int:
    """Number of machines that train together.

    Raises:
        SettingsError: the environment variable is no number.
    """
    text = os.environ.get(NODES_VARIABLE, "1")
    if not text.isdecimal() or int(text) == 0:
        raise SettingsError(f"{NODES_VARIABLE}: must be the number of nodes that train together (found {text!r})")
    return int(text)


def _is_one_process(params: Params) -> bool:
    from components.train.launcher import number_of_processes  # imports PyTorch

    return _nodes() == 1 and number_of_processes(params.runtime) == 1


def _supervise(params: Params, paths: dict[str, str], old_record: str, checkpoints: Path) -> int:
    return supervise(
        [sys.executable, "-m", "components.train.step", CHILD],
        json.dumps([params.model_dump(mode="json", by_alias=True), paths, old_record]),
        newest_checkpoint=partial(newest_checkpoint, checkpoints),
        max_restarts=params.runtime.max_restarts if _nodes() == 1 else 0,
        hang_timeout=params.runtime.hang_timeout,
    )


def _train_supervised() -> None:
    """A child process of `run`: trains, or launches the processes that do."""
    rank = os.environ.get("RANK")
    name = "train" if rank in (None, "0") else f"train, rank {rank}"
    start_log(name)
    with supervised() as (work, link), clear_errors(name):
        settings, paths, old_record = json.loads(work)
        params = parse_params(settings)
        if rank is None:
            from components.train.launcher import launch, number_of_processes

            processes, nodes = number_of_processes(params.runtime), _nodes()
            if processes > 1 or nodes > 1:
                link.give_to_children()
                raise SystemExit(launch(processes, nodes, ["components.train.step", CHILD]))
        link()
        import torch

        from components.train import training
        from components.train.launcher import reason_first
        from yolact.devices import keep_freed_memory

        if params.runtime.device == "cpu" or not torch.cuda.is_available():
            keep_freed_memory()
        with reason_first(int(os.environ.get("LOCAL_RANK", "0"))):
            training.run(
                params,
                **{name: Path(path) for name, path in paths.items()},
                on_alive=link,
                old_record=old_record,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        _train_supervised()
    else:
        run_command(
            "train",
            lambda params: run(
                params,
                train_data_dir=PROCESSED / TRAIN,
                eval_data_dir=PROCESSED / EVAL,
                model_dir=Path("models"),
                metrics_path=Path("metrics/train.json"),
                plots_dir=Path("plots/train"),
            ),
        )
