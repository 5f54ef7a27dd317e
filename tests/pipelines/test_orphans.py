"""A failed submission starts at most one workflow, and says which; `find_orphans` finds workflows of no known run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.servers import connection
from pipelines.servers.client import Cluster, Job, Schedule, Version
from pipelines.servers.connection import ClusterError, Connection
from pipelines.servers.kube import Kubernetes, KubernetesError
from pipelines.servers.orphans import find_orphans
from tests.conftest import SHARED
from tests.pipelines.kfp_server import Definition, Fault, Server, serve
from tests.pipelines.kube_server import KubeServer, serve_kubernetes

DEFINITION = SHARED / "kfp" / "kfp-api-v2beta1-2.17.0.swagger.json"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
SCHEDULES = "/apis/kubeflow.org/v1beta1/namespaces/kubeflow/scheduledworkflows"
SCHEDULED = "scheduledworkflows.kubeflow.org/isOwnedByScheduledWorkflow"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(connection, "BACKOFF", 0.01)
    monkeypatch.setattr(connection, "IN_POD_NAMESPACE", Path("/nonexistent"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nonexistent")
    with serve(Server(Definition(DEFINITION) if DEFINITION.is_file() else None)) as state:
        yield state
    assert state.problems == []


@pytest.fixture
def kubernetes(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    with serve_kubernetes(tmp_path, monkeypatch) as state:
        yield state


@pytest.fixture
def cluster(server: Server) -> Cluster:
    return Cluster(Connection(server.host))


def workflow(
    name: str, run_id: str, minutes: float = 10, run_name: str = "", labels: dict[str, str] | None = None
) -> dict[str, Any]:
    """A workflow as the API server makes it (`V2Spec.RunWorkflow`) and Argo labels it."""
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": name,
            "namespace": "kubeflow",
            "uid": str(uuid.uuid4()),
            "creationTimestamp": f"{datetime.now(UTC) - timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}",
            "labels": {"pipeline/runid": run_id, "workflows.argoproj.io/completed": "false"} | (labels or {}),
            **({"annotations": {"pipelines.kubeflow.org/run_name": run_name}} if run_name else {}),
        },
    }


def schedule(name: str, uid: str, minutes: float = 10) -> dict[str, Any]:
    found = workflow(name, "", minutes)
    metadata = {**found["metadata"], "uid": uid, "labels": {}}
    return {"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "metadata": metadata}


def job(server: Server) -> Job:
    server.pipelines["p"] = {"pipeline_id": "p", "name": "tiny", "created_at": server.now()}
    version = {"pipeline_id": "p", "pipeline_version_id": "v", "name": "v", "display_name": "v"}
    server.versions["v"] = {**version, "created_at": server.now()}
    server.experiments["e"] = {"experiment_id": "e", "display_name": "yolact", "created_at": server.now()}
    return Job(Version("p", "v", "v", is_new=False), "e", "nightly", {})


# Submitting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 500, 502, 503, 504])
def test_a_run_whose_creation_failed_is_not_sent_again_and_its_workflow_is_named(
    server: Server, cluster: Cluster, kubernetes: KubeServer, status: int
) -> None:
    server.faults = [Fault("POST .*/runs", status)]
    kubernetes.add(WORKFLOWS, workflow("tiny-abcde", "unknown", 0, "nightly"))
    kubernetes.add(WORKFLOWS, workflow("tiny-fghij", "unknown-too", 0, "another"))
    with pytest.raises(ClusterError, match="`kubectl -n kubeflow delete workflow tiny-abcde`") as failed:
        cluster.start(job(server))
    assert server.count("POST .*/runs") == 1
    assert server.count("GET .*/runs$") == connection.RETRIES + 1
    assert "It may have been created anyway" in str(failed.value)
    assert "tiny-fghij" not in str(failed.value)


def test_a_failed_creation_that_started_nothing_says_so(
    server: Server, cluster: Cluster, kubernetes: KubeServer
) -> None:
    server.faults = [Fault("POST .*/runs", 500)]
    with pytest.raises(ClusterError, match="No unknown workflow was found") as failed:
        cluster.start(job(server))
    assert "delete workflow" not in str(failed.value)


@pytest.mark.parametrize("forbidden", ["", "workflows"])
def test_without_rights_the_commands_to_look_and_to_remove_are_named(
    server: Server, cluster: Cluster, forbidden: str, request: pytest.FixtureRequest
) -> None:
    reason = "no access to Kubernetes is set up on this machine"
    if forbidden:
        request.getfixturevalue("kubernetes").forbidden = forbidden
        reason = "no right to list scheduledworkflows.kubeflow.org in namespace kubeflow"
    server.faults = [Fault("POST .*/runs", 500)]
    with pytest.raises(ClusterError, match=reason) as failed:
        cluster.start(job(server))
    assert "RUN:.metadata.annotations.pipelines\\.kubeflow\\.org/run_name" in str(failed.value)
    assert "`kubectl -n kubeflow delete workflow NAME` removes one" in str(failed.value)


def test_a_server_that_stays_away_after_a_failed_creation_is_no_other_error(
    server: Server, cluster: Cluster, kubernetes: KubeServer
) -> None:
    server.faults = [Fault("POST .*/runs", 500), Fault("GET", 503, times=1000)]
    kubernetes.add(WORKFLOWS, workflow("tiny-abcde", "a", 0, "nightly"))
    with pytest.raises(ClusterError, match=r"answers 500 .*created anyway: check .*this could not be checked\."):
        cluster.start(job(server))
    assert server.count("POST .*/runs") == 1


def test_a_request_that_the_server_had_no_time_for_is_sent_again(server: Server, cluster: Cluster) -> None:
    server.faults = [Fault("POST .*/runs", 429, times=2)]
    assert cluster.start(job(server)) in server.runs
    assert len(server.runs) == 1


def test_a_schedule_whose_creation_failed_is_not_sent_again_and_what_fires_is_named(
    server: Server, cluster: Cluster, kubernetes: KubeServer
) -> None:
    server.faults = [Fault("POST .*/recurringruns", 500)]
    kubernetes.add(SCHEDULES, schedule("nightlyx7f2k", str(uuid.uuid4()), 0))
    with pytest.raises(ClusterError, match="`kubectl -n kubeflow delete scheduledworkflow nightlyx7f2k`"):
        cluster.schedule(job(server), Schedule("0 0 3 * * *"))
    assert server.count("POST .*/recurringruns") == 1


# Finding -------------------------------------------------------------------------------------------------------------


def test_workflows_of_no_known_run_are_found(server: Server, cluster: Cluster, kubernetes: KubeServer) -> None:
    known = cluster.start(job(server))
    kubernetes.add(WORKFLOWS, workflow("of-a-run", known))
    kubernetes.add(WORKFLOWS, workflow("unknown", "a", 60, "nightly"))
    kubernetes.add(WORKFLOWS, workflow("older", "b", 120))
    kubernetes.add(WORKFLOWS, workflow("young", "c", 1))
    kubernetes.add(WORKFLOWS, workflow("over", "d", labels={"workflows.argoproj.io/completed": "true"}))
    kubernetes.add(WORKFLOWS, workflow("scheduled", "e", labels={SCHEDULED: "true"}))
    kubernetes.add(WORKFLOWS, workflow("of-somebody-else", "f"))
    del kubernetes.lists[WORKFLOWS][-1]["metadata"]["labels"]["pipeline/runid"]
    found = find_orphans(cluster, Kubernetes("kubeflow"))
    assert [one.name for one in found] == ["older", "unknown"]
    assert str(found[1]).endswith("UTC, run 'nightly')")
    assert found[1].removal == "kubectl -n kubeflow delete workflow unknown"


def test_schedules_that_the_server_does_not_know_are_found(
    server: Server, cluster: Cluster, kubernetes: KubeServer
) -> None:
    known = cluster.schedule(job(server), Schedule("0 0 3 * * *"))
    kubernetes.add(SCHEDULES, schedule("known", known))
    kubernetes.add(SCHEDULES, schedule("unknown", str(uuid.uuid4())))
    kubernetes.add(SCHEDULES, schedule("young", str(uuid.uuid4()), 1))
    assert [one.removal for one in find_orphans(cluster, Kubernetes("kubeflow"))] == [
        "kubectl -n kubeflow delete scheduledworkflow unknown"
    ]


def test_the_missing_right_is_named(cluster: Cluster, kubernetes: KubeServer) -> None:
    kubernetes.forbidden = "/workflows"
    with pytest.raises(KubernetesError) as refused:
        find_orphans(cluster, Kubernetes("kubeflow"))
    assert refused.value.right == "list workflows.argoproj.io"


def test_a_server_that_fails_is_no_unknown_run(server: Server, cluster: Cluster, kubernetes: KubeServer) -> None:
    """Otherwise somebody would delete the workflow of a run."""
    kubernetes.add(WORKFLOWS, workflow("of-a-run", "a"))
    server.faults = [Fault("GET .*/runs/a", 500, times=1000)]
    with pytest.raises(ClusterError, match="answers 500"):
        find_orphans(cluster, Kubernetes("kubeflow"))
