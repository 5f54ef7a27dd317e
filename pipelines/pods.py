"""The pods that other controllers make for a task's work (trials of Katib, nodes of a TrainJob), as JSON.

Tasks of a pipeline get the same settings through kfp's functions (`pipelines.placement`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipelines.config import (
    SCRATCH_VARIABLE,
    SCRATCH_VOLUME,
    SECRETS,
    SHARED_MEMORY,
    SHARED_MEMORY_VOLUME,
    ClusterConfig,
    TaskConfig,
)
from pipelines.placement import cores_of, expression
from pipelines.servers.kube import Object
from yolact.limits import CPU_COUNT_VARIABLE
from yolact_ops.commands.secrets import SECRET_FILES_VARIABLE
from yolact_ops.lineage.variables import IMAGE_VARIABLE


def pod_variables(cluster: ClusterConfig, config: TaskConfig, secrets: Sequence[str]) -> dict[str, str]:
    """The container's environment variables.

    Args:
        cluster, config: settings of the cluster, and of the task.
        secrets: keys of `ClusterConfig.secrets` whose files the container reads.
    """
    files = [f"{SECRETS}/{cluster.secrets[key].name}/{name}" for key in secrets for name in cluster.secrets[key].keys]
    scratch = {SCRATCH_VARIABLE: cluster.scratch.mount} if config.scratch else {}
    return {
        **config.env,
        IMAGE_VARIABLE: cluster.image,
        CPU_COUNT_VARIABLE: str(cores_of(config.cpu)),
        SECRET_FILES_VARIABLE: os.pathsep.join(files),
        **scratch,
    }


def pod_tolerations(config: TaskConfig) -> list[Object]:
    """The taints of nodes that the pod tolerates."""
    return [
        {key: value for key, value in toleration.model_dump().items() if value is not None}
        for toleration in config.tolerations
    ]


def pod_resources(cluster: ClusterConfig, config: TaskConfig) -> Object:
    """Requests and limits of the container."""
    limits = {"memory": config.memory_limit} | ({"cpu": config.cpu_limit} if config.cpu_limit else {})
    if config.gpus:
        limits[cluster.gpu] = str(config.gpus)
    return {"requests": {"cpu": config.cpu, "memory": config.memory}, "limits": limits}


def pod_affinity(config: TaskConfig) -> Object:
    """As `pipelines.placement` gives it to tasks: all requirements must hold, each preference adds its weight."""
    required = [expression(one) for one in config.node_affinity if one.weight is None]
    preferred = [one for one in config.node_affinity if one.weight is not None]
    node: Object = {}
    if required:
        node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [{"matchExpressions": required}]}
    if preferred:
        node["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": one.weight, "preference": {"matchExpressions": [expression(one)]}} for one in preferred
        ]
    return {"nodeAffinity": node} if node else {}


def pod_volumes(
    cluster: ClusterConfig, config: TaskConfig, secrets: Sequence[str]
) -> tuple[list[Object], list[Object]]:
    """The pod's volumes, and where they are mounted."""
    checkpoints = cluster.checkpoints
    volumes: list[Object] = [
        {"name": checkpoints.claim, "persistentVolumeClaim": {"claimName": checkpoints.claim}},
    ]
    mounts: list[Object] = [{"name": checkpoints.claim, "mountPath": checkpoints.mount}]
    if config.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": config.shared_memory}
        volumes.append({"name": SHARED_MEMORY_VOLUME, "emptyDir": memory})
        mounts.append({"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY})
    if config.scratch:
        claim: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": config.scratch}}}
        if cluster.scratch.storage_class:
            claim["storageClassName"] = cluster.scratch.storage_class
        volumes.append({"name": SCRATCH_VOLUME, "ephemeral": {"volumeClaimTemplate": {"spec": claim}}})
        mounts.append({"name": SCRATCH_VOLUME, "mountPath": cluster.scratch.mount})
    names = dict.fromkeys(cluster.secrets[key].name for key in secrets)
    for name in names:
        optional = all(cluster.secrets[key].optional for key in secrets if cluster.secrets[key].name == name)
        volumes.append({"name": name, "secret": {"secretName": name, "optional": optional}})
        mounts.append({"name": name, "mountPath": f"{SECRETS}/{name}", "readOnly": True})
    return volumes, mounts
