"""The step `split` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Artifact, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def split(photos: str, shards: int, code_version: str, plan: Output[Artifact]) -> list[str]:
    """List the photos of a folder in S3 and deal them out in shards.

    Args:
        photos: s3://bucket/folder.
        shards: how many; fewer where there are fewer photos.
        code_version: version of the code; another one is another task for the caches.
        plan: the photos' keys, sizes, ETags and ids, by shard.

    Returns:
        The shards' numbers, as text.
    """
    from pathlib import Path

    from components.split import step
    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("split", code_version):
        numbers = step.run(photos=photos, shards=shards, plan_path=Path(plan.path))
        plan.metadata |= {"photos": photos, "shards": len(numbers)}
        return numbers
