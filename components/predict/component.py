"""The step `predict` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def predict(
    shard: str,
    code_version: str,
    model: Input[Model],
    plan: Input[Artifact],
    result: Output[Artifact],
    device: str = "auto",
    batch_size: int = 8,
) -> None:
    """Detect the objects in one shard's images.

    Args:
        shard: number of the shard, as text.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        model: what fetch wrote.
        plan: what split wrote.
        result: images, detections in the COCO results format, and unreadable images.
        device: auto, cpu, cuda, or mps.
        batch_size: images per forward pass.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("predict", code_version):
        from components.predict import step

        found = step.run(
            model_dir=Path(model.path),
            plan_path=Path(plan.path),
            shard=int(shard),
            result_path=Path(result.path),
            device=device,
            batch_size=batch_size,
        )
        result.metadata |= {"shard": shard, "images": len(found.images), "objects": len(found.rows)}
