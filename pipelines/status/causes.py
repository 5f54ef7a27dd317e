"""Why a task waits, and why one failed: messages of Argo and Kubernetes in a user's words, with what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.spec import Request
from pipelines.status.nodes import Node
from yolact.errors import EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE


@dataclass(frozen=True)
class Cause:
    """Why an attempt of a task failed."""

    text: str
    advice: str = ""
    """What to do; empty if only the log can say."""
    may_pass: bool = False
    """The same task may succeed when it is tried again."""


class _Rule(NamedTuple):
    pattern: str
    """Regular expression on Argo's or Kubernetes' message."""
    say: Callable[[re.Match[str], Request], str]


def _free_node(found: re.Match[str], request: Request) -> str:
    del found
    wanted = [f"{request.cpu} free core{'s' * (request.cpu != '1')}"] if request.cpu else []
    wanted += [f"{request.memory} free memory"] if request.memory else []
    wanted += [f"{request.gpus} free GPU{'s' * (request.gpus > 1)}"] if request.gpus else []
    return f"a node with {', '.join(wanted) or 'enough free resources'}"


_MAY_PASS = {f"exit status {code}" for code in (EX_SOFTWARE, EX_UNAVAILABLE, EX_TEMPFAIL)}
"""How steps end whose failure need not come again: a crash, another server was away, a request to stop."""

_WAITING = (
    _Rule(r"^SchedulingGated", lambda *_: "its turn in Kueue's queue (`kubectl get workloads`)"),
    _Rule(
        r'persistentvolumeclaim "([^"]+)" not found', lambda found, _: f"the volume claim {found[1]}, which is missing"
    ),
    _Rule(
        r"unbound immediate PersistentVolumeClaims|volume.*not (yet )?bound",
        lambda *_: "its volume, which is not bound",
    ),
    _Rule(r"Insufficient (cpu|memory|ephemeral-storage|\S+/\S+)", _free_node),
    _Rule(
        r"(\d+ node\(s\)) (?:were unschedulable|had untolerated taint \{node\.kubernetes\.io/unschedulable)",
        lambda found, _: f"a node that takes new pods ({found[1]} closed to them, as when drained: `kubectl uncordon`)",
    ),
    _Rule(
        r"(\d+ node\(s\)) had untolerated taint \{node\.kubernetes\.io/(?:not-ready|unreachable)",
        lambda found, _: f"a node that is ready ({found[1]} not ready)",
    ),
    _Rule(
        r"untolerated taint \{(?!node\.kubernetes\.io/)",
        lambda *_: "a node without taints, or tolerations for them (tasks.NAME.tolerations)",
    ),
    _Rule(
        r"didn't match Pod's node affinity/selector",
        lambda *_: "a node with the labels of tasks.NAME.node_selector or node_affinity",
    ),
    _Rule(
        r"(?:ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull|RegistryUnavailable)\b:?(.*)",
        lambda found, _: f"its image, which cannot be pulled ({found[1].strip() or found[0]})",
    ),
    _Rule(r'secret "([^"]+)" not found', lambda found, _: f"the secret {found[1]}, which is missing"),
    _Rule(r'configmap "([^"]+)" not found', lambda found, _: f"the ConfigMap {found[1]}, which is missing"),
    _Rule(
        r"couldn't find key (\S+) in Secret (?:\S+/)?(\S+)",
        lambda found, _: f"the key {found[1]} of the secret {found[2]}",
    ),
    _Rule(
        r"(?:FailedMount|FailedAttachVolume): (.*)",
        lambda found, _: f"its volume, which cannot be mounted ({found[1]})",
    ),
    _Rule(r"exceeded quota", lambda found, _: f"the namespace's quota ({found.string})"),
)


def explain_waiting(message: str, request: Request) -> str:
    """What a task waits for, from the message of its node; a message that is not known is returned as it is."""
    reasons = [rule.say(found, request) for rule in _WAITING if (found := re.search(rule.pattern, message))]
    return ", ".join(dict.fromkeys(reasons)) or message


def find_cause(node: Node, task: str, request: Request, log: str = "") -> Cause:
    """Why an attempt failed.

    Args:
        node: the attempt.
        task: name of its step, for the advice.
        request: what its pod asks for.
        log: the whole log of its pod, with the launcher's lines, as far as it is there.
    """
    message = node.message
    for pattern, make in _FAILED:
        if found := re.search(pattern, message):
            return make(found, task, request)
    if node.is_killed_for_memory:
        return _memory(None, task, request)
    code = node.exit_code if node.exit_code is not None else _exit_code(message)
    component = re.search(r"failed to execute component: (signal: \w+|exit status \d+)", log)
    ended = component[1] if component else f"exit status {code}"  # the launcher ends with 1 after every failure
    own = re.findall(rf"^{re.escape(task)} failed: (.*)", log, re.MULTILINE) if task else []
    if ended in ("signal: killed", "exit status 137"):
        return Cause(
            own[-1] if own else "its process was killed, probably for lack of memory",
            f"raise tasks.{task}.memory_limit, or try again: `python -m pipelines retry RUN`",
            may_pass=True,
        )
    if ended in ("signal: terminated", "exit status 143"):
        return Cause("its process was terminated", "try again: `python -m pipelines retry RUN`", may_pass=True)
    if own:
        return Cause(own[-1], may_pass=ended in _MAY_PASS)
    if "Traceback (most recent call last)" in log:
        return Cause("its code raised an exception", "the log shows where", may_pass=True)
    unknown = message or "the reason is not known"
    text = unknown if code is None else f"it ended with {ended.replace('status', 'code')}"
    return Cause(text, "" if log or not task else f"look for its log: `python -m pipelines logs RUN {task}`")


def _exit_code(message: str) -> int | None:
    found = re.search(r"exit code (\d+)", message)
    return int(found[1]) if found else None


def _memory(found: object, task: str, request: Request) -> Cause:
    del found
    limit = f" of {request.memory_limit}" if request.memory_limit else ""
    return Cause(
        f"out of memory: its container reached the limit{limit}",
        f"raise tasks.{task}.memory_limit in pipelines/cluster.yaml (-C tasks.{task}.memory_limit=...), or need less: "
        "a smaller batch, fewer loader processes (train.batch_size, runtime.workers)",
        may_pass=True,
    )


def _lost(text: str) -> Callable[[re.Match[str], str, Request], Cause]:
    return lambda *_: Cause(text, "try again: `python -m pipelines retry RUN`", may_pass=True)


def _refused(found: re.Match[str], task: str, request: Request) -> Cause:
    del task, request
    return Cause(f"Kubernetes refused its pod: {found[1]}", "change pipelines/cluster.yaml, and submit again")


_FAILED: tuple[tuple[str, Callable[[re.Match[str], str, Request], Cause]], ...] = (
    (r"OOMKilled", _memory),
    (
        r'violates PodSecurity "([^"]+)": (.*)',
        lambda found, *_: Cause(
            f"the namespace's Pod Security policy {found[1]} refused its pod: {found[2]}",
            "the message names what it wants; the project's own tasks pass restricted",
        ),
    ),
    (
        r'error looking up service account \S+: serviceaccount "([^"]+)" not found',
        lambda found, *_: Cause(
            f"the service account {found[1]} does not exist",
            "create it (deploy/pipelines/account.yaml), or name another one with --service-account",
        ),
    ),
    (
        r"exceeded quota: (.*)",
        lambda found, *_: Cause(
            f"the namespace's quota refused its pod: {found[1]}",
            "wait until other tasks have ended, ask for less in pipelines/cluster.yaml, or have the quota raised",
            may_pass=True,
        ),
    ),
    (r"is invalid: (.*)", _refused),
    (r"is forbidden: (.*)", _refused),
    (r"pod deleted", _lost("its pod was deleted")),
    (r"imminent node shutdown|NodeShutdown|node.*shut", _lost("its node was shut down")),
    (r"[Ee]vict|low on resource", _lost("its pod was evicted from the node")),
    (r"NodeLost|node lost|not ready", _lost("its node was lost")),
    (
        r"active on the node longer than the specified deadline|DeadlineExceeded",
        lambda _, task, __: Cause(
            "it reached its time limit",
            f"raise tasks.{task}.time_limit in pipelines/cluster.yaml and submit again; train continues from its "
            "checkpoint with -A resume_pipeline_run=RUN",
        ),
    ),
)
