"""Kubeflow's view of `evaluate`: the metrics, and a table of the classes."""

from __future__ import annotations

import json
from pathlib import Path

from yolact.files import write_text_atomic
from yolact_ops.commands.task import Artifact, MetricsArtifact, markdown_table
from yolact_ops.reports.formatting import percent

KINDS = ("mask", "box")
METRICS = ("AP", "AP50", "AP75", "AP70")


def describe(evaluation: Artifact, metrics: MetricsArtifact, summary: Artifact) -> None:
    """Log the metrics in ``eval.json``, and write them overall and by class into ``summary`` as Markdown."""
    scores = json.loads((Path(evaluation.path) / "eval.json").read_text(encoding="utf-8"))
    evaluation.metadata |= {"images": scores["images"]}
    for kind in KINDS:
        for name, value in scores[kind].items():
            if isinstance(value, float):
                metrics.log_metric(f"{kind}_{name}", value)
    overall_rows = [(kind, *(percent(scores[kind][name]) for name in METRICS)) for kind in KINDS]
    classes = [
        (name, *(percent(scores[kind]["per_class"][name][metric]) for kind in KINDS for metric in ("AP", "AP50")))
        for name in scores["mask"]["per_class"]
    ]
    overall = markdown_table(("", *METRICS), overall_rows)
    by_class = markdown_table(("class", "mask AP", "mask AP50", "box AP", "box AP50"), classes)
    write_text_atomic(summary.path, f"# {scores['images']} images, in percent\n\n{overall}\n{by_class}")
