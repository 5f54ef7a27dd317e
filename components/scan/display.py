"""What Kubeflow shows for `scan`: the part, and its numbers of images."""

from __future__ import annotations

from components.scan.step import Counts
from yolact_ops.commands.task import Artifact


def describe(result: Artifact, part: str, counts: Counts) -> None:
    """Write the part and its counts into the metadata of ``result``."""
    result.metadata |= {"part": part, **vars(counts)}
