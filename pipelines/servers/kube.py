"""Kubernetes' own API, which says more about a run than Kubeflow Pipelines does; a caller may have no rights on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import kubernetes
import yaml
from urllib3.exceptions import HTTPError

from pipelines.servers.connection import IN_POD_NAMESPACE, ClusterError

TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the start of a response."""

RUN_LABEL = "pipeline/runid"
"""Label with the pipeline run's id, on its Argo workflow and on its pods."""

TRAINJOBS = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")

CLUSTER_WIDE = ("list nodes", "list pods of all namespaces", "get namespaces", "get storageclasses")
"""Rights that no role of a namespace gives."""

Object = dict[str, Any]
"""An object of Kubernetes as JSON."""


class KubernetesError(ClusterError):
    """Kubernetes is unreachable from here, refuses, or does not have the object."""

    def __init__(self, message: str, *, status: int | None = None, right: str | None = None) -> None:
        super().__init__(message, status=status)
        self.right = right
        """The right that the caller lacks, in the form of ``kubectl auth can-i``: ``list pods``."""


class NoAccessError(KubernetesError):
    """This machine has no access data for Kubernetes, or they cannot be read."""


class Kubernetes:
    """The API server of the cluster that this machine's kubeconfig, or this pod's service account, names."""

    def __init__(self, namespace: str) -> None:
        """Read the access data; sends nothing yet.

        Raises:
            KubernetesError: there is no access data.
        """
        self.namespace = namespace
        configuration = kubernetes.client.Configuration()
        try:
            if IN_POD_NAMESPACE.exists():
                kubernetes.config.load_incluster_config(client_configuration=configuration)
            else:
                kubernetes.config.load_kube_config(client_configuration=configuration)
        except kubernetes.config.ConfigException as error:
            raise NoAccessError("no access to Kubernetes is set up on this machine (no kubeconfig)") from error
        except (OSError, yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise NoAccessError(f"the kubeconfig cannot be read ({error})") from error
        configuration.retries = 0
        self.host = str(configuration.host)
        self.client = kubernetes.client.ApiClient(configuration)
        self.core = kubernetes.client.CoreV1Api(self.client)
        self.custom = kubernetes.client.CustomObjectsApi(self.client)
        self.storage = kubernetes.client.StorageV1Api(self.client)

    def get(self, right: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The response of a method of the generated client, as JSON.

        Args:
            right: what the caller must be allowed to do, as in `KubernetesError.right`.
            call: the method.

        Raises:
            KubernetesError: no response, or another status than 200.
        """
        return json.loads(self._send(right, call, *args, **kwargs).data)

    def pods(self, run_id: str) -> list[Object]:
        """The pods of a run that still exist.

        Raises:
            KubernetesError: see `get`.
        """
        listed = self.get(
            "list pods", self.core.list_namespaced_pod, self.namespace, label_selector=f"{RUN_LABEL}={run_id}"
        )
        return list(listed["items"])

    def warnings(self, pod: str) -> list[str]:
        """Kubernetes' warnings about a pod, as ``REASON: MESSAGE``, the newest last.

        Raises:
            KubernetesError: see `get`.
        """
        selector = f"involvedObject.name={pod},type=Warning"
        listed = self.get("list events", self.core.list_namespaced_event, self.namespace, field_selector=selector)
        events = sorted(listed["items"], key=lambda event: event.get("lastTimestamp") or "")
        return [f"{event.get('reason', '')}: {event.get('message', '')}" for event in events]

    def pod_log(self, pod: str, container: str) -> str:
        """The log of a pod's container, as far as written.

        Raises:
            KubernetesError: see `get`.
        """
        read = self.core.read_namespaced_pod_log
        response = self._send("get pods/log", read, pod, self.namespace, container=container)
        return bytes(response.data).decode("utf-8", "replace")

    def workflows(self, selector: str) -> list[Object]:
        """The Argo workflows whose labels fit the selector.

        Raises:
            KubernetesError: see `get`.
        """
        return self._list_custom("argoproj.io", "v1alpha1", "workflows", selector)

    def trainjobs(self, selector: str) -> list[Object]:
        """The TrainJobs whose labels fit the selector; none in a cluster without the Kubeflow Trainer.

        Raises:
            KubernetesError: see `get`.
        """
        try:
            return self._list_custom(*TRAINJOBS, selector)
        except KubernetesError as error:
            if error.status == 404:
                return []
            raise

    def delete_trainjobs(self, run_id: str) -> list[str]:
        """Delete the TrainJobs of a run, and thereby their pods; returns their names.

        Raises:
            KubernetesError: see `get`.
        """
        names = [str(one["metadata"]["name"]) for one in self.trainjobs(f"{RUN_LABEL}={run_id}")]
        group, version, plural = TRAINJOBS
        delete = self.custom.delete_namespaced_custom_object
        for name in names:  # None: its task has deleted it
            self.find(f"delete {plural}.{group}", delete, group, version, self.namespace, plural, name)
        return names

    def scheduled_workflows(self) -> list[Object]:
        """The recurring runs, as Kubernetes has them.

        Raises:
            KubernetesError: see `get`.
        """
        return self._list_custom("kubeflow.org", "v1beta1", "scheduledworkflows", "")

    def find(self, right: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Object | None:
        """Like `get`, but None for an object that does not exist."""
        try:
            found: Object = self.get(right, call, *args, **kwargs)
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise
        return found

    def _list_custom(self, group: str, version: str, plural: str, selector: str) -> list[Object]:
        listed = self.get(
            f"list {plural}.{group}",
            self.custom.list_namespaced_custom_object,
            group,
            version,
            self.namespace,
            plural,
            label_selector=selector,
        )
        return list(listed["items"])

    def _send(self, right: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, _preload_content=False, _request_timeout=TIMEOUT, **kwargs)
        except kubernetes.client.ApiException as error:
            if error.status == 401:
                raise KubernetesError("Kubernetes refuses the login of the kubeconfig (401)", status=401) from error
            if error.status == 403:
                where = "in the cluster" if right in CLUSTER_WIDE else f"in namespace {self.namespace}"
                raise KubernetesError(f"no right to {right} {where}", status=error.status, right=right) from error
            raise KubernetesError(f"Kubernetes answers {error.status} {error.reason}", status=error.status) from error
        except HTTPError as error:
            raise KubernetesError(f"Kubernetes at {self.host} does not answer") from error
