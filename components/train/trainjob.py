"""Training on several nodes: the task makes a TrainJob of the Kubeflow Trainer, follows it and takes over its results.

The nodes get data and settings, and give back the model, through the volume of checkpoints, which all of them mount.
The TrainJob has the pipeline run's name, so a task that is tried again finds the one that is running and follows it.
Nothing here imports PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import TimeoutError as PoolTimeoutError
from pathlib import Path
from typing import Any, TypeVar

from components.train import node, step
from yolact.engine.interrupts import EX_SOFTWARE, EX_TEMPFAIL, InterruptedRunError, Interrupts
from yolact.errors import SettingsError, YolactError
from yolact.files import replaced_directory, write_text_atomic
from yolact.models.file_names import WEIGHTS_FILE
from yolact_ops.commands.container import POD_VARIABLE
from yolact_ops.lineage.lineage import shown_settings
from yolact_ops.lineage.variables import PIPELINE_RUN_VARIABLE
from yolact_ops.settings.params import Params
from yolact_ops.tracking.journal import FOLDER
from yolact_ops.tracking.sync import sync

RUNTIME = "yolact-torch"
"""The TrainingRuntime of deploy/train/runtime.yaml."""
CONTAINER = "node"
"""The runtime's replicated job, and its container."""
FOLLOWER_FILE = "followed-by"
"""Names the try of the task that follows the TrainJob."""
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUN_LABEL = "pipeline/runid"
INSTALL = "`kubectl -n {namespace} apply -k deploy/train` (deploy/README.md, Several nodes)"

LOOK_EVERY = 5.0
"""Seconds between two looks at the TrainJob."""
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection to Kubernetes, and for the start of a response."""
PATIENCE = 900.0
"""Seconds without an answer of Kubernetes after which the task gives up; the TrainJob runs on."""
END_PATIENCE = 300.0
"""Seconds for the pods of a deleted TrainJob to end: their grace period, and the kubelet's time."""
LAST_LINES = 20
"""Lines of rank 0's log in the message of a failure."""

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class NodesError(YolactError):
    """The training on several nodes has failed, or cannot be followed."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Nodes:
    """The nodes of a TrainJob; objects of Kubernetes in their own form."""

    count: int
    image: str
    resources: dict[str, str]
    """Requests, and limits, of each node."""
    variables: dict[str, str]
    volumes: list[dict[str, Any]]
    mounts: list[dict[str, Any]]
    node_selector: dict[str, str]
    affinity: dict[str, Any]
    tolerations: list[dict[str, Any]]
    pull_secrets: list[str]
    labels: dict[str, str]
    """Of the TrainJob: Kueue's queue."""
    time_limit: int
    """Seconds."""

    def to_json(self) -> str:
        """As JSON, see `from_json`."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Nodes:
        """What `to_json` wrote.

        Raises:
            SettingsError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"nodes: not what `python -m pipelines compile` writes: {error}") from error


def run(
    params: Params,
    *,
    processed_dir: Path,
    model_dir: Path,
    metrics_path: Path,
    plots_dir: Path,
    checkpoints_dir: Path,
    nodes: str,
    shared: Path,
    code_version: str,
) -> None:
    """Train in this task, or on several nodes through a TrainJob, whose end is then waited for.

    Outside of a cluster this machine trains, on the CPU with as many processes as there would be nodes.

    Args:
        params, processed_dir, model_dir, metrics_path, plots_dir, checkpoints_dir: see `components.train.step.run`.
        nodes: `Nodes` as JSON; empty: train here.
        shared: folder on the volume of checkpoints for what the nodes read and write; removed at the end.
        code_version: version of the step's code, which each node compares with its own.

    Raises:
        SettingsError: the volume is not mounted, or the cluster lacks the Trainer, the runtime or a right.
        NodesError: the TrainJob has failed, was deleted by somebody, or Kubernetes does not answer.
        InterruptedRunError: SIGTERM or SIGINT was received; the TrainJob is deleted, and its pods write a checkpoint.
    """
    if not nodes or POD_VARIABLE not in os.environ:
        step.run(
            _on_one_machine(params, nodes),
            processed_dir=processed_dir,
            model_dir=model_dir,
            metrics_path=metrics_path,
            plots_dir=plots_dir,
            checkpoints_dir=checkpoints_dir,
        )
        return
    if not shared.parent.is_dir():
        raise SettingsError(
            f"{shared.parent}: no such folder, but tasks.train.nodes needs the volume of checkpoints there: "
            "checkpoints.claim and checkpoints.mount in pipelines/cluster.yaml"
        )
    interrupts = Interrupts()
    with interrupts.watched():
        job = _TrainJob(Nodes.from_json(nodes), shared)
        job.claim()
        try:
            with interrupts.at_once():
                _lay_out(params, code_version, processed_dir, checkpoints_dir, shared)
                job.begin()
                job.follow()
                _take_results(shared, model_dir, metrics_path, plots_dir)
        except InterruptedRunError:
            job.end()
            raise InterruptedRunError(
                f"stopped by {interrupts.requested}: TrainJob {job.name} is deleted. The task tried again, or a "
                f"pipeline run with resume_pipeline_run, resumes from the newest checkpoint (exit code {EX_TEMPFAIL})"
            ) from None
        except _StillRunsError:
            raise
        except SettingsError:
            if not job.exists:
                shutil.rmtree(shared, ignore_errors=True)
            raise
        except NodesError:
            job.end()
            for _ in sync(checkpoints_dir / FOLDER):
                pass  # the MLflow run ends as KILLED
            raise
        job.end()


class _StillRunsError(NodesError):
    """The TrainJob is left to a later try, or to another one."""


def _on_one_machine(params: Params, nodes: str) -> Params:
    if not nodes or params.runtime.processes != "auto" or params.runtime.device != "cpu":
        return params
    runtime = params.runtime.model_copy(update={"processes": Nodes.from_json(nodes).count})
    return params.model_copy(update={"runtime": runtime})


def _lay_out(params: Params, code_version: str, processed: Path, checkpoints: Path, shared: Path) -> None:
    """Put what the nodes read on the volume, unless an earlier try of the task has done so."""
    if not (shared / "processed").is_dir():
        ignored = () if params.runtime.shards == "local" else ("images", "shards")
        log.info("copying %s to %s", processed, shared)
        with replaced_directory(shared / "processed") as folder:
            shutil.copytree(processed, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*ignored))
    paths = {
        "processed_dir": shared / "processed",
        "model_dir": shared / "model",
        "metrics_path": shared / "train.json",
        "plots_dir": shared / "plots",
        "checkpoints_dir": checkpoints,
    }
    settings = shown_settings(params)  # the nodes fetch no data
    work = node.Work(code_version, settings, {name: str(path) for name, path in paths.items()})
    write_text_atomic(shared / "work.json", work.to_json())


def _take_results(shared: Path, model: Path, metrics: Path, plots: Path) -> None:
    if not (shared / "model" / WEIGHTS_FILE).is_file():
        raise NodesError(f"{shared / 'model' / WEIGHTS_FILE}: the TrainJob is complete, but its rank 0 wrote no model")
    shutil.copytree(shared / "model", model, dirs_exist_ok=True)
    shutil.copytree(shared / "plots", plots, dirs_exist_ok=True)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shared / "train.json", metrics)


class _TrainJob:
    """The TrainJob of a pipeline run, from the task's side."""

    def __init__(self, nodes: Nodes, shared: Path) -> None:
        """Connect to Kubernetes.

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
        self._run_id = shared.name.removesuffix("-nodes")
        self.name = f"yolact-train-{hashlib.sha256(self._run_id.encode()).hexdigest()[:12]}"
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
        self.exists = False
        """Whether `begin` has found or made it."""
        self._log = _Log(self._core, self._namespace)
        self._shown = ""

    def claim(self) -> None:
        """Make this try of the task the one that follows the TrainJob."""
        self._shared.mkdir(exist_ok=True)
        write_text_atomic(self._shared / FOLLOWER_FILE, self._try)

    def begin(self) -> None:
        """Find the TrainJob of an earlier try of the task, or make it."""
        self._check_trainer()
        while True:
            found = self._find()
            if found is not None and "deletionTimestamp" not in found["metadata"]:
                if _condition(found, "Failed") is None:
                    log.info("TrainJob %s exists: following it", self.name)
                    self.exists = True
                    return
                log.info("TrainJob %s has failed in an earlier try: it is made anew", self.name)
                self._delete()
            self._wait_for_end()
            if self._create():
                log.info("TrainJob %s created: %d nodes", self.name, self._nodes.count)
                self.exists = True
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
                raise self._failed(failure, _rank_0(pods))

    def end(self) -> None:
        """Delete the TrainJob, wait for its pods, and remove what was on the volume for it.

        What cannot be removed is a warning: the task has its result, or its error, already.
        """
        try:
            self._check_follower()
            self._delete()
            self._wait_for_end()
        except YolactError as error:
            log.warning("TrainJob %s is not cleaned up: %s", self.name, error)
        else:
            shutil.rmtree(self._shared, ignore_errors=True)

    def _check_follower(self) -> None:
        """Leave the TrainJob to a later try of the task: this one is of a node that was lost and came back."""
        with suppress(FileNotFoundError):  # removed by it
            if (self._shared / FOLLOWER_FILE).read_text(encoding="utf-8") == self._try:
                return
        raise _StillRunsError(f"TrainJob {self.name}: a later try of this task follows it")

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
            self._ask(
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
        except _RefusedError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _check_runtime(self) -> None:
        """Kubeflow's SDK would look for a missing one among those of the whole cluster, which needs another right."""
        get, arguments = self._custom.get_namespaced_custom_object, (GROUP, VERSION, self._namespace)
        try:
            self._ask(
                "get trainingruntimes.trainer.kubeflow.org",
                lambda: get(*arguments, "trainingruntimes", RUNTIME, _request_timeout=TIMEOUT),
            )
        except _RefusedError as error:
            raise SettingsError(
                f"tasks.train.nodes: namespace {self._namespace} has no TrainingRuntime {RUNTIME} ({error}): "
                f"{INSTALL.format(namespace=self._namespace)}"
            ) from error

    def _check_trainer(self) -> None:
        """Refuse a cluster without the Trainer; every service account may list the API's groups."""
        from kubernetes.client import ApisApi

        apis = ApisApi(self._core.api_client)
        groups = self._ask("list API groups", lambda: apis.get_api_versions(_request_timeout=TIMEOUT)).groups
        if GROUP not in [group.name for group in groups]:
            raise SettingsError(
                f"tasks.train.nodes: this cluster has no Kubeflow Trainer (its API has no group {GROUP}). Install "
                "version 2.2 or later (https://www.kubeflow.org/docs/components/trainer/), then "
                f"{INSTALL.format(namespace=self._namespace)}; or train on one node: -C tasks.train.nodes=1"
            )

    def _find(self) -> dict[str, Any] | None:
        get = self._custom.get_namespaced_custom_object
        arguments = (GROUP, VERSION, self._namespace, PLURAL, self.name)
        try:
            found: dict[str, Any] = self._ask(
                "get trainjobs.trainer.kubeflow.org", lambda: get(*arguments, _request_timeout=TIMEOUT)
            )
        except _RefusedError as error:
            if error.status == 404:
                return None
            raise
        return found

    def _pods(self) -> list[dict[str, Any]]:
        """Its pods, the newest first."""
        selector = f"jobset.sigs.k8s.io/jobset-name={self.name}"
        listed = self._ask(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self._namespace, label_selector=selector, _request_timeout=TIMEOUT, _preload_content=False
            ),
        )
        pods: list[dict[str, Any]] = json.loads(listed.data)["items"]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)

    def _delete(self) -> None:
        try:
            self._ask("delete trainjobs.trainer.kubeflow.org", lambda: self._client.delete_job(self.name))
        except _RefusedError as error:
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

    def _failed(self, failure: dict[str, Any], rank_0: dict[str, Any] | None) -> NodesError:
        if failure.get("reason") == "DeadlineExceeded":
            return NodesError(
                f"TrainJob {self.name} reached its time limit, {self._nodes.time_limit} s (tasks.train.time_limit). "
                "With a larger one, a new pipeline run with resume_pipeline_run resumes from the newest checkpoint"
            )
        lines = "".join(f"\n  {line}" for line in self._log.last)
        said = f"; the last lines of rank 0:{lines}" if lines else "; rank 0 has no log"
        is_ours = any(
            (status.get("state", {}).get("terminated") or {}).get("exitCode") == 1
            for status in (rank_0 or {}).get("status", {}).get("containerStatuses", [])
        )
        return NodesError(
            f"TrainJob {self.name} failed: {failure.get('message') or failure.get('reason')}{said}",
            1 if is_ours else EX_SOFTWARE,
        )

    def _ask(self, right: str, call: Callable[[], _T]) -> _T:
        """The answer of Kubernetes; waits while it does not answer.

        Args:
            right: what the task must be allowed to do, in the form of ``kubectl auth can-i``.

        Raises:
            _RefusedError: it answers with an error.
            SettingsError: the right is missing.
            NodesError: it has not answered for `PATIENCE`.
        """
        end: float | None = None
        while True:
            try:
                return call()
            except Exception as error:
                if isinstance(error.__cause__, InterruptedRunError):  # wrapped by Kubeflow's SDK
                    raise error.__cause__ from None
                status, reason = _reason(error)
                if status == 403 and " cannot " in reason:  # else an admission webhook, or a quota, refuses
                    raise SettingsError(
                        f"tasks.train.nodes: the task has no right to {right} in namespace {self._namespace} "
                        f"({reason}). {INSTALL.format(namespace=self._namespace)}, or another --service-account"
                    ) from error
                if status and status != 429 and status < 500:
                    raise _RefusedError(
                        f"TrainJob {self.name}: Kubernetes answers {status}: {reason}", status
                    ) from error
                if status is None:
                    raise
                if end is None:
                    end = time.monotonic() + PATIENCE
                    log.warning("Kubernetes does not answer (%s); the nodes train on, trying again", reason)
                if time.monotonic() > end:
                    raise _StillRunsError(
                        f"Kubernetes has not answered for {PATIENCE:g} s ({reason}). TrainJob {self.name} is left as "
                        "it is; `python -m pipelines retry RUN` follows it again",
                        EX_SOFTWARE,
                    ) from error
                time.sleep(LOOK_EVERY)


class _RefusedError(NodesError):
    """Kubernetes answers with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Log:
    """Prints the log of a container, whose pod may be replaced, each line once."""

    def __init__(self, core: Any, namespace: str) -> None:
        self.last: list[str] = []
        """The newest lines, `LAST_LINES` at most."""
        self._core, self._namespace = core, namespace
        self._pod = ""
        self._stamp = ""
        self._read_at = 0.0

    def print_new(self, pod: dict[str, Any] | None, seconds: float, *, is_ended: bool) -> None:
        """Print what is new, and what comes within some seconds.

        Args:
            pod: the pod; None: there is none yet.
            seconds: to wait for more.
            is_ended: no more will come.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        begin = time.monotonic()
        if pod is not None and pod.get("status", {}).get("phase") != "Pending":
            self._turn_to(pod["metadata"]["name"])
            since = {"since_seconds": int(begin - self._read_at) + 60} if self._stamp else {}
            with suppress(ApiException, HTTPError, OSError):  # the next look tells what is wrong
                response = self._core.read_namespaced_pod_log(
                    self._pod,
                    self._namespace,
                    container=CONTAINER,
                    follow=not is_ended,
                    timestamps=True,
                    _preload_content=False,
                    _request_timeout=(TIMEOUT[0], seconds),
                    **since,
                )
                try:
                    for line in _lines(response):
                        self._print(line)
                        if time.monotonic() - begin > seconds and not is_ended:
                            break
                finally:
                    response.close()
                    self._read_at = begin
        if not is_ended:
            time.sleep(max(seconds - (time.monotonic() - begin), 0))

    def _turn_to(self, pod: str) -> None:
        if pod != self._pod:
            self._pod, self._stamp = pod, ""

    def _print(self, line: str) -> None:
        stamp, _, text = line.partition(" ")
        seconds, _, fraction = stamp.removesuffix("Z").partition(".")
        stamp = f"{seconds}.{fraction:0<9}"
        if stamp > self._stamp:
            self._stamp = stamp
            self.last = [*self.last, text][-LAST_LINES:]
            print(text, file=sys.stderr, flush=True)


def _lines(response: Any) -> Iterator[str]:
    """The complete lines of a response, as they come."""
    rest = b""
    for part in response.stream(2**16):
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """A condition of the TrainJob that is true."""
    conditions = job.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def _rank_0(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest pod of the first node."""
    index = "batch.kubernetes.io/job-completion-index"
    return next((pod for pod in pods if pod["metadata"].get("labels", {}).get(index) == "0"), None)


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


def _reason(error: Exception) -> tuple[int | None, str]:
    """HTTP status and reason of what Kubernetes' client raised: 0 without an answer, None for anything else.

    Kubeflow's SDK wraps the client's errors.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, ApiException):
        body = error.body if isinstance(error.body, str) else (error.body or b"").decode("utf-8", "replace")
        with suppress(ValueError, TypeError, KeyError):
            body = json.loads(body)["message"]
        return error.status or 0, f"{error.reason}: {body}" if body else str(error.reason)
    if isinstance(error, HTTPError | OSError | PoolTimeoutError):
        return 0, str(getattr(error, "reason", None) or error) or type(error).__name__
    return None, str(error)
