"""Logs of a task's pods, from whichever source has them.

The v2beta1 API has no logs. The sources are the web interface's server (which also has archived logs, if the
installation keeps any), an old path of the API server, and Kubernetes itself, if this machine has access to it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import kubernetes
from urllib3.exceptions import HTTPError

from pipelines.connection import IN_POD_NAMESPACE, Api, ClusterError, Connection

CONTAINER = "main"
"""The container of a task's pod that runs the component."""

KUBERNETES_TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection to Kubernetes, and for the start of a response."""


@dataclass(frozen=True)
class Pod:
    """A pod of a run."""

    run_id: str
    name: str
    namespace: str

    @property
    def kubectl(self) -> str:
        """The command that shows its log."""
        return shlex.join(["kubectl", "-n", self.namespace, "logs", self.name, "-c", CONTAINER])


def read_log(connection: Connection, pod: Pod) -> str:
    """The log of a pod, as far as written.

    Raises:
        ClusterError: no source has it; the message has the reasons and the command to try elsewhere.
    """
    ways: dict[str, Callable[[], str]] = {
        "web interface": lambda: _from_interface(connection, pod),
        "API server": lambda: _from_api(connection, pod),
        "Kubernetes": lambda: _from_kubernetes(pod),
    }
    reasons = []
    for way, read in ways.items():
        try:
            return read()
        except ClusterError as error:
            reasons.append(f"  {way}: {error}")
    raise ClusterError(
        f"{pod.name}: no log is available here. Pods are deleted some time after the run, and their logs with them, "
        f"unless the installation archives them. Where kubectl reaches the cluster, try:\n  {pod.kubectl}\n"
        "Tried:\n" + "\n".join(reasons)
    )


def last_lines(text: str, count: int) -> Iterator[str]:
    """The last ``count`` non-empty lines at most."""
    yield from [line for line in text.splitlines() if line.strip()][-count:]


def _from_interface(connection: Connection, pod: Pod) -> str:
    query = [("podname", pod.name), ("runid", pod.run_id), ("podnamespace", pod.namespace)]
    return _get_text(replace(connection, host=connection.ui_url), "/k8s/pod/logs", query)


def _from_api(connection: Connection, pod: Pod) -> str:
    text = _get_text(connection, f"/apis/v1alpha1/runs/{pod.run_id}/nodes/{pod.name}/log", [])
    try:
        problem = json.loads(text)["error_message"]  # such a response has the status 200
    except (ValueError, TypeError, KeyError):
        return text
    raise ClusterError(str(problem))


def _get_text(connection: Connection, path: str, query: list[tuple[str, str]]) -> str:
    api = Api(connection, retries=0)
    api.call_api(path, "GET", {}, query, {}, auth_settings=["Bearer"])
    return str(api.last_response.data)


def _from_kubernetes(pod: Pod) -> str:
    configuration = kubernetes.client.Configuration()
    try:
        if IN_POD_NAMESPACE.exists():
            kubernetes.config.load_incluster_config(client_configuration=configuration)
        else:
            kubernetes.config.load_kube_config(client_configuration=configuration)
    except kubernetes.config.ConfigException as error:
        raise ClusterError("no access to a cluster is set up on this machine (no kubeconfig)") from error
    configuration.retries = 0
    core = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))
    try:
        answer: Any = core.read_namespaced_pod_log(
            pod.name, pod.namespace, container=CONTAINER, _request_timeout=KUBERNETES_TIMEOUT
        )
    except kubernetes.client.ApiException as error:
        raise ClusterError(f"answers {error.status} {error.reason}", status=error.status) from error
    except HTTPError as error:
        raise ClusterError(f"{configuration.host}: no answer") from error
    return str(answer)
