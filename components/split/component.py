"""The step `split` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Artifact, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def split(images: str, shards: int, code_version: str, plan: Output[Artifact]) -> list[str]:
    """List the images of a folder in S3 and deal them out in shards.

    Args:
        images: s3://bucket/folder.
        shards: how many; fewer where there are fewer images.
        code_version: version of the code; another one is another task for the caches.
        plan: the images' keys, sizes, ETags and ids, by shard.

    Returns:
        The shards' numbers, as text.
    """
    from pathlib import Path

    from components.split import step
    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("split", code_version):
        numbers = step.run(images=images, shards=shards, plan_path=Path(plan.path))
        plan.metadata |= {"images": images, "shards": len(numbers)}
        return numbers
