"""State of a run and of its tasks, as users see them: one row per task of the pipeline, in the pipeline's order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pipelines.spec import PipelineTask, Request
from pipelines.status.causes import Cause, explain_waiting
from pipelines.status.nodes import (
    ERROR,
    FAILED,
    OMITTED,
    PENDING,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    Node,
    attempts,
    real_time,
)


class State(StrEnum):
    """State of a run or a task."""

    NOT_REACHED = "not reached"
    WAITING = "waiting"
    RUNNING = "running"
    CACHED = "cached"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED})
"""Of a run."""

_RUN_STATES = {
    "SUCCEEDED": State.SUCCEEDED, "SKIPPED": State.SUCCEEDED, "FAILED": State.FAILED, "CANCELED": State.STOPPED,
    "RUNNING": State.RUNNING, "CANCELING": State.RUNNING,
}  # fmt: skip
"""Of the API's ``v2beta1RuntimeState``; all others mean that the run has not begun."""

STARTING = "its pod to start"
"""What a task waits for if no reason is known."""


@dataclass(frozen=True)
class TaskStatus:
    """State of a task."""

    name: str
    """As in the pipeline; in a loop with the item's number: ``predict [2/3]``."""
    step: str
    """The name without a number."""
    state: State
    detail: str
    """What it waits for; empty if it does not wait, or if that is unknown."""
    started: datetime | None
    """When the last attempt began its work; None if none has."""
    finished: datetime | None
    attempts: tuple[Node, ...]
    """The pods that did the work, the last attempt last; empty before the first one and for cached tasks."""
    max_attempts: int
    request: Request
    failed: Node | None = None
    """The last attempt, if it failed, also while the next one is awaited; None if somebody stopped it."""
    cause: Cause | None = None
    """Why `failed` did; see `pipelines.status.reader`."""
    log_end: tuple[str, ...] = ()
    """The last lines that the component wrote in `failed`."""

    @property
    def is_over(self) -> bool:
        """Whether it will not change any more in this run, unless the run is retried."""
        return self.state in (State.CACHED, State.SUCCEEDED, State.FAILED, State.STOPPED)


@dataclass(frozen=True)
class RunStatus:
    """State of a run."""

    run_id: str
    name: str
    state: State
    created: datetime | None
    finished: datetime | None
    tasks: tuple[TaskStatus, ...]
    """In the order of the pipeline."""
    start_failure: Node | None = None
    """The pod that should have started the run, if it failed: there is no task then that could have."""
    start_cause: Cause | None = None
    """Why it did; see `pipelines.status.reader`."""
    is_stopping: bool = False
    """Somebody has asked to stop it, and it is not over."""
    lacking: str = ""
    """What this status does not know for want of a right, in a sentence; empty if nothing."""

    @property
    def is_over(self) -> bool:
        """Whether the state is final, unless the run is retried."""
        return self.state in FINAL

    @property
    def failed_tasks(self) -> tuple[TaskStatus, ...]:
        """The tasks that failed."""
        return tuple(task for task in self.tasks if task.state is State.FAILED)

    @property
    def may_pass(self) -> bool:
        """Whether the run failed for causes that may be gone when it is retried."""
        causes = [task.cause for task in self.failed_tasks] or [self.start_cause]
        return self.state is State.FAILED and all(cause is not None and cause.may_pass for cause in causes)

    def to_json(self) -> dict[str, Any]:
        """Plain values, times as ISO 8601."""
        return {
            "run_id": self.run_id,
            "name": self.name,
            "state": self.state.value,
            "created": _iso(self.created),
            "finished": _iso(self.finished),
            "cause": self.start_cause.text if self.start_cause else None,
            "tasks": [
                {
                    "name": task.name,
                    "state": task.state.value,
                    "detail": task.detail,
                    "started": _iso(task.started),
                    "finished": _iso(task.finished),
                    "max_attempts": task.max_attempts,
                    "cause": task.cause.text if task.cause else None,
                    "attempts": [
                        {
                            "node": node.id,
                            "phase": node.phase,
                            "started": _iso(node.started),
                            "finished": _iso(node.finished),
                            "message": node.message,
                            "exit_code": node.exit_code,
                        }
                        for node in task.attempts
                    ],
                }
                for task in self.tasks
            ],
        }


@dataclass(frozen=True)
class _Run:
    """What the state of a task depends on besides its own nodes."""

    state: State
    stopped: datetime | None
    """When somebody asked to stop it."""


def read_run(run: Any, tasks: Sequence[PipelineTask], nodes: Mapping[str, Node], lacking: str = "") -> RunStatus:
    """The state of a run.

    Args:
        run: the API's ``V2beta1Run``.
        tasks: the pipeline's tasks, see `pipelines.spec.CompiledPipeline.tasks`.
        nodes: nodes of the run's workflow by name, see `pipelines.status.nodes`.
        lacking: see `RunStatus.lacking`.
    """
    stopped = next(
        (status.update_time for status in reversed(run.state_history or []) if status.state == "CANCELING"), None
    )
    history = run.state_history or []
    retried = any(status.state == "RUNNING" and stopped and status.update_time > stopped for status in history)
    stopped = None if retried else stopped
    state = _RUN_STATES.get(run.state, State.FAILED if run.error and not run.state else State.WAITING)
    if state is State.FAILED and stopped:
        state = State.STOPPED  # the server calls it FAILED
    whole = _Run(state, stopped)
    roots = [node for workflow in _workflows(nodes) for node in attempts(nodes, f"{workflow.name}.root")]
    scope = next((node.name for node in reversed(roots) if node.phase != OMITTED), "")
    drivers = [node for workflow in _workflows(nodes) for node in attempts(nodes, f"{workflow.name}.root-driver")]
    failed_start = drivers[-1] if not scope and drivers and state is State.FAILED else None
    return RunStatus(
        run_id=run.run_id,
        name=run.display_name or run.run_id,
        state=state,
        created=real_time(run.created_at),
        finished=real_time(run.finished_at) if state in FINAL else None,
        tasks=tuple(_read_tasks(tasks, nodes, scope, whole)),
        start_failure=failed_start,
        is_stopping=run.state == "CANCELING",
        lacking=lacking if state not in FINAL or state is State.FAILED else "",
    )


def _workflows(nodes: Mapping[str, Node]) -> list[Node]:
    """Attempts of the whole workflow."""
    whole = [name for name in nodes if "." not in name and "(" not in name]
    return attempts(nodes, whole[0]) if whole else []


def _read_tasks(
    tasks: Sequence[PipelineTask], nodes: Mapping[str, Node], scope: str, run: _Run
) -> Iterator[TaskStatus]:
    for task in tasks:
        if not task.inner:
            yield _read_task(task, nodes, scope, run)
            continue
        group = attempts(nodes, f"{scope}.{task.name}")
        inside = group[-1].name if group else ""
        if not task.is_loop:
            yield from _read_tasks(task.inner, nodes, inside, run)
            continue
        items = list(_loop_items(nodes, inside)) or [""]
        for inner in task.inner:
            for number, item in enumerate(items, 1):
                for found in _read_tasks([inner], nodes, item, run):
                    yield replace(found, name=f"{found.name} [{number}/{len(items)}]") if item else found


def _loop_items(nodes: Mapping[str, Node], loop: str) -> Iterator[str]:
    """Scopes of a loop's items in order: ``LOOP.iteration-iterations(1:1)(0).iteration-item(0)``."""
    start = f"{loop}.iteration-iterations("
    groups = {name for name in nodes if loop and name.startswith(start) and name.count("(", len(start)) == 0}
    for group in sorted(groups, key=lambda name: int(name[len(start) :].partition(":")[0])):
        outer = attempts(nodes, group)
        inner = attempts(nodes, f"{outer[-1].name}.iteration-item")
        yield inner[-1].name if inner else f"{outer[-1].name}.iteration-item(0)"


def _read_task(task: PipelineTask, nodes: Mapping[str, Node], scope: str, run: _Run) -> TaskStatus:
    status = TaskStatus(
        name=task.name,
        step=task.name,
        state=State.NOT_REACHED,
        detail="",
        started=None,
        finished=None,
        attempts=(),
        max_attempts=task.retries + 1,
        request=task.request,
    )
    drivers = attempts(nodes, f"{scope}.{task.name}-driver")
    outer = attempts(nodes, f"{scope}.{task.name}")
    if not outer or outer[-1].phase in (OMITTED, SKIPPED):
        return _settle(_read_driver(status, drivers), run)
    pods = attempts(nodes, f"{outer[-1].name}.executor")
    if pods and pods[-1].phase == SKIPPED:
        return replace(status, state=State.CACHED)
    if not pods:
        return _settle(replace(status, state=State.WAITING, detail=STARTING), run)
    last, whole = pods[-1], nodes.get(f"{outer[-1].name}.executor", pods[-1])
    status = replace(status, attempts=tuple(pods), started=last.started, finished=last.finished)
    if last.phase == PENDING:
        detail = explain_waiting(last.message, task.request) or STARTING
        return _settle(replace(status, state=State.WAITING, detail=detail, started=None), run)
    if last.phase == RUNNING:
        return _settle(replace(status, state=State.RUNNING), run)
    if last.phase == SUCCEEDED:
        return replace(status, state=State.SUCCEEDED)
    if run.stopped and (whole.finished is None or whole.finished >= run.stopped):
        was_running = last.finished is None or last.finished >= run.stopped
        return replace(status, state=State.STOPPED, failed=None if was_running else last)
    status = replace(status, failed=last)
    if whole.phase in (FAILED, ERROR) or run.state in FINAL:
        return replace(status, state=State.FAILED)
    return replace(status, state=State.WAITING, detail=_pause(task, pods))


def _read_driver(status: TaskStatus, drivers: Sequence[Node]) -> TaskStatus:
    """State of a task whose own node does not exist yet."""
    if not drivers or drivers[-1].phase in (OMITTED, SKIPPED):
        return status
    last = drivers[-1]
    if last.phase in (FAILED, ERROR):
        return replace(
            status,
            state=State.FAILED,
            attempts=tuple(drivers),
            started=last.started,
            finished=last.finished,
            failed=last,
        )
    detail = explain_waiting(last.message, Request()) if last.phase == PENDING and last.message else ""
    return replace(status, state=State.WAITING, detail=detail or "Kubeflow Pipelines to prepare it")


def _settle(status: TaskStatus, run: _Run) -> TaskStatus:
    """The state of an unfinished task once its run is over: the last report of a node may be missing."""
    if run.state not in FINAL or status.state not in (State.WAITING, State.RUNNING):
        return status
    state = {State.SUCCEEDED: State.SUCCEEDED, State.STOPPED: State.STOPPED}.get(run.state, State.FAILED)
    return replace(status, state=state, detail="")


def _pause(task: PipelineTask, pods: Sequence[Node]) -> str:
    failed = pods[-1].finished
    if failed is None or not task.pause:
        return "the pause before the next attempt"
    until = failed + timedelta(seconds=task.pause * task.factor ** (len(pods) - 1))
    return f"a pause until {until.astimezone():%H:%M:%S}"


def _iso(value: datetime | None) -> str | None:
    return value.isoformat() if value else None
