"""The tasks that several pipelines start with: pin, fetch and prepare the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from components.ingest.component import ingest
from components.preprocess.component import preprocess
from components.source.component import source
from pipelines.config import ClusterConfig
from pipelines.placement import configure_task


@dataclass(frozen=True)
class PreparedData:
    """Outputs for later tasks."""

    params: PipelineChannel
    """All settings, with the data's revision pinned."""
    processed: PipelineChannel
    """COCO instances."""
    last_task: PipelineTask


def prepare_data(
    cluster: ClusterConfig,
    versions: Mapping[str, str],
    params: PipelineChannel,
    repository: PipelineChannel,
    path: PipelineChannel,
    revision: PipelineChannel,
) -> PreparedData:
    """Add the tasks `source`, `ingest` and `preprocess` to the pipeline that is being built."""
    pinned = configure_task(
        source(
            params=params,
            code_version=versions["source"],
            data_repository=repository,
            data_path=path,
            data_revision=revision,
        ),
        cluster,
    )
    settings, fingerprint = pinned.outputs["data_params"], pinned.outputs["fingerprint"]
    fetched = configure_task(
        ingest(data_params=settings, fingerprint=fingerprint, code_version=versions["ingest"]), cluster
    )
    prepared = configure_task(
        preprocess(data_params=settings, code_version=versions["preprocess"], raw=fetched.outputs["raw"]), cluster
    )
    return PreparedData(pinned.outputs["params"], prepared.outputs["processed"], prepared)
