"""The pipeline `training`: from the data to a registered model, and the promotion gate."""

from collections.abc import Mapping

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.promote.component import promote
from components.register.component import register
from components.train.component import train
from pipelines.config import ClusterConfig
from pipelines.data import prepare_data
from pipelines.nodes import describe_nodes
from pipelines.placement import configure_task, mount_checkpoints


def build(cluster: ClusterConfig, versions: Mapping[str, str]) -> BaseComponent:
    """The pipeline for a cluster.

    Args:
        cluster: resources, secrets and other settings of the tasks.
        versions: code version by step (`yolact_ops.lineage.code`), a constant argument of each task.
    """
    volume = cluster.checkpoints.mount if cluster.checkpoints.claim else ""
    several = describe_nodes(cluster)
    nodes = {"nodes": several} if several else {}

    @dsl.pipeline(
        name="training",
        description="YOLACT: from images to a registered model, and to the champion if the gate allows it.",
    )
    def training(
        params: str,
        data_repository: str = "",
        data_path: str = "",
        data_revision: str = "",
        checkpoints: str = volume,
        resume_pipeline_run: str = "",
    ) -> None:
        """From images to a registered model.

        Args:
            params: the whole of params.yaml, as YAML or JSON.
            data_repository: git repository that tracks the data, by DVC or git; empty uses data.source.
            data_path: path of the data in that repository.
            data_revision: commit, tag or branch of that repository.
            checkpoints: where the volume for checkpoints is mounted in the task's container.
            resume_pipeline_run: id of an earlier run of this pipeline whose training to resume; empty for none.
        """
        data = prepare_data(cluster, versions, params, data_repository, data_path, data_revision)
        trained = train(
            params=data.params,
            code_version=versions["train"],
            train_data=data.train_data,
            eval_data=data.eval_data,
            checkpoints=checkpoints,
            pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            resume_pipeline_run=resume_pipeline_run,
            **nodes,
        )
        mount_checkpoints(configure_task(trained, cluster), cluster)
        model = trained.outputs["model"]
        evaluated = configure_task(
            evaluate(params=data.params, code_version=versions["evaluate"], eval_data=data.eval_data, model=model),
            cluster,
        )
        registered = configure_task(
            register(
                params=data.params,
                code_version=versions["register"],
                eval_data=data.eval_data,
                model=model,
                evaluation=evaluated.outputs["evaluation"],
            ),
            cluster,
        )
        configure_task(
            promote(
                params=data.params,
                code_version=versions["promote"],
                eval_data=data.eval_data,
                registration=registered.outputs["registration"],
            ),
            cluster,
        )

    return training
