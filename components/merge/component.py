"""The step `merge` for Kubeflow Pipelines."""

from typing import List  # noqa: UP035  # kfp knows lists of artifacts by this name

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Metrics, Model, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge(
    code_version: str,
    model: Input[Model],
    plan: Input[Artifact],
    results: Input[List[Artifact]],  # noqa: UP006
    predictions: Output[Dataset],
    metrics: Output[Metrics],
    summary: Output[Markdown],
    destination: str = "",
) -> None:
    """Merge the shards' results, in COCO's formats.

    Args:
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        model: what fetch wrote.
        plan: what split wrote.
        results: what the predict tasks wrote.
        predictions: detections.json (COCO results), images.json (COCO images, by id), problems.json.
        metrics: number of images, objects and unreadable images.
        summary: number of objects by class.
        destination: s3://bucket/folder to upload these files to; empty for none.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("merge", code_version):
        from components.merge import display, step

        totals = step.run(
            model_dir=Path(model.path),
            plan_path=Path(plan.path),
            results=[Path(result.path) for result in results],
            output_dir=Path(predictions.path),
            destination=destination,
        )
        display.describe(totals, metrics, summary)
