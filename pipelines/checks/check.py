"""What can be known of a cluster before the first run, and what to do about it.

With rights on the API of Kubeflow Pipelines alone: the server, the login, the rights. With rights on Kubernetes: the
objects that the tasks need. From within a pod: `pipelines.checks.probe`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import kubernetes

from pipelines.checks.finding import Finding, Level
from pipelines.checks.prerequisites import Prerequisites, without_right
from pipelines.config import ClusterConfig
from pipelines.servers.client import INSTALLATION_NAMESPACE, Cluster
from pipelines.servers.connection import ClusterError, Connection, find_namespace
from pipelines.servers.kube import Kubernetes, KubernetesError
from pipelines.servers.orphans import find_orphans, is_same_cluster
from pipelines.status.logs import LogReader

OLDEST = (2, 17)
"""Version of Kubeflow Pipelines that the pipelines need at least."""

STANDALONE_ACCOUNT, PROFILE_ACCOUNT = "pipeline-runner", "default-editor"
"""Service accounts of tasks that name none: in standalone Kubeflow Pipelines, and in a profile."""


def check_cluster(
    connection: Connection, config: ClusterConfig, service_account: str | None, *, deep: bool, folder: str | None = None
) -> Iterator[Finding]:
    """Examine the server, the namespace and, if ``deep``, what a pod reaches.

    Args:
        connection: the server.
        config: settings of the tasks.
        service_account: of the tasks; None for the server's default.
        deep: run a probe, see `pipelines.checks.probe`.
        folder: ``s3://BUCKET/FOLDER`` that the probe lists; None for all buckets.
    """
    cluster = None
    try:
        cluster = Cluster(connection)
        yield from _check_server(cluster)
    except ClusterError as error:
        yield Finding(Level.FAILURE, "server", *_split(error))
    namespace = cluster.pod_namespace if cluster else find_namespace(connection) or INSTALLATION_NAMESPACE
    is_multi_user = cluster.is_multi_user if cluster else namespace != INSTALLATION_NAMESPACE
    account = service_account or (PROFILE_ACCOUNT if is_multi_user else STANDALONE_ACCOUNT)
    yield from _check_kubernetes(cluster, namespace, config, account)
    if deep and cluster is not None:
        from pipelines.checks.probe import run_probe  # imports the compiler

        yield from run_probe(cluster, config, service_account, folder)


def _check_server(cluster: Cluster) -> Iterator[Finding]:
    version = cluster.version()
    kind = f"shared by several users, namespace {cluster.pod_namespace}" if cluster.is_multi_user else "single-user"
    text = f"Kubeflow Pipelines {version or '(it does not tell its version)'} at {cluster.connection.url}, {kind}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if version and numbers < OLDEST:
        least = ".".join(map(str, OLDEST))
        yield Finding(Level.WARNING, "server", f"{text}; these pipelines need {least}", f"Have it updated to {least}")
    else:
        yield Finding(Level.OK, "server", text)
    try:
        cluster.runs(1)
    except ClusterError as error:
        yield Finding(Level.FAILURE, "login", *_split(error))
        return
    yield Finding(Level.OK, "login", "runs can be listed")
    if not cluster.is_multi_user:
        yield Finding(Level.OK, "rights", "a single-user server lets everybody who reaches it upload and run")
    else:
        # An older server may not refuse what `may_upload` asks for.
        yield _judge_right(cluster, "upload", "pipelines", cluster.may_upload() if numbers >= OLDEST else None)
        yield _judge_right(cluster, "run", "runs", cluster.may_run())
    yield _check_logs(cluster)


def _judge_right(cluster: Cluster, what: str, resource: str, allowed: bool | None) -> Finding:
    namespace = cluster.pod_namespace
    ask = f"`kubectl auth can-i create {resource}.pipelines.kubeflow.org -n {namespace} --as USER`"
    if allowed:
        return Finding(Level.OK, f"right to {what}", f"you may create {resource} in the namespace {namespace}")
    if allowed is None:
        return Finding(Level.UNKNOWN, f"right to {what}", f"the server does not tell (create {resource})", ask)
    return Finding(
        Level.FAILURE,
        f"right to {what}",
        f"you may not create {resource} in the namespace {namespace}",
        f"Another --namespace, or ask its owner for the role of a contributor (kubeflow-edit): {ask}",
    )


def _check_logs(cluster: Cluster) -> Finding:
    what = "right to read logs"
    source = LogReader(cluster.connection, cluster.pod_namespace).find_source()
    if source:
        return Finding(Level.OK, what, f"the source is: {source}")
    return Finding(
        Level.WARNING,
        what,
        "no source of logs can be used: `status`, `--wait` and `logs` cannot show the output of tasks",
        f"Name the web interface with --ui-host, or `kubectl auth can-i get pods --subresource=log "
        f"-n {cluster.pod_namespace}`",
    )


def _check_kubernetes(
    cluster: Cluster | None, namespace: str, config: ClusterConfig, account: str
) -> Iterator[Finding]:
    what = "Kubernetes"
    try:
        access = Kubernetes(namespace)
        version = access.get("get /version", kubernetes.client.VersionApi(access.client).get_code)
    except KubernetesError as error:
        yield Finding(
            Level.UNKNOWN,
            what,
            f"{error}; so nothing is known of namespace, service account, secrets, volume, image, nodes, Argo",
            "Run this where kubectl works (`kubectl get namespaces`), or have an administrator run it",
        )
        return
    yield Finding(Level.OK, what, f"{version['gitVersion']} at {access.host}")
    yield from Prerequisites(access, Kubernetes(INSTALLATION_NAMESPACE), config, account).check()
    if cluster is not None:
        yield from _check_orphans(cluster, access)


def _check_orphans(cluster: Cluster, access: Kubernetes) -> Iterator[Finding]:
    what = "unknown workflows"
    try:
        found = find_orphans(cluster, access)
        is_same = not found or is_same_cluster(cluster, access)
    except KubernetesError as error:
        yield without_right(what, error, access.namespace)
        return
    except ClusterError as error:
        yield Finding(Level.UNKNOWN, what, str(error))
        return
    for one in found:
        if is_same:
            yield Finding(Level.WARNING, what, f"{one}: Kubeflow Pipelines does not know it", f"`{one.removal}`")
        else:
            text = f"{one}: the server does not know it, or the kubeconfig ({access.host}) leads to another cluster"
            yield Finding(Level.UNKNOWN, what, text, f"If it is the same cluster: `{one.removal}`")
    if not found:
        yield Finding(Level.OK, what, "none: Kubeflow Pipelines knows what runs")


def _split(error: ClusterError) -> tuple[str, str]:
    """What happened, and what to do: the first sentence of a message, and the others."""
    happened, _, advice = str(error).partition(". ")
    return happened.removesuffix("."), advice
