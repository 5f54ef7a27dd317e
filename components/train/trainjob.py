"""Training on several nodes: the task makes a TrainJob of the Kubeflow Trainer, follows it and takes over its results.

The nodes get data and settings, and give back the model, through the volume of checkpoints, which all of them mount.
The TrainJob has the pipeline run's name, so a task that is tried again finds the one that is running and follows it.
Nothing here imports PyTorch.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from components.train import node, step
from components.train.kubernetes_calls import NodesError, StillRunsError
from components.train.nodes import Nodes
from components.train.trainjob_client import TrainJob
from yolact.engine.interrupts import InterruptedRunError, Interrupts
from yolact.errors import EX_TEMPFAIL, SettingsError
from yolact.files import replaced_directory, write_text_atomic
from yolact.limits import POD_VARIABLE
from yolact.models.file_names import WEIGHTS_FILE
from yolact_ops.lineage.lineage import shown_settings
from yolact_ops.settings.params import Params
from yolact_ops.tracking.journal import FOLDER
from yolact_ops.tracking.sync import sync

log = logging.getLogger(__name__)


def run(
    params: Params,
    *,
    train_data_dir: Path,
    eval_data_dir: Path,
    model_dir: Path,
    metrics_path: Path,
    plots_dir: Path,
    checkpoints_dir: Path,
    nodes: str,
    shared: Path,
    code_version: str,
) -> None:
    """Train in this task, or on several nodes through a TrainJob, whose end is then waited for.

    Outside of a cluster this machine trains, on the CPU with as many processes as there would be nodes.

    Args:
        params, train_data_dir, eval_data_dir, model_dir, metrics_path, plots_dir, checkpoints_dir: see
            `components.train.step.run`.
        nodes: `Nodes` as JSON; empty: train here.
        shared: folder on the volume of checkpoints for what the nodes read and write; removed at the end.
        code_version: version of the step's code, which each node compares with its own.

    Raises:
        SettingsError: the volume is not mounted, or the cluster lacks the Trainer, the runtime or a right.
        NodesError: the TrainJob has failed, was deleted by somebody, or Kubernetes does not answer.
        OSError: the volume, or this task's disk, cannot be written. Results that are complete stay on the volume.
        InterruptedRunError: SIGTERM or SIGINT was received; the TrainJob is deleted, and its pods write a checkpoint.
    """
    if not nodes or POD_VARIABLE not in os.environ:
        step.run(
            _on_one_machine(params, nodes),
            train_data_dir=train_data_dir,
            eval_data_dir=eval_data_dir,
            model_dir=model_dir,
            metrics_path=metrics_path,
            plots_dir=plots_dir,
            checkpoints_dir=checkpoints_dir,
        )
        return
    if not shared.parent.is_dir():
        raise SettingsError(
            f"{shared.parent}: no such folder, but tasks.train.nodes needs the volume of checkpoints there: "
            "checkpoints.claim and checkpoints.mount in pipelines/cluster.yaml"
        )
    interrupts = Interrupts()
    with interrupts.watched():
        job = TrainJob(Nodes.from_json(nodes), shared)
        job.claim()
        try:
            with interrupts.at_once():
                job.remove_leftovers()
                data = {"train_data_dir": train_data_dir, "eval_data_dir": eval_data_dir}
                _lay_out(params, code_version, data, checkpoints_dir, shared)
                job.begin()
                job.follow()
                _take_results(shared, model_dir, metrics_path, plots_dir)
        except InterruptedRunError:
            job.end()
            raise InterruptedRunError(
                f"stopped by {interrupts.requested}: TrainJob {job.name} is deleted. The task tried again, or a "
                f"pipeline run with resume_pipeline_run, resumes from the newest checkpoint (exit code {EX_TEMPFAIL})"
            ) from None
        except StillRunsError:
            raise
        except (SettingsError, OSError):
            job.give_up()
            raise
        except NodesError:
            job.end()
            for _ in sync(checkpoints_dir / FOLDER):
                pass  # the MLflow run ends as KILLED
            raise
        job.end()


def _on_one_machine(params: Params, nodes: str) -> Params:
    if not nodes or params.runtime.processes != "auto" or params.runtime.device != "cpu":
        return params
    runtime = params.runtime.model_copy(update={"processes": Nodes.from_json(nodes).count})
    return params.model_copy(update={"runtime": runtime})


def _lay_out(params: Params, code_version: str, data: Mapping[str, Path], checkpoints: Path, shared: Path) -> None:
    """Put what the nodes read on the volume, unless an earlier try of the task has done so; ``data`` by the argument's
    name."""
    for name, path in data.items():
        if not (shared / name).is_dir():
            log.info("copying %s to %s", path, shared)
            with replaced_directory(shared / name) as folder:
                shutil.copytree(path, folder, dirs_exist_ok=True)
    paths = {name: shared / name for name in data} | {
        "model_dir": shared / "model",
        "metrics_path": shared / "train.json",
        "plots_dir": shared / "plots",
        "checkpoints_dir": checkpoints,
    }
    settings = shown_settings(params)  # the nodes fetch no data
    work = node.Work(code_version, settings, {name: str(path) for name, path in paths.items()})
    write_text_atomic(shared / "work.json", work.to_json())


def _take_results(shared: Path, model: Path, metrics: Path, plots: Path) -> None:
    if not (shared / "model" / WEIGHTS_FILE).is_file():
        raise NodesError(f"{shared / 'model' / WEIGHTS_FILE}: the TrainJob is complete, but its rank 0 wrote no model")
    shutil.copytree(shared / "model", model, dirs_exist_ok=True)
    shutil.copytree(shared / "plots", plots, dirs_exist_ok=True)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shared / "train.json", metrics)
