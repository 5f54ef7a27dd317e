"""`check` names what a cluster lacks and the command that mends it, with and without rights on Kubernetes."""

from __future__ import annotations

import base64
import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines import options
from pipelines.__main__ import app
from pipelines.checks import finding, inside, prerequisites, probe
from pipelines.checks.capacity import make_rooms
from pipelines.checks.prerequisites import full_name
from pipelines.config import load_cluster
from pipelines.servers import connection
from pipelines.servers.client import Cluster
from pipelines.status.reader import RunReader
from tests.conftest import REPOSITORY
from tests.pipelines.kfp_server import Fault, Server
from tests.pipelines.kube_server import KubeServer, serve_kubernetes
from tests.pipelines.recorded import FOLDER, moments, nodes, replay
from tests.pipelines.test_orphans import WORKFLOWS, workflow
from tests.servers.mlflow_servers import BUCKET, S3Server
from tests.servers.servers import KEY, SECRET

CORE = "/api/v1/namespaces"
STORAGE = "/apis/storage.k8s.io/v1/storageclasses"
ENFORCE = "pod-security.kubernetes.io/enforce"
IMAGE = "docker.io/library/yolact-pipeline:0.1.0"
"""As containerd lists it (`containerStatuses[].image` of a recorded pod)."""

STOCK_DEFAULTS = """
spec:
  ttlStrategy: {secondsAfterCompletion: 3600}
  templateDefaults:
    retryStrategy: {limit: '2', retryPolicy: OnError}
"""
"""The part of `workflowDefaults` in Kubeflow Pipelines 2.17 that matters here."""

Findings = dict[str, dict[str, str]]


@pytest.fixture(autouse=True)
def quick(quick_and_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "load_cluster", lambda path, changes: load_once(path, tuple(changes)))
    monkeypatch.setattr(prerequisites, "installed_versions", lambda: {"train": "1"})
    monkeypatch.setattr(probe, "INTERVAL", 0.01)


@pytest.fixture
def cluster(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    """A cluster that has all that deploy/README.md makes; its one node has a GPU."""
    with serve_kubernetes(tmp_path, monkeypatch) as state:
        state.lists = copy.deepcopy(ready("kubeflow"))
        yield state


load_once = functools.cache(load_cluster)


@functools.cache
def ready(namespace: str) -> dict[str, list[dict[str, Any]]]:
    state = KubeServer()
    state.add("/api/v1/namespaces", thing("Namespace", namespace, labels={ENFORCE: "restricted"}))
    for name in ("pipeline-runner", "default-editor", "yolact-pipelines"):
        state.add(f"{CORE}/{namespace}/serviceaccounts", thing("ServiceAccount", name))
    for key in ("s3", "mlflow", "git"):
        lines = (REPOSITORY / f"deploy/secrets/{key}.env.example").read_text().splitlines()
        names = [line.partition("=")[0] for line in lines if "=" in line and not line.startswith("#")]
        state.add(f"{CORE}/{namespace}/secrets", secret(f"yolact-{key}", *names))
    claim = yaml.safe_load((REPOSITORY / "deploy/pipelines/checkpoints.yaml").read_text())
    claim["spec"]["storageClassName"] = "standard"
    state.add(f"{CORE}/{namespace}/persistentvolumeclaims", claim | {"status": {"phase": "Bound"}})
    state.add(STORAGE, storage_class("rancher.io/local-path"))
    state.add("/api/v1/nodes", node("one", cpu="16", memory="64Gi", gpus=1))
    retries = yaml.safe_load((REPOSITORY / "deploy/pipelines/argo-retries.yaml").read_text())
    state.add(f"{CORE}/kubeflow/configmaps", retries)
    return state.lists


def thing(kind: str, name: str, version: str = "v1", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}}


def storage_class(provisioner: str, **more: Any) -> dict[str, Any]:
    return {**thing("StorageClass", "standard", "storage.k8s.io/v1"), "provisioner": provisioner, **more}


def secret(name: str, *keys: str) -> dict[str, Any]:
    return {**thing("Secret", name), "data": {key: base64.b64encode(b"value").decode() for key in keys}}


def argo(defaults: str) -> dict[str, Any]:
    return {**thing("ConfigMap", "workflow-controller-configmap"), "data": {"workflowDefaults": defaults}}


def node(name: str, cpu: str, memory: str, gpus: int = 0, images: tuple[str, ...] = (IMAGE,)) -> dict[str, Any]:
    allocatable = {"cpu": cpu, "memory": memory, "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {
        **thing("Node", name, labels={"pool": "a"}),
        "spec": {},
        "status": {"allocatable": allocatable, "images": [{"names": [one], "sizeBytes": 1} for one in images]},
    }


def pod(name: str, on: str, phase: str = "Running", init: tuple[Any, ...] = (), **requests: str) -> dict[str, Any]:
    container = {"name": "main", "image": "i", "resources": {"requests": requests}}
    spec = {"nodeName": on, "containers": [container], **({"initContainers": list(init)} if init else {})}
    return {**thing("Pod", name), "spec": spec, "status": {"phase": phase}}


def run(*arguments: str) -> tuple[int, Findings]:
    """Exit code, and what was found by what was examined; of several findings the last one."""
    result = CliRunner().invoke(app, ["check", "--json", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, {one["what"]: one for one in json.loads(result.stdout)}


def remove(cluster: KubeServer, path: str, name: str) -> None:
    before = cluster.lists[path]
    cluster.lists[path] = [one for one in before if one["metadata"]["name"] != name]
    assert len(cluster.lists[path]) == len(before) - 1


def problems(findings: Findings) -> dict[str, str]:
    return {what: one["level"] for what, one in findings.items() if one["level"] != "ok"}


# The whole -----------------------------------------------------------------------------------------------------------


def test_a_cluster_that_has_everything(cluster: KubeServer) -> None:
    code, found = run()
    assert problems(found) == {"code in yolact-pipeline:0.1.0": "not known"}  # there is no Docker here
    assert code == 0
    assert "2.17.0" in found["server"]["text"]
    assert found["namespace kubeflow"]["text"].startswith("enforces Pod Security restricted")
    assert found["GPUs"]["text"] == "1 nvidia.com/gpu on 1 of 1 nodes, 1 of them free"
    assert found["tasks"]["text"].endswith(
        "predict, preprocess, promote, register, scan, source, split, train fits now"
    )
    assert {f"secret yolact-{key}" for key in ("s3", "mlflow", "git")} <= set(found)


def test_the_text_has_a_line_each_and_a_summary(cluster: KubeServer) -> None:
    remove(cluster, f"{CORE}/kubeflow/secrets", "yolact-git")
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ok         server: Kubeflow Pipelines 2.17.0 at http://127.0.0.1:")
    (first,) = [index for index, line in enumerate(lines) if line.startswith("warning")]
    assert lines[first].startswith("warning    secret yolact-git: does not exist. In ingest, source, private data")
    assert "create secret generic yolact-git --from-env-file=deploy/secrets/git.env`" in lines[first + 1]
    assert lines[-1] == f"{len(lines) - 4} ok, 1 warning, 1 not known"


def test_with_rights_on_the_api_alone_it_says_what_is_not_known(server: Server) -> None:
    code, found = run()
    assert code == 0
    assert list(found) == ["server", "login", "rights", "right to read logs", "Kubernetes"]
    assert problems(found) == {"Kubernetes": "not known"}
    assert "no kubeconfig" in found["Kubernetes"]["text"]


@pytest.mark.parametrize(
    ("forbidden", "what", "right"),
    [
        ("/namespaces/[^/]+$", "namespace kubeflow", "get namespaces"),
        ("/serviceaccounts/", "service account pipeline-runner", "get serviceaccounts -n kubeflow"),
        ("/secrets/yolact-s3", "secret yolact-s3", "get secrets -n kubeflow"),
        ("/persistentvolumeclaims/", "checkpoint volume", "get persistentvolumeclaims -n kubeflow"),
        (
            "/storageclasses/",
            "volume claim yolact-checkpoints, who may write",
            "get storageclasses",
        ),
        ("/resourcequotas", "quota", "list resourcequotas -n kubeflow"),
        ("/nodes", "nodes", "list nodes"),
        ("v1/pods", "free nodes", "list pods --all-namespaces"),
        ("/configmaps/", "Argo's retries", "get configmaps -n kubeflow"),
        ("/workflows", "unknown workflows", "list workflows.argoproj.io -n kubeflow"),
    ],
)
def test_each_missing_right_is_named_and_the_rest_is_checked(
    cluster: KubeServer, forbidden: str, what: str, right: str
) -> None:
    everything = set(run()[1])
    cluster.forbidden = forbidden
    code, found = run()
    assert code == 0
    assert found[what]["level"] == "not known"
    assert f"`kubectl auth can-i {right}`" in found[what]["mend"]
    lost = {"nodes": {"image yolact-pipeline:0.1.0", "GPUs", "tasks"}, "checkpoint volume": CLAIM_LINES}
    assert everything - set(found) == lost.get(what, set())


CLAIM_LINES = {"volume claim yolact-checkpoints", "volume claim yolact-checkpoints, who may write"}


# The server ----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_fails_and_the_namespace_is_checked(server: Server, cluster: KubeServer) -> None:
    server.faults = [Fault("GET", 503, times=1000)]
    code, found = run()
    assert (code, found["server"]["level"]) == (1, "failure")
    assert "kubectl -n kubeflow logs deployment/ml-pipeline" in found["server"]["mend"]
    assert found["volume claim yolact-checkpoints"]["level"] == "ok"


def test_an_old_server_is_a_warning(server: Server) -> None:
    server.version = "2.5.1"
    code, found = run()
    assert (code, found["server"]["level"]) == (0, "warning")
    assert "need 2.17" in found["server"]["text"]


def test_without_a_login_the_way_to_a_token_is_named(server: Server) -> None:
    server.multi_user = True
    server.faults = [Fault("GET .*/runs$", 401)]
    code, found = run("-n", "team")
    assert (code, found["login"]["level"]) == (1, "failure")
    assert "create token default-editor" in found["login"]["mend"]
    assert "right to upload" not in found


@pytest.mark.parametrize(("path", "what"), [("pipelines", "upload"), ("runs", "run")])
def test_a_missing_right_on_a_shared_server(server: Server, path: str, what: str) -> None:
    server.multi_user = True
    server.experiments["e"] = {"experiment_id": "e", "display_name": "yolact", "created_at": server.now()}
    code, found = run("-n", "team")
    assert (code, problems(found)) == (0, {"Kubernetes": "not known"})
    assert server.pipelines == {}
    assert server.runs == {}
    server.faults = [Fault(f"POST .*/{path}", 403)]
    code, found = run("-n", "team")
    assert code == 1
    assert problems(found) == {"Kubernetes": "not known", f"right to {what}": "failure"}
    assert f"can-i create {path}.pipelines.kubeflow.org -n team" in found[f"right to {what}"]["mend"]


def test_the_right_to_run_is_not_known_without_an_experiment(server: Server) -> None:
    server.multi_user = True
    code, found = run("-n", "team")
    assert (code, found["right to run"]["level"]) == (0, "not known")
    assert server.count("POST .*/runs") == 0


def test_logs_come_from_the_first_source_that_may_be_used(server: Server, cluster: KubeServer) -> None:
    def source() -> str:
        found = run()[1]["right to read logs"]
        return f"{found['level']} {found['text']}"

    assert source() == "ok the source is: web interface"
    server.has_interface = False
    assert source() == "ok the source is: API server"
    server.faults = [Fault("GET /apis/v1alpha1", 404, times=2)]
    assert source() == "ok the source is: Kubernetes"
    cluster.forbidden = "/log$"
    server.faults = [Fault("GET /apis/v1alpha1", 404, times=2)]
    assert source().startswith("warning no source of logs can be used")


# The namespace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name", "what", "mend"),
    [
        ("/api/v1/namespaces", "kubeflow", "namespace kubeflow", "kubectl create ns kubeflow"),
        (
            f"{CORE}/kubeflow/serviceaccounts",
            "pipeline-runner",
            "service account pipeline-runner",
            "kubectl -n kubeflow apply -f deploy/pipelines/account.yaml",
        ),
        (
            f"{CORE}/kubeflow/persistentvolumeclaims",
            "yolact-checkpoints",
            "volume claim yolact-checkpoints",
            "kubectl -n kubeflow apply -f deploy/pipelines/checkpoints.yaml",
        ),
    ],
)
def test_what_every_run_needs_and_is_missing_is_a_failure(
    cluster: KubeServer, path: str, name: str, what: str, mend: str
) -> None:
    remove(cluster, path, name)
    code, found = run()
    assert (code, found[what]["level"]) == (1, "failure")
    assert mend in found[what]["mend"]


def test_the_service_account_is_the_given_one_or_the_servers_default(server: Server, cluster: KubeServer) -> None:
    assert "service account pipeline-runner" in run()[1]
    assert "service account yolact-pipelines" in run("--service-account", "yolact-pipelines")[1]
    server.multi_user = True
    cluster.lists = copy.deepcopy(ready("team"))
    assert "service account default-editor" in run("-n", "team")[1]


def test_secrets(cluster: KubeServer) -> None:
    path = f"{CORE}/kubeflow/secrets"
    cluster.lists[path] = []
    cluster.add(path, secret("yolact-mlflow", "MLFLOW_URI"))
    cluster.add(path, secret("yolact-s3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_ENDPOINT"))
    code, found = run("-C", "secrets.git.optional=false", "-C", "image_pull_secrets=[registry]")
    assert code == 1
    mlflow, s3, git = (found[f"secret yolact-{key}"] for key in ("mlflow", "s3", "git"))
    assert (mlflow["level"], s3["level"], git["level"]) == ("warning", "warning", "failure")
    assert "has no MLFLOW_TRACKING_URI: tracking and the registry do not work" in mlflow["text"]
    assert mlflow["mend"].startswith(
        "`kubectl -n kubeflow delete secret yolact-mlflow`, then `kubectl -n kubeflow create"
    )
    assert "has S3_ENDPOINT, which no task reads" in s3["text"]
    assert "the pods of ingest, source wait for it" in git["text"]
    assert found["secret registry"]["level"] == "failure"
    assert "create secret docker-registry registry" in found["secret registry"]["mend"]


def test_secrets_that_no_task_uses_are_left_out(cluster: KubeServer) -> None:
    cluster.lists[f"{CORE}/kubeflow/secrets"] = []
    _, found = run("-C", "task.secrets=[]", *(f"-Ctasks.{step}.secrets=[s3]" for step in ("source", "ingest")))
    assert [what for what in found if what.startswith("secret")] == ["secret yolact-s3"]


NODES = ("-C", "tasks.train.nodes=2")


def test_several_nodes_need_a_volume_for_all_of_them(cluster: KubeServer) -> None:
    _, found = run(*NODES)
    volume = found["volume claim yolact-checkpoints"]
    assert (volume["level"], "tasks.train.nodes: 2 needs one" in volume["text"]) == ("failure", True)
    cluster.lists[f"{CORE}/kubeflow/persistentvolumeclaims"][0]["spec"]["accessModes"] = ["ReadWriteMany"]
    _, found = run(*NODES)
    assert found["volume claim yolact-checkpoints"]["level"] == "ok"


def test_several_nodes_need_the_trainer_and_its_runtime(cluster: KubeServer) -> None:
    _, found = run(*NODES)
    assert found["Kubeflow Trainer"]["level"] == "failure"
    assert "`kubectl -n kubeflow apply -k deploy/train`" in found["Kubeflow Trainer"]["mend"]
    runtime = yaml.safe_load((REPOSITORY / "deploy/train/runtime.yaml").read_text())
    cluster.add("/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainingruntimes", runtime)
    _, found = run(*NODES)
    assert found["Kubeflow Trainer"]["level"] == "ok"
    _, found = run()
    assert "Kubeflow Trainer" not in found


def test_trainjobs_that_no_task_follows(cluster: KubeServer) -> None:
    assert run(*NODES)[1]["TrainJobs"]["level"] == "ok"
    label, pods = "pipeline/runid", f"{CORE}/kubeflow/pods"
    for one in ("followed", "left"):
        trainjob = thing("TrainJob", one, "trainer.kubeflow.org/v1alpha1", labels={label: f"run-{one}"})
        cluster.add("/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs", trainjob)
        phase = "Running" if one == "followed" else "Failed"
        spec = {"containers": [{"name": "main", "image": IMAGE}]}
        pod = {**thing("Pod", f"task-of-{one}", labels={label: f"run-{one}"}), "spec": spec}
        cluster.add(pods, pod | {"status": {"phase": phase}})
    found = run(*NODES)[1]["TrainJobs"]
    assert (found["level"], "no pod of run run-left follows TrainJob left" in found["text"]) == ("warning", True)
    assert "`kubectl -n kubeflow delete trainjob left`" in found["mend"]
    assert "TrainJobs" not in run()[1]


@pytest.mark.parametrize(
    ("phase", "binding", "level"),
    [("Pending", "Immediate", "failure"), ("Pending", "WaitForFirstConsumer", "ok"), ("Lost", "Immediate", "failure")],
)
def test_a_claim_that_is_not_bound(cluster: KubeServer, phase: str, binding: str, level: str) -> None:
    cluster.lists[f"{CORE}/kubeflow/persistentvolumeclaims"][0]["status"]["phase"] = phase
    cluster.lists[STORAGE][0]["volumeBindingMode"] = binding
    _, found = run()
    assert found["volume claim yolact-checkpoints"]["level"] == level
    if level == "failure":
        assert "kubectl -n kubeflow describe pvc yolact-checkpoints" in found["volume claim yolact-checkpoints"]["mend"]


@pytest.mark.parametrize(
    ("provisioner", "more", "level", "mend"),
    [
        ("kubernetes.io/host-path", {}, "warning", "chown 10001:10001 FOLDER"),
        ("nfs.csi.k8s.io", {}, "warning", 'mountPermissions: "0777"'),
        ("nfs.csi.k8s.io", {"parameters": {"mountPermissions": "0777"}}, "not known", "own-checkpoints.yaml"),
        ("efs.csi.aws.com", {}, "warning", 'uid: "10001"'),
        ("file.csi.azure.com", {"mountOptions": ["uid=10001", "gid=10001"]}, "not known", "own-checkpoints.yaml"),
        ("file.csi.azure.com", {"mountOptions": ["nobrl"]}, "warning", "mountOptions: [uid=10001, gid=10001]"),
        ("ebs.csi.aws.com", {}, "not known", "kubectl -n kubeflow apply -f deploy/pipelines/own-checkpoints.yaml"),
        ("rancher.io/local-path", {}, "ok", ""),
    ],
)
def test_who_may_write_to_the_volume(
    cluster: KubeServer, provisioner: str, more: dict[str, Any], level: str, mend: str
) -> None:
    cluster.lists[STORAGE] = []
    cluster.add(STORAGE, storage_class(provisioner, **more))
    found = run()[1]["volume claim yolact-checkpoints, who may write"]
    assert found["level"] == level
    assert mend in found["mend"]


def test_no_volume_is_a_warning(cluster: KubeServer) -> None:
    _, found = run("-C", "checkpoints.claim=''")
    assert found["checkpoint volume"]["level"] == "warning"
    assert "runtime.checkpoint_mirror" in found["checkpoint volume"]["mend"]


def quota(**hard: str) -> dict[str, Any]:
    return {**thing("ResourceQuota", "team"), "spec": {"hard": {key.replace("_", "."): hard[key] for key in hard}}}


def limit_range(**default: str) -> dict[str, Any]:
    return {**thing("LimitRange", "defaults"), "spec": {"limits": [{"type": "Container", "default": default}]}}


def test_a_quota_that_refuses_the_containers_of_argo(cluster: KubeServer) -> None:
    cluster.add(f"{CORE}/kubeflow/resourcequotas", quota(cpu="100", limits_memory="1000Gi"))
    code, found = run()
    assert (code, found["quota team"]["level"]) == (1, "failure")
    assert found["quota team"]["text"].startswith("counts requests.cpu, limits.memory, which the containers that Argo")
    manifest = json.loads(found["quota team"]["mend"].partition("'")[2].partition("'")[0])
    cluster.add(f"{CORE}/kubeflow/limitranges", manifest)  # validated as Kubernetes does
    _, found = run()
    assert problems(found).keys() == {"limit of CPU", "code in yolact-pipeline:0.1.0"}  # its default is small
    change = found["limit of CPU"]["mend"].split('"')[1]
    code, found = run("-C", change)
    assert (code, found["quota"]["text"]) == (0, "team: admits the tasks")


def test_a_quota_below_what_a_task_asks_for(cluster: KubeServer) -> None:
    cluster.add(f"{CORE}/kubeflow/resourcequotas", quota(limits_memory="40Gi"))
    cluster.add(f"{CORE}/kubeflow/limitranges", limit_range(cpu="100", memory="1Gi"))
    code, found = run()
    assert (code, found["quota team"]["level"]) == (1, "failure")
    assert found["quota team"]["text"] == "is below what train asks for: limits.memory 48Gi"


# Nodes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "policy", "there", "level"),
    [
        ("yolact-pipeline:0.1.0", "IfNotPresent", [True, True], "ok"),
        ("yolact-pipeline:0.1.0", "IfNotPresent", [True, False], "warning"),
        ("yolact-pipeline:0.1.0", "IfNotPresent", [False, False], "failure"),
        ("registry.example/yolact:1", "IfNotPresent", [False, False], "not known"),
        ("registry.example/yolact:1", "Always", [True, True], "not known"),
        ("registry.example/yolact:1", "Never", [False, False], "failure"),
        ("registry.example/yolact:1", "Never", [True, False], "warning"),
    ],
)
def test_whether_the_nodes_have_the_image(
    cluster: KubeServer, image: str, policy: str, there: list[bool], level: str
) -> None:
    cluster.lists["/api/v1/nodes"] = []
    for number, has_it in enumerate(there):
        images = (full_name(image),) if has_it else ("docker.io/library/other:1",)
        cluster.add("/api/v1/nodes", node(f"n{number}", "16", "64Gi", 1, images))
    code, found = run("-C", f"image={image}", "-C", f"image_pull_policy={policy}")
    assert found[f"image {image}"]["level"] == level
    assert code == (level == "failure")
    if level in ("failure", "warning"):
        assert "docker push" in found[f"image {image}"]["mend"]


def test_a_node_that_lists_only_some_of_its_images_may_have_it(cluster: KubeServer) -> None:
    cluster.lists["/api/v1/nodes"] = []
    cluster.add("/api/v1/nodes", node("one", "16", "64Gi", 1, tuple(f"docker.io/library/i:{n}" for n in range(50))))
    assert run()[1]["image yolact-pipeline:0.1.0"]["level"] == "not known"


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("yolact", "docker.io/library/yolact:latest"),
        ("team/yolact:1", "docker.io/team/yolact:1"),
        ("localhost:5000/yolact", "localhost:5000/yolact:latest"),
        ("r.example/y@sha256:0", "r.example/y@sha256:0"),
    ],
)
def test_images_are_compared_by_their_full_names(image: str, full: str) -> None:
    assert full_name(image) == full


def test_a_task_that_fits_on_no_node_is_a_failure_with_the_keys_to_change(cluster: KubeServer) -> None:
    cluster.lists["/api/v1/nodes"] = []
    cluster.add("/api/v1/nodes", node("small", "2", "24Gi", 1))
    cluster.add("/api/v1/nodes", node("large", "6", "24Gi", 1))
    code, found = run()
    assert code == 1
    train = found["task train"]
    assert train["level"] == "failure"
    assert train["text"].startswith(
        "asks for 8 cores, 24.0 GiB, 1 nvidia.com/gpu; the largest node, large, has 6 cores, 24.0 GiB, 1 nvidia.com/gpu"
    )
    assert train["mend"] == "Ask for less: -C tasks.train.cpu=..."
    assert problems(found).keys() == {"task train", "code in yolact-pipeline:0.1.0"}


def test_a_task_that_has_to_wait_for_other_pods_is_a_warning(cluster: KubeServer) -> None:
    cluster.add("/api/v1/pods", pod("busy", "one", cpu="10", memory="1Gi"))
    cluster.add("/api/v1/pods", pod("over", "one", "Succeeded", cpu="16"))
    code, found = run()
    assert code == 0
    assert found["task train"]["level"] == "warning"
    assert "one, has 6 cores, 63.0 GiB, 1 nvidia.com/gpu now" in found["task train"]["text"]
    assert "spec.nodeName=one" in found["task train"]["mend"]


def test_sidecars_and_init_containers_count_as_kubernetes_counts_them() -> None:
    """The sum of what runs side by side, or the largest start if that is more (Kubernetes, "Sidecar containers")."""

    def init(name: str, cpu: str, **more: str) -> dict[str, Any]:
        return {"name": name, "image": "i", "resources": {"requests": {"cpu": cpu}}, **more}

    several = pod("p", "one", init=(init("proxy", "1", restartPolicy="Always"), init("load", "3")), cpu="2")
    (room,) = make_rooms([node("one", "16", "64Gi")], [several])
    assert room.free is not None
    assert room.free["cpu"] == 16 - max(1 + 3, 1 + 2)


def test_nodes_without_gpus(cluster: KubeServer) -> None:
    cluster.lists["/api/v1/nodes"] = []
    cluster.add("/api/v1/nodes", node("one", "16", "64Gi"))
    code, found = run()
    assert (code, found["GPUs"]["level"]) == (1, "failure")
    assert "-C tasks.train.gpus=0" in found["GPUs"]["mend"]
    changes = [part for part in found["GPUs"]["mend"].split() if part.startswith("tasks.")]
    code, found = run(*(f"-C{change}" for change in changes))
    assert (code, found["GPUs"]["level"]) == (0, "ok")


def test_a_device_that_no_node_offers(cluster: KubeServer) -> None:
    changes = ("-C", "tasks.train.nodes=2", "-C", "tasks.train.devices={rdma/ib: 2}")
    _, found = run(*changes)
    refused = found["task train"]
    assert (refused["level"], "-C tasks.train.devices=..." in refused["mend"]) == ("failure", True)
    assert "2 rdma/ib; the largest node, one, has" in refused["text"]
    (one,) = cluster.lists["/api/v1/nodes"]
    one["status"]["allocatable"]["rdma/ib"] = "2"
    assert "task train" not in run(*changes)[1]


def test_taints_and_labels_keep_tasks_away(cluster: KubeServer) -> None:
    (one,) = cluster.lists["/api/v1/nodes"]
    one["spec"] = {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}
    _, found = run()
    refused = {what for what, level in problems(found).items() if level == "failure"}
    assert {step for what in refused for step in what.partition(" ")[2].split(", ")} == {
        *("fetch", "ingest", "merge", "preprocess", "promote", "register", "scan", "source", "split")
    }
    assert found["tasks"]["text"] == "each of evaluate, predict, train fits now"  # they tolerate the taint
    one["spec"] = {}
    _, found = run("-C", "tasks.train.node_selector={pool: b}")
    assert found["task train"]["level"] == "failure"
    assert "tasks.train.node_selector" in found["task train"]["mend"]


A = {"key": "pool", "operator": "In", "values": ["a"], "weight": None}


@pytest.mark.parametrize(
    ("requirements", "is_admitted"),
    [
        ([A], True),
        ([A | {"values": ["b", "c"]}], False),
        ([A | {"values": ["b"], "weight": 50}], True),
        ([A | {"operator": "NotIn"}], False),
        ([A | {"operator": "NotIn", "values": ["b"]}], True),
        ([A | {"key": "absent", "operator": "NotIn"}], True),
        ([A | {"operator": "Exists", "values": []}], True),
        ([A | {"operator": "DoesNotExist", "values": []}], False),
        ([A | {"key": "absent", "operator": "Exists", "values": []}], False),
        ([A | {"key": "gpu-memory", "operator": "Gt", "values": ["79"]}], True),
        ([A | {"key": "gpu-memory", "operator": "Gt", "values": ["80"]}], False),
        ([A | {"key": "gpu-memory", "operator": "Lt", "values": ["81"]}], True),
        ([A | {"operator": "Gt", "values": ["1"]}], False),
        ([A, A | {"key": "absent"}], False),
    ],
)
def test_node_affinity_keeps_tasks_away(
    cluster: KubeServer, requirements: list[dict[str, Any]], is_admitted: bool
) -> None:
    (one,) = cluster.lists["/api/v1/nodes"]
    one["metadata"]["labels"] = {"pool": "a", "gpu-memory": "80"}
    _, found = run("-C", f"tasks.train.node_affinity={json.dumps(requirements)}")
    assert ("task train" not in found) == is_admitted
    if not is_admitted:
        assert "tasks.train.node_selector, node_affinity" in found["task train"]["mend"]


# Argo and unknown workflows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defaults", "level", "said"),
    [
        (STOCK_DEFAULTS, "warning", "a task that failed (memory, time limit) is not"),
        ("", "warning", "policy OnFailure: a task that failed is tried again, a deleted pod or a lost node is not"),
        (STOCK_DEFAULTS.replace("OnError", "OnTransientError"), "warning", "a task that failed is not tried again"),
    ],
)
def test_what_argo_tries_again(cluster: KubeServer, defaults: str, level: str, said: str) -> None:
    cluster.lists[f"{CORE}/kubeflow/configmaps"] = [argo(defaults)]
    found = run()[1]["Argo's retries"]
    assert (found["level"], said in found["text"]) == (level, True)
    assert "--patch-file deploy/pipelines/argo-retries.yaml" in found["mend"]


def test_argo_elsewhere_is_not_known(cluster: KubeServer) -> None:
    cluster.lists[f"{CORE}/kubeflow/configmaps"] = []
    assert run()[1]["Argo's retries"]["level"] == "not known"


@pytest.mark.parametrize("is_same_cluster", [True, False])
def test_unknown_workflows_are_named_with_their_removal(
    server: Server, cluster: KubeServer, is_same_cluster: bool
) -> None:
    server.runs["known"] = {"run_id": "known", "display_name": "r", "created_at": server.now(), "experiment_id": "e"}
    if is_same_cluster:
        cluster.add(WORKFLOWS, workflow("known", "known"))
    cluster.add(WORKFLOWS, workflow("lost", "a", 60, "nightly"))
    code, found = run()
    assert (code, found["unknown workflows"]["level"]) == (0, "warning" if is_same_cluster else "not known")
    mend = "`kubectl -n kubeflow delete workflow lost`"
    assert found["unknown workflows"]["mend"] == (mend if is_same_cluster else f"If it is the same cluster: {mend}")


# From a pod ----------------------------------------------------------------------------------------------------------


def test_the_probe_has_what_the_tasks_have_and_waits_only_so_long(
    server: Server, cluster: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0)
    code, found = run(
        *("--deep", "--folder", "s3://data/images", "--service-account", "yolact-pipelines"),
        *("-C", "image=registry.example/yolact:1", "-C", "tasks.train.node_selector={pool: a}"),
        *("-C", "tasks.train.scratch=500Gi", "-C", "tasks.train.queue=gpus"),
    )
    (order,) = server.runs.values()
    assert code == 1
    assert found["probe"]["level"] == "failure"
    assert found["probe"]["text"].startswith("not over after 0 minutes, and stopped. It was probe: not reached")
    assert server.count(f"POST .*/runs/{order['run_id']}:terminate") == 1
    assert order["service_account"] == "yolact-pipelines"
    assert order["runtime_config"]["parameters"] == {"folder": "s3://data/images"}
    (version,) = server.versions.values()
    spec = version["pipeline_spec"]["pipeline_spec"]
    (container,) = (one["container"] for one in spec["deploymentSpec"]["executors"].values())
    assert container["image"] == "registry.example/yolact:1"
    assert container["resources"]["accelerator"]["resourceCount"] == "1"
    platform = version["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
    (pod,) = platform["deploymentSpec"]["executors"].values()
    assert {one["secretName"] for one in pod["secretAsVolume"]} == {"yolact-s3", "yolact-mlflow", "yolact-git"}
    assert [one["mountPath"] for one in pod["pvcMount"]] == ["/checkpoints"]
    assert pod["nodeSelector"]["labels"] == {"pool": "a"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod["activeDeadlineSeconds"] == "600"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert [(one["mountPath"], one["size"]) for one in pod["genericEphemeralVolume"]] == [("/scratch", "1Gi")]


@pytest.mark.parametrize(("folder", "level"), [("", "ok"), ("absent", "failure")])
def test_the_probe_tries_the_volume_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str, level: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / folder))
    inside.report("", "", gpu=False)
    found = {one.what: one for one in inside.parse_report(capsys.readouterr().out.splitlines())}
    assert found["scratch volume from a pod"].level == level
    assert ("scratch.storage_class" in found["scratch volume from a pod"].mend) == (level == "failure")


def test_the_probe_runs_in_kfps_executor() -> None:
    """With its variable ``_KFP_RUNTIME``, kfp is only in part there."""
    environment = {**os.environ, "_KFP_RUNTIME": "true", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", "import kfp.dsl, pipelines.checks.inside"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def read_probe(server: Server, case: str, first: int = -1) -> list[finding.Finding]:
    """What the probe yields of a recorded run; its own task would be recorded in the same way."""
    run_id = replay(server, case, first)
    return list(probe._read(RunReader(Cluster(connection.Connection(server.host))), run_id))


@pytest.mark.parametrize("is_archived", [False, True])
def test_what_the_pod_prints_becomes_findings(
    server: Server, capsys: pytest.CaptureFixture[str], is_archived: bool
) -> None:
    server.has_interface = False
    inside.report("/nonexistent", "", gpu=False)
    printed = capsys.readouterr().out
    launcher = 'I1128 20:54:41.000001      12 launcher_v2.go:123] input ComponentSpec:{\n  "a": 1\n}\n'
    pods = [
        one.id if is_archived else one.pod
        for one in nodes(moments("train-resumed")[-1], "workflow").values()
        if one.pod
    ]
    server.logs = dict.fromkeys(pods, f"{launcher}[KFP Executor 2026-11-28 20:54:45 INFO]: x\n{printed}")
    found = {one.what: one for one in read_probe(server, "train-resumed")}
    volume = found["checkpoint volume from a pod"]
    assert volume.level is finding.Level.FAILURE
    assert "kubectl -n kubeflow apply -f deploy/pipelines/own-checkpoints.yaml" in volume.mend
    assert set(found) == {"MLflow from a pod", "S3 from a pod", "checkpoint volume from a pod"}


def test_a_report_that_cannot_be_read_is_not_known(server: Server) -> None:
    assert {one.level for one in read_probe(server, "train-resumed")} == {finding.Level.UNKNOWN}


def test_a_log_without_a_report_is_not_known(server: Server) -> None:
    pods = [one.pod for one in nodes(moments("train-resumed")[-1], "workflow").values() if one.pod]
    server.logs = dict.fromkeys(pods, (FOLDER / "train.log").read_text())
    (found,) = read_probe(server, "train-resumed")
    assert (found.level, found.text) == (finding.Level.UNKNOWN, "there is none in its log")


def test_why_the_probe_waits_is_said(server: Server, cluster: KubeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0)
    cluster.lists[f"{CORE}/kubeflow/pods"] = moments("image-missing")[-1]["pods"]
    (found,) = read_probe(server, "image-missing")
    assert found.level is finding.Level.FAILURE
    assert "It was source: waiting for a node with 1 free core" in found.text


def test_why_the_probe_failed_is_said(server: Server) -> None:
    (found,) = read_probe(server, "no-service-account")
    assert found.level is finding.Level.FAILURE
    assert "service account" in found.text
    assert "account.yaml" in found.mend


@pytest.fixture
def pod_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that mounts secrets with the given values; the environment has none of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    config = load_cluster()
    for name in (*config.secrets["s3"].keys, *config.secrets["mlflow"].keys, "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def mount(**values: str) -> None:
        for name, value in values.items():
            (tmp_path / name).write_text(value)
        files = os.pathsep.join(str(tmp_path / name) for name in values)
        monkeypatch.setenv("YOLACT_SECRET_FILES", files)

    return mount


def reported(capsys: pytest.CaptureFixture[str], mount: str = "", folder: str = "") -> dict[str, finding.Finding]:
    inside.report(mount, folder, gpu=False)
    found = inside.parse_report(capsys.readouterr().out.splitlines())
    return {one.what.removesuffix(" from a pod"): one for one in found}


def test_a_pod_reaches_mlflow_s3_and_its_volume(
    s3: S3Server,
    empty_store: Path,
    tmp_path: Path,
    pod_environment: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": s3.address}
    pod_environment(**keys, MLFLOW_TRACKING_URI=f"sqlite:///{shutil.copy(empty_store, tmp_path / 'store.db')}")
    found = reported(capsys, str(tmp_path))
    assert {one.level for one in found.values()} == {finding.Level.OK}
    assert BUCKET in found["S3"].text
    assert f"user {os.getuid()} can write" in found["checkpoint volume"].text
    assert reported(capsys, folder=f"s3://{BUCKET}/x")["S3"].level is finding.Level.OK
    assert reported(capsys, folder="s3://no-such-bucket/x")["S3"].level is finding.Level.FAILURE


def test_what_a_pod_does_not_reach(
    s3: S3Server, pod_environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "wrong", "AWS_ENDPOINT_URL": s3.address}
    pod_environment(**keys)
    found = reported(capsys, "/proc/1/nonexistent")
    assert {what: one.level for what, one in found.items()} == dict.fromkeys(found, finding.Level.FAILURE)
    assert "does not accept the keys" in found["S3"].text
    assert "MLFLOW_TRACKING_URI is not set" in found["MLflow"].text


def test_a_pod_without_keys_is_a_warning(
    pod_environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pod_environment()
    assert reported(capsys)["S3"].level is finding.Level.WARNING
