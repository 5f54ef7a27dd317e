"""``python -m pipelines run-local``: run the pipeline `training` on this machine and print where the results are."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.config import ClusterConfig
from pipelines.local import Containers, LocalRun, run_pipeline
from yolact_ops.commands.task import as_text
from yolact_ops.settings.params import Params
from yolact_ops.sources.data_source import find_source
from yolact_ops.sources.dvc_path import DvcPath
from yolact_ops.sources.local import Local


def run_training(
    params: Params,
    cluster: ClusterConfig,
    output: Path,
    *,
    containers: Containers | None,
    resume_pipeline_run: str = "",
    cache: bool = True,
) -> LocalRun:
    """Run the pipeline `training` and print where its results are.

    Args:
        params: the settings.
        cluster, cache: see `run_pipeline`.
        output: gets the results.
        containers: how to run tasks in containers, which can read the folder in ``data.source``; None for processes.
        resume_pipeline_run: name of a folder of ``output/checkpoints``; empty: none.

    Raises:
        LocalRunError: a task has failed.
        SettingsError: containers cannot be run.
        DataError: ``data.source`` does not exist.
    """
    if containers is not None:
        containers = Containers(containers.image, (*containers.mounts, *_source_folders(params)), containers.gpus)
    arguments = {"params": as_text(params), "resume_pipeline_run": resume_pipeline_run}
    done = run_pipeline("training", arguments, cluster, output, containers=containers, cache=cache)
    _tell(done)
    return done


def _source_folders(params: Params) -> list[Path]:
    """Local folders that contain the data source."""
    source = find_source(params.data)
    if isinstance(source, Local):
        return [source.path]
    if isinstance(source, DvcPath) and Path(source.repository).is_dir():
        return [Path(source.repository)]
    return []


def _tell(done: LocalRun) -> None:
    scores = json.loads((done.folder / "evaluate" / "evaluation" / "eval.json").read_text(encoding="utf-8"))
    version = json.loads((done.folder / "register" / "registration").read_text(encoding="utf-8"))
    for kind in ("mask", "box"):
        names = ("AP", "AP50", "AP75", "AP70")
        metrics = (f"{name} {'-' if (value := scores[kind][name]) is None else f'{value:.3f}'}" for name in names)
        print(f"{kind:5s} {'  '.join(metrics)}")
    places = {
        "model": "train/model",
        "metrics": "evaluate/evaluation/eval.json",
        "report": "evaluate/evaluation/report/index.html",
        "log": done.log.name,
    }
    for what, place in places.items():
        print(f"{what:10s} {done.folder / place}")
    decision = json.loads((done.folder / "promote" / "promotion").read_text(encoding="utf-8"))
    print(f"registered {version['model_uri']}")
    print(f"promotion  {decision['status']}")
