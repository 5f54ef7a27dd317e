"""Nodes of the Argo workflow behind a run, read from whichever source has them.

A task ``train`` of a pipeline is a dozen nodes: the driver that prepares it (``train-driver``), the task (``train``),
the pod that does its work (``executor``), and for each of them a node of type Retry with one node per attempt below it
(``train(0)``, ``executor(1)``). Their names are paths: ``training-x(0).root(0).train(0).executor(1)``.

Sources, each of which may be missing:

- the run in the v2beta1 API (`from_run`): states and times, but neither names nor ids of the nodes, only ids of those
  below each. Argo makes the id from the name (FNV-1a), so names are found by trying which of the possible ones have
  an id that occurs;
- the run in the v1beta1 API, or the workflow in Kubernetes (`from_workflow`): also messages, such as ``pod deleted``;
- the pods (`Node.with_pod`): also why a pod waits, exit codes, and times of the container.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

PENDING, RUNNING, SUCCEEDED, SKIPPED, OMITTED, FAILED, ERROR = (
    "Pending", "Running", "Succeeded", "Skipped", "Omitted", "Failed", "Error",
)  # fmt: skip
"""Phases of a node in Argo (``NodePhase``): Error is a pod that could not be created, was deleted or lost its node."""

NODE_NAME = "workflows.argoproj.io/node-name"
"""Annotation of a pod."""

CONTAINER = "main"
"""Container of a task's pod that runs the component."""

_PHASES = {
    "PENDING": PENDING, "RUNNING": RUNNING, "SUCCEEDED": SUCCEEDED, "SKIPPED": SKIPPED, "FAILED": FAILED,
    "CANCELING": RUNNING, "CANCELED": FAILED, "PAUSED": PENDING, None: OMITTED,
}  # fmt: skip
"""Of the API's ``v2beta1RuntimeState``, which has no Omitted and calls an Error FAILED."""

_POD_PREFIX = 253 - 10 - 1
"""Maximum characters of a pod's name before the hash: ``maxK8sResourceNameLength``, ``k8sNamingHashLength``."""

_TASK_TEMPLATE, _ROOT_TEMPLATE = "retry-system-container-impl", "system-dag-driver"
"""Argo templates of Kubeflow Pipelines for the pods of a task that may be tried again, and for those of the root's
driver."""

_ATTEMPT = re.compile(r"\(\d+\)$")


@dataclass(frozen=True)
class Node:
    """A node."""

    id: str
    name: str
    phase: str
    created: datetime | None = None
    """Argo's start time, which is that of the pod's creation."""
    started: datetime | None = None
    """That of the component's container if the pod is known, else `created`."""
    finished: datetime | None = None
    message: str = ""
    """Argo's reason for the phase, such as ``main: OOMKilled (exit code 1)``; empty if unknown."""
    exit_code: int | None = None
    """Of the component's container; None if unknown, or if it did not end."""
    is_killed_for_memory: bool = False
    pod: str = ""
    """Name of its pod; empty if unknown, or if the node has none."""

    @property
    def key(self) -> tuple[str, datetime | None]:
        """Tells it apart from all others of the run: a retry of the run uses ids again."""
        return self.id, self.created

    def with_pod(self, pod: Mapping[str, Any]) -> Node:
        """The node with what its pod (JSON of Kubernetes) says."""
        return replace(self, pod=pod["metadata"]["name"])._with_status(pod.get("status", {}))

    def _with_status(self, status: Mapping[str, Any]) -> Node:
        containers = status.get("containerStatuses", [])
        container: dict[str, Any] = next((one for one in containers if one["name"] == CONTAINER), {})
        state = container.get("state", {})
        phase = RUNNING if self.phase == PENDING else self.phase  # Argo's answer is some seconds behind
        if ended := state.get("terminated"):
            return replace(
                self,
                phase=phase,
                started=_time(ended.get("startedAt")) or self.started,
                finished=_time(ended.get("finishedAt")) or self.finished,
                exit_code=ended["exitCode"],
                is_killed_for_memory=ended.get("reason") == "OOMKilled",
            )
        if running := state.get("running"):
            return replace(self, phase=phase, started=_time(running.get("startedAt")) or self.started)
        if reason := status.get("reason"):  # an evicted pod, whose containers are gone
            return replace(self, message=_one_line(f"{reason}: {status.get('message', '')}"))
        return replace(self, message=_why_it_waits(status) or self.message)


def from_workflow(workflow: Mapping[str, Any]) -> dict[str, Node]:
    """The nodes of an Argo workflow (JSON), by name."""
    nodes = workflow.get("status", {}).get("nodes") or {}
    return {
        node["name"]: Node(
            id=id_,
            name=node["name"],
            phase=node.get("phase") or PENDING,
            created=_time(node.get("startedAt")),
            started=_time(node.get("startedAt")),
            finished=_time(node.get("finishedAt")),
            message=_one_line(node.get("message") or ""),
            pod=pod_name(id_, node.get("templateName") or "") if node.get("type") == "Pod" else "",
        )
        for id_, node in nodes.items()
    }


def from_run(details: Iterable[Any]) -> dict[str, Node]:
    """The nodes of a run, by name, from ``run_details.task_details`` of the v2beta1 API.

    Entries of nodes that a retry of the run has removed are left out. Entries that nothing tells apart (the pods of a
    loop's items that started in the same second) are assigned in their order.
    """
    entries = [entry for entry in details if entry.display_name]
    children = {id(entry): [child.pod_name for child in entry.child_tasks or [] if child.pod_name] for entry in entries}
    known = {child for below in children.values() for child in below}
    workflow = _workflow_name(entries, known)
    if workflow is None:
        return {}
    names = _names(workflow, {entry.display_name for entry in entries}, known)
    by_id = {node_id(workflow, name): name for name in names}
    by_label: dict[str, list[str]] = {}
    for name in names:
        by_label.setdefault(_last(name), []).append(name)
    found: dict[str, Node] = {}
    leaves = []
    for entry in entries:
        below = [by_id[child] for child in children[id(entry)] if child in by_id]
        candidates = [name for name in by_label.get(entry.display_name, ()) if name not in found]
        fitting = [name for name in candidates if any(_may_be_below(child, name) for child in below)]
        if len(candidates) == 1 or len(fitting) == 1:
            name = (fitting or candidates)[0]
            found[name] = _from_entry(workflow, name, entry)
        elif not children[id(entry)]:
            leaves.append(entry)
    for entry in sorted(leaves, key=lambda entry: str(entry.start_time)):
        candidates = [name for name in by_label.get(entry.display_name, ()) if name not in found]
        if candidates:
            name = min(candidates, key=lambda name: _distance(found.get(_ATTEMPT.sub("", name)), entry))
            found[name] = _from_entry(workflow, name, entry)
    return found


def node_id(workflow: str, name: str) -> str:
    """Argo's id of a node (``Workflow.NodeID``): the workflow's name and the 32-bit FNV-1a hash of the node's name."""
    return name if name == workflow else f"{workflow}-{_fnv1a(name)}"


def _fnv1a(text: str, digest: int = 2166136261) -> int:
    """The hash of a text; ``digest`` is the hash of what stands before it."""
    for byte in text.encode():
        digest = (digest ^ byte) * 16777619 & 0xFFFFFFFF
    return digest


def pod_name(node: str, template: str) -> str:
    """Name of a node's pod (Argo's ``GeneratePodName``, version 2): its template stands before the hash of its id."""
    workflow, _, digest = node.rpartition("-")
    return f"{f'{workflow}-{template}'[:_POD_PREFIX]}-{digest}" if template else node


def attempts(nodes: Mapping[str, Node], name: str) -> list[Node]:
    """The attempts of a node of type Retry, the first one first; the node itself if it has none."""
    found: list[Node] = []
    while (attempt := nodes.get(f"{name}({len(found)})")) is not None:
        found.append(attempt)
    return found or ([nodes[name]] if name in nodes else [])


def _workflow_name(entries: Iterable[Any], known: set[str]) -> str | None:
    prefixes = {child.rpartition("-")[0] for child in known}
    return next((str(entry.display_name) for entry in entries if entry.display_name in prefixes), None)


def _names(workflow: str, labels: set[str], known: set[str]) -> list[str]:
    """Names of all nodes, in the order of the tree: the possible ones whose id occurs."""
    plain = sorted({_ATTEMPT.sub("", label) for label in labels})
    found = {workflow: _fnv1a(workflow)}
    queue = [workflow]
    for name in queue:  # grows meanwhile
        is_attempt = bool(_ATTEMPT.search(name))
        endings = (f".{label}" for label in plain) if is_attempt else (f"({number})" for number in range(len(known)))
        for ending in endings:
            digest = _fnv1a(ending, found[name])
            if f"{workflow}-{digest}" in known:
                found[name + ending] = digest
                queue.append(name + ending)
            elif not is_attempt:
                break  # attempts have no gaps
    return queue


def _may_be_below(child: str, name: str) -> bool:
    """Whether Argo lists ``child`` below ``name``: its attempts and parts, and what follows it in the same DAG."""
    scope = name.rpartition(".")[0]
    return child.startswith((f"{name}(", f"{name}.")) or (bool(scope) and child.rpartition(".")[0] == scope)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _distance(parent: Node | None, entry: Any) -> tuple[float, float]:
    """Seconds between the starts, and between the ends, of an attempt and of its node of type Retry."""
    never = float("inf")
    if parent is None or parent.started is None or entry.start_time is None:
        return never, never
    after = (entry.start_time - parent.started).total_seconds()
    end = real_time(entry.end_time)
    apart = abs((end - parent.finished).total_seconds()) if end and parent.finished else never
    return after if after >= 0 else never, apart


def _from_entry(workflow: str, name: str, entry: Any) -> Node:
    label = _ATTEMPT.sub("", _last(name))
    template = {"executor": _TASK_TEMPLATE, "root-driver": _ROOT_TEMPLATE}.get(label)
    id_ = node_id(workflow, name)
    return Node(
        id=id_,
        name=name,
        phase=_PHASES.get(entry.state, PENDING),
        created=real_time(entry.start_time),
        started=real_time(entry.start_time),
        finished=real_time(entry.end_time),
        pod=pod_name(id_, template) if template else "",
    )


def _why_it_waits(status: Mapping[str, Any]) -> str:
    """Kubernetes' reason why a pod's container has not started, with its message; empty if it has none yet."""
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _one_line(f"{condition.get('reason', '')}: {condition.get('message', '')}")
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason", "PodInitializing") not in ("PodInitializing", "ContainerCreating"):
            return _one_line(f"{waiting['reason']}: {waiting.get('message', '')}")
    return ""


def real_time(value: datetime | None) -> datetime | None:
    """A time of the API; None if there is none yet, which the server writes as the year 1 or 1970."""
    return value if value is not None and value.year > 1970 else None


def _time(text: str | None) -> datetime | None:
    return real_time(datetime.fromisoformat(text)) if text else None


def _one_line(text: str) -> str:
    return " ".join(text.split()).removesuffix(":")
