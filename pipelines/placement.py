"""Configure the tasks of a pipeline for a cluster."""

from __future__ import annotations

import os
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

from pipelines.config import (
    SCRATCH_VARIABLE,
    SCRATCH_VOLUME,
    SECRETS,
    SHARED_MEMORY,
    SHARED_MEMORY_VOLUME,
    ClusterConfig,
    NodeRequirement,
    RetryConfig,
    TaskConfig,
)
from yolact.limits import CPU_COUNT_VARIABLE
from yolact_ops.commands.secrets import SECRET_FILES_VARIABLE
from yolact_ops.lineage.variables import IMAGE_VARIABLE, PIPELINE_RUN_VARIABLE

QUEUE_LABEL, QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
"""Labels of a pod from which Kueue reads its LocalQueue and its WorkloadPriorityClass."""

RUN_LABEL = "metadata.labels['pipeline/runid']"
"""Where Kubeflow Pipelines writes the pipeline run's id on its pods; it goes into the lineage."""


def configure_task(task: PipelineTask, cluster: ClusterConfig) -> PipelineTask:
    """Give a task its image, user, resources, secrets, variables, place, queue, time limit, retries and cache setting.

    Args:
        task: a task whose component is named like its step.
        cluster: the settings.
    """
    config = cluster.for_pod(task.component_spec.name.replace("-", "_"))  # kfp's names have dashes
    task.set_container_image(cluster.image)
    task.set_caching_options(config.cache)
    kubernetes.set_image_pull_policy(task, cluster.image_pull_policy)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.image_pull_secrets))
    # Kubeflow Pipelines sets what else the level `restricted` of Pod Security asks for. No user: the image has one, and
    # OpenShift gives each namespace its own.
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.set_timeout(task, config.time_limit)
    task.set_env_variable(IMAGE_VARIABLE, cluster.image)
    kubernetes.use_field_path_as_env(task, PIPELINE_RUN_VARIABLE, RUN_LABEL)
    if config.retries:
        retry = cluster.retry
        task.set_retry(config.retries, f"{retry.pause}s", retry.factor, f"{time_for_attempts(config, retry)}s")
    task.set_env_variable(CPU_COUNT_VARIABLE, str(cores_of(config.cpu)))
    for name, value in config.env.items():
        task.set_env_variable(name, value)
    _set_resources(task, config, cluster.gpu)
    _set_place(task, config)
    _mount_scratch(task, config, cluster)
    _mount_secrets(task, config, cluster)
    return task


def mount_checkpoints(task: PipelineTask, cluster: ClusterConfig) -> PipelineTask:
    """Mount the volume for checkpoints, if the cluster has one."""
    if cluster.checkpoints.claim:
        kubernetes.mount_pvc(task, cluster.checkpoints.claim, cluster.checkpoints.mount)
    return task


def time_for_attempts(config: TaskConfig, retry: RetryConfig) -> int:
    """Seconds for all attempts of a task, with the pauses in between.

    kfp's ``backoff_max_duration`` becomes Argo's ``retryStrategy.backoff.maxDuration``. That does not limit a pause: it
    is the time since the start of the first attempt after which Argo starts no further one. So it has to cover all of
    them.
    """
    pauses = sum(retry.pause * retry.factor**earlier for earlier in range(config.retries))
    return (config.retries + 1) * config.time_limit + pauses


def cores_of(cpu: str) -> int:
    """Cores of a request, rounded down, at least 1: threads and processes that a task may take (README.md)."""
    return max(int(float(cpu.removesuffix("m")) / (1000 if cpu.endswith("m") else 1)), 1)


def _mount_secrets(task: PipelineTask, config: TaskConfig, cluster: ClusterConfig) -> None:
    """Mount secrets as files, which only the task's own code reads (`yolact_ops.commands.secrets`).

    Environment variables would also reach Kubeflow's launcher, which runs in the same container and would use the keys
    for its own object store.
    """
    secrets = [cluster.secrets[key] for key in config.secrets]
    for name in dict.fromkeys(secret.name for secret in secrets):
        is_optional = all(secret.optional for secret in secrets if secret.name == name)
        kubernetes.use_secret_as_volume(task, name, f"{SECRETS}/{name}", optional=is_optional)
    files = [f"{SECRETS}/{secret.name}/{key}" for secret in secrets for key in secret.keys]
    if files:
        task.set_env_variable(SECRET_FILES_VARIABLE, os.pathsep.join(files))


def _set_resources(task: PipelineTask, config: TaskConfig, gpu: str) -> None:
    task.set_cpu_request(config.cpu)
    if config.cpu_limit:
        task.set_cpu_limit(config.cpu_limit)
    task.set_memory_request(config.memory)
    task.set_memory_limit(config.memory_limit)
    if config.gpus:
        task.set_accelerator_type(gpu)
        task.set_accelerator_limit(config.gpus)
    if config.shared_memory:
        kubernetes.empty_dir_mount(task, SHARED_MEMORY_VOLUME, SHARED_MEMORY, "Memory", config.shared_memory)


def _mount_scratch(task: PipelineTask, config: TaskConfig, cluster: ClusterConfig) -> None:
    if config.scratch:
        kubernetes.add_ephemeral_volume(
            task,
            SCRATCH_VOLUME,
            cluster.scratch.mount,
            access_modes=["ReadWriteOnce"],
            size=config.scratch,
            storage_class_name=cluster.scratch.storage_class or None,
        )
        task.set_env_variable(SCRATCH_VARIABLE, cluster.scratch.mount)


def _set_place(task: PipelineTask, config: TaskConfig) -> None:
    """Nodes that the task may run on, and the queue in which it waits for one."""
    for label, value in config.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in config.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())
    required = [expression(one) for one in config.node_affinity if one.weight is None]
    if required:  # one term: those of several terms are alternatives
        kubernetes.add_node_affinity(task, match_expressions=required)
    for preferred in config.node_affinity:
        if preferred.weight is not None:
            kubernetes.add_node_affinity(task, match_expressions=[expression(preferred)], weight=preferred.weight)
    for label, value in queue_labels(config).items():
        kubernetes.add_pod_label(task, label, value)


def queue_labels(config: TaskConfig) -> dict[str, str]:
    """Kueue's labels of the task; none without a queue."""
    labels = {QUEUE_LABEL: config.queue, QUEUE_PRIORITY_LABEL: config.queue_priority}
    return {label: value for label, value in labels.items() if value}


def expression(requirement: NodeRequirement) -> dict[str, Any]:
    """The requirement in Kubernetes' form: ``key``, ``operator``, ``values``."""
    return requirement.model_dump(exclude={"weight"})
