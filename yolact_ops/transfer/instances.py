"""Open processed data: the images as files or shards next to the annotations, or shards on S3."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from yolact.data.arrow_file import Facts
from yolact.data.coco import CocoInstances
from yolact.data.shards import ShardReader
from yolact.settings import RuntimeConfig


def load_instances(annotations: Path, runtime: RuntimeConfig) -> CocoInstances:
    """The images and objects of a split, read from where ``runtime.shards`` says.

    Args:
        annotations: the instances file, in the folder that preprocess wrote.
        runtime: the section ``runtime``.

    Raises:
        DataError: see `CocoInstances.load`.
    """
    if runtime.shards == "local":
        return CocoInstances.load(annotations)

    def on_s3(facts: Facts) -> ShardReader:
        from yolact_ops.transfer.shard_reader import S3Shards  # boto3 takes a while to import
        from yolact_ops.transfer.shard_upload import shards_address

        address = str(shards_address(runtime.shards, facts))
        cache = Path(tempfile.gettempdir()) / f"yolact-shards-{hashlib.sha256(address.encode()).hexdigest()[:16]}"
        return S3Shards(address, cache, round(runtime.shard_cache_gb * 1e9))

    return CocoInstances.load(annotations, shards=on_s3)
