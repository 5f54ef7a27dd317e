"""The process on each node of a TrainJob: trains together with those of the other nodes.

The task that created the TrainJob (`components.train.trainjob`) puts data and settings on a volume that all nodes
mount; rank 0 writes the results there. The file with the settings is the command line's argument: ``python -m
components.train.node FILE``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolact_ops.commands import task as kubeflow


@dataclass(frozen=True)
class Work:
    """What the nodes do, as the file on the volume says."""

    code_version: str
    params: dict[str, Any]
    """All settings."""
    paths: dict[str, str]
    """The paths that `components.train.step.run` takes, by the argument's name."""

    def to_json(self) -> str:
        """As JSON, see `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def run(work: Work) -> None:
    """Train as one of the nodes, see `components.train.step.run`."""
    with kubeflow.task("train", work.code_version, needs_mlflow=True):
        from components.train import step

        params = kubeflow.settings(json.dumps(work.params))
        step.run(params, **{name: Path(path) for name, path in work.paths.items()})


if __name__ == "__main__":
    run(Work.from_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
