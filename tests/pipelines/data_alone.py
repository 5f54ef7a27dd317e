"""The tasks that the pipelines training and evaluation start with, as a pipeline of their own."""

from collections.abc import Mapping

from kfp import dsl
from kfp.components import load_component_from_text
from kfp.dsl.base_component import BaseComponent

from pipelines.compiler import compiled_text
from pipelines.config import ClusterConfig
from pipelines.data import prepare_data


def build(cluster: ClusterConfig, versions: Mapping[str, str]) -> BaseComponent:
    """The pipeline for a cluster, compiled to YAML and loaded again."""

    @dsl.pipeline(name="data")
    def data(params: str, data_repository: str = "", data_path: str = "", data_revision: str = "") -> None:
        prepare_data(cluster, versions, params, data_repository, data_path, data_revision)

    return load_component_from_text(compiled_text(data))
