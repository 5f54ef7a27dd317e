"""The pipeline `batch_prediction`: a registered model over a folder in S3, in parallel shards."""

from collections.abc import Mapping

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.fetch.component import fetch
from components.merge.component import merge
from components.predict.component import predict
from components.split.component import split
from pipelines.config import ClusterConfig
from pipelines.placement import configure_task


def build(cluster: ClusterConfig, versions: Mapping[str, str]) -> BaseComponent:
    """The pipeline for a cluster.

    Args:
        cluster: resources, secrets and other settings of the tasks.
        versions: code version by step (`yolact_ops.lineage.code`), a constant argument of each task.
    """

    @dsl.pipeline(name="batch-prediction", description="YOLACT: a registered model over a folder in S3.")
    def batch_prediction(
        model: str,
        images: str,
        destination: str = "",
        shards: int = 4,
        batch_size: int = 8,
        device: str = "auto",
    ) -> None:
        """Detect the objects in all images of a folder in S3, with the model's own detection settings.

        Args:
            model: models:/NAME@ALIAS or models:/NAME/VERSION.
            images: s3://bucket/folder.
            destination: s3://bucket/folder to upload the results to; empty for none.
            shards: number of tasks that predict in parallel.
            batch_size: images per forward pass.
            device: auto, cpu, cuda, or mps.
        """
        fetched = configure_task(fetch(registered=model, code_version=versions["fetch"]), cluster)
        planned = configure_task(split(images=images, shards=shards, code_version=versions["split"]), cluster)
        with dsl.ParallelFor(planned.outputs["Output"], parallelism=cluster.parallel.predict) as shard:
            found = configure_task(
                predict(
                    shard=shard,
                    code_version=versions["predict"],
                    model=fetched.outputs["model"],
                    plan=planned.outputs["plan"],
                    device=device,
                    batch_size=batch_size,
                ),
                cluster,
            )
        configure_task(
            merge(
                code_version=versions["merge"],
                model=fetched.outputs["model"],
                plan=planned.outputs["plan"],
                results=dsl.Collected(found.outputs["result"]),
                destination=destination,
            ),
            cluster,
        )

    return batch_prediction
