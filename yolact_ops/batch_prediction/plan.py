"""The plan of a batch prediction: the images of an S3 folder, divided into shards.

Written by split, read by predict and merge.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from yolact.errors import DataError
from yolact.files import write_json_atomic
from yolact_ops.transfer.storage import S3Address, S3Object


@dataclass(frozen=True)
class ListedImage:
    """An image of the plan."""

    id: int
    """From 1, in the order of the keys: the image's id in the results."""
    file: S3Object


@dataclass(frozen=True)
class Plan:
    """The images of each shard and the folder that they are in."""

    address: S3Address
    shards: list[list[ListedImage]]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what `write` wrote.

        Raises:
            DataError: the file is missing or is not a plan.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            shards = [[_from_json(entry) for entry in shard] for shard in tree["shards"]]
            return cls(S3Address.parse(tree["images"]), shards)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not what the split step writes ({error!r}). Run it again.") from error

    def write(self, path: Path) -> None:
        """Write the plan as JSON."""
        shards = [[_to_json(image) for image in shard] for shard in self.shards]
        write_json_atomic(path, {"images": str(self.address), "shards": shards})


def _to_json(image: ListedImage) -> dict[str, Any]:
    file = image.file
    return {"id": image.id, "key": file.key, "path": str(file.path), "size": file.size, "etag": file.etag}


def _from_json(entry: dict[str, Any]) -> ListedImage:
    file = S3Object(entry["key"], PurePosixPath(entry["path"]), int(entry["size"]), entry["etag"])
    return ListedImage(int(entry["id"]), file)
