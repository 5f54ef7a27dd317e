"""The split step: list the images of an S3 folder and divide them into shards for parallel prediction."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from yolact.errors import DataError, SettingsError
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact_ops.batch_prediction.plan import ListedImage, Plan
from yolact_ops.transfer.storage import S3Address, list_objects, make_client

log = logging.getLogger(__name__)


def run(*, images: str, shards: int, plan_path: Path) -> list[str]:
    """List the images below an address and divide them into shards of consecutive keys.

    Args:
        images: ``s3://bucket/folder``.
        shards: number of shards, at least 1; fewer if there are fewer images.
        plan_path: gets the images' keys, sizes, ETags and ids, by shard.

    Returns:
        The shard numbers as text: kfp's local runner changes integers in a list.

    Raises:
        SettingsError: ``shards`` is below 1, or the address is not an S3 address.
        DataError: the folder cannot be read or has no image.
    """
    if shards < 1:
        raise SettingsError(f"shards: must be at least 1 (found {shards})")
    if not images.startswith("s3://"):
        raise SettingsError(f"images: must be s3://BUCKET/FOLDER (found {images!r})")
    address = S3Address.parse(images)
    objects = [item for item in list_objects(make_client(), address) if item.path.suffix.lower() in IMAGE_SUFFIXES]
    if not objects:
        raise DataError(f"{address}: has files, but none ends in {', '.join(IMAGE_SUFFIXES)}")
    listed = [ListedImage(number, item) for number, item in enumerate(sorted(objects, key=lambda item: item.key), 1)]
    count = min(shards, len(listed))
    bounds = [len(listed) * number // count for number in range(count + 1)]
    Plan(address, [listed[a:b] for a, b in itertools.pairwise(bounds)]).write(plan_path)
    log.info("%s: %d images in %d shards", address, len(listed), count)
    return [str(number) for number in range(count)]
