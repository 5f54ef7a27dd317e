"""The compiled pipelines that git keeps, to see in a diff what a change does to them: ``golden/NAME.yaml``.

``python -m tests.pipelines.write_golden`` writes them again. Their code versions are made up, so that they change only
with the pipelines, their components and ``cluster.yaml``.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.compiler import PIPELINES, pipeline_text
from pipelines.config import load_cluster
from yolact_ops.lineage.code import find_steps

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = {step: f"version-of-{step}" for step in find_steps()}


def main() -> None:
    for name in PIPELINES:
        (GOLDEN / f"{name}.yaml").write_text(pipeline_text(name, load_cluster(), VERSIONS), encoding="utf-8")


if __name__ == "__main__":
    main()
