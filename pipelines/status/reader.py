"""Reads the state of a run from all sources that the caller may use, with the causes of failures."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from pipelines.servers.client import Cluster
from pipelines.servers.connection import ClusterError
from pipelines.servers.kube import Kubernetes, KubernetesError, NoAccessError, Object
from pipelines.spec import PipelineTask, Request
from pipelines.status.causes import Cause, find_cause
from pipelines.status.logs import LogReader, own_lines
from pipelines.status.nodes import NODE_NAME, PENDING, Node, from_run, from_workflow
from pipelines.status.runs import RunStatus, TaskStatus, read_run

LOG_END = 15
"""Lines of a failed task's log that are shown."""

STARTING_REASONS = ("PodInitializing", "ContainerCreating")
"""Messages of a pod that is starting, as far as Argo knows."""

NO_TASKS = "Its tasks are not known: the version of its pipeline has been deleted, or is not of Kubeflow Pipelines 2."


class RunReader:
    """Reads runs of one server; keeps what does not change between two looks."""

    def __init__(self, cluster: Cluster) -> None:
        """Prepare; sends nothing yet."""
        self.cluster = cluster
        self.logs = LogReader(cluster.connection, cluster.pod_namespace)
        self._tasks: dict[str, tuple[PipelineTask, ...] | None] = {}
        self._causes: dict[tuple[str, datetime | None], tuple[Cause, tuple[str, ...]]] = {}
        """By `Node.key`."""
        self._kubernetes: Kubernetes | None = None
        self._pods: dict[str, list[Object]] = {}
        """The last answer of Kubernetes, by run."""
        self._no_pods = ""
        """Why the pods cannot be read; empty if they can, or if this is not known yet."""

    def read(self, run_id: str) -> RunStatus:
        """The state of a run.

        Raises:
            ClusterError: the server does not answer, refuses, or has no such run.
        """
        run = self.cluster.run(run_id)
        if run_id not in self._tasks:
            pipeline = self.cluster.pipeline_of(run)
            self._tasks[run_id] = pipeline.tasks() if pipeline else None
        tasks = self._tasks[run_id]
        workflow = self.cluster.workflow(run_id)
        nodes = from_workflow(workflow) if workflow else {}
        if not nodes:  # no workflow, or one whose nodes Argo has compressed or stored elsewhere
            nodes = from_run((run.run_details and run.run_details.task_details) or [])
        self._add_pods(run_id, nodes)
        lacking = (
            f"Why tasks wait or fail is not fully known: {self._no_pods}." if self._no_pods and not workflow else ""
        )
        status = read_run(run, tasks or (), nodes, lacking if tasks is not None else NO_TASKS)
        if run.error and not status.tasks:
            status = replace(status, start_cause=Cause(" ".join(str(run.error.message).split())))
        if status.start_failure:
            status = replace(status, start_cause=self._explain(run_id, status.start_failure, "", Request())[0])
        return replace(status, tasks=tuple(self._with_cause(run_id, task) for task in status.tasks))

    def _add_pods(self, run_id: str, nodes: dict[str, Node]) -> None:
        if self._no_pods:
            return
        try:
            self._kubernetes = self._kubernetes or Kubernetes(self.cluster.pod_namespace)
            self._pods[run_id] = self._kubernetes.pods(run_id)
        except KubernetesError as error:
            if isinstance(error, NoAccessError) or error.status == 403:
                self._no_pods = str(error)
                return
        for pod in self._pods.get(run_id, ()):  # after an error the last answer: a look without pods says less
            name = pod["metadata"].get("annotations", {}).get(NODE_NAME)
            if name in nodes:
                nodes[name] = self._with_warning(nodes[name].with_pod(pod))

    def _with_warning(self, node: Node) -> Node:
        """The node with Kubernetes' last warning, if nothing else says why its pod does not start."""
        if node.phase != PENDING or node.message not in ("", *STARTING_REASONS) or self._kubernetes is None:
            return node
        with suppress(KubernetesError):
            for warning in self._kubernetes.warnings(node.pod)[-1:]:
                return replace(node, message=" ".join(warning.split()))
        return node

    def _with_cause(self, run_id: str, task: TaskStatus) -> TaskStatus:
        if task.failed is None:
            return task
        cause, log_end = self._explain(run_id, task.failed, task.step, task.request)
        return replace(task, cause=cause, log_end=log_end)

    def _explain(self, run_id: str, node: Node, step: str, request: Request) -> tuple[Cause, tuple[str, ...]]:
        if node.key in self._causes:
            return self._causes[node.key]
        try:
            log = self.logs.read(run_id, node)
        except ClusterError:
            log = ""
        lines = deque((line for line in own_lines(log) if line.strip()), maxlen=LOG_END)
        found = find_cause(node, step, request, log), tuple(lines)
        if log and (node.message or node.exit_code is not None):  # else a later look may find more
            self._causes[node.key] = found
        return found
