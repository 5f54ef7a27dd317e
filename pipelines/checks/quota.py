"""Whether the quotas and limit ranges of a namespace admit the tasks' pods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from kubernetes.utils import parse_quantity

from pipelines.checks.capacity import Amounts
from pipelines.checks.finding import Finding, Level
from pipelines.config import ClusterConfig
from pipelines.servers.kube import Object

DEFAULTS = '{"cpu": "100m", "memory": "128Mi"}'
"""A limit and a request that suit the containers that Argo adds to each pod."""


def check_quotas(
    config: ClusterConfig, steps: Sequence[str], namespace: str, quotas: Sequence[Object], ranges: Sequence[Object]
) -> Iterator[Finding]:
    """What the quotas refuse.

    If a quota counts a resource, Kubernetes refuses pods with a container that does not state it, unless a LimitRange
    has a default. The containers that Argo adds state nothing in stock Kubeflow Pipelines.

    Args:
        config: settings of the tasks.
        steps: the steps.
        namespace: of the pods.
        quotas: the namespace's ResourceQuotas.
        ranges: its LimitRanges.
    """
    limits = _defaults(ranges, "default")
    requests = limits | _defaults(ranges, "defaultRequest")
    problems = []
    for quota in quotas:
        what = f"quota {quota['metadata']['name']}"
        hard = {_full(key): parse_quantity(amount) for key, amount in quota["spec"].get("hard", {}).items()}
        problems += [
            *_find_excess(config, steps, what, hard),
            *_find_undefaulted(namespace, what, hard, requests, limits),
        ]
        if "limits.cpu" in hard:  # then a container must state one
            limits.setdefault("cpu", Decimal(0))
    problems += _find_unlimited(config, steps, limits)
    yield from problems
    if not problems:
        names = ", ".join(quota["metadata"]["name"] for quota in quotas)
        yield Finding(Level.OK, "quota", f"{names}: admits the tasks" if names else "none")


def _find_undefaulted(
    namespace: str, what: str, hard: Amounts, requests: Amounts, limits: Amounts
) -> Iterator[Finding]:
    """What the quota counts and Argo's containers get no default for."""
    lacking = [
        f"{kind}.{name}"
        for kind, given in (("requests", requests), ("limits", limits))
        for name in ("cpu", "memory")
        if f"{kind}.{name}" in hard and name not in given
    ]
    if not lacking:
        return
    container = f'{{"type": "Container", "default": {DEFAULTS}, "defaultRequest": {DEFAULTS}}}'
    manifest = (
        '{"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "defaults"}, '
        f'"spec": {{"limits": [{container}]}}}}'
    )
    yield Finding(
        Level.FAILURE,
        what,
        f"counts {', '.join(lacking)}, which the containers that Argo adds to each pod do not state, so Kubernetes "
        "refuses every pod",
        f"Give the namespace defaults: `echo '{manifest}' | kubectl -n {namespace} apply -f -`",
    )


def _find_unlimited(config: ClusterConfig, steps: Sequence[str], limits: Amounts) -> Iterator[Finding]:
    """Tasks without a limit of CPU where the namespace requires one, or has a default below what they request."""
    without = [step for step in steps if not config.for_step(step).cpu_limit]
    refused = [
        step for step in without if "cpu" in limits and parse_quantity(config.for_step(step).cpu) > limits["cpu"]
    ]
    if refused:
        largest = max((config.for_step(step).cpu for step in steps), key=parse_quantity)
        yield Finding(
            Level.FAILURE,
            "limit of CPU",
            f"the namespace requires one, or has a default below what {', '.join(refused)} ask for",
            f"-C \"task.cpu_limit='{largest}'\" (cpu_limit in pipelines/cluster.yaml)",
        )


def _find_excess(config: ClusterConfig, steps: Sequence[str], what: str, hard: Amounts) -> Iterator[Finding]:
    """Tasks that ask for more than the quota has in all."""
    for step in steps:
        task = config.for_step(step)
        asked = {
            "requests.cpu": task.cpu,
            "requests.memory": task.memory,
            "limits.cpu": task.cpu_limit or "0",
            "limits.memory": task.memory_limit,
            f"requests.{config.gpu}": str(task.gpus),
        }
        above = [
            f"{key} {amount}" for key, amount in asked.items() if key in hard and parse_quantity(amount) > hard[key]
        ]
        if above:
            text = f"is below what {step} asks for: {', '.join(above)}"
            yield Finding(Level.FAILURE, what, text, f"Ask for less (tasks.{step}), or have the quota raised")


def _full(key: str) -> str:
    """``cpu`` is short for ``requests.cpu``."""
    return f"requests.{key}" if key in ("cpu", "memory") else key


def _defaults(ranges: Sequence[Object], key: str) -> Amounts:
    return {
        name: Decimal(parse_quantity(amount))
        for one in ranges
        for limit in one["spec"]["limits"]
        if limit["type"] == "Container"
        for name, amount in limit.get(key, {}).items()
    }
