"""The step `split` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Artifact, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def split(images: str, shards: int, code_version: str, plan: Output[Artifact]) -> list[str]:
    """List the images of a folder in S3 and divide them into shards.

    Args:
        images: s3://bucket/folder.
        shards: number of shards; fewer if there are fewer images.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        plan: keys, sizes, ETags and ids of the images, by shard.

    Returns:
        The shard numbers, as text.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("split", code_version):
        from components.split import step

        numbers = step.run(images=images, shards=shards, plan_path=Path(plan.path))
        plan.metadata |= {"images": images, "shards": len(numbers)}
        return numbers
