"""The TrainJob of a pipeline run: made through Kubeflow's SDK, followed to its end, and deleted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from components.train import node
from components.train.kubernetes_calls import INSTALL, TIMEOUT, Calls, NodesError, RefusedError, StillRunsError
from components.train.nodes import Nodes
from components.train.pod_log import PodLog
from yolact.errors import EX_SOFTWARE, EX_UNAVAILABLE, SettingsError, YolactError
from yolact.files import write_text_atomic
from yolact_ops.lineage.variables import PIPELINE_RUN_VARIABLE

RUNTIME = "yolact-torch"
"""The TrainingRuntime of deploy/train/runtime.yaml."""
CONTAINER = "node"
"""The runtime's replicated job, and its container."""
FOLDER_SUFFIX = "-nodes"
"""Of the run's folder on the volume."""
FOLLOWER_FILE = "followed-by"
"""Names the try of the task that follows the TrainJob, which touches it at each look."""
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUN_LABEL = "pipeline/runid"

LOOK_EVERY = 5.0
"""Seconds between two looks at the TrainJob."""
END_PATIENCE = 300.0
"""Seconds for the pods of a deleted TrainJob to end: their grace period, and the kubelet's time."""
LEFT_AFTER = 86_400.0
"""Seconds without a look after which a folder without a TrainJob is left over: more than copying the data takes."""

log = logging.getLogger(__name__)


class TrainJob:
    """The TrainJob of a pipeline run, from the side of the task that has made or found it."""

    def __init__(self, nodes: Nodes, shared: Path) -> None:
        """Connect to Kubernetes.

        Args:
            nodes: the nodes.
            shared: the run's folder on the volume, see `components.train.trainjob.run`.

        Raises:
            SettingsError: Kubeflow's SDK is not installed, or there are no access data for Kubernetes.
        """
        try:
            from kubeflow.trainer import TrainerClient
        except ImportError as error:
            raise SettingsError(
                "training on several nodes needs Kubeflow's SDK, the extra `trainer`: "
                "pip install 'yolact-pipeline[trainer]'"
            ) from error
        from kubernetes.config import ConfigException

        logging.getLogger("kubeflow").setLevel(logging.ERROR)  # it warns of a ConfigMap that tasks need not read
        self._nodes = nodes
        self._shared = shared
        self._run_id = shared.name.removesuffix(FOLDER_SUFFIX)
        self.name = _name(self._run_id)
        try:
            self._client = TrainerClient()
        except ConfigException as error:
            raise SettingsError(
                f"{error}: the task has no token for Kubernetes. Its service account needs one, and the role of "
                "deploy/train/role.yaml"
            ) from error
        self._custom, self._core = self._client.backend.custom_api, self._client.backend.core_api
        self._namespace = self._client.backend.namespace
        self._try = uuid.uuid4().hex
        self._is_first = False
        """Whether no earlier try of the task has made the folder."""
        self._exists = False
        """Whether `begin` has found or made the TrainJob."""
        self._calls = Calls(self.name, self._namespace)
        self._log = PodLog(self._core, self._namespace, CONTAINER)
        self._shown = ""

    def claim(self) -> None:
        """Make this try of the task the one that follows the TrainJob."""
        self._is_first = not self._shared.exists()
        self._shared.mkdir(exist_ok=True)
        write_text_atomic(self._shared / FOLLOWER_FILE, self._try)

    def remove_leftovers(self) -> None:
        """Remove the folders of other runs that nobody follows and that have no TrainJob: a stop often leaves them, as
        Kubeflow Pipelines ends the task's container before the pods have ended."""
        for file in self._shared.parent.glob(f"*{FOLDER_SUFFIX}/{FOLLOWER_FILE}"):
            folder = file.parent
            with suppress(FileNotFoundError):  # its task has ended meanwhile
                is_left = folder != self._shared and time.time() - file.stat().st_mtime > LEFT_AFTER
                if is_left and self._find(_name(folder.name.removesuffix(FOLDER_SUFFIX))) is None:
                    log.info("removing %s, which a run that was stopped has left", folder)
                    shutil.rmtree(folder, ignore_errors=True)

    def begin(self) -> None:
        """Find the TrainJob of an earlier try of the task, or make it."""
        self._check_trainer()
        while True:
            found = self._find()
            if found is not None and "deletionTimestamp" not in found["metadata"]:
                if _condition(found, "Failed") is None:
                    log.info("TrainJob %s exists: following it", self.name)
                    self._exists = True
                    return
                log.info("TrainJob %s has failed in an earlier try: making it again", self.name)
                self._delete()
            self._wait_for_end()
            if self._create():
                log.info("TrainJob %s created: %d nodes", self.name, self._nodes.count)
                self._exists = True
                return

    def follow(self) -> None:
        """Wait for the end, and print rank 0's log.

        Raises:
            NodesError: the training has failed, or the TrainJob was deleted.
        """
        while True:
            self._check_follower()
            found = self._find()
            if found is None or "deletionTimestamp" in found["metadata"]:
                raise NodesError(
                    f"TrainJob {self.name} was deleted by somebody. `python -m pipelines retry RUN` resumes the "
                    "training from its newest checkpoint"
                )
            pods = self._pods()
            is_done, failure = _condition(found, "Complete") is not None, _condition(found, "Failed")
            self._show(_state(found, pods, self._nodes.count))
            self._log.print_new(_rank_0(pods), LOOK_EVERY, is_ended=is_done or failure is not None)
            if is_done:
                return
            if failure is not None:
                raise self._failed(failure, pods)

    def give_up(self) -> None:
        """Remove the folder if this try has made it and no TrainJob: what else there is belongs to another try."""
        if self._is_first and not self._exists:
            shutil.rmtree(self._shared, ignore_errors=True)

    def end(self) -> None:
        """Delete the TrainJob, wait for its pods, and remove what was on the volume for it.

        What cannot be removed is a warning: the task has its result, or its error, already.
        """
        try:
            self._check_follower()
            self._delete()
            self._wait_for_end()
            self._check_follower()  # a later try may have begun meanwhile
        except YolactError as error:
            log.warning("TrainJob %s is not cleaned up: %s", self.name, error)
        else:
            shutil.rmtree(self._shared, ignore_errors=True)

    def _check_follower(self) -> None:
        """Leave the TrainJob to a later try of the task: this one is of a node that was lost and came back."""
        file = self._shared / FOLLOWER_FILE
        with suppress(FileNotFoundError):  # removed by it
            if file.read_text(encoding="utf-8") == self._try:
                os.utime(file)
                return
        raise StillRunsError(f"TrainJob {self.name}: a later try of this task follows it")

    def _create(self) -> bool:
        """Whether it is made; False if it exists."""
        self._check_runtime()
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer import options as sdk

        nodes = self._nodes
        container = sdk.ContainerPatch(name=CONTAINER, volume_mounts=nodes.mounts)
        pod = sdk.PodSpecPatch(
            volumes=nodes.volumes,
            containers=[container],
            node_selector=nodes.node_selector or None,
            affinity=nodes.affinity or None,
            tolerations=nodes.tolerations or None,
            image_pull_secrets=[{"name": name} for name in nodes.pull_secrets] or None,
        )
        template = sdk.JobTemplatePatch(spec=sdk.JobSpecPatch(template=sdk.PodTemplatePatch(spec=pod)))
        jobs = sdk.JobSetSpecPatch(replicated_jobs=[sdk.ReplicatedJobPatch(name=CONTAINER, template=template)])
        patch = sdk.TrainingRuntimeSpecPatch(template=sdk.JobSetTemplatePatch(spec=jobs))
        try:
            self._calls.ask(
                "create trainjobs.trainer.kubeflow.org",
                lambda: self._client.train(
                    runtime=RUNTIME,
                    trainer=CustomTrainerContainer(
                        image=nodes.image,
                        num_nodes=nodes.count,
                        resources_per_node=nodes.resources,
                        env=nodes.variables | {PIPELINE_RUN_VARIABLE: self._run_id},
                    ),
                    options=[
                        sdk.Name(name=self.name),
                        sdk.Labels({RUN_LABEL: self._run_id, **nodes.labels}),
                        sdk.TrainerCommand(command=["python", "-m", node.__name__, str(self._shared / "work.json")]),
                        sdk.RuntimePatch(training_runtime_spec=patch),
                        sdk.ActiveDeadlineSeconds(nodes.time_limit),  # of what is left if the task is lost for good
                    ],
                ),
            )
        except RefusedError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _check_runtime(self) -> None:
        """Kubeflow's SDK would look for a missing one among those of the whole cluster, which needs another right."""
        get, arguments = self._custom.get_namespaced_custom_object, (GROUP, VERSION, self._namespace)
        try:
            self._calls.ask(
                "get trainingruntimes.trainer.kubeflow.org",
                lambda: get(*arguments, "trainingruntimes", RUNTIME, _request_timeout=TIMEOUT),
            )
        except RefusedError as error:
            raise SettingsError(
                f"tasks.train.nodes: namespace {self._namespace} has no TrainingRuntime {RUNTIME} ({error}): "
                f"{INSTALL.format(namespace=self._namespace)}"
            ) from error

    def _check_trainer(self) -> None:
        """Refuse a cluster without the Trainer; every service account may list the API's groups."""
        from kubernetes.client import ApisApi

        apis = ApisApi(self._core.api_client)
        groups = self._calls.ask("list API groups", lambda: apis.get_api_versions(_request_timeout=TIMEOUT)).groups
        if GROUP not in [group.name for group in groups]:
            raise SettingsError(
                f"tasks.train.nodes: this cluster has no Kubeflow Trainer (its API has no group {GROUP}). Install "
                "version 2.2 or later (https://www.kubeflow.org/docs/components/trainer/), then "
                f"{INSTALL.format(namespace=self._namespace)}; or train on one node: -C tasks.train.nodes=1"
            )

    def _find(self, name: str | None = None) -> dict[str, Any] | None:
        """The TrainJob, or another one."""
        get = self._custom.get_namespaced_custom_object
        arguments = (GROUP, VERSION, self._namespace, PLURAL, name or self.name)
        try:
            found: dict[str, Any] = self._calls.ask(
                "get trainjobs.trainer.kubeflow.org", lambda: get(*arguments, _request_timeout=TIMEOUT)
            )
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        return found

    def _pods(self) -> list[dict[str, Any]]:
        """Its pods, the newest first."""
        selector = f"jobset.sigs.k8s.io/jobset-name={self.name}"
        listed = self._calls.ask(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self._namespace, label_selector=selector, _request_timeout=TIMEOUT, _preload_content=False
            ),
        )
        pods: list[dict[str, Any]] = json.loads(listed.data)["items"]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)

    def _delete(self) -> None:
        try:
            self._calls.ask("delete trainjobs.trainer.kubeflow.org", lambda: self._client.delete_job(self.name))
        except RefusedError as error:
            if error.status != 404:
                raise

    def _wait_for_end(self) -> None:
        """Wait until a TrainJob that is deleted, and its pods, are gone: they write checkpoints until then."""
        end = time.monotonic() + END_PATIENCE
        while (found := self._find()) is not None or self._pods():
            if found is not None and "deletionTimestamp" not in found["metadata"]:
                return  # another try of the task has made it
            if time.monotonic() > end:
                raise NodesError(
                    f"TrainJob {self.name} is deleted, but its pods are still there after {END_PATIENCE:g} s: `kubectl "
                    f"-n {self._namespace} get pods -l jobset.sigs.k8s.io/jobset-name={self.name}`"
                )
            time.sleep(1)

    def _show(self, state: str) -> None:
        if state != self._shown:
            self._shown = state
            log.info("TrainJob %s: %s", self.name, state)

    def _failed(self, failure: dict[str, Any], pods: list[dict[str, Any]]) -> NodesError:
        if failure.get("reason") == "DeadlineExceeded":
            return NodesError(
                f"TrainJob {self.name} reached its time limit, {self._nodes.time_limit} s (tasks.train.time_limit). "
                "With a larger one, a new pipeline run with resume_pipeline_run resumes from the newest checkpoint"
            )
        ended = _first_to_fail(pods)
        if ended is None:
            what, code = "No exit code of a node is known", EX_SOFTWARE
        else:
            what, code = f"Node {_index(ended)} ended with exit code {_exit(ended)[0]}", _exit(ended)[0]
            if ended is not _rank_0(pods):
                self._log = PodLog(self._core, self._namespace, CONTAINER)
                self._log.print_new(ended, LOOK_EVERY, is_ended=True)
        lines = "".join(f"\n  {line}" for line in self._log.last)
        whose = "its" if ended is not None else "rank 0's"
        said = f"{whose} last lines:{lines}" if lines else f"{whose} log is empty"
        return NodesError(
            f"TrainJob {self.name} failed: {failure.get('message') or failure.get('reason')}. {what}; {said}",
            code if code in (YolactError.exit_code, EX_UNAVAILABLE) else EX_SOFTWARE,
        )


def _name(run_id: str) -> str:
    """The name of a pipeline run's TrainJob."""
    return f"yolact-train-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """A condition of the TrainJob that is true."""
    conditions = job.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def _index(pod: dict[str, Any]) -> str:
    """The node's number, as text; empty for a pod that is no node."""
    return str(pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-completion-index", ""))


def _rank_0(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest pod of the first node."""
    return next((pod for pod in pods if _index(pod) == "0"), None)


def _exit(pod: dict[str, Any]) -> tuple[int, str]:
    """Exit code and time of the end of a pod's process; 0 and no time while it runs."""
    for status in pod.get("status", {}).get("containerStatuses", []):
        if ended := status.get("state", {}).get("terminated"):
            return int(ended["exitCode"]), str(ended.get("finishedAt", ""))
    return 0, ""


def _first_to_fail(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The pod that is the reason: one with an error of the user, else the one that ended first."""
    failed = [pod for pod in pods if _exit(pod)[0] != 0]
    return min(failed, key=lambda pod: (_exit(pod)[0] != YolactError.exit_code, _exit(pod)[1]), default=None)


def _state(job: dict[str, Any], pods: list[dict[str, Any]], count: int) -> str:
    """What the TrainJob does, or waits for."""
    for kind in ("Complete", "Failed", "Suspended"):
        if (found := _condition(job, kind)) is not None:
            return f"{kind.lower()}: {found.get('message', '')}".rstrip(": ")
    phases = [pod.get("status", {}).get("phase", "Pending") for pod in pods[:count]]
    running = sum(phase in ("Running", "Succeeded") for phase in phases)
    reasons = {
        condition["message"]
        for pod in pods[:count]
        for condition in pod.get("status", {}).get("conditions") or []
        if condition["type"] == "PodScheduled" and condition["status"] == "False" and condition.get("message")
    }
    waiting = f" ({'; '.join(sorted(reasons))})" if reasons else ""
    return f"{running} of {count} nodes are running{waiting}"
