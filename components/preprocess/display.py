"""What Kubeflow shows for `preprocess`: digest, classes, images and instances by split."""

from __future__ import annotations

import json
from pathlib import Path

from yolact_ops.commands.task import Artifact


def describe(processed: Artifact) -> None:
    """Write the summary of ``stats.json`` into the metadata of ``processed``."""
    stats = json.loads((Path(processed.path) / "stats.json").read_text(encoding="utf-8"))
    processed.metadata |= {
        "digest": stats["digest"],
        "format": stats["format"],
        "classes": len(stats["classes"]),
        **{
            f"{split}_{what}": found[what]
            for split, found in stats["splits"].items()
            for what in ("images", "instances")
        },
    }
