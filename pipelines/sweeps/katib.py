"""A sweep on a cluster: an experiment of Katib, whose trials are Jobs that run `pipelines.sweeps.trial`.

The experiment is written out, not made by ``OptimizerClient`` of Kubeflow's SDK (0.5): that takes a Python function,
whose pods get neither the tasks' secrets nor the volume of checkpoints, needs a runtime of the Trainer, names the
experiment itself, so that a second command cannot go on with it, and does not read back an experiment that uses TPE.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import kubernetes
import yaml

from pipelines.config import ClusterConfig
from pipelines.placement import queue_labels
from pipelines.pods import pod_affinity, pod_resources, pod_tolerations, pod_variables, pod_volumes
from pipelines.servers.connection import ClusterError
from pipelines.servers.kube import Kubernetes, KubernetesError, Object
from pipelines.sweeps.exit_codes import FINAL
from pipelines.sweeps.space import Parameter, override
from pipelines.sweeps.sweep import (
    BEST_MODULE,
    BEST_VARIABLE,
    TRIAL_MODULE,
    TRIAL_VARIABLE,
    Best,
    Plan,
    Sweep,
    SweepError,
    Trial,
)
from yolact.errors import SettingsError

GROUP, VERSION, PLURAL = "kubeflow.org", "v1beta1", "experiments"
DIGEST = "yolact/sweep"
"""Annotation with `Sweep.digest`: whether an experiment of the same name is the same sweep."""
BEST_TRIAL = "yolact/best-trial"
"""Annotation of the Job at the end of a sweep with the name of the best trial."""
CONTAINER = "trial"
COLLECTOR = "metrics-logger-and-collector"
"""The container that Katib adds to a trial's pod; the trial's log is there."""
TRIAL_NAME = "trial"
"""Katib's parameter for the name of the trial."""
INTERVAL = 10.0
"""Seconds between two looks at the experiment."""
STEPS = ("source", "ingest", "preprocess", "train", "evaluate", "register", "promote")
"""Steps whose secrets the pods get."""


def experiment(sweep: Sweep, space: Sequence[Parameter], plan: Plan, cluster: ClusterConfig, namespace: str) -> Object:
    """The experiment, as Katib's API takes it.

    Args:
        sweep: what the trials share.
        space: what they try.
        plan: how many trials, how many at a time, and the seed.
        cluster: image, volume and secrets; the pods have the resources of ``tasks.train``.
        namespace: the experiment's namespace.

    Raises:
        SettingsError: the cluster file has no volume for checkpoints, or Katib cannot pass on a choice.
    """
    for parameter in space:
        if parameter.form == "choice" and any(set(value) & set('"\\') for value in parameter.values):
            raise SettingsError(
                f"-S {parameter.key}={parameter}: Katib cannot pass on choices with quotes or backslashes; "
                "try such a setting on this machine, without --katib"
            )
    keys = [parameter.key for parameter in space]
    overrides = [override(key, f"${{trialParameters.{key}}}") for key in keys]
    trial = Trial(sweep, _folder(sweep, cluster), f"${{trialParameters.{TRIAL_NAME}}}", overrides, False)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Experiment",
        "metadata": {"name": sweep.name, "namespace": namespace, "annotations": {DIGEST: sweep.digest}},
        "spec": {
            "objective": {"type": "maximize", "objectiveMetricName": sweep.metric},
            "algorithm": {
                "algorithmName": "tpe",
                "algorithmSettings": [{"name": "random_state", "value": str(plan.seed)}],
            },
            "maxTrialCount": plan.trials,
            "parallelTrialCount": plan.parallel,
            "maxFailedTrialCount": plan.trials,  # a failed trial does not end the sweep
            "parameters": [_parameter(parameter) for parameter in space],
            "metricsCollectorSpec": {"collector": {"kind": "StdOut"}},
            "trialTemplate": {
                "primaryContainerName": CONTAINER,
                "retain": True,  # the Job and its log, after its end
                "trialParameters": [{"name": key, "reference": key} for key in keys]
                + [{"name": TRIAL_NAME, "reference": "${trialSpec.Name}"}],
                "trialSpec": _as_kubernetes_writes(_job(cluster, TRIAL_MODULE, {TRIAL_VARIABLE: trial.to_json()})),
            },
        },
    }


def as_yaml(manifest: Object) -> str:
    """The manifest for ``kubectl apply``."""
    return yaml.safe_dump(manifest, sort_keys=False, width=120)


def run_sweep(sweep: Sweep, manifest: Object, plan: Plan, cluster: ClusterConfig, namespace: str) -> None:
    """Create the experiment, or go on with it; wait for its end, then register the best model in a pod.

    Args:
        sweep, plan, cluster, namespace: as for `experiment`.
        manifest: what `experiment` gave.

    Raises:
        SettingsError: the namespace has another experiment of that name.
        ClusterError: Kubernetes does not answer or refuses, or has no Katib.
        SweepError: no trial has a result, or the best one could not be registered.
    """
    kube = Kubernetes(namespace)
    found = _find(kube, sweep.name)
    if found is None:
        _create(kube, manifest)
        print(f"experiment {sweep.name} created in namespace {namespace}", flush=True)
    elif found["metadata"].get("annotations", {}).get(DIGEST) != sweep.digest:
        raise SettingsError(
            f"--name {sweep.name}: namespace {namespace} has another experiment of that name. Give another name, or "
            f"`kubectl -n {namespace} delete experiment {sweep.name}`"
        )
    else:
        print(f"experiment {sweep.name}: going on with the one in namespace {namespace}", flush=True)
    ended = _wait(kube, sweep)
    optimal = ended["status"].get("currentOptimalTrial", {})
    if not optimal.get("bestTrialName"):
        raise SweepError(
            f"experiment {sweep.name}: no trial has a result. `kubectl -n {namespace} get trials -l "
            f"katib.kubeflow.org/experiment={sweep.name}`, and their pods' logs (`-c {COLLECTOR}`), say why"
        )
    assignments = {each["name"]: each["value"] for each in optimal["parameterAssignments"]}
    best = Best(sweep, _folder(sweep, cluster), optimal["bestTrialName"], assignments, plan.registers)
    print(f"best       {best.name}: {optimal['observation']['metrics'][0]['latest']} {sweep.metric}")
    print(f"settings   {' '.join(f'-S {key}={value}' for key, value in assignments.items())}", flush=True)
    _finish(kube, best, cluster)


def _folder(sweep: Sweep, cluster: ClusterConfig) -> str:
    if not cluster.checkpoints.claim:
        raise SettingsError(
            "checkpoints.claim: empty; a sweep on a cluster keeps its data and trials on that volume: "
            "-C checkpoints.claim=NAME"
        )
    return f"{cluster.checkpoints.mount}/sweeps/{sweep.name}"


def _parameter(parameter: Parameter) -> Object:
    """A parameter as Katib's API takes it; all values are texts there."""
    if parameter.form == "choice":
        return _spec(parameter, "categorical", {"list": list(parameter.values)})
    low, high = map(str, parameter.values)
    if parameter.form == "int":
        return _spec(parameter, "int", {"min": low, "max": high})
    distribution = "logUniform" if parameter.form == "loguniform" else "uniform"
    return _spec(parameter, "double", {"min": low, "max": high, "distribution": distribution})


def _spec(parameter: Parameter, kind: str, feasible: Mapping[str, Any]) -> Object:
    return {"name": parameter.key, "parameterType": kind, "feasibleSpace": dict(feasible)}


def _job(cluster: ClusterConfig, module: str, environment: Mapping[str, str]) -> Object:
    """A Job that runs a module with the resources of the task train, and the tasks' secrets and volume."""
    config = cluster.for_step("train")
    secrets = list(dict.fromkeys(key for step in STEPS for key in cluster.for_step(step).secrets))
    volumes, mounts = pod_volumes(cluster, config, secrets)
    variables = {**environment, **pod_variables(cluster, config, secrets)}
    container: Object = {
        "name": CONTAINER,
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        "command": ["python", "-m", module],
        "env": [{"name": name, "value": value.replace("$(", "$$(")} for name, value in variables.items()],
        "resources": pod_resources(cluster, config),
        # of the container, not of the pod: Katib adds its metrics collector, whose image runs as root
        "securityContext": {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    pod: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": config.time_limit,
        "automountServiceAccountToken": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "nodeSelector": dict(config.node_selector),
        "affinity": pod_affinity(config),
        "tolerations": pod_tolerations(config),
    }
    labels = {"sidecar.istio.io/inject": "false"}  # a Job whose pod has Istio's container does not end
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"labels": queue_labels(config)},  # Kueue holds the Job until its turn
        "spec": {
            "backoffLimit": config.retries,  # a trial whose pod is lost resumes from its checkpoint
            "podFailurePolicy": {
                "rules": [
                    {  # the shell that Katib starts the trial in passes its exit code on, if nothing stops trials early
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(FINAL)},
                    }
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _as_kubernetes_writes(value: Any) -> Any:
    """The same object without empty fields, and with amounts of memory in their shortest form.

    Katib's webhook reads a trial's Job into Kubernetes' type, writes it again, and refuses it if something is lost or
    written in another way.
    """
    if isinstance(value, list):
        return [_as_kubernetes_writes(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _as_kubernetes_writes(each) for key, each in value.items()}
    if "sizeLimit" in kept:
        kept["sizeLimit"] = _shortest(kept["sizeLimit"])
    return {key: each for key, each in kept.items() if each not in ("", [], {})}


def _shortest(amount: str) -> str:
    """An amount of memory with the largest suffix of its kind that leaves a whole number: 1Gi for 1024Mi."""
    base, suffixes = (1024, ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]) if amount.endswith("i") else (1000, list("kMGTPE"))
    number, suffix = math.ceil(kubernetes.utils.parse_quantity(amount)), ""
    while number and number % base == 0 and suffixes:
        number, suffix = number // base, suffixes.pop(0)
    return f"{number}{suffix}"


def _find(kube: Kubernetes, name: str) -> Object | None:
    call = kube.custom.get_namespaced_custom_object
    return kube.find(f"get {PLURAL}.{GROUP}", call, GROUP, VERSION, kube.namespace, PLURAL, name)


def _create(kube: Kubernetes, manifest: Object) -> None:
    call = kube.custom.create_namespaced_custom_object
    try:
        kube.get(f"create {PLURAL}.{GROUP}", call, GROUP, VERSION, kube.namespace, PLURAL, manifest)
    except KubernetesError as error:
        if error.status == 404:
            raise ClusterError(
                f"Kubernetes at {kube.host} has no Katib, or no namespace {kube.namespace}. docs/sweeps.md says what "
                "to install"
            ) from error
        raise


def _wait(kube: Kubernetes, sweep: Sweep) -> Object:
    """The experiment at its end; prints what changes."""
    before = ""
    while True:
        found = _find(kube, sweep.name)
        if found is None:
            raise ClusterError(f"experiment {sweep.name} was deleted from namespace {kube.namespace}")
        status = found.get("status", {})
        counts = {kind: status.get(f"trials{kind}", 0) for kind in ("Running", "Succeeded", "Failed")}
        shown = ", ".join(f"{count} {kind.lower()}" for kind, count in counts.items())
        if shown != before:
            print(f"trials: {shown}", flush=True)
            before = shown
        if _condition(status, "Succeeded", "Failed"):
            return found
        time.sleep(INTERVAL)


def _finish(kube: Kubernetes, best: Best, cluster: ClusterConfig) -> None:
    """Run `pipelines.sweeps.best` as a Job, unless it was started before, and wait for its end."""
    batch, name = kubernetes.client.BatchV1Api(kube.client), f"{best.sweep.name}-best"
    job = _job(cluster, BEST_MODULE, {BEST_VARIABLE: best.to_json()})
    annotations = {DIGEST: best.sweep.digest, BEST_TRIAL: best.name}
    job["metadata"] |= {"name": name, "annotations": annotations}
    found = kube.find("get jobs.batch", batch.read_namespaced_job, name, kube.namespace)
    if found is None:
        found = kube.get("create jobs.batch", batch.create_namespaced_job, kube.namespace, job)
    elif not annotations.items() <= found["metadata"].get("annotations", {}).items():
        raise SettingsError(
            f"job {name} in namespace {kube.namespace} is of another sweep; `kubectl -n {kube.namespace} delete job "
            f"{name}`, and the same command goes on"
        )
    while not _condition(found.get("status", {}), "Complete", "Failed"):
        time.sleep(INTERVAL)
        found = kube.get("get jobs.batch", batch.read_namespaced_job, name, kube.namespace)
    if _condition(found["status"], "Failed"):
        raise SweepError(
            f"job {name} failed: `kubectl -n {kube.namespace} logs job/{name}` says why. Delete it, and the same "
            "command tries again"
        )
    print(f"job {name} is done: `kubectl -n {kube.namespace} logs job/{name}`")


def _condition(status: Object, *kinds: str) -> bool:
    """Whether one of the conditions is true."""
    return any(each["type"] in kinds and each["status"] == "True" for each in status.get("conditions") or [])
