"""Move shards to S3, from where `yolact_ops.transfer.shard_reader` reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from yolact.data.arrow_file import Facts
from yolact_ops.transfer.storage import THREADS, S3Address, download_error, is_disk_error, make_client

log = logging.getLogger(__name__)

DIGITS = 16
"""Digits of the digest that name a folder of shards."""


def shards_address(prefix: str, facts: Facts) -> S3Address:
    """Where a split's shards are below ``runtime.shards``: in a folder of their own.

    Other images, or other shards of the same images, have another folder. So shards are never overwritten: a training
    that runs keeps those that it began with.
    """
    address = S3Address.parse(prefix)
    return S3Address(address.bucket, f"{address.key}/{facts.shards_digest[:DIGITS]}".removeprefix("/"))


def move_shards(shards: Sequence[Path], prefix: str, facts: Facts) -> None:
    """Upload a split's shards to `shards_address`, and remove them here once all of them are there.

    Each appears on the server whole or not at all; those that an earlier call has uploaded stay as they are.

    Args:
        shards: their files.
        prefix: ``runtime.shards``, an address on S3.
        facts: what the split's index says.

    Raises:
        DataError: the address is invalid.
        DownloadError: the server cannot be reached, or refuses.
    """
    address, client = shards_address(prefix, facts), make_client()
    try:
        there = _sizes(client, address)
        missing = [path for path in shards if there.get(path.name) != path.stat().st_size]
        log.info("%s: uploading %d of %d shards", address, len(missing), len(shards))
        _upload(client, address, missing)
    except (ClientError, BotoCoreError, Boto3Error, HTTPError, OSError) as error:
        if is_disk_error(error):
            raise
        raise download_error(error, address, client) from None
    for path in shards:
        path.unlink()


def _sizes(client: Any, address: S3Address) -> dict[str, int]:
    """Size of each object in a folder, by its name."""
    folder = f"{address.key}/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=address.bucket, Prefix=folder)
    return {entry["Key"].removeprefix(folder): entry["Size"] for page in pages for entry in page.get("Contents", [])}


def _upload(client: Any, address: S3Address, paths: Sequence[Path]) -> None:
    """Upload files in parallel; the first failure stops it."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="upload")
    config = TransferConfig(use_threads=False)  # the pool's are enough
    try:
        tasks = [
            pool.submit(client.upload_file, str(path), address.bucket, f"{address.key}/{path.name}", Config=config)
            for path in paths
        ]
        for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
            task.result()
    finally:
        pool.shutdown(cancel_futures=True)
