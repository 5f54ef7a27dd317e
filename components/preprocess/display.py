"""What Kubeflow gets of `preprocess`: the processed data in two artifacts; digest, classes, images and instances."""

from __future__ import annotations

import json
import os
from pathlib import Path

from yolact.data.processed import EVAL, TRAIN
from yolact_ops.commands.task import Artifact


def hand_over(processed: Path, train_data: Artifact, eval_data: Artifact) -> None:
    """Move what the step wrote into the artifacts, with the summary of ``stats.json`` in their metadata."""
    stats = json.loads((processed / EVAL / "stats.json").read_text(encoding="utf-8"))
    summary = {
        "digest": stats["digest"],
        "format": stats["format"],
        "classes": len(stats["classes"]),
        **{
            f"{split}_{what}": found[what]
            for split, found in stats["splits"].items()
            for what in ("images", "instances")
        },
    }
    for name, artifact in ((TRAIN, train_data), (EVAL, eval_data)):
        os.replace(processed / name, artifact.path)
        artifact.metadata |= summary
    processed.rmdir()
