"""The pipeline `training`: the five steps, and the gate."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.promote.component import promote
from components.register.component import register
from components.train.component import train
from pipelines.config import ClusterConfig
from pipelines.data import prepare_data
from pipelines.placement import configure_task, mount_checkpoints


def build(cluster: ClusterConfig) -> BaseComponent:
    """The pipeline for a cluster."""
    volume = cluster.checkpoints.mount if cluster.checkpoints.claim else ""

    @dsl.pipeline(
        name="training",
        description="YOLACT: from images to a registered model, and to the champion if the gate lets it.",
    )
    def training(
        params: str,
        code_version: str,
        data_repository: str = "",
        data_path: str = "",
        data_revision: str = "",
        checkpoints: str = volume,
        resume_run: str = "",
    ) -> None:
        """From images to a registered model.

        Args:
            params: the whole of params.yaml, as YAML or JSON.
            code_version: version of the code; another one runs cached tasks again.
            data_repository: git repository of the data, tracked there by DVC; empty takes data.source.
            data_path: path in it.
            data_revision: commit, tag or branch of it.
            checkpoints: where checkpoints lie in the task's container.
            resume_run: id of an earlier run of this pipeline whose training to go on with.
        """
        data = prepare_data(cluster, params, code_version, data_repository, data_path, data_revision)
        trained = train(
            params=data.params,
            code_version=code_version,
            processed=data.processed,
            checkpoints=checkpoints,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            resume_run=resume_run,
        )
        mount_checkpoints(configure_task(trained, cluster), cluster)
        model = trained.outputs["model"]
        evaluated = configure_task(
            evaluate(params=data.params, code_version=code_version, processed=data.processed, model=model), cluster
        )
        registered = configure_task(
            register(
                params=data.params,
                code_version=code_version,
                processed=data.processed,
                model=model,
                evaluation=evaluated.outputs["evaluation"],
            ),
            cluster,
        )
        configure_task(
            promote(
                params=data.params,
                code_version=code_version,
                processed=data.processed,
                registration=registered.outputs["registration"],
            ),
            cluster,
        )

    return training
