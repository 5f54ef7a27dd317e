"""Logs of a run's pods, from whichever source has them.

The v2beta1 API has no logs. The sources are the web interface's server, an old path of the API server, and Kubernetes
itself, if this machine has access to it. The first two read the pod while it exists and the archived log afterwards, if
the installation archives logs, as it does by default. The API server finds the one by the pod's name, the other by the
node's id.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipelines.servers.connection import Api, ClusterError, Connection
from pipelines.servers.kube import Kubernetes
from pipelines.status.nodes import CONTAINER, PENDING, Node

_GLOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.-]+:\d+\] ")
"""Start of a line of Kubeflow Pipelines' launcher, in the format of Go's glog."""

_ARGO = re.compile(r"time=\S+ level=\w+ .*\bargo=true|Error: exit status \d+$")
"""A line of Argo's emissary."""

_EXECUTOR = re.compile(r"\[KFP Executor [^\]]*\]|\[[\w-]+\] Wrote executor output file to ")
"""Start of a line of the SDK's executor; the second one goes through the step's own log."""

_INTERFACE, _API, _KUBERNETES = "web interface", "API server", "Kubernetes"

_ABSENT = {_INTERFACE: 500, _API: 200, _KUBERNETES: 404}
"""Status of the response of each source if there is no such pod."""

_NO_RUN = "00000000-0000-0000-0000-000000000000"
_NO_POD = Node(id="check", name="check", phase=PENDING, pod="check")
"""Names of no run and no pod, see `LogReader.find_source`."""

_JSON_END = re.compile(r"[}\]]+,?")
"""Last line of JSON over several lines."""

PROGRESS = re.compile(r"\[[\w-]+\] ")
"""Start of the lines of a step that tell its progress."""


class NewLines:
    """What has been added to a log since the last look; logs are read whole, and lose their beginning when rotated."""

    def __init__(self) -> None:
        self._count = 0
        self._last = ""

    def take(self, lines: Sequence[str]) -> Sequence[str]:
        """The lines after those of the last call."""
        start = self._count
        if start and (start > len(lines) or lines[start - 1] != self._last):  # rotated
            start = next((number for number in range(len(lines), 0, -1) if lines[number - 1] == self._last), 0)
        if lines:
            self._count, self._last = len(lines), lines[-1]
        return lines[start:]


class LogReader:
    """Reads the logs of pods; remembers which source had the last one, and asks it first."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        """Prepare; sends nothing yet.

        Args:
            connection: the server.
            namespace: of the pods.
        """
        self._api = Api(connection, retries=0)
        self._interface = Api(replace(connection, host=connection.ui_url), retries=0)
        self._namespace = namespace
        self._sources: list[tuple[str, Callable[[str, Node], str]]] = [
            (_INTERFACE, self._from_interface),
            (_API, self._from_api),
            (_KUBERNETES, self._from_kubernetes),
        ]

    def read(self, run_id: str, node: Node) -> str:
        """The log of a node's pod as far as written, with the launcher's lines.

        Raises:
            ClusterError: no source has it; the message has the reasons and the command to try elsewhere.
        """
        reasons = []
        for source in self._sources:
            name, read = source
            try:
                text = read(run_id, node)
            except ClusterError as error:
                reasons.append(f"  {name}: {error}")
                continue
            self._sources.sort(key=lambda one: one is not source)
            return text
        where = self.kubectl(node)
        raise ClusterError(
            f"{node.pod or node.id}: no log is available here. Pods are deleted some time after the run, and their "
            "logs with them, unless the installation archives them."
            + (f" Where kubectl reaches the cluster, try:\n  {where}" if where else "")
            + "\nTried:\n"
            + "\n".join(reasons)
        )

    def find_source(self) -> str:
        """Name of the first source that gives logs; empty if there is none.

        Each is asked for the log of a pod that does not exist, and checks the caller's right first.
        """
        for name, read in self._sources:
            try:
                read(_NO_RUN, _NO_POD)
            except ClusterError as error:
                if error.status == _ABSENT[name] or "pod not found" in str(error):
                    return name
        return ""

    def kubectl(self, node: Node) -> str:
        """The command that shows the log of a node's pod; empty if the pod's name is not known."""
        return shlex.join(["kubectl", "-n", self._namespace, "logs", node.pod, "-c", CONTAINER]) if node.pod else ""

    def _from_interface(self, run_id: str, node: Node) -> str:
        query = {"podname": node.pod or node.id, "runid": run_id, "podnamespace": self._namespace}
        return self._interface.get_text("/k8s/pod/logs", query)

    def _from_api(self, run_id: str, node: Node) -> str:
        problem = ""
        for name in filter(None, (node.pod, node.id)):
            text = self._api.get_text(f"/apis/v1alpha1/runs/{run_id}/nodes/{name}/log")
            try:
                problem = str(json.loads(text)["error_message"])  # such a response has the status 200
            except (ValueError, TypeError, KeyError):
                return text
        raise ClusterError(problem, status=200)

    def _from_kubernetes(self, run_id: str, node: Node) -> str:
        del run_id
        return Kubernetes(self._namespace).pod_log(node.pod or node.id, CONTAINER)


def own_lines(text: str) -> Iterator[str]:
    """The lines of a log that the component itself wrote: without those of launcher, executor and Argo.

    The launcher writes JSON over several lines after a line of its own; these go with it.
    """
    inside = after_foreign = False
    for line in text.splitlines():
        if inside and not PROGRESS.match(line):
            inside = not _JSON_END.fullmatch(line)
            continue
        is_foreign = bool(_GLOG.match(line) or _ARGO.match(line) or _EXECUTOR.match(line))
        if is_foreign or (after_foreign and line == "{"):
            inside = line.endswith("{")
        else:
            yield line
        after_foreign = is_foreign
