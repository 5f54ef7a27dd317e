"""Which tasks fit on the nodes of a cluster: now, and when nothing else runs there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kubernetes.utils import parse_quantity

from pipelines.checks.finding import Finding, Level
from pipelines.config import ClusterConfig, NodeRequirement, TaskConfig, Toleration
from pipelines.servers.kube import Object

Amounts = dict[str, Decimal]
"""Cores, bytes, GPUs and other devices by the name of the resource in Kubernetes."""

CPU, MEMORY = "cpu", "memory"

REPELLING = ("NoSchedule", "NoExecute")
"""Effects of a taint that keep a pod away which does not tolerate it."""


@dataclass(frozen=True)
class Room:
    """A node with what its pods leave."""

    node: Object
    allocatable: Amounts
    free: Amounts | None
    """None if the pods are not known."""

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node["metadata"]["name"])

    def admits(self, task: TaskConfig) -> bool:
        """Whether its labels and taints admit the task's pod."""
        labels, spec = self.node["metadata"].get("labels", {}), self.node.get("spec", {})
        taints = [taint for taint in spec.get("taints", []) if taint["effect"] in REPELLING]
        return (
            not spec.get("unschedulable")
            and all(labels.get(key) == value for key, value in task.node_selector.items())
            and all(_has(labels, one) for one in task.node_affinity if one.weight is None)
            and all(any(_tolerates(one, taint) for one in task.tolerations) for taint in taints)
        )


def make_rooms(nodes: Iterable[Object], pods: Iterable[Object] | None) -> list[Room]:
    """The nodes with what is free on them.

    Args:
        nodes: as Kubernetes has them.
        pods: those of all namespaces; None if they are not known.
    """
    used: dict[str, list[Amounts]] = defaultdict(list)
    for pod in pods or ():
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            used[pod["spec"].get("nodeName", "")].append(_requested(pod))
    rooms = []
    for node in nodes:
        allocatable = _amounts(node["status"]["allocatable"])
        taken = _sum(used[node["metadata"]["name"]])
        free = {name: amount - taken.get(name, Decimal(0)) for name, amount in allocatable.items()}
        rooms.append(Room(node, allocatable, None if pods is None else free))
    return rooms


def check_gpus(config: ClusterConfig, steps: Sequence[str], rooms: Sequence[Room]) -> Iterator[Finding]:
    """Whether the cluster has the GPUs that tasks ask for."""
    asking = [step for step in steps if config.for_step(step).gpus]
    having = [room for room in rooms if room.allocatable.get(config.gpu)]
    if not asking:
        yield Finding(Level.OK, "GPUs", "no task asks for one")
    elif not having:
        yield Finding(
            Level.FAILURE,
            "GPUs",
            f"no node offers {config.gpu}, which {', '.join(asking)} ask for",
            "Install the device plugin of the GPUs' maker, or leave them out: "
            + " ".join(f"-C tasks.{step}.gpus=0" for step in asking),
        )
    else:
        total = sum(room.allocatable[config.gpu] for room in having)
        free = [room.free[config.gpu] for room in having if room.free is not None]
        now = f", {sum(free):f} of them free" if free else ""
        yield Finding(Level.OK, "GPUs", f"{total:f} {config.gpu} on {len(having)} of {len(rooms)} nodes{now}")


def check_tasks(config: ClusterConfig, steps: Sequence[str], rooms: Sequence[Room]) -> Iterator[Finding]:
    """Whether each task fits on a node; tasks that ask for the same are one finding.

    GPUs do not count if the cluster has none: `check_gpus` says so.
    """
    has_gpus = any(room.allocatable.get(config.gpu) for room in rooms)
    fitting = []
    groups: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        task = config.for_step(step)
        place = (task.node_selector, task.node_affinity, task.tolerations)
        groups[repr((_needs(task, config, has_gpus), place))].append(step)
    for group in groups.values():
        problem = _find_problem(config, group, rooms, has_gpus)
        if problem is None:
            fitting += group
        else:
            yield problem
    if fitting:
        now = "fits now" if all(room.free is not None for room in rooms) else "fits on an empty node"
        yield Finding(Level.OK, "tasks", f"each of {', '.join(sorted(fitting))} {now}")


def _find_problem(config: ClusterConfig, steps: Sequence[str], rooms: Sequence[Room], has_gpus: bool) -> Finding | None:
    task = config.for_step(steps[0])
    needs = _needs(task, config, has_gpus)
    what, asks = (f"tasks {', '.join(steps)}", "each asks") if len(steps) > 1 else (f"task {steps[0]}", "asks")
    open_rooms = [room for room in rooms if room.admits(task)]
    if not open_rooms:
        return Finding(
            Level.FAILURE,
            what,
            "no node admits it: labels (node_selector, node_affinity), or taints without a toleration, of all nodes",
            f"Set tasks.{steps[0]}.node_selector, node_affinity or tolerations in pipelines/cluster.yaml; "
            "`kubectl get nodes -o custom-columns=NAME:.metadata.name,TAINTS:.spec.taints,LABELS:.metadata.labels`",
        )
    largest = max(open_rooms, key=lambda room: _share(room.allocatable, needs))
    lacking = [name for name, amount in needs.items() if amount > largest.allocatable.get(name, Decimal(0))]
    if lacking:
        keys = {CPU: "cpu", MEMORY: "memory", config.gpu: "gpus"}
        changes = " ".join(f"-C tasks.{step}.{keys.get(name, 'devices')}=..." for step in steps for name in lacking)
        return Finding(
            Level.FAILURE,
            what,
            f"{asks} for {_describe(needs)}; the largest node, {largest.name}, has "
            f"{_describe(largest.allocatable, needs)} when it is empty. The pod waits for ever, unless an autoscaler "
            "adds larger nodes",
            f"Ask for less: {changes}",
        )
    frees = [(room.name, room.free) for room in open_rooms if room.free is not None]
    if not frees:
        return None
    name, free = max(frees, key=lambda one: _share(one[1], needs))
    if _share(free, needs) >= 1:
        return None
    return Finding(
        Level.WARNING,
        what,
        f"{asks} for {_describe(needs)}, and waits until other pods end: the largest free node, {name}, has "
        f"{_describe(free, needs)} now",
        f"See what runs there: `kubectl get pods -A --field-selector spec.nodeName={name}`",
    )


def _needs(task: TaskConfig, config: ClusterConfig, has_gpus: bool) -> Amounts:
    needs = _amounts({CPU: task.cpu, MEMORY: task.memory})
    devices = {name: Decimal(count) for name, count in task.devices.items()}
    return needs | ({config.gpu: Decimal(task.gpus)} if task.gpus and has_gpus else {}) | devices


def _share(room: Mapping[str, Decimal], needs: Amounts) -> Decimal:
    """How often the scarcest of the needs is there."""
    return min((room.get(name, Decimal(0)) / amount for name, amount in needs.items() if amount), default=Decimal(1))


def _describe(amounts: Mapping[str, Decimal], needs: Mapping[str, Decimal] | None = None) -> str:
    parts = []
    for name in needs if needs is not None else amounts:
        amount = max(amounts.get(name, Decimal(0)), Decimal(0))
        if name == MEMORY:
            parts.append(f"{amount / 2**30:.1f} GiB")
        else:
            parts.append(f"{amount.normalize():f} {'cores' if name == CPU else name}")
    return ", ".join(parts)


def _requested(pod: Object) -> Amounts:
    """What a pod reserves on its node (Kubernetes, "Resource sharing within containers")."""
    spec = pod["spec"]
    before: Amounts = {}
    peak: Amounts = {}
    for container in spec.get("initContainers", []):
        if container.get("restartPolicy") == "Always":  # a sidecar, which goes on
            before = _sum([before, _of(container)])
        else:
            peak = _max(peak, _sum([before, _of(container)]))
    running = _sum([before, *map(_of, spec["containers"])])
    return _sum([_max(running, peak), _amounts(spec.get("overhead", {}))])


def _of(container: Object) -> Amounts:
    return _amounts(container.get("resources", {}).get("requests", {}))


def _amounts(quantities: Mapping[str, Any]) -> Amounts:
    return {name: Decimal(parse_quantity(quantity)) for name, quantity in quantities.items()}


def _sum(several: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for amounts in several:
        for name, amount in amounts.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total


def _max(one: Amounts, other: Amounts) -> Amounts:
    return {name: max(one.get(name, Decimal(0)), other.get(name, Decimal(0))) for name in {**one, **other}}


def _has(labels: Mapping[str, str], requirement: NodeRequirement) -> bool:
    """Whether a node with these labels meets the requirement."""
    value, wanted = labels.get(requirement.key), requirement.values
    match requirement.operator:
        case "In":
            return value in wanted
        case "NotIn":
            return value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    number = int(value) if value is not None and re.fullmatch(r"-?\d+", value) else None
    return number is not None and (number > int(wanted[0]) if requirement.operator == "Gt" else number < int(wanted[0]))


def _tolerates(toleration: Toleration, taint: Object) -> bool:
    if toleration.effect not in (None, taint["effect"]):
        return False
    if toleration.operator == "Exists":
        return toleration.key in (None, taint["key"])
    return toleration.key == taint["key"] and (toleration.value or "") == taint.get("value", "")
