"""What Kubeflow shows of `register`: the facts of the registered version."""

from __future__ import annotations

import json
from pathlib import Path

from yolact.files import write_text_atomic
from yolact_ops.commands.task import Artifact, markdown_table
from yolact_ops.reports.formatting import flatten


def describe(registration: Artifact, summary: Artifact) -> None:
    """Write ``registration.json`` into the artifact's metadata and into ``summary``, a table with dotted names."""
    facts = flatten(json.loads(Path(registration.path).read_text(encoding="utf-8")))
    registration.metadata |= {name: value for name, value in facts.items() if value is not None}
    rows = [(name, "-" if value is None else str(value)) for name, value in facts.items()]
    write_text_atomic(summary.path, f"# Registered model\n\n{markdown_table(('', ''), rows)}")
