"""The description of a run on MLflow's pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from yolact_ops.lineage.lineage import data_source
from yolact_ops.settings.params import Params

NAMED_CLASSES = 20
"""Most classes that are named."""


def run_note(params: Params, classes: Sequence[str], val_images: int, metrics: Mapping[str, float | None]) -> str:
    """A short summary in Markdown: model, data, metrics.

    Args:
        params: the settings in use.
        classes: names of the classes.
        val_images: images of the val split.
        metrics: 0 to 1 by name; None where there was nothing to measure on. Empty: not measured yet.
    """
    model, train = params.model, params.train
    names = ", ".join(classes[:NAMED_CLASSES])
    if len(classes) > NAMED_CLASSES:
        names += f" and {len(classes) - NAMED_CLASSES} more"
    lines = [
        f"**YOLACT**, {model.backbone}, {model.image_size} px; {train.epochs} epochs in batches of {train.batch_size}.",
        f"**Data** `{data_source(params)}`: {len(classes)} classes ({names}), {val_images} images in val.",
    ]
    if metrics:
        shown = [f"| {name} | {'-' if value is None else f'{100 * value:.1f}'} |" for name, value in metrics.items()]
        lines.append("\n".join(["| on val | % |", "| --- | --- |", *shown]))
    return "\n\n".join(lines)
