"""The step `split`: which images a folder in S3 has, dealt out in shards that are predicted side by side."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from yolact.errors import DataError, SettingsError
from yolact.files import write_json_atomic
from yolact_ops.transfer.storage import S3Address, S3Object, list_objects, make_client

log = logging.getLogger(__name__)

PHOTOS = (".jpg", ".jpeg", ".png")
"""Endings of images' names; other files are passed over."""


@dataclass(frozen=True)
class ListedImage:
    """A image of the plan."""

    id: int
    """From 1, in the order of the keys: the image's id in the results."""
    file: S3Object


@dataclass(frozen=True)
class Plan:
    """Images by shard, and the folder that they are in."""

    address: S3Address
    shards: list[list[ListedImage]]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what `run` wrote.

        Raises:
            DataError: it is missing or something else.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            shards = [[_read_image(entry) for entry in shard] for shard in tree["shards"]]
            return cls(S3Address.parse(tree["images"]), shards)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not what the split step writes ({error!r}). Run it again.") from error


def run(*, images: str, shards: int, plan_path: Path) -> list[str]:
    """List the images below an address and deal them out in runs of neighbouring keys.

    Args:
        images: ``s3://bucket/folder``.
        shards: how many, at least 1; fewer where there are fewer images.
        plan_path: gets the images' keys, sizes, ETags and ids, by shard.

    Returns:
        The shards' numbers, as text: kfp's local runner turns whole numbers in a list into others.

    Raises:
        SettingsError: ``shards`` is below 1, or the address is not one of S3.
        DataError: the folder cannot be read, or has no image.
    """
    if shards < 1:
        raise SettingsError(f"shards: must be at least 1 (found {shards})")
    if not images.startswith("s3://"):
        raise SettingsError(f"images: must be s3://BUCKET/FOLDER (found {images!r})")
    address = S3Address.parse(images)
    objects = [item for item in list_objects(make_client(), address) if item.path.suffix.lower() in PHOTOS]
    if not objects:
        raise DataError(f"{address}: has files, but none that ends in {', '.join(PHOTOS)}")
    listed = [ListedImage(number, item) for number, item in enumerate(sorted(objects, key=lambda item: item.key), 1)]
    count = min(shards, len(listed))
    bounds = [len(listed) * number // count for number in range(count + 1)]
    dealt = [[_entry(image) for image in listed[a:b]] for a, b in itertools.pairwise(bounds)]
    write_json_atomic(plan_path, {"images": str(address), "shards": dealt})
    log.info("%s: %d images in %d shards", address, len(listed), count)
    return [str(number) for number in range(count)]


def _entry(image: ListedImage) -> dict[str, Any]:
    file = image.file
    return {"id": image.id, "key": file.key, "path": str(file.path), "size": file.size, "etag": file.etag}


def _read_image(entry: dict[str, Any]) -> ListedImage:
    file = S3Object(entry["key"], PurePosixPath(entry["path"]), int(entry["size"]), entry["etag"])
    return ListedImage(int(entry["id"]), file)
