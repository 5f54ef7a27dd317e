"""Wait for a run and report the changes of its tasks."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.client import Cluster
from pipelines.connection import BUSY, ClusterError
from pipelines.logs import Pod, last_lines, read_log
from pipelines.runs import RunStatus, TaskStatus
from yolact.errors import YolactError

INTERVAL = 10.0
"""Seconds between polls of the state."""

PATIENCE = 900.0
"""Seconds that a server may be unavailable while waiting for a run."""

LOG_LINES = 20
"""Lines of a failed task's log that are shown."""


class RunFailedError(YolactError, RuntimeError):
    """The run failed or was cancelled."""

    exit_code = 3


def wait(cluster: Cluster, run_id: str, report: Callable[[str], None]) -> RunStatus:
    """Poll a run until it ends, and report each change of a task's state.

    The server may be unavailable for `PATIENCE` seconds.

    Raises:
        ClusterError: the server refuses, or stays unavailable; the run continues.
    """
    seen: dict[str, str] = {}
    last_answer = time.monotonic()
    while True:
        try:
            run = cluster.run(run_id)
        except ClusterError as error:
            away = error.status is None or error.status in BUSY
            if not away or time.monotonic() - last_answer > PATIENCE:
                raise ClusterError(
                    f"{error} The run continues; look again with `python -m pipelines status {run_id}`.",
                    status=error.status,
                ) from error
            report("the server does not answer; trying again")
        else:
            last_answer = time.monotonic()
            for task in run.tasks:
                state = describe_state(task)
                if seen.get(task.node) != state:
                    seen[task.node] = state
                    report(f"{task.name}: {state}")
            if run.is_over:
                return run
        time.sleep(INTERVAL)


def check_success(cluster: Cluster, run: RunStatus) -> None:
    """Do nothing if the run succeeded.

    Raises:
        RunFailedError: it did not succeed; names the failed tasks, with their messages or the ends of their logs.
    """
    if run.state == "SUCCEEDED":
        return
    lines = [f"run {run.name} ({run.run_id}) ended as {run.state}{f': {run.message}' if run.message else ''}"]
    for task in run.failed_tasks:
        lines.append(f"task {task.name}: {describe_state(task)}{f': {task.message}' if task.message else ''}")
        lines += [f"  {line}" for line in _end_of_log(cluster, run, task)]
    lines.append(f"See {cluster.connection.run_address(run.run_id)}")
    raise RunFailedError("\n".join(lines))


def describe_state(task: TaskStatus) -> str:
    """A task's state in words, with its duration once it has ended."""
    if task.cached:
        return "succeeded (from the cache)"
    duration = f" after {_duration(task)}" if task.started and task.finished and task.state != "SKIPPED" else ""
    attempts = f" (attempt {len(task.pods)})" if len(task.pods) > 1 else ""
    return f"{task.state.lower()}{duration}{attempts}"


def _duration(task: TaskStatus) -> str:
    assert task.started is not None
    assert task.finished is not None
    seconds = round((task.finished - task.started).total_seconds())
    minutes, seconds = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _end_of_log(cluster: Cluster, run: RunStatus, task: TaskStatus) -> list[str]:
    if not task.pods:
        return []
    pod = Pod(run.run_id, task.pods[-1], cluster.pod_namespace)
    try:
        return list(last_lines(read_log(cluster.connection, pod), LOG_LINES))
    except ClusterError:
        return [f"its log: {pod.kubectl}"]
