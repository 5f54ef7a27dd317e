"""The nodes on which the step train runs if there are several (``tasks.train.nodes``), as its TrainJob needs them."""

from __future__ import annotations

from components.train.nodes import Nodes
from pipelines.config import PARALLEL_STEP, ClusterConfig
from pipelines.placement import queue_labels
from pipelines.pods import pod_affinity, pod_tolerations, pod_variables, pod_volumes


def describe_nodes(cluster: ClusterConfig) -> str:
    """The argument ``nodes`` of the component train: JSON, or empty if its task trains by itself.

    Kubeflow's SDK sets each resource as request and limit, so a node has ``cpu`` and ``memory_limit`` of the settings.
    """
    config = cluster.for_step(PARALLEL_STEP)
    if config.nodes == 1:
        return ""
    volumes, mounts = pod_volumes(cluster, config, config.secrets)
    resources = {"cpu": config.cpu, "memory": config.memory_limit}
    devices = {name: str(count) for name, count in config.devices.items()}
    return Nodes(
        count=config.nodes,
        image=cluster.image,
        resources=resources | ({cluster.gpu: str(config.gpus)} if config.gpus else {}) | devices,
        variables=pod_variables(cluster, config, config.secrets),
        volumes=volumes,
        mounts=mounts,
        node_selector=dict(config.node_selector),
        affinity=pod_affinity(config),
        tolerations=pod_tolerations(config),
        pull_secrets=list(cluster.image_pull_secrets),
        labels=queue_labels(config),
        time_limit=config.time_limit,
    ).to_json()
