"""The part that pipelines share: the data, named, brought and prepared."""

from __future__ import annotations

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
    """What later tasks take."""

    params: PipelineChannel
    """All settings, with the data's revision pinned."""
    processed: PipelineChannel
    """COCO instances."""
    last_task: PipelineTask


def prepare_data(
    cluster: ClusterConfig,
    params: PipelineChannel,
    code_version: PipelineChannel,
    repository: PipelineChannel,
    path: PipelineChannel,
    revision: PipelineChannel,
) -> PreparedData:
    """Add the tasks `source`, `ingest` and `preprocess` to the pipeline that is being built."""
    named = configure_task(
        source(
            params=params,
            code_version=code_version,
            data_repository=repository,
            data_path=path,
            data_revision=revision,
        ),
        cluster,
    )
    settings, fingerprint = named.outputs["data_params"], named.outputs["fingerprint"]
    brought = configure_task(ingest(data_params=settings, fingerprint=fingerprint, code_version=code_version), cluster)
    prepared = configure_task(
        preprocess(data_params=settings, code_version=code_version, raw=brought.outputs["raw"]), cluster
    )
    return PreparedData(named.outputs["params"], prepared.outputs["processed"], prepared)
