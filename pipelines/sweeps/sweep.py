"""A sweep and its files, the same on this machine and on a cluster, and what is passed to its processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock

from yolact.errors import DataError, YolactError
from yolact_ops.lineage.code import installed_version

METRICS = tuple(
    f"{kind}_{name}"
    for kind in ("mask", "box")
    for name in ("AP", "AP50", "AP75", "AP70", "AP_small", "AP_medium", "AP_large", "AR_100")
)
"""Metrics of evaluate that a sweep can make as large as possible."""

TRIAL_VARIABLE, BEST_VARIABLE = "YOLACT_TRIAL", "YOLACT_BEST"
"""Environment variables with a `Trial` or a `Best` as JSON. Katib can put values into a variable, but joins arguments
to a line for a shell."""
TRIAL_MODULE, BEST_MODULE = "pipelines.sweeps.trial", "pipelines.sweeps.best"
"""What a process of a trial, and the one that ends a sweep on a cluster, run."""


class SweepError(YolactError):
    """No trial of a sweep has a result, or the best one could not be registered."""


@dataclass(frozen=True)
class Sweep:
    """A sweep, as its trials get it."""

    name: str
    params: str
    """The settings of all trials, as `yolact_ops.commands.task.as_text`."""
    space: Mapping[str, str]
    """By key what is tried, as ``loguniform(0.0001, 0.01)``."""
    metric: str
    """One of `METRICS`."""
    processed: str
    """Folder of processed data; empty: made once from ``data.source``, in the sweep's folder."""
    versions: Mapping[str, str]
    """Code version by step (`yolact_ops.lineage.code`), which the container image must have; empty on this machine."""

    def version(self, step: str) -> str:
        """Code version of a step: on this machine that of the checkout as it is, which may be edited during a sweep."""
        return self.versions.get(step) or installed_version(step)

    @property
    def definition(self) -> dict[str, object]:
        """What may not change when a stopped sweep goes on."""
        return {name: value for name, value in asdict(self).items() if name != "versions"}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the definition."""
        return hashlib.sha256(json.dumps(self.definition, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep keeps its files."""

    path: Path

    @property
    def run_file(self) -> Path:
        """Record of the MLflow run that the trials' runs are nested under."""
        return self.path / "run.json"

    @property
    def params_file(self) -> Path:
        """The settings of all trials with the data's revision pinned."""
        return self.path / "params.json"

    def trial(self, name: str) -> TrialFolder:
        """The folder of a trial."""
        return TrialFolder(self.path / "trials" / name)

    def lock(self) -> FileLock:
        """For what the first trial does for all."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / "sweep.lock")


@dataclass(frozen=True)
class TrialFolder:
    """Where a trial keeps its files."""

    path: Path

    @property
    def params_file(self) -> Path:
        """Its settings."""
        return self.path / "params.json"

    @property
    def run_file(self) -> Path:
        """Record of its MLflow run."""
        return self.path / "run.json"

    @property
    def model(self) -> Path:
        """What train writes."""
        return self.path / "model"

    @property
    def metrics_file(self) -> Path:
        """What evaluate writes."""
        return self.path / "eval.json"

    @property
    def log(self) -> Path:
        """Output of its process, on this machine."""
        return self.path / "log.txt"

    def value(self, metric: str) -> float:
        """The metric, 0 to 1.

        Raises:
            DataError: it could not be measured.
        """
        kind, _, name = metric.partition("_")
        value = json.loads(self.metrics_file.read_text(encoding="utf-8"))[kind][name]
        if value is None:
            raise DataError(
                f"{metric}: could not be measured, as the evaluated images have no such object; use another --metric"
            )
        return float(value)


@dataclass(frozen=True)
class Plan:
    """How a sweep runs."""

    trials: int
    """Number of trials, failed ones included."""
    parallel: int
    """Trials at a time."""
    seed: int
    registers: bool
    """Whether the best model is registered and goes through the gate."""


@dataclass(frozen=True)
class _Message:
    """What a process gets about a trial, through an environment variable."""

    sweep: Sweep
    folder: str
    """The sweep's folder."""
    name: str
    """The trial's name, unique in the sweep."""

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` gave."""
        tree = json.loads(text)
        return cls(**tree | {"sweep": Sweep(**tree["sweep"])})


@dataclass(frozen=True)
class Trial(_Message):
    """One trial, as its process gets it."""

    overrides: Sequence[str]
    """``KEY=VALUE`` for each key of the space."""
    ends_with_parent: bool
    """Stop, as after SIGTERM, when standard input ends: the process that started this one is gone."""


@dataclass(frozen=True)
class Best(_Message):
    """The best trial of a sweep that has ended."""

    assignments: Mapping[str, str]
    """Its values by key."""
    registers: bool
    """Whether its model is registered and goes through the gate."""
