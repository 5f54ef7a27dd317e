"""The manifests in ``deploy/``: they match Kubernetes' schemas and each other, and need no privileges."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

from components.train.trainjob_client import CONTAINER, RUNTIME
from pipelines.config import load_cluster
from serving.metrics import Metrics
from serving.settings import ServerSettings
from tests.servers.servers import free_port, s3_server
from yolact.errors import EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, YolactError
from yolact.limits import CPU_COUNT_VARIABLE
from yolact_ops.commands.secrets import SECRET_FILES_VARIABLE
from yolact_ops.settings.params import load_params

KUBERNETES = "1.33"
"""Kubernetes version of the schemas."""
USER = 10001
"""The image's user."""
OTHERS = {"postgres:17-bookworm": 999}
"""Third-party images with their users."""
KUBEFLOW_CORES, KUBEFLOW_BYTES = 2.0, 3 * 2**30
"""Kept for Kubernetes itself and for Kubeflow Pipelines, which request about a core each; an estimate."""
CUSTOM = {"TrainingRuntime", "TrainJob", "AuthorizationPolicy", "ServingRuntime", "InferenceService"}
"""Kinds of the Kubeflow Trainer, of Istio and of KServe, whose schemas are not Kubernetes' own."""
KSERVE_LABEL = "serving.kserve.io/inferenceservice"
"""Label with an InferenceService's name that KServe gives its pods."""


@dataclass(frozen=True)
class Manifest:
    file: Path
    tree: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.tree["kind"])

    @property
    def name(self) -> str:
        return str(self.tree["metadata"]["name"])

    @property
    def pod_labels(self) -> dict[str, str]:
        """Labels of the pods that a workload creates."""
        labels: dict[str, str] = self.tree["spec"]["template"]["metadata"]["labels"]
        return labels

    def pods(self) -> list[dict[str, Any]]:
        """The specifications of all pods in it; KServe and the Trainer make pods of two manifests (`kserve_pod`)."""
        is_part = self.kind in ("ServingRuntime", "TrainJob")
        return [spec for spec in maps(self.tree) if "containers" in spec and not is_part]


def maps(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a tree."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from maps(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from maps(value)


@pytest.fixture(scope="module")
def deploy(repository: Path) -> Path:
    return repository / "deploy"


@pytest.fixture(scope="module")
def manifests(deploy: Path) -> list[Manifest]:
    files = [path for path in sorted(deploy.rglob("*.yaml")) if path.name != "kustomization.yaml"]
    found = [Manifest(path, tree) for path in files for tree in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    assert len(found) > 10
    return found


def containers_of(manifests: list[Manifest], name: str) -> list[dict[str, Any]]:
    """Containers of the Deployment of that name."""
    [found] = [manifest for manifest in manifests if (manifest.kind, manifest.name) == ("Deployment", name)]
    containers: list[dict[str, Any]] = found.tree["spec"]["template"]["spec"]["containers"]
    return containers


@pytest.fixture(scope="module")
def secrets(deploy: Path) -> dict[str, set[str]]:
    """Keys by secret, as the examples have them: ``s3.env.example`` is of the secret ``yolact-s3``."""
    return {
        f"yolact-{path.name.removesuffix('.env.example')}": {
            line.partition("=")[0] for line in path.read_text(encoding="utf-8").splitlines() if "=" in line
        }
        for path in (deploy / "secrets").glob("*.env.example")
    }


def test_manifests_fit_kubernetes_own_schemas(manifests: list[Manifest]) -> None:
    own = [manifest for manifest in manifests if manifest.kind not in CUSTOM]
    assert len(own) > 8
    for manifest in own:
        kubernetes_validate.validate(manifest.tree, KUBERNETES, strict=True)


def test_the_schemas_detect_a_mistake(manifests: list[Manifest]) -> None:
    claim = next(manifest.tree for manifest in manifests if manifest.kind == "PersistentVolumeClaim")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(claim | {"spec": {"accessMode": ["ReadWriteOnce"]}}, KUBERNETES, strict=True)


def bytes_of(quantity: str) -> float:
    """Bytes that Kubernetes' spelling of them means, here always with ``Mi`` or ``Gi``."""
    return float(quantity[:-2]) * {"Mi": 2**20, "Gi": 2**30}[quantity[-2:]]


def cores_of(quantity: str) -> float:
    """Cores that Kubernetes' spelling of them means."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def requested(manifests: list[Manifest], name: str) -> tuple[float, float]:
    """Cores and bytes that a pod of the Deployment of that name requests."""
    requests = [container["resources"]["requests"] for container in containers_of(manifests, name)]
    return sum(cores_of(each["cpu"]) for each in requests), sum(bytes_of(each["memory"]) for each in requests)


def test_what_the_readme_runs_fits_the_size_of_cluster_that_it_asks_for(
    deploy: Path, repository: Path, manifests: list[Manifest]
) -> None:
    page = (deploy / "README.md").read_text(encoding="utf-8")
    [size] = re.findall(r"with (\d+) cores and (\d+) GB of memory", page)
    assert f"--cpus {size[0]} --memory {size[1]}g" in page
    (mlflow_cores, mlflow_bytes), (serving_cores, serving_bytes) = (
        requested(manifests, name) for name in ("yolact-mlflow", "yolact-serving")
    )
    cores = float(size[0]) - KUBEFLOW_CORES - mlflow_cores
    memory = float(size[1]) * 1e9 - KUBEFLOW_BYTES - mlflow_bytes
    assert 2 * serving_cores <= cores  # while one is replaced
    assert 2 * serving_bytes <= memory
    cluster = load_cluster(overrides=re.findall(r"^  -C '(.+?)'", page, flags=re.MULTILINE))
    text = (repository / "tests" / "pipelines" / "golden" / "training.yaml").read_text(encoding="utf-8")
    names = next(yaml.safe_load_all(text))["root"]["dag"]["tasks"]
    assert {"train", "promote"} <= names.keys()
    for name in names:
        assert cores_of(cluster.for_step(name).cpu) <= cores - serving_cores, name
        assert bytes_of(cluster.for_step(name).memory) <= memory - serving_bytes, name
        assert bytes_of(cluster.for_step(name).memory_limit) <= memory, name
        assert cluster.for_step(name).gpus == 0, name


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """What kustomize builds from a folder."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl, whose kustomize builds the manifests")
    done = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("folder", [".", "mlflow/postgres", "train", "serving", "serving/kserve"])
def test_kustomize_builds_each_folder_that_the_readme_applies(deploy: Path, folder: str) -> None:
    built = kustomize(deploy / folder)
    assert built
    if folder not in ("mlflow/postgres", "train"):  # applied with -n
        assert {tree["metadata"]["namespace"] for tree in built} == {"kubeflow"}


def test_serving_with_feedback_has_a_volume_to_write_to_and_a_candidate(deploy: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(deploy / "serving", tmp_path / "serving")
    file = copy / "kustomization.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("# components:", "components:"), encoding="utf-8")
    built = kustomize(copy)
    for tree in built:
        kubernetes_validate.validate(tree, KUBERNETES, strict=True)
    [claim] = [tree for tree in built if tree["kind"] == "PersistentVolumeClaim"]
    [pod] = [tree["spec"]["template"]["spec"] for tree in built if tree["kind"] == "Deployment"]
    [container] = pod["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    settings = ServerSettings(feedback=given["YOLACT_SERVE_FEEDBACK"], candidate=given["YOLACT_SERVE_CANDIDATE"])
    mounts = {entry["mountPath"]: entry["name"] for entry in container["volumeMounts"]}
    [volume] = [entry for entry in pod["volumes"] if entry["name"] == mounts[str(settings.feedback)]]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_every_server_admits_only_whom_its_network_policy_names(manifests: list[Manifest]) -> None:
    """The policy of `profile` aside, which opens servers to the namespace only."""
    policies = [one.tree["spec"] for one in manifests if one.kind == "NetworkPolicy" and one.name != "yolact"]
    servers = [
        (one.name, one.tree["spec"]["selector"]["matchLabels"], one.pods()[0])
        for one in manifests
        if one.kind in ("Deployment", "StatefulSet")
    ]
    services = [one for one in manifests if one.kind == "InferenceService"]
    servers += [(one.name, {KSERVE_LABEL: one.name}, kserve_pod(manifests)) for one in services]
    assert services
    assert len(policies) == len(servers)
    rules = {}
    for name, labels, pod in servers:
        [policy] = [each for each in policies if each["podSelector"] == {"matchLabels": labels}]
        assert policy["policyTypes"] == ["Ingress"]
        [rule] = policy["ingress"]
        [port] = pod["containers"][0]["ports"]
        assert [each["port"] for each in rule["ports"]] == [port["name"]]
        admitted = [each["podSelector"] for each in rule["from"] if "podSelector" in each]
        mlflow = {"matchLabels": {"app.kubernetes.io/name": "yolact-mlflow"}}
        assert admitted == [mlflow if name == "yolact-postgres" else {}]
        rules[name] = rule
    for service in services:
        assert rules[service.name] == rules["yolact-serving"]


def test_deployment_and_kserve_scale_alike_by_the_queue_that_prometheus_collects(manifests: list[Manifest]) -> None:
    [service] = [one for one in manifests if one.kind == "InferenceService"]
    targets = {"yolact-serving": "yolact-serving", "yolact-kserve": f"{service.name}-predictor"}  # KServe's Deployment
    scalers = {one.name: dict(one.tree["spec"]) for one in manifests if one.kind == "HorizontalPodAutoscaler"}
    found = {name: spec.pop("scaleTargetRef") for name, spec in scalers.items()}
    assert found == {name: {"apiVersion": "apps/v1", "kind": "Deployment", "name": to} for name, to in targets.items()}
    assert scalers["yolact-kserve"] == scalers["yolact-serving"]
    # KServe would update an HPA with its Deployment's name, and makes its own unless told not to.
    assert f"{service.name}-predictor" not in scalers
    assert service.tree["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"

    [metric] = scalers["yolact-serving"]["metrics"]
    assert metric["pods"]["target"]["averageValue"] == str(ServerSettings().batch_size)
    assert metric["pods"]["metric"]["name"] in {each.name for each in Metrics().registry.collect()}

    [deployment] = [one.tree["spec"] for one in manifests if (one.kind, one.name) == ("Deployment", "yolact-serving")]
    [runtime] = [one.tree["spec"] for one in manifests if one.kind == "ServingRuntime"]
    for given, pod in (
        (deployment["template"]["metadata"]["annotations"], deployment["template"]["spec"]),
        (runtime["annotations"] | service.tree["metadata"]["annotations"], runtime),
    ):
        [port] = pod["containers"][0]["ports"]
        assert {key: value for key, value in given.items() if key.startswith("prometheus.io/")} == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(port["containerPort"]),
            "prometheus.io/path": "/metrics",
        }
        assert given.get("serving.kserve.io/enable-prometheus-scraping") != "true"  # would set Knative's port


def test_the_documented_prometheus_rule_and_pod_monitor_fit_the_server(
    repository: Path, manifests: list[Manifest]
) -> None:
    page = (repository / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.M | re.S)]
    [rule] = [rule for block in blocks for rule in block.get("rules", {}).get("custom", [])]
    [monitor] = [block["spec"] for block in blocks if block.get("kind") == "PodMonitor"]
    [scaler] = [
        one.tree["spec"] for one in manifests if (one.kind, one.name) == ("HorizontalPodAutoscaler", "yolact-serving")
    ]
    assert rule["seriesQuery"].partition("{")[0] == scaler["metrics"][0]["pods"]["metric"]["name"]
    [endpoint] = monitor["podMetricsEndpoints"]
    [port] = containers_of(manifests, "yolact-serving")[0]["ports"]
    assert endpoint["port"] == port["name"]
    [server] = [one for one in manifests if (one.kind, one.name) == ("Deployment", "yolact-serving")]
    assert monitor["selector"]["matchLabels"].items() <= server.pod_labels.items()
    [seconds] = re.findall(r"\[(\d+)s\]", rule["metricsQuery"])
    assert 2 * int(endpoint["interval"].removesuffix("s")) <= int(seconds)  # a lost sample leaves one


def with_login(deploy: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What kustomize builds of MLflow with its component `login`."""
    copy = shutil.copytree(deploy / "mlflow", tmp_path / "mlflow")
    file = copy / "kustomization.yaml"
    text = file.read_text(encoding="utf-8")
    assert "# components:" in text
    file.write_text(text.replace("# components:", "components:"), encoding="utf-8")
    return kustomize(copy)


def test_mlflow_with_a_login_gets_its_settings_and_its_secret(
    deploy: Path, tmp_path: Path, secrets: dict[str, set[str]]
) -> None:
    built = with_login(deploy, tmp_path)
    for tree in built:
        kubernetes_validate.validate(tree, KUBERNETES, strict=True)
    [pod] = [tree["spec"]["template"]["spec"] for tree in built if tree["kind"] == "Deployment"]
    [settings] = [tree for tree in built if tree["kind"] == "ConfigMap"]
    [container] = pod["containers"]
    given = {entry["name"]: entry for entry in container["env"]}
    mounts = {entry["name"]: entry["mountPath"] for entry in container["volumeMounts"]}
    [volume] = [each["name"] for each in pod["volumes"] if each.get("configMap") == {"name": "yolact-mlflow-login"}]
    assert settings["metadata"]["name"] == "yolact-mlflow-login"
    [file] = settings["data"]
    assert given["MLFLOW_AUTH_CONFIG_PATH"]["value"] == f"{mounts[volume]}/{file}"
    references = [entry["valueFrom"]["secretKeyRef"] for entry in given.values() if "valueFrom" in entry]
    assert {each["key"] for each in references if each["name"] == "yolact-mlflow-login"} == secrets[
        "yolact-mlflow-login"
    ]
    assert [each for each in references if each["key"] not in secrets[each["name"]]] == []


@pytest.mark.slow
def test_mlflow_started_so_refuses_whoever_has_no_login_and_an_account_that_may_only_read(
    deploy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = with_login(deploy, tmp_path)
    [container] = [
        each
        for tree in built
        if tree["kind"] == "Deployment"
        for each in tree["spec"]["template"]["spec"]["containers"]
    ]
    [settings] = [tree["data"]["login.ini"] for tree in built if tree["kind"] == "ConfigMap"]
    (volume := tmp_path / "volume").mkdir()
    (tmp_path / "login.ini").write_text(settings.replace("/mlflow/", f"{volume}/"))
    port = free_port()
    server = subprocess.Popen(
        script_of(container, mlflow=volume),
        cwd=tmp_path,
        env=os.environ
        | {
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{volume}/mlflow.db",
            "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
            "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "login.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": "first password of all",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "0f1e",
        },
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_health(address, server)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for name in ("USERNAME", "PASSWORD", "TOKEN"):
            monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
        client = MlflowClient(address)
        with pytest.raises(MlflowException, match="401"):
            client.search_experiments()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "first password of all")
        AuthServiceClient(address).create_user("serving", "a password to read")
        client.create_registered_model("yolact")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "serving")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a password to read")
        assert client.get_registered_model("yolact").name == "yolact"
        with pytest.raises(MlflowException, match="Permission denied"):
            client.delete_registered_model("yolact")
        assert (volume / "accounts.db").stat().st_size > 0
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def wait_for_health(address: str, server: subprocess.Popen[bytes]) -> None:
    """Until the probe's address answers, which needs no login."""
    end = time.monotonic() + 180
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("mlflow server did not start")


def test_a_profile_gets_all_but_the_account_in_its_own_namespace_and_may_reach_the_servers(
    deploy: Path, manifests: list[Manifest]
) -> None:
    built = kustomize(deploy / "profile")
    assert {tree["metadata"]["namespace"] for tree in built} == {"your-profile"}
    common = {(tree["kind"], tree["metadata"]["name"]) for tree in kustomize(deploy)}
    without_account = common - {("ServiceAccount", "yolact-pipelines"), ("RoleBinding", "yolact-pipelines")}
    policies = {("AuthorizationPolicy", "yolact"), ("NetworkPolicy", "yolact")}
    assert {(tree["kind"], tree["metadata"]["name"]) for tree in built} == without_account | policies

    policy = next(tree["spec"] for tree in built if tree["kind"] == "AuthorizationPolicy")
    [network] = [
        tree["spec"] for tree in built if (tree["kind"], tree["metadata"]["name"]) == ("NetworkPolicy", "yolact")
    ]
    [rule] = policy["rules"]
    servers = [
        container["ports"][0]["containerPort"]
        for name in ("yolact-mlflow", "yolact-serving")
        for container in containers_of(manifests, name)
    ]
    assert rule == {"to": [{"operation": {"ports": [str(port) for port in servers]}}]}
    for workload in (one for one in manifests if one.kind == "Deployment"):
        assert policy["selector"]["matchLabels"].items() <= workload.pod_labels.items()
        assert network["podSelector"] == policy["selector"]


def test_pods_that_must_end_get_no_sidecar(manifests: list[Manifest]) -> None:
    jobs = [manifest.pod_labels for manifest in manifests if manifest.kind == "Job"]
    [runtime] = [manifest.tree for manifest in manifests if manifest.kind == "TrainingRuntime"]
    [node] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = [*jobs, node["template"]["spec"]["template"]["metadata"]["labels"]]
    assert len(labels) == 3
    assert {each.get("sidecar.istio.io/inject") for each in labels} == {"false"}


def test_only_an_error_of_the_user_ends_all_nodes_at_once(manifests: list[Manifest]) -> None:
    [runtime] = [manifest.tree for manifest in manifests if manifest.kind == "TrainingRuntime"]
    assert TrainerV1alpha1TrainingRuntime.from_dict(runtime).to_dict() == runtime  # it knows all fields
    spec = runtime["spec"]["template"]["spec"]
    [node] = spec["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": node["template"]["spec"]}
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    [of_pods], [of_jobs] = job["spec"]["podFailurePolicy"]["rules"], spec["failurePolicy"]["rules"]
    assert (of_pods["action"], of_jobs["action"]) == ("FailJob", "FailJobSet")
    assert of_jobs["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert of_pods["onExitCodes"] == {"containerName": CONTAINER, "operator": "In", "values": [YolactError.exit_code]}
    tried_again = {EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
    assert not tried_again & set(of_pods["onExitCodes"]["values"])


def script_of(container: dict[str, Any], **places: Path) -> list[str]:
    """The container's shell command, with other folders for its mounts."""
    assert container["command"] == ["sh", "-c"]
    [script] = container["args"]
    for name, place in places.items():
        assert f"/{name}" in script
        script = re.sub(rf"(?<=[ ])/{name}(?=[/ ])", str(place), script)
    return ["sh", "-c", script]


@pytest.mark.parametrize(
    ("store", "there", "starts"),
    [
        ("sqlite:////mlflow/mlflow.db", True, True),
        ("sqlite:////mlflow/mlflow.db", False, False),
        ("postgresql+psycopg2://mlflow:x@yolact-postgres:5432/mlflow", False, True),
    ],
)
def test_mlflow_names_the_volume_that_it_cannot_write_in_one_line(
    deploy: Path, manifests: list[Manifest], tmp_path: Path, store: str, there: bool, starts: bool
) -> None:
    [container] = containers_of(manifests, "yolact-mlflow")
    volume, programs = tmp_path / "volume", tmp_path / "bin"
    programs.mkdir()
    (programs / "mlflow").write_text("#!/bin/sh\necho started $@\n")
    (programs / "mlflow").chmod(0o755)
    if there:
        volume.mkdir()
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "MLFLOW_BACKEND_STORE_URI": store, "LC_ALL": "C"}
    done = subprocess.run(
        script_of(container, mlflow=volume), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    if starts:
        assert (done.returncode, done.stdout, done.stderr) == (0, "started server\n", "")
        return
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("MLflow cannot write to its volume, the claim yolact-mlflow at")
    assert "No such file or directory" in line
    assert line.endswith("deploy/README.md says how (Volumes).")
    assert "\n## Volumes\n" in (deploy / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("is_writable", [True, False])
def test_the_job_for_checkpoints_says_whether_it_could_make_them_writable(
    deploy: Path, tmp_path: Path, is_writable: bool
) -> None:
    job = yaml.safe_load((deploy / "pipelines" / "own-checkpoints.yaml").read_text(encoding="utf-8"))
    [container] = job["spec"]["template"]["spec"]["containers"]
    command = script_of(container, checkpoints=tmp_path if is_writable else tmp_path / "none")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = (
        ""
        if is_writable
        else (
            "The claim yolact-checkpoints is still not writable: its StorageClass ignores fsGroup. "
            "deploy/README.md says what to do (Volumes).\n"
        )
    )
    assert (done.returncode, done.stderr) == (0 if is_writable else 1, said)


def test_kustomizations_name_every_manifest_except_those_applied_manually(deploy: Path) -> None:
    own = deploy / "pipelines"
    by_hand = {deploy / "train" / "trainjob.yaml", own / "argo-retries.yaml", *own.glob("o*-checkpoints.yaml")}
    by_hand |= {deploy / "serving" / "autoscaling.yaml", deploy / "serving" / "kserve" / "autoscaling.yaml"}
    named = {
        (file.parent / resource).resolve()
        for file in deploy.rglob("kustomization.yaml")
        for resource in yaml.safe_load(file.read_text(encoding="utf-8"))["resources"]
    }
    assert all(path.exists() for path in named)
    files = {path for path in deploy.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files - named == by_hand


def test_the_job_for_old_checkpoints_removes_those_of_runs_that_have_stopped_and_no_others(
    deploy: Path, tmp_path: Path
) -> None:
    job = yaml.safe_load((deploy / "pipelines" / "old-checkpoints.yaml").read_text(encoding="utf-8"))
    [container] = job["spec"]["template"]["spec"]["containers"]
    days = {"finished": 31, "finished-0123abcd": 40, "stopped": 29, "trains": 0, "lost+found": 99}
    for name, age in days.items():
        (tmp_path / name / "best_0001-0123").mkdir(parents=True)
        (tmp_path / name / "000001-step_00000001-0123.pt").write_bytes(b"1")
        then = time.time() - age * 86400 - 60
        os.utime(tmp_path / name, (then, then))
    words = [*container["command"], *container["args"]]
    assert words.count("/checkpoints") == 1
    command = [str(tmp_path) if word == "/checkpoints" else word for word in words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert {Path(line).name for line in done.stdout.splitlines()} == {"finished", "finished-0123abcd"}
    assert {path.name for path in tmp_path.iterdir()} == {"stopped", "trains", "lost+found"}


def test_every_pod_runs_without_privileges(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        for pod in manifest.pods():
            user = OTHERS.get(pod["containers"][0]["image"], USER)
            assert pod["securityContext"] == {
                "runAsNonRoot": True,
                "runAsUser": user,
                "runAsGroup": user,
                "fsGroup": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            }, manifest.file
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False  # a service called mlflow would set MLFLOW_PORT
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, manifest.file


def test_every_container_asks_for_resources_and_has_a_place_for_temporary_files(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        for pod in manifest.pods():
            claims = manifest.tree["spec"].get("volumeClaimTemplates", [])
            volumes = {item["name"] for item in pod["volumes"]} | {item["metadata"]["name"] for item in claims}
            for container in pod["containers"]:
                mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                assert set(mounts.values()) <= volumes
                if manifest.kind in ("Deployment", "StatefulSet"):
                    assert "/tmp" in mounts
                    assert {"readinessProbe", "livenessProbe"} <= container.keys()
                if manifest.kind not in CUSTOM:  # a TrainJob has its own
                    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
                    assert "memory" in container["resources"]["limits"]


def test_no_manifest_and_no_example_holds_a_secrets_value(manifests: list[Manifest], deploy: Path) -> None:
    assert not [manifest.file for manifest in manifests if manifest.kind == "Secret"]
    for path in (deploy / "secrets").iterdir():
        assert path.name.endswith(".env.example")
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Z0-9_]+=", line) for line in lines), path
    for manifest in manifests:
        for variable in maps(manifest.tree):
            name = str(variable.get("name", ""))
            if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", name) and not name.endswith(("_FILE", "_FILES")):
                assert "value" not in variable


def test_the_image_is_the_one_that_pipelines_run_in(manifests: list[Manifest]) -> None:
    image = load_cluster().image
    named = [item["image"] for manifest in manifests for item in maps(manifest.tree) if "image" in item]
    assert named.count(image) >= 5
    assert set(named) - {image} == OTHERS.keys()


def test_pipelines_find_their_volume_and_their_secrets(manifests: list[Manifest], secrets: dict[str, set[str]]) -> None:
    cluster = load_cluster()
    claims = {manifest.name for manifest in manifests if manifest.kind == "PersistentVolumeClaim"}
    assert cluster.checkpoints.claim in claims
    for secret in cluster.secrets.values():
        assert set(secret.keys) == secrets[secret.name], secret.name


def kserve_pod(manifests: list[Manifest]) -> dict[str, Any]:
    """The pod that KServe makes: the runtime's container with the service's variables, and the service's pod."""
    [runtime], [service] = (
        [manifest.tree["spec"] for manifest in manifests if manifest.kind == kind]
        for kind in ("ServingRuntime", "InferenceService")
    )
    [container] = runtime["containers"]
    pod = {key: value for key, value in service["predictor"].items() if key != "model"}
    variables = {each["name"]: each for each in container["env"] + service["predictor"]["model"]["env"]}
    mounts = container["volumeMounts"] + service["predictor"]["model"]["volumeMounts"]
    merged = container | {"env": list(variables.values()), "volumeMounts": mounts}
    return pod | {"volumes": runtime["volumes"] + pod["volumes"], "containers": [merged]}


def test_kserves_pod_is_the_deployments(manifests: list[Manifest]) -> None:
    pod = kserve_pod(manifests)
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, KUBERNETES, strict=True
    )
    [deployment] = [manifest for manifest in manifests if manifest.name == "yolact-serving" and manifest.pods()]
    [own] = deployment.pods()
    for key in (
        "securityContext",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "terminationGracePeriodSeconds",
    ):
        assert pod[key] == own[key]
    [ours], [theirs] = own["containers"], pod["containers"]
    for key in ("image", "resources", "securityContext", "livenessProbe"):
        assert theirs[key] == ours[key]
    variables = {each["name"]: each for each in theirs["env"]}
    assert variables.pop("YOLACT_SERVE_MODEL")["value"] == ours["command"][-1]
    assert variables == {each["name"]: each for each in ours["env"]}
    assert secret_volumes(pod) == secret_volumes(own)


def test_kserve_finds_the_runtime_and_its_names(manifests: list[Manifest]) -> None:
    [runtime], [service] = (
        [manifest for manifest in manifests if manifest.kind == kind] for kind in ("ServingRuntime", "InferenceService")
    )
    assert runtime.tree["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert service.tree["apiVersion"] == "serving.kserve.io/v1beta1"
    model = service.tree["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime.name
    assert model["modelFormat"]["name"] in [each["name"] for each in runtime.tree["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime.tree["spec"]["protocolVersions"]
    assert [each["name"] for each in runtime.tree["spec"]["containers"]] == ["kserve-container"]


def test_manifests_find_their_secrets_claims_and_accounts(
    manifests: list[Manifest], secrets: dict[str, set[str]]
) -> None:
    names: dict[str, set[str]] = {}
    for manifest in manifests:
        names.setdefault(manifest.kind, set()).add(manifest.name)
    references = [item for manifest in manifests for item in maps(manifest.tree)]
    keys = [item["secretKeyRef"] for item in references if "secretKeyRef" in item]
    assert len(keys) >= 7  # of MLflow's server
    assert [key for key in keys if key["key"] not in secrets[key["name"]]] == []
    claims = {item["claimName"] for item in references if "claimName" in item}
    assert claims - names["PersistentVolumeClaim"] == {"yolact-train"}  # trainjob.yaml: made by hand
    bindings = [manifest.tree for manifest in manifests if manifest.kind == "RoleBinding"]
    assert {subject["name"] for binding in bindings for subject in binding["subjects"]} <= names["ServiceAccount"]
    assert {binding["roleRef"]["name"] for binding in bindings} == {"pipeline-runner"} | names["Role"]
    jobs = [manifest.tree for manifest in manifests if manifest.kind == "TrainJob"]
    assert {job["spec"]["runtimeRef"]["name"] for job in jobs} == {RUNTIME} == names["TrainingRuntime"]


def secret_volumes(tree: Any) -> list[list[str]]:
    """Names of the secrets in each projected volume."""
    volumes = [item["projected"]["sources"] for item in maps(tree) if "projected" in item]
    return [[source["secret"]["name"] for source in sources] for sources in volumes]


def secret_files(tree: Any) -> list[Path]:
    """The files that ``YOLACT_SECRET_FILES`` names, or the one of PostgreSQL's password."""
    names = (SECRET_FILES_VARIABLE, "POSTGRES_PASSWORD_FILE")
    [value] = [item["value"] for item in maps(tree) if item.get("name") in names]
    return [Path(name) for name in value.split(os.pathsep)]


@pytest.mark.parametrize(
    ("kind", "names", "unused"),
    [
        ("Deployment", ["yolact-mlflow-serving", "yolact-serving"], set()),
        ("InferenceService", ["yolact-mlflow-serving", "yolact-serving"], set()),
        ("TrainJob", ["yolact-mlflow", "yolact-s3"], {"MLFLOW_S3_ENDPOINT_URL"}),  # files go through the server
        ("StatefulSet", ["yolact-postgres"], set()),
    ],
)
def test_all_but_mlflows_server_reads_its_secrets_from_files(
    manifests: list[Manifest], secrets: dict[str, set[str]], kind: str, names: list[str], unused: set[str]
) -> None:
    """Serving has a secret of its own: the tasks' account may write."""
    [tree] = [one.tree for one in manifests if one.kind == kind and one.name != "yolact-mlflow"]
    assert secret_volumes(tree) == [names]
    [mount] = [item["mountPath"] for item in maps(tree) if item.get("name") == "secrets" and "mountPath" in item]
    files = secret_files(tree)
    assert {str(file.parent) for file in files} == {mount}
    assert {file.name for file in files} == set().union(*(secrets[name] for name in names)) - unused
    assert "secretKeyRef" not in str(tree)


def test_threads_of_servers_and_trainings_follow_the_request_of_cpu_not_the_nodes_cores(
    manifests: list[Manifest],
) -> None:
    containers = [
        item
        for manifest in manifests
        for item in maps(manifest.tree)
        if "env" in item and ("yolact" in item.get("command", []) or "components.train" in str(item.get("command")))
    ]
    assert len(containers) == 3  # the server, under KServe too, and the TrainJob
    for container in containers:
        variables = {each["name"]: each.get("valueFrom") for each in container["env"]}
        assert variables[CPU_COUNT_VARIABLE] == {"resourceFieldRef": {"resource": "requests.cpu"}}


def test_everything_that_gets_the_keys_of_s3_gets_region_and_session_token_too(manifests: list[Manifest]) -> None:
    whole = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"}
    assert whole <= set(load_cluster().secrets["s3"].keys)
    given = [
        {variable["name"] for variable in item["env"]}
        for manifest in manifests
        for item in maps(manifest.tree)
        if "env" in item
    ]
    given += [{file.name for file in secret_files(one.tree)} for one in manifests if one.kind == "TrainJob"]
    with_keys = [names for names in given if "AWS_ACCESS_KEY_ID" in names]
    assert len(with_keys) == 2  # MLflow's server, and training on several nodes
    assert all(whole <= names for names in with_keys)


def test_services_find_their_pods_and_ports(manifests: list[Manifest]) -> None:
    workloads = [manifest for manifest in manifests if manifest.kind in ("Deployment", "StatefulSet")]
    services = [manifest for manifest in manifests if manifest.kind == "Service"]
    assert len(services) == len(workloads) >= 3
    for service in services:
        assert service.name != "mlflow"  # see the test of service links
        [workload] = [
            workload
            for workload in workloads
            if service.tree["spec"]["selector"].items()
            <= workload.tree["spec"]["template"]["metadata"]["labels"].items()
        ]
        selector = workload.tree["spec"]["selector"]["matchLabels"]
        assert selector.items() <= workload.tree["spec"]["template"]["metadata"]["labels"].items()
        ports = {port["name"] for pod in workload.pods() for item in pod["containers"] for port in item["ports"]}
        assert {port["targetPort"] for port in service.tree["spec"]["ports"]} <= ports


def test_servers_listen_on_the_ports_of_their_probes(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        for pod in manifest.pods():
            for container in pod["containers"]:
                variables = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
                for server in ("MLFLOW", "YOLACT_SERVE"):
                    if f"{server}_PORT" in variables:
                        assert variables[f"{server}_HOST"] == "0.0.0.0"
                        [port] = container["ports"]
                        assert variables[f"{server}_PORT"] == str(port["containerPort"])


def test_mlflow_answers_to_the_service_name_that_clients_use(manifests: list[Manifest]) -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    [server] = [
        manifest for manifest in manifests if manifest.kind == "Deployment" and manifest.name == "yolact-mlflow"
    ]
    variables = {item["name"]: item.get("value") for item in server.pods()[0]["containers"][0]["env"]}
    allowed = variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for host in (
        "yolact-mlflow:5000",
        "yolact-mlflow.kubeflow:5000",
        "yolact-mlflow.kubeflow.svc:5000",
        "yolact-mlflow.kubeflow.svc.cluster.local:5000",
        "localhost:5000",
        "127.0.0.1:5000",
    ):
        assert is_allowed_host_header(allowed, host), host
    for host in ("evil.example:5000", "yolact-mlflow-evil.example", "localhost.evil.example"):
        assert not is_allowed_host_header(allowed, host), host


def test_the_served_model_is_the_one_that_is_registered(manifests: list[Manifest], repository: Path) -> None:
    [serving] = [
        manifest for manifest in manifests if manifest.kind == "Deployment" and manifest.name == "yolact-serving"
    ]
    [container] = serving.pods()[0]["containers"]
    name = load_params(repository / "conf" / "base.yaml").register_.model_name
    assert container["command"][-1] == f"models:/{name}@champion"


def test_the_readmes_commands_name_existing_files(deploy: Path) -> None:
    text = (deploy / "README.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"\bdeploy/[\w./-]*\w", text))
    assert len(paths) > 5
    assert [
        path
        for path in paths
        if not (deploy.parent / path.removesuffix(".env")).exists() and not (deploy.parent / f"{path}.example").exists()
    ] == []


@pytest.mark.parametrize("secret", ["plain", "pa$HOME 'w\"ord #1"])
def test_the_readmes_bucket_is_created_with_the_keys_verbatim(deploy: Path, tmp_path: Path, secret: str) -> None:
    page = (deploy / "README.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^python - <<'END'\n.*?^END$", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "deploy" / "secrets").mkdir(parents=True)
    keys = f"# Keys=\nAWS_ACCESS_KEY_ID=team\nAWS_SECRET_ACCESS_KEY={secret}\n"
    (tmp_path / "deploy" / "secrets" / "s3.env").write_text(keys)
    (tmp_path / "store").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with s3_server(tmp_path / "store", "--auth-key", f"team,{secret}") as address:
        there = command.replace("http://127.0.0.1:9000", address)
        done = subprocess.run(
            ["sh", "-c", there], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["yolact"]
