"""The pipeline `evaluation`: a registered model on a revision of the data."""

from collections.abc import Mapping

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.fetch.component import fetch
from pipelines.config import ClusterConfig
from pipelines.data import prepare_data
from pipelines.placement import configure_task


def build(cluster: ClusterConfig, versions: Mapping[str, str]) -> BaseComponent:
    """The pipeline for a cluster.

    Args:
        cluster: resources, secrets and other settings of the tasks.
        versions: code version by step (`yolact_ops.lineage.code`), a constant argument of each task.
    """

    @dsl.pipeline(name="evaluation", description="YOLACT: a registered model on a revision of the data.")
    def evaluation(
        params: str,
        model: str,
        data_repository: str = "",
        data_path: str = "",
        data_revision: str = "",
    ) -> None:
        """Evaluate a registered model with its own detection settings, in a separate MLflow run.

        Args:
            params: the whole of params.yaml, as YAML or JSON.
            model: models:/NAME@ALIAS or models:/NAME/VERSION.
            data_repository: git repository that tracks the data, by DVC or git; empty uses data.source.
            data_path: path of the data in that repository.
            data_revision: commit, tag or branch of that repository.
        """
        data = prepare_data(cluster, versions, params, data_repository, data_path, data_revision)
        fetched = fetch(registered=model, code_version=versions["fetch"], params=data.params)
        configure_task(fetched.after(data.last_task), cluster)  # an alias is resolved once the data is there
        configure_task(
            evaluate(
                params=fetched.outputs["params"],
                code_version=versions["evaluate"],
                eval_data=data.eval_data,
                model=fetched.outputs["model"],
            ),
            cluster,
        )

    return evaluation
