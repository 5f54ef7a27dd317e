"""What Kubeflow shows for `ingest`: source and size of the data."""

from __future__ import annotations

from pathlib import Path

from yolact_ops.commands.task import Artifact
from yolact_ops.lineage.redaction import shown_source
from yolact_ops.settings.params import DataParams
from yolact_ops.sources.raw import REFERENCE


def describe(raw: Artifact, params: DataParams, fingerprint: str) -> None:
    """Write source, fingerprint, number of files and bytes into the metadata of ``raw``; a reference has no size."""
    raw.metadata |= {"source": shown_source(params.data.source), "fingerprint": fingerprint}
    if (Path(raw.path) / REFERENCE).is_file():
        raw.metadata["by_reference"] = True
        return
    files = [path for path in Path(raw.path).rglob("*") if path.is_file()]
    raw.metadata |= {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
