"""The description of a run on MLflow's pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from yolact_ops.lineage.lineage import data_source
from yolact_ops.reports.formatting import percent
from yolact_ops.settings.params import Params

NOTE_TAG = "mlflow.note.content"
"""MLflow's tag for the description of a run, Markdown (mlflow.utils.mlflow_tags)."""

NAMED_CLASSES = 20
"""Maximum number of classes that are listed."""


def run_note(params: Params, classes: Sequence[str], val_images: int, metrics: Mapping[str, float | None]) -> str:
    """A short summary in Markdown: model, data, metrics.

    Args:
        params: the settings in use.
        classes: names of the classes.
        val_images: number of images in the val split.
        metrics: value, 0 to 1, by name; None where undefined. Empty: not measured yet.
    """
    model, train = params.model, params.train
    names = ", ".join(classes[:NAMED_CLASSES])
    if len(classes) > NAMED_CLASSES:
        names += f" and {len(classes) - NAMED_CLASSES} more"
    lines = [
        f"**YOLACT**, {model.backbone}, {model.image_size} px; epochs: {train.epochs}, batches of {train.batch_size}.",
        f"**Data** `{data_source(params)}`: {len(classes)} classes ({names}), {val_images} images in val.",
    ]
    if metrics:
        shown = [f"| {name} | {percent(value)} |" for name, value in metrics.items()]
        lines.append("\n".join(["| on val | % |", "| --- | --- |", *shown]))
    return "\n\n".join(lines)
