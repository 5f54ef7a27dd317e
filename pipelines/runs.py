"""State of a run and its tasks, read from the API's response.

The API lists the nodes of the Argo workflow behind a run. Each task of the pipeline is a node with its name; next to it
is ``NAME-driver``, which prepares it, and below it ``executor``, whose pod does the work (``executor(0)``,
``executor(1)``, ... if the task has retries). A skipped executor below a successful task means that the cache had the
result. A loop has nodes ``iteration-...`` around its tasks, which occur once per item, with the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

FINAL_STATES = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})

_INNER = ("root", "executor")
_LOOP = "iteration-"
_DRIVER = "-driver"


@dataclass(frozen=True)
class TaskStatus:
    """State of a task."""

    name: str
    node: str
    """Node of the workflow; distinguishes tasks with the same name."""
    state: str
    """A value of the API's ``v2beta1RuntimeState``."""
    started: datetime | None
    finished: datetime | None
    cached: bool
    """The task did not run: the cache had its result."""
    pods: tuple[str, ...]
    """Pods that did the work, the last attempt last; empty before the first one."""
    message: str
    """Error; the API rarely has it, the pod's log does."""


@dataclass(frozen=True)
class RunStatus:
    """State of a run."""

    run_id: str
    name: str
    state: str
    """A value of the API's ``v2beta1RuntimeState``."""
    created: datetime | None
    finished: datetime | None
    message: str
    tasks: tuple[TaskStatus, ...]
    """In the order in which they started."""

    @property
    def is_over(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL_STATES

    @property
    def failed_tasks(self) -> list[TaskStatus]:
        """Tasks that failed; of nested ones those with a pod of their own, if there are any."""
        failed = [task for task in self.tasks if task.state == "FAILED"]
        return [task for task in failed if task.pods] or failed

    def to_json(self) -> dict[str, Any]:
        """Plain values, times as ISO 8601."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [plain(item) for item in value]
            return value.isoformat() if isinstance(value, datetime) else value

        tree: dict[str, Any] = plain(asdict(self))
        return tree


def read_run(run: Any) -> RunStatus:
    """Read a ``V2beta1Run``."""
    nodes = list((run.run_details and run.run_details.task_details) or [])
    by_hash = {_hash(node.pod_name): node for node in nodes if node.pod_name}
    tasks = [_read_task(node, by_hash) for node in nodes if _is_task(node)]
    never = datetime.max.replace(tzinfo=None)
    tasks.sort(key=lambda task: task.started.replace(tzinfo=None) if task.started else never)
    return RunStatus(
        run_id=run.run_id,
        name=run.display_name or run.run_id,
        state=_state(run),
        created=_time(run.created_at),
        finished=_time(run.finished_at),
        message=_message(run),
        tasks=tuple(tasks),
    )


def _is_task(node: Any) -> bool:
    """Whether a node is a task of the pipeline; a failed driver counts as one, because its task never appears."""
    name = node.display_name or ""
    if name.endswith(_DRIVER):
        return _state(node) == "FAILED"
    is_inner = name.partition("(")[0] in _INNER or name.startswith(_LOOP)
    return bool(name) and not is_inner and name != node.pod_name


def _read_task(node: Any, by_hash: dict[str, Any]) -> TaskStatus:
    name = str(node.display_name)
    is_driver = name.endswith(_DRIVER)
    executors = [node] if is_driver else list(_executors(node, by_hash))
    state = _state(node)
    return TaskStatus(
        name=f"{name.removesuffix(_DRIVER)} (driver)" if is_driver else name,
        node=node.pod_name or name,
        state=state,
        started=_time(node.start_time),
        finished=_time(node.end_time),
        cached=state == "SUCCEEDED" and bool(executors) and all(_state(one) == "SKIPPED" for one in executors),
        pods=tuple(one.pod_name for one in executors if _state(one) != "SKIPPED"),
        message=next(filter(None, (_message(one) for one in (node, *reversed(executors)))), ""),
    )


def _executors(node: Any, by_hash: dict[str, Any]) -> Iterator[Any]:
    """The nodes below a task whose pods did its work, in order of the attempts."""
    for child in node.child_tasks or []:
        below = by_hash.get(_hash(child.pod_name or ""))
        if below is not None and (below.display_name or "").partition("(")[0] == "executor":
            attempts = list(_executors(below, by_hash))
            yield from attempts or [below]


def _hash(node_id: str) -> str:
    """The digits at the end, which Argo's names of a node and of its pod have in common."""
    return node_id.rpartition("-")[2]


def _state(item: Any) -> str:
    return str(item.state or "PENDING")


def _message(item: Any) -> str:
    """The newest error that an item has, on one line."""
    errors = [status.error for status in reversed(item.state_history or []) if status.error]
    texts = (error.message for error in (item.error, *errors) if error is not None)
    return " ".join((next(filter(None, texts), "") or "").split())


def _time(value: datetime | None) -> datetime | None:
    """A time; None if there is none yet, which the server writes as the year 1 or 1970."""
    return value if value is not None and value.year > 1970 else None
