"""Kubeflow's view of `train`: the MLflow run, and the training metrics."""

from __future__ import annotations

import json
from pathlib import Path

from yolact_ops.commands.task import Artifact, MetricsArtifact


def describe(model: Artifact, metrics: MetricsArtifact, summary: Path) -> None:
    """Write the MLflow run into the metadata of ``model``, and log the metrics in ``summary`` (``train.json``)."""
    record = json.loads((Path(model.path) / "run.json").read_text(encoding="utf-8"))
    model.metadata |= {
        "framework": "pytorch",
        "mlflow_run": record["run_id"],
        "mlflow_experiment": record["experiment"],
    }
    for name, value in json.loads(summary.read_text(encoding="utf-8")).items():
        if value is not None:
            metrics.log_metric(name, value)
