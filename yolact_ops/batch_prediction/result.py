"""The result of one shard of a batch prediction. Written by predict, read by merge."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact.errors import DataError
from yolact.files import write_json_atomic


@dataclass
class ShardResult:
    """What was found in the images of a shard."""

    images: list[dict[str, Any]] = field(default_factory=list)
    """``id``, ``file_name`` (below the folder), ``width`` and ``height`` (pixels, upright), as COCO has them."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Detections in the COCO results format."""
    problems: list[dict[str, Any]] = field(default_factory=list)
    """``id``, ``file_name`` and ``reason`` of images that cannot be read."""

    @classmethod
    def read(cls, path: Path) -> ShardResult:
        """Read what `write` wrote.

        Raises:
            DataError: the file is missing or is not a result.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            return cls(list(tree["images"]), list(tree["rows"]), list(tree["problems"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not what the predict step writes ({error!r}). Run it again.") from error

    def write(self, path: Path) -> None:
        """Write the result as JSON."""
        write_json_atomic(path, vars(self))
