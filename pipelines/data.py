"""The tasks that several pipelines start with: pin, fetch and prepare the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from components.ingest.component import ingest
from components.preprocess.component import preprocess
from components.scan.component import scan
from components.source.component import source
from pipelines.config import ClusterConfig
from pipelines.placement import configure_task


@dataclass(frozen=True)
class PreparedData:
    """Outputs for later tasks."""

    params: PipelineChannel
    """All settings, with the data's revision pinned."""
    train_data: PipelineChannel
    """COCO instances of the split ``train``."""
    eval_data: PipelineChannel
    """Those of the other splits, and the statistics of all."""
    last_task: PipelineTask


def prepare_data(
    cluster: ClusterConfig,
    versions: Mapping[str, str],
    params: PipelineChannel,
    repository: PipelineChannel,
    path: PipelineChannel,
    revision: PipelineChannel,
) -> PreparedData:
    """Add the tasks `source`, `ingest`, `scan` (with ``scan_parts``) and `preprocess` to the pipeline that is built."""
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
        ingest(
            data_params=settings,
            fingerprint=fingerprint,
            code_version=versions["ingest"],
            by_reference=cluster.raw_by_reference,
        ),
        cluster,
    )
    raw, parts = fetched.outputs["raw"], cluster.scan_parts
    if parts > 1:
        with dsl.ParallelFor([str(part) for part in range(parts)], parallelism=cluster.parallel.scan) as part:
            scanned = configure_task(
                scan(data_params=settings, part=part, parts=parts, code_version=versions["scan"], raw=raw), cluster
            )
        images = {"scans": dsl.Collected(scanned.outputs["result"])}
    else:
        images = {"raw": raw}
    prepared = configure_task(
        preprocess(
            data_params=settings,
            code_version=versions["preprocess"],
            shards=pinned.outputs["shards"],
            **images,
        ),
        cluster,
    )
    train_data, eval_data = (prepared.outputs[name] for name in ("train_data", "eval_data"))
    return PreparedData(pinned.outputs["params"], train_data, eval_data, prepared)
