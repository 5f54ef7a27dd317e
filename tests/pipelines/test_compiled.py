"""Compiled pipelines and components: the files in git are current, kfp loads them, Kubernetes gets its settings."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from kfp import components

from pipelines.compiler import PIPELINES, component_text, pipeline_text
from pipelines.config import CLUSTER, load_cluster
from tests.pipelines.write_golden import GOLDEN, VERSIONS
from yolact.errors import SettingsError
from yolact_ops.lineage.code import code_versions, find_steps

STEPS = find_steps()

TASKS = {
    "training": {"source", "ingest", "preprocess", "train", "evaluate", "register", "promote"},
    "evaluation": {"source", "ingest", "preprocess", "fetch", "evaluate"},
    "batch_prediction": {"fetch", "split", "predict", "merge"},
}
"""Tasks by pipeline."""


def documents(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A pipeline's specification, and what it says to Kubernetes, by task."""
    spec, platform = yaml.safe_load_all(text)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return spec, {name.removeprefix("exec-"): config for name, config in executors.items()}


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = spec["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): config["container"] for name, config in executors.items()}


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All tasks of a pipeline, also those in loops."""
    found = dict(spec["root"]["dag"]["tasks"])
    for component in spec["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return {name: task for name, task in found.items() if not name.startswith("for-loop")}


@pytest.fixture(scope="module")
def committed() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    return {name: documents((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")) for name in PIPELINES}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_golden_pipeline_is_what_the_code_compiles_to(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    advice = f"{path} is stale: run `python -m tests.pipelines.write_golden` and commit what it writes"
    assert pipeline_text(name, load_cluster(), VERSIONS) == path.read_text(encoding="utf-8"), advice


@pytest.mark.parametrize("name", STEPS)
def test_the_committed_component_is_what_the_code_compiles_to(name: str, repository: Path) -> None:
    path = repository / "components" / name / "component.yaml"
    advice = f"{path} is stale: run `python -m pipelines compile` and commit what it writes"
    assert component_text(name) == path.read_text(encoding="utf-8"), advice


def test_nothing_else_is_committed_as_compiled(repository: Path) -> None:
    assert {path.stem for path in GOLDEN.glob("*")} == set(PIPELINES) == set(TASKS)
    assert {path.parent.name for path in (repository / "components").glob("*/component.yaml")} == set(STEPS)


@pytest.mark.slow
def test_another_process_compiles_the_same_bytes_with_the_code_version_of_each_task(
    repository: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipelines", "compile", "-o", str(tmp_path)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    versions = code_versions(repository)
    for name in PIPELINES:
        text = (tmp_path / f"{name}.yaml").read_text()
        golden = (GOLDEN / f"{name}.yaml").read_text()
        for step in TASKS[name]:
            assert golden.count(VERSIONS[step]) == 1
            golden = golden.replace(VERSIONS[step], versions[step])
        assert yaml_documents(text) == yaml_documents(golden)
        assert text == pipeline_text(name, load_cluster())
    for name in STEPS:
        assert (tmp_path / "components" / f"{name}.yaml").read_text() == component_text(name)


def yaml_documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("name", STEPS)
def test_kfp_loads_a_single_component(name: str, repository: Path) -> None:
    loaded = components.load_component_from_file(str(repository / "components" / name / "component.yaml"))
    assert loaded.name == name
    assert loaded.description
    assert loaded.component_spec.inputs["code_version"].type == "String"
    spec = yaml.safe_load(component_text(name))["components"][f"comp-{name}"]
    assert all(entry["description"] for group in spec["inputDefinitions"].values() for entry in group.values())


@pytest.mark.parametrize("name", PIPELINES)
def test_kfp_loads_the_pipelines(name: str) -> None:
    loaded = components.load_component_from_file(str(GOLDEN / f"{name}.yaml"))
    assert set(tasks(documents((GOLDEN / f"{name}.yaml").read_text())[0])) == TASKS[name]
    assert loaded.name == name.replace("_", "-")
    inputs = documents((GOLDEN / f"{name}.yaml").read_text())[0]["root"]["inputDefinitions"]["parameters"]
    assert all(entry["description"] for entry in inputs.values())


# Settings for Kubernetes ---------------------------------------------------------------------------------------


def test_every_task_has_the_image_a_time_limit_and_no_package_to_install(committed: dict) -> None:
    cluster = load_cluster()
    for name, (spec, kubernetes) in committed.items():
        assert containers(spec).keys() == kubernetes.keys() == TASKS[name]
        for task, container in containers(spec).items():
            assert container["image"] == cluster.image
            assert not any("pip install" in part for part in container["command"])
            assert kubernetes[task]["imagePullPolicy"] == "IfNotPresent"
            assert int(kubernetes[task]["activeDeadlineSeconds"]) == cluster.for_step(task).time_limit
            assert {"name": "YOLACT_IMAGE", "value": cluster.image} in container["env"]
            [run_id] = kubernetes[task]["fieldPathAsEnv"]
            assert run_id == {"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}


def test_training_has_a_gpu_shared_memory_and_the_volume_of_checkpoints(committed: dict) -> None:
    spec, kubernetes = committed["training"]
    resources = containers(spec)["train"]["resources"]
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "1"
    assert (resources["resourceCpuRequest"], resources["resourceMemoryRequest"]) == ("8", "24Gi")
    assert resources["resourceMemoryLimit"] == "48Gi"
    train = kubernetes["train"]
    [memory] = train["emptyDirMounts"]
    assert (memory["mountPath"], memory["medium"], memory["sizeLimit"]) == ("/dev/shm", "Memory", "8Gi")
    [volume] = train["pvcMount"]
    assert (volume["constant"], volume["mountPath"]) == ("yolact-checkpoints", "/checkpoints")
    assert spec["root"]["inputDefinitions"]["parameters"]["checkpoints"]["defaultValue"] == "/checkpoints"
    assert train["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    without = {"source", "ingest", "preprocess", "register", "promote"}
    assert not any("accelerator" in containers(spec)[task]["resources"] for task in without)


def test_training_on_several_gpus_asks_for_all_of_them_on_one_node() -> None:
    spec, _ = documents(pipeline_text("training", load_cluster(overrides=["tasks.train.gpus=4"]), VERSIONS))
    accelerator = containers(spec)["train"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "4")


TIME_FOR_TRIES = {
    "source": 3 * 600 + 180,
    **dict.fromkeys(("ingest", "preprocess", "evaluate"), 3 * 21600 + 180),
    "train": 6 * 604800 + 60 + 120 + 240 + 480 + 960,
    **dict.fromkeys(("register", "promote", "fetch", "split", "merge"), 3 * 3600 + 180),
    "predict": 3 * 86400 + 180,
}
"""Seconds from the start of the first attempt to the end of the last, with pauses of 60, 120, ... seconds."""


def test_failed_tasks_are_retried_with_growing_pauses_and_time_for_every_attempt(committed: dict) -> None:
    """Argo retries no more once ``backoffMaxDuration`` has passed since the start of the first attempt."""
    for spec, _ in committed.values():
        for name, task in tasks(spec).items():
            policy = task["retryPolicy"]
            assert policy["maxRetryCount"] == (5 if name == "train" else 2)
            assert (policy["backoffDuration"], policy["backoffFactor"]) == ("60s", 2.0)
            assert policy["backoffMaxDuration"] == f"{TIME_FOR_TRIES[name]}s"


def test_only_the_data_steps_are_cached(committed: dict) -> None:
    for spec, _ in committed.values():
        cached = {name for name, task in tasks(spec).items() if task["cachingOptions"].get("enableCache")}
        assert cached == tasks(spec).keys() & {"ingest", "preprocess"}


def test_what_a_cached_task_depends_on_is_among_its_inputs(committed: dict) -> None:
    spec, _ = committed["training"]
    inputs = {name: task["inputs"].get("parameters", {}) for name, task in tasks(spec).items()}
    for task in ("ingest", "preprocess"):
        assert inputs[task]["code_version"] == {"runtimeValue": {"constant": VERSIONS[task]}}
        assert inputs[task]["data_params"]["taskOutputParameter"]["producerTask"] == "source"
    assert inputs["ingest"]["fingerprint"]["taskOutputParameter"]["producerTask"] == "source"


def test_only_tasks_that_run_a_network_have_a_gpu_and_its_toleration(committed: dict) -> None:
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    for spec, kubernetes in committed.values():
        for task, container in containers(spec).items():
            has_network = task in ("train", "evaluate", "predict")
            accelerator = {"resourceType": "nvidia.com/gpu", "resourceCount": "1"}
            found = container["resources"].get("accelerator", {})
            assert {key: found[key] for key in accelerator if key in found} == (accelerator if has_network else {})
            assert kubernetes[task].get("tolerations", []) == ([toleration] if has_network else [])


def test_all_shards_are_predicted_in_parallel(committed: dict) -> None:
    spec, _ = committed["batch_prediction"]
    [loop] = [task for name, task in spec["root"]["dag"]["tasks"].items() if name.startswith("for-loop")]
    assert loop["parameterIterator"]["items"]["inputParameter"].endswith("split-Output")
    assert "iteratorPolicy" not in loop


def test_fewer_shards_are_predicted_at_a_time_if_the_cluster_says_so() -> None:
    cluster = load_cluster(overrides=["parallel.predict=2"])
    spec, _ = documents(pipeline_text("batch_prediction", cluster, VERSIONS))
    [loop] = [task for name, task in spec["root"]["dag"]["tasks"].items() if name.startswith("for-loop")]
    assert loop["iteratorPolicy"] == {"parallelismLimit": 2}


def test_one_part_has_no_scan_and_preprocess_reads_what_ingest_wrote(committed: dict) -> None:
    for name in ("training", "evaluation"):
        spec, _ = committed[name]
        assert not any(task.startswith("for-loop") for task in spec["root"]["dag"]["tasks"])
        [artifact] = tasks(spec)["preprocess"]["inputs"]["artifacts"].items()
        assert artifact == ("raw", {"taskOutputArtifact": {"outputArtifactKey": "raw", "producerTask": "ingest"}})


@pytest.mark.parametrize("limit", [0, 2])
@pytest.mark.parametrize("name", ["training", "evaluation"])
def test_parts_are_scanned_in_a_loop_and_preprocess_gets_the_scans_alone(name: str, limit: int) -> None:
    changes = ["scan_parts=3", f"parallel.scan={limit}", "tasks.scan.cpu='7'", "tasks.scan.queue=team"]
    spec, kubernetes = documents(pipeline_text(name, load_cluster(overrides=changes), VERSIONS))
    [(place, loop)] = [(task, x) for task, x in spec["root"]["dag"]["tasks"].items() if task.startswith("for-loop")]
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == ["0", "1", "2"]
    assert loop.get("iteratorPolicy") == ({"parallelismLimit": limit} if limit else None)
    assert tasks(spec)["scan"]["inputs"]["parameters"]["parts"] == {"runtimeValue": {"constant": 3}}
    assert tasks(spec)["scan"]["retryPolicy"]["maxRetryCount"] == 2
    assert containers(spec)["scan"]["resources"]["resourceCpuRequest"] == "7"
    assert kubernetes["scan"]["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    inputs = tasks(spec)["preprocess"]["inputs"]["artifacts"]
    assert list(inputs) == ["scans"]
    assert inputs["scans"]["taskOutputArtifact"]["producerTask"] == place


@pytest.mark.parametrize("value", [False, True])
def test_ingest_is_told_whether_it_copies(value: bool) -> None:
    changes = [f"raw_by_reference={json.dumps(value)}"]
    spec, _ = documents(pipeline_text("training", load_cluster(overrides=changes), VERSIONS))
    assert tasks(spec)["ingest"]["inputs"]["parameters"]["by_reference"] == {"runtimeValue": {"constant": value}}


PLACES = {
    "kubernetes": {"podMetadata", "nodeAffinity", "genericEphemeralVolume"},
    "variables": {"NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "TMPDIR"},
}
"""What only the settings of places bring into a task."""


def test_a_task_has_the_queue_place_volume_and_variables_of_the_cluster_file_and_others_have_not() -> None:
    zone = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"], "weight": None}
    spot = {"key": "spot", "operator": "DoesNotExist", "values": [], "weight": None}
    memory = {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["79000"], "weight": 40}
    changes = [
        "tasks.train.queue=team-gpus",
        "tasks.train.queue_priority=urgent",
        f"tasks.train.node_affinity={json.dumps([zone, memory, spot])}",
        "tasks.train.env={NCCL_SOCKET_IFNAME: eth0, NCCL_DEBUG: INFO}",
        "tasks.train.scratch=200Gi",
        "scratch.storage_class=fast",
    ]
    spec, kubernetes = documents(pipeline_text("training", load_cluster(overrides=changes), VERSIONS))
    train = kubernetes["train"]
    assert train["podMetadata"] == {
        "labels": {"kueue.x-k8s.io/queue-name": "team-gpus", "kueue.x-k8s.io/priority-class": "urgent"}
    }
    required = [{key: value for key, value in one.items() if value not in (None, [])} for one in (zone, spot)]
    assert train["nodeAffinity"] == [
        {"matchExpressions": required},
        {"matchExpressions": [{key: memory[key] for key in ("key", "operator", "values")}], "weight": 40},
    ]
    assert train["genericEphemeralVolume"] == [
        {
            "volumeName": "scratch",
            "mountPath": "/scratch",
            "accessModes": ["ReadWriteOnce"],
            "size": "200Gi",
            "storageClassName": "fast",
        }
    ]
    found = variables(spec, "train")
    assert {key: found[key] for key in PLACES["variables"]} == {
        "NCCL_SOCKET_IFNAME": "eth0",
        "NCCL_DEBUG": "INFO",
        "TMPDIR": "/scratch",
    }
    for task in TASKS["training"] - {"train"}:
        assert not kubernetes[task].keys() & PLACES["kubernetes"]
        assert not variables(spec, task).keys() & PLACES["variables"]


def test_without_a_storage_class_a_volume_has_the_clusters_default() -> None:
    cluster = load_cluster(overrides=["task.scratch=10Gi", "task.queue=all"])
    _, kubernetes = documents(pipeline_text("evaluation", cluster, VERSIONS))
    for task in TASKS["evaluation"]:
        [volume] = kubernetes[task]["genericEphemeralVolume"]
        assert volume["defaultStorageClass"] is True
        assert "storageClassName" not in volume
        assert kubernetes[task]["podMetadata"] == {"labels": {"kueue.x-k8s.io/queue-name": "all"}}


S3, MLFLOW, GIT = "yolact-s3", "yolact-mlflow", "yolact-git"

SECRETS = {
    "source": {S3, GIT},
    "ingest": {S3, GIT},
    "preprocess": {S3},
    **{key: {S3, MLFLOW} for key in ("train", "evaluate", "register", "promote", "fetch")},
    **{key: {S3} for key in ("split", "predict", "merge")},
}
"""Names of a task's secrets."""


@pytest.mark.parametrize("name", PIPELINES)
def test_secrets_are_referenced_by_name_and_only_where_needed(committed: dict, name: str) -> None:
    spec, kubernetes = committed[name]
    assert kubernetes.keys() == TASKS[name]
    for task, config in kubernetes.items():
        assert "secretAsEnv" not in config
        mounts = {secret["secretName"]: secret["mountPath"] for secret in config.get("secretAsVolume", [])}
        assert mounts == {secret: f"/etc/yolact/secrets/{secret}" for secret in SECRETS[task]}
        assert all(secret["optional"] for secret in config.get("secretAsVolume", []))
        files = variables(spec, task).get("YOLACT_SECRET_FILES", "").split(":")
        assert {str(PurePosixPath(file).parent) for file in files if file} == set(mounts.values())
        assert not [key for key in variables(spec, task) if key.startswith(("AWS_", "MLFLOW_", "GIT_"))]


def variables(spec: dict[str, Any], task: str) -> dict[str, str]:
    """Environment variables of a task's container, which Kubeflow's launcher sees too."""
    return {entry["name"]: entry["value"] for entry in containers(spec)[task]["env"]}


def test_two_keys_that_name_one_secret_mount_it_once() -> None:
    changes = ["secrets.mlflow.name=yolact-s3", "secrets.mlflow.optional=false"]
    spec, kubernetes = documents(pipeline_text("training", load_cluster(overrides=changes), VERSIONS))
    [secret] = kubernetes["train"]["secretAsVolume"]
    assert secret["secretName"] == "yolact-s3"
    assert not secret.get("optional")
    files = variables(spec, "train")["YOLACT_SECRET_FILES"].split(":")
    assert {PurePosixPath(file).name for file in files} >= {"AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_URI"}
    assert len({str(PurePosixPath(file).parent) for file in files}) == 1


def test_every_task_says_that_it_does_not_run_as_root_and_leaves_the_user_to_image_and_cluster(
    committed: dict,
) -> None:
    for _, kubernetes in committed.values():
        for config in kubernetes.values():
            assert config["securityContext"] == {"runAsNonRoot": True}


def test_a_limit_of_cores_is_set_only_where_the_cluster_file_has_one(committed: dict) -> None:
    for spec, _ in committed.values():
        assert not any("resourceCpuLimit" in container["resources"] for container in containers(spec).values())
    changes = ["task.cpu_limit='4'", "tasks.train.cpu_limit='16'"]
    spec, _ = documents(pipeline_text("training", load_cluster(overrides=changes), VERSIONS))
    limits = {task: container["resources"]["resourceCpuLimit"] for task, container in containers(spec).items()}
    assert limits == {task: "16" if task == "train" else "4" for task in TASKS["training"]}


def test_a_task_is_told_the_whole_cores_that_it_requests() -> None:
    cpus = {"train": ("2500m", "2"), "evaluate": ("0.5", "1"), "preprocess": ("12", "12"), "promote": ("100m", "1")}
    cluster = load_cluster(overrides=[f"tasks.{task}.cpu='{cpu}'" for task, (cpu, _) in cpus.items()])
    spec, _ = documents(pipeline_text("training", cluster, VERSIONS))
    for task, (_, cores) in cpus.items():
        assert {"name": "PYTHON_CPU_COUNT", "value": cores} in containers(spec)[task]["env"]


def test_a_changed_cluster_changes_the_tasks() -> None:
    cluster = load_cluster(
        overrides=[
            "image=registry.example/yolact:2",
            "image_pull_secrets=[pull]",
            "tasks.train.gpus=0",
            "tasks.train.shared_memory=''",
            "tasks.train.node_selector={pool: large}",
            "tasks.train.cache=true",
            "tasks.train.retries=0",
            "checkpoints.claim=''",
        ]
    )
    spec, kubernetes = documents(pipeline_text("training", cluster, VERSIONS))
    assert containers(spec)["train"]["image"] == "registry.example/yolact:2"
    assert "accelerator" not in containers(spec)["train"]["resources"]
    train = kubernetes["train"]
    assert train["nodeSelector"]["labels"] == {"pool": "large"}
    assert [entry["secretName"] for entry in train["imagePullSecret"]] == ["pull"]
    assert not train.keys() & {"pvcMount", "emptyDirMounts"}
    assert tasks(spec)["train"]["cachingOptions"]["enableCache"]
    assert "retryPolicy" not in tasks(spec)["train"]
    assert spec["root"]["inputDefinitions"]["parameters"]["checkpoints"]["defaultValue"] == ""


NEEDS = "tasks.train.node_affinity.0: operator {} needs {}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.train.gpu=0", "tasks.train.gpu: unknown key; did you mean 'gpus'?"),
        ("tasks.trian.gpus=0", "tasks.trian: no such step; did you mean 'train'?"),
        ("task.cpus=2", "task.cpus: unknown key; did you mean 'cpu'?"),
        ("imag=x", "imag: unknown key; did you mean 'image'?"),
        ("tasks.train.gpus=two", "tasks.train.gpus: input should be a valid integer (found 'two')"),
        ("tasks.train.memory=12 GB", "tasks.train.memory: string should match pattern"),
        (
            "tasks.train.secrets=[aws]",
            "tasks.train.secrets: 'aws' is not one of the secrets (s3, mlflow, git, serving, model_registry)",
        ),
        ("retry.factor=1.5", "retry.factor: input should be a valid integer (found 1.5)"),
        ("retry.longest_pause=600", "retry.longest_pause: unknown key; allowed here: pause, factor"),
        ("task_defaults={cpu: '1'}", "task_defaults: unknown key; allowed here: image, image_pull_policy, "),
        (
            "tasks.train.memory=64Gi",
            "tasks.train.memory: 64Gi is above memory_limit (48Gi); Kubernetes refuses such a pod",
        ),
        ("tasks.train.memory_limit=24000Mi", "tasks.train.memory: 24Gi is above memory_limit (24000Mi)"),
        ("tasks.train.cpu_limit=7500m", "tasks.train.cpu: 8 is above cpu_limit (7500m)"),
        ("task.memory_limit=1Gi", "task.memory: 2Gi is above memory_limit (1Gi)"),
        ("tasks.train.gpus=-1", "tasks.train.gpus: input should be greater than or equal to 0 (found -1)"),
        ("tasks.evaluate.gpus=2", "tasks.evaluate.gpus: only the step train uses more than one GPU (found 2)"),
        ("task.gpus=2", "task.gpus: only the step train uses more than one GPU (found 2)"),
        ("checkpoints.claim=a..b", "checkpoints.claim: not a name that Kubeflow Pipelines can mount"),
        ("checkpoints.claim=check.points", "checkpoints.claim: not a name that Kubeflow Pipelines can mount"),
        ("checkpoints.claim=-x", "checkpoints.claim: not a name that Kubeflow Pipelines can mount"),
        (
            "checkpoints.claim=shared-memory",
            "checkpoints.claim: shared-memory: is also the volume of the shared",
        ),
        ("checkpoints.claim=yolact-s3", "secrets.s3.name: yolact-s3: is also the volume of checkpoints"),
        (f"secrets.s3.name={'x' * 64}", "secrets.s3.name: not a name that Kubeflow Pipelines can mount"),
        ("secrets.s3.keys=[aws-key]", "secrets.s3.keys.0: string should match pattern"),
        ("image_pull_secrets=[a..b]", "image_pull_secrets.0: not a name of Kubernetes"),
        ("tasks.train.node_selector={a b: c}", "tasks.train.node_selector.a b.[key]: not a label of Kubernetes"),
        ("tasks.train.node_selector={pool: a/b}", "tasks.train.node_selector.pool: not a label's value"),
        (
            "tasks.train.node_affinity=[{key: a, operator: In, values: [], weight: null}]",
            NEEDS.format("In", "one or more"),
        ),
        ("tasks.train.node_affinity=[{key: a, operator: Gt, values: [x], weight: 1}]", NEEDS.format("Gt", "one value")),
        (
            "tasks.train.node_affinity=[{key: a, operator: Exists, values: [b], weight: 1}]",
            "tasks.train.node_affinity.0: operator Exists takes no values",
        ),
        (
            "tasks.train.node_affinity=[{key: a, operater: In, values: [b], weight: 1}]",
            "tasks.train.node_affinity.0.operater: unknown key; did you mean 'operator'?",
        ),
        (
            "tasks.train.node_affinity=[{key: a, operator: In, values: [b]}]",
            "tasks.train.node_affinity.0.weight: field",
        ),
        (
            "task.priority_class=x",
            "task.priority_class: Kubeflow Pipelines 2.17 cannot set this for a task; with Kueue",
        ),
        ("tasks.train.ephemeral_storage=9Gi", "tasks.train.ephemeral_storage: Kubeflow Pipelines 2.17 cannot set this"),
        ("tasks.train.resources={rdma/ib: 1}", "tasks.train.resources: Kubeflow Pipelines 2.17 cannot set this"),
        (
            "tasks.train.env={AWS_ACCESS_KEY_ID: a}",
            "tasks.train.env.AWS_ACCESS_KEY_ID: the secret s3 has this variable",
        ),
        ("task.env={TMPDIR: /x}", "task.env.TMPDIR: tasks get this variable from the pipeline itself"),
        ("tasks.train.env={NCCL_IB_DISABLE: 1}", "tasks.train.env.NCCL_IB_DISABLE: input should be a valid string"),
        ("tasks.train.queue=a b", "tasks.train.queue: not a label's value"),
        ("tasks.train.queue_priority=high", "tasks.train.queue_priority: has no effect without a queue"),
        ("tasks.train.scratch=10 GB", "tasks.train.scratch: string should match pattern"),
        ("scratch.mount=/checkpoints", "scratch.mount: /checkpoints: tasks have another volume there"),
        ("scratch.mount=/s3/", "scratch.mount: /s3: tasks have another volume there"),
        ("checkpoints.claim=scratch", "checkpoints.claim: scratch: is also the volume of temporary files"),
        ("parallel.train=2", "parallel.train: unknown key; allowed here: predict, scan"),
        ("scan_parts=0", "scan_parts: input should be greater than or equal to 1 (found 0)"),
        ("scan_parts=1001", "scan_parts: input should be less than or equal to 1000 (found 1001)"),
        ("tasks.train.nodes=0", "tasks.train.nodes: input should be greater than or equal to 1 (found 0)"),
        ("tasks.train.rdma=1", "tasks.train.rdma: Kubeflow Pipelines 2.17 cannot set this for a task; gpu names"),
        ("tasks.train.devices={rdma/ib: 1}", "tasks.train.devices.rdma/ib: only nodes of a TrainJob, tasks.train"),
        ("tasks.train.devices={rdma: 1}", "tasks.train.devices.rdma.[key]: not a device of Kubernetes, as rdma/ib"),
        ("tasks.train.devices={rdma/ib: 0}", "tasks.train.devices.rdma/ib: input should be greater than or equal to 1"),
        ("tasks.evaluate.nodes=2", "tasks.evaluate.nodes: only the step train uses more than one node (found 2)"),
        ("parallel.predict=-1", "parallel.predict: input should be greater than or equal to 0 (found -1)"),
        ("tasks.train.gpus", "must be KEY=VALUE with dots in the key, as tasks.train.gpus=0"),
        ("image=[", "not valid YAML"),
        ("retry=5", "retry: is a section, it cannot be set to 5"),
    ],
)
def test_a_wrong_cluster_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_cluster(overrides=[override])
    assert f"-C {override}: {message}" in str(caught.value)


def test_a_wrong_setting_names_the_change_that_made_it_and_is_said_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_cluster(overrides=["task.memory_limit=1Gi", "checkpoints.claim=a..b", "image=x", "task.retries=none"])
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["-C checkpoints.claim=a..b", "-C task.retries=none"]


def test_a_wrong_setting_of_the_file_is_not_blamed_on_a_change(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER.read_text(encoding="utf-8").replace("memory: 24Gi", "memory: 64Gi"), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_cluster(file, ["image=x", "tasks.train.gpus=0"])
    assert str(caught.value).startswith(f"{file}: tasks.train.memory: 64Gi is above memory_limit (48Gi)")


@pytest.mark.parametrize("claim", ["", "a", "x" * 63, "9-checkpoints"])
def test_names_that_kubernetes_accepts_are_accepted(claim: str) -> None:
    changes = [f"checkpoints.claim='{claim}'", "tasks.train.node_selector={example.com/pool: A_1.x, gpu: ''}"]
    assert load_cluster(overrides=changes).checkpoints.claim == claim


def test_several_nodes_without_a_volume_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"-C checkpoints\.claim='': tasks\.train\.nodes: 2 nodes share") as caught:
        load_cluster(overrides=["tasks.train.nodes=2", "checkpoints.claim=''"])
    assert "ReadWriteMany" in str(caught.value)


def test_gpus_are_not_counted_twice() -> None:
    change = "tasks.train.devices={nvidia.com/gpu: 8}"
    with pytest.raises(SettingsError, match=r"tasks\.train\.devices\.nvidia\.com/gpu: is what gpus counts"):
        load_cluster(overrides=["tasks.train.nodes=2", change])


def test_on_several_nodes_the_task_only_follows_and_the_nodes_get_its_resources() -> None:
    changes = ["tasks.train.nodes=4", "tasks.train.gpus=8", "tasks.train.queue=gpus", "tasks.train.scratch=200Gi"]
    changes += ["tasks.train.node_selector={pool: a}", "tasks.train.env={NCCL_DEBUG: INFO}", "gpu=amd.com/gpu"]
    changes += ["tasks.train.devices={rdma/ib: 1, example.com/Fast_NIC: 8}"]
    cluster = load_cluster(overrides=changes)
    spec, platforms = documents(pipeline_text("training", cluster, VERSIONS))
    nodes = json.loads(tasks(spec)["train"]["inputs"]["parameters"]["nodes"]["runtimeValue"]["constant"])
    assert (nodes["count"], nodes["time_limit"], nodes["labels"]) == (4, 604800, {"kueue.x-k8s.io/queue-name": "gpus"})
    devices = {"amd.com/gpu": "8", "rdma/ib": "1", "example.com/Fast_NIC": "8"}
    assert nodes["resources"] == {"cpu": "8", "memory": "48Gi"} | devices
    assert (nodes["node_selector"], nodes["variables"]["NCCL_DEBUG"]) == ({"pool": "a"}, "INFO")
    assert nodes["variables"]["TMPDIR"] == "/scratch"
    volumes = {volume["name"] for volume in nodes["volumes"]}
    assert volumes == {"yolact-checkpoints", "shared-memory", "scratch", "yolact-mlflow", "yolact-s3"}
    assert {mount["name"] for mount in nodes["mounts"]} == volumes
    assert nodes["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    resources = containers(spec)["train"]["resources"]
    assert "accelerator" not in resources
    assert (resources["resourceCpuRequest"], resources["resourceMemoryLimit"]) == ("1", "4Gi")
    assert tasks(spec)["train"]["retryPolicy"]["maxRetryCount"] == 5
    assert not {"podMetadata", "nodeSelector", "nodeAffinity", "tolerations"} & platforms["train"].keys()
    assert [mount["mountPath"] for mount in platforms["train"]["pvcMount"]] == ["/checkpoints"]
    one, _ = documents(pipeline_text("training", load_cluster(), VERSIONS))
    assert "nodes" not in tasks(one)["train"]["inputs"]["parameters"]


# What a component is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_a_component_only_calls_its_step(name: str, repository: Path) -> None:
    file = repository / "components" / name / "component.py"
    [function] = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    body = function.body[1:]  # after the docstring
    assert function.name == name
    imports = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    imported = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    runs = "trainjob.run" if name == "train" else "step.run"  # which calls step.run, or has nodes call it
    assert f"components.{name}.{runs.removesuffix('.run')}" in imported
    outside = {module for module in imported if not module.startswith(f"components.{name}.")}
    assert outside <= {
        "yolact_ops.commands.task",
        "pathlib.Path",
        "yolact_ops.settings.params.DataParams",
        "yolact_ops.sources.raw.opened",  # an input
    }
    before = {f"{node.module}.{alias.name}" for node in body if node in imports for alias in node.names}
    assert before <= {"yolact_ops.commands.task", "pathlib.Path"}, "imported before the code's version is checked"
    calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
    assert calls.count(runs) == 1
    own = {runs, "step.begin_evaluation", "display.describe", "display.hand_over", "checkpoints_folder"}
    plain = {"opened", "Path", "str", "int", "len", "DataParams", "json.loads", "dsl.component", "NamedTuple"}
    read = {call for call in calls if call.startswith(("kubeflow.", "Path("))}
    assert set(calls) - read <= own | plain
    assert not any(isinstance(node, ast.If | ast.For | ast.While) for node in ast.walk(function)) or name == "fetch"
    assert sum(len(ast.unparse(node).splitlines()) for node in body) <= 30


@pytest.mark.parametrize("name", STEPS)
def test_a_component_that_needs_mlflow_says_so_in_its_metadata(name: str, repository: Path) -> None:
    folder = repository / "components" / name
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    services = [entry["name"] for entry in metadata["dependencies"].get("external_services", [])]
    needs = "needs_mlflow=True" in (folder / "component.py").read_text()
    assert services == (["MLflow"] if needs else [])
    assert ("mlflow" in load_cluster().for_step(name).secrets) == needs
