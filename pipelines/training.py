"""The pipeline `training`: the five steps, and the gate."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.preprocess.component import preprocess
from components.promote.component import promote
from components.register.component import register
from components.source.component import source
from components.train.component import train
from pipelines.config import ClusterConfig
from pipelines.placement import mount_checkpoints, place


def build(cluster: ClusterConfig) -> BaseComponent:
    """The pipeline for a cluster."""
    volume = cluster.checkpoints.mount if cluster.checkpoints.claim else ""

    @dsl.pipeline(
        name="training",
        description="YOLACT: from photos to a registered model, and to the champion if the gate lets it.",
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
        """From photos to a registered model.

        Args:
            params: the whole of params.yaml, as YAML or JSON.
            code_version: version of the code; another one runs cached tasks again.
            data_repository: git repository of the data, tracked there by DVC; empty takes data.source.
            data_path: path in it.
            data_revision: commit, tag or branch of it.
            checkpoints: where checkpoints lie in the task's container.
            resume_run: id of an earlier run of this pipeline whose training to go on with.
        """
        named = place(
            source(
                params=params,
                code_version=code_version,
                data_repository=data_repository,
                data_path=data_path,
                data_revision=data_revision,
            ),
            cluster,
        )
        settings, data_settings = named.outputs["params"], named.outputs["data_params"]
        brought = place(
            ingest(data_params=data_settings, fingerprint=named.outputs["fingerprint"], code_version=code_version),
            cluster,
        )
        prepared = place(
            preprocess(data_params=data_settings, code_version=code_version, raw=brought.outputs["raw"]), cluster
        )
        data = prepared.outputs["processed"]
        trained = train(
            params=settings,
            code_version=code_version,
            processed=data,
            checkpoints=checkpoints,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            resume_run=resume_run,
        )
        mount_checkpoints(place(trained, cluster), cluster)
        model = trained.outputs["model"]
        evaluated = place(evaluate(params=settings, code_version=code_version, processed=data, model=model), cluster)
        registered = place(
            register(
                params=settings,
                code_version=code_version,
                processed=data,
                model=model,
                evaluation=evaluated.outputs["evaluation"],
            ),
            cluster,
        )
        place(
            promote(
                params=settings,
                code_version=code_version,
                processed=data,
                registration=registered.outputs["registration"],
            ),
            cluster,
        )

    return training
