"""Open processed data: the images as files or shards next to the annotations, or shards on S3."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from yolact.data.coco import CocoInstances
from yolact.settings import RuntimeConfig
from yolact_ops.lineage.statistics import read_data_digest


def load_instances(annotations: Path, runtime: RuntimeConfig) -> CocoInstances:
    """The images and objects of a split, read from where ``runtime.shards`` says.

    Args:
        annotations: the instances file, in the folder that preprocess wrote.
        runtime: the section ``runtime``.

    Raises:
        DataError: see `CocoInstances.load`; or ``stats.json`` is missing.
    """
    if runtime.shards == "local":
        return CocoInstances.load(annotations)
    from yolact_ops.transfer.shard_reader import S3Shards  # boto3 takes a while to import

    content = f"{runtime.shards} {read_data_digest(annotations.parent)}"
    cache = Path(tempfile.gettempdir()) / f"yolact-shards-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    limit = round(runtime.shard_cache_gb * 1e9)
    return CocoInstances.load(annotations, shards=S3Shards(runtime.shards, cache, limit))
