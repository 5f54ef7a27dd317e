"""The newest runs with what became of them: MLflow run, registered version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines.servers.client import Cluster
from pipelines.servers.connection import ClusterError
from pipelines.servers.kube import Kubernetes
from pipelines.servers.orphans import find_orphans, is_same_cluster
from pipelines.status.display import age, describe, printable
from pipelines.status.logs import own_lines
from pipelines.status.reader import RunReader
from pipelines.status.runs import RunStatus, State, TaskStatus

MLFLOW_RUN = re.compile(r"MLflow run (\S+) \((\w+)\)")
"""In a line that `train` prints when it starts: name and id."""

VERSION = re.compile(r"(\S+) version (\d+)")
"""In a line that `register` prints: model and number."""


@dataclass(frozen=True)
class Listed:
    """A run of the list."""

    run: RunStatus
    mlflow_run: str
    """Name of the training's MLflow run; empty if there is none, or if its log is gone."""
    mlflow_run_id: str
    version: str
    """Registered model and version, as ``yolact 3``; empty as `mlflow_run`."""

    @property
    def now(self) -> str:
        """What the run does, or why it failed, in words."""
        task = next((one for one in self.run.tasks if one.state in (State.FAILED, State.RUNNING, State.WAITING)), None)
        if self.run.start_cause:
            return self.run.start_cause.text
        return f"{task.name} {describe(task)}" if task and self.run.state is not State.STOPPED else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.run.to_json(),
            "mlflow_run": self.mlflow_run or None,
            "mlflow_run_id": self.mlflow_run_id or None,
            "version": self.version or None,
        }


def list_runs(reader: RunReader, count: int) -> list[Listed]:
    """The newest runs, the newest first.

    Raises:
        ClusterError: the server does not answer or refuses.
    """
    found = []
    for run in reader.cluster.runs(count):
        try:
            found.append(_list(reader, reader.read(run.run_id)))
        except ClusterError as error:
            if error.status != 404:  # deleted meanwhile
                raise
    return found


def make_table(found: Sequence[Listed]) -> Table:
    """The runs as a table."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("run", "id", "state", "age", "MLflow run", "version", "now"):
        table.add_column(heading, no_wrap=heading != "now")
    for one in found:
        cells = (
            one.run.name,
            one.run.run_id,
            one.run.state,
            age(one.run.created),
            one.mlflow_run,
            one.version,
            one.now,
        )
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def warn_of_orphans(cluster: Cluster) -> Iterator[str]:
    """Lines about workflows and schedules that Kubeflow Pipelines does not know.

    None if this machine has no rights to look, or access to another cluster, for all one can see.
    """
    try:
        kubernetes = Kubernetes(cluster.pod_namespace)
        if not is_same_cluster(cluster, kubernetes):
            return
        for one in find_orphans(cluster, kubernetes):
            yield f"{one}, at {kubernetes.host}: Kubeflow Pipelines does not know it. Remove it: {one.removal}"
    except ClusterError:
        return


def _list(reader: RunReader, run: RunStatus) -> Listed:
    trained = _search(reader, run, "train", MLFLOW_RUN)
    registered = _search(reader, run, "register", VERSION)
    return Listed(
        run=run,
        mlflow_run=trained[1] if trained else "",
        mlflow_run_id=trained[2] if trained else "",
        version=f"{registered[1]} {registered[2]}" if registered else "",
    )


def _search(reader: RunReader, run: RunStatus, step: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """The first match in the log of a step's last attempt."""
    for task in run.tasks:
        if task.step == step and _has_begun(task):
            try:
                lines = own_lines(reader.logs.read(run.run_id, task.attempts[-1]))
            except ClusterError:
                return None
            return next(filter(None, (pattern.search(line) for line in lines)), None)
    return None


def _has_begun(task: TaskStatus) -> bool:
    return bool(task.attempts) and task.started is not None
