"""The step `train` on several nodes: the TrainJob that its task makes, follows and removes, and what can go wrong."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import torch
import yaml
from safetensors.torch import load_file

from components.train import kubernetes_calls, training, trainjob, trainjob_client
from components.train.kubernetes_calls import NodesError
from components.train.trainjob_client import FOLLOWER_FILE, TrainJob
from pipelines.config import load_cluster
from pipelines.nodes import describe_nodes
from tests.components.test_train import DIGEST, MODEL, OURS, RUNTIME, SPLIT_DIGESTS, TRAIN, make_split
from tests.components.trainer_server import RECORDED, TrainerServer, trainer_server
from yolact.engine.interrupts import InterruptedRunError
from yolact.errors import SettingsError
from yolact.limits import POD_VARIABLE
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_ops.lineage.code import installed_version
from yolact_ops.settings.params import Params, load_params, parse_params

CHANGES = ["tasks.train.nodes=2", "tasks.train.gpus=0", "tasks.train.tolerations=[]", "tasks.train.cpu='1'"]
CHANGES += ["tasks.train.memory=1Gi", "tasks.train.memory_limit=2Gi"]
NODES = describe_nodes(load_cluster(overrides=CHANGES))
RUN = "run-1"
STAMP = "2026-11-30T05:04:12.1Z"
"""As Kubernetes writes it before each line of a log."""


@pytest.fixture
def params(repository: Path) -> Params:
    return load_params(repository / "conf" / "base.yaml")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainerServer]:
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv(POD_VARIABLE, "10.96.0.1")
    monkeypatch.setattr(trainjob_client, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(kubernetes_calls, "ASK_EVERY", 0.1)
    with trainer_server(tmp_path / "kubeconfig") as state:
        yield state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the task has: processed data, and the volume."""
    for name, file in (("train", "train.json"), ("eval", "val.json")):
        (tmp_path / "processed" / name / "shards").mkdir(parents=True)
        (tmp_path / "processed" / name / file).write_text(name)
        (tmp_path / "processed" / name / "shards" / "0.tar").write_text(name)
    (tmp_path / "volume").mkdir()
    return tmp_path


def shared(folder: Path) -> Path:
    return folder / "volume" / f"{RUN}-nodes"


def run(folder: Path, params: Params, nodes: str = NODES, version: str = "version") -> None:
    trainjob.run(
        params,
        train_data_dir=folder / "processed" / "train",
        eval_data_dir=folder / "processed" / "eval",
        model_dir=folder / "model",
        metrics_path=folder / "curves" / "train.json",
        plots_dir=folder / "curves" / "plots",
        checkpoints_dir=folder / "volume" / RUN,
        nodes=nodes,
        shared=shared(folder),
        code_version=version,
    )


def write_results(folder: Path) -> None:
    """What rank 0 leaves."""
    for name, text in (("model/model.safetensors", "w"), ("train.json", "{}"), ("plots/ap.csv", "ap")):
        path = shared(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def succeeds(server: TrainerServer, folder: Path) -> Callable[[], None]:
    def act() -> None:
        write_results(folder)
        assert server.job is not None
        server.logs = {server.pods[0]["metadata"]["name"]: ["2026-11-30T05:04:12.1Z [train] epoch 1 of 1"]}
        server.finish()

    return act


def test_the_trainjob_is_the_one_that_a_real_trainer_took(
    server: TrainerServer, folder: Path, params: Params, capfd: pytest.CaptureFixture[str]
) -> None:
    server.on_create = succeeds(server, folder)
    run(folder, params)
    [posted] = server.posted
    expected = copy.deepcopy(RECORDED["trainjob"])
    text = json.dumps(expected["spec"]).replace("/checkpoints/run-1-nodes", str(shared(folder)))
    expected["spec"] = json.loads(text)
    assert expected["spec"].pop("managedBy") == "trainer.kubeflow.org/trainjob-controller"  # the server's defaults
    assert expected["spec"].pop("suspend") is False
    assert expected["spec"]["runtimePatches"][0].pop("time")
    assert expected["spec"]["runtimeRef"].pop("apiGroup")
    posted["spec"]["runtimeRef"].pop("apiGroup", None)
    assert posted["spec"] == expected["spec"]
    assert posted["metadata"]["labels"] == {"pipeline/runid": RUN}
    assert (folder / "model" / "model.safetensors").read_text() == "w"
    assert (folder / "curves" / "train.json").read_text() == "{}"
    assert (folder / "curves" / "plots" / "ap.csv").read_text() == "ap"
    assert capfd.readouterr().err.count("[train] epoch 1 of 1") == 1
    assert (server.job, server.deleted) == (None, 1)
    assert not shared(folder).exists()


def test_devices_are_among_the_resources_of_each_node(server: TrainerServer, folder: Path, params: Params) -> None:
    server.on_create = succeeds(server, folder)
    cluster = load_cluster(overrides=[*CHANGES, "tasks.train.devices={rdma/ib: 1, example.com/Fast_NIC: 8}"])
    run(folder, params, describe_nodes(cluster))
    asked = {"cpu": "1", "memory": "2Gi", "rdma/ib": "1", "example.com/Fast_NIC": "8"}
    assert server.posted[0]["spec"]["trainer"]["resourcesPerNode"] == {"requests": asked, "limits": asked}


def test_the_volume_gets_the_data_and_the_nodes_are_told_where_it_is(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    finish, seen = succeeds(server, folder), []

    def create() -> None:
        work = json.loads((shared(folder) / "work.json").read_text())
        assert (work["paths"]["checkpoints_dir"], work["code_version"]) == (str(folder / "volume" / RUN), "version")
        for name, file in (("train", "train.json"), ("eval", "val.json")):
            place = Path(work["paths"][f"{name}_data_dir"])
            assert place.is_relative_to(shared(folder))
            seen.extend((place / path).read_text() for path in (file, "shards/0.tar"))
        finish()

    server.on_create = create
    run(folder, params)
    assert seen == ["train", "train", "eval", "eval"]


def test_another_try_of_the_task_follows_the_running_trainjob(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    server.create({"metadata": {"name": "earlier"}, "spec": {}})
    server.on_look = succeeds(server, folder)
    run(folder, params)
    assert len(server.posted) == 1
    assert (server.deleted, (folder / "model" / "model.safetensors").read_text()) == (1, "w")


def test_a_trainjob_that_appears_between_two_requests_is_followed(
    server: TrainerServer, folder: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(self: Any) -> None:
        server.create({"metadata": {"name": "of another try"}, "spec": {}})
        server.on_look = succeeds(server, folder)

    monkeypatch.setattr(TrainJob, "_check_runtime", appear)
    run(folder, params)
    assert (len(server.posted), server.deleted) == (1, 1)


def test_a_trainjob_that_failed_in_an_earlier_try_is_made_anew(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    server.create({"metadata": {"name": "earlier"}, "spec": {}})
    server.finish(RECORDED["failed"])
    server.on_create = succeeds(server, folder)
    run(folder, params)
    assert (len(server.posted), server.deleted) == (2, 2)


def test_lines_of_a_pod_that_was_replaced_are_printed_once(
    server: TrainerServer, folder: Path, params: Params, capfd: pytest.CaptureFixture[str]
) -> None:
    looks = iter(range(100))

    def look() -> None:
        number = next(looks)
        first = server.pods[0]["metadata"]["name"]
        if number == 1:
            server.logs[first] = ["2026-11-30T05:04:12.1Z one", "2026-11-30T05:04:12.15Z two"]
        if number == 3:
            server.logs[first].append("2026-11-30T05:04:13Z three")
        if number == 5:
            server.pods = [server.pod("later", 0)]
            server.logs["later"] = ["2026-11-30T05:04:11Z four"]
        if number == 7:
            write_results(folder)
            server.finish()

    server.on_look = look
    run(folder, params)
    lines = [line for line in capfd.readouterr().err.splitlines() if line in ("one", "two", "three", "four")]
    assert lines == ["one", "two", "three", "four"]


def end_of(server: TrainerServer, index: int, code: int, second: int) -> None:
    """A node's process ended."""
    status = server.pods[index]["status"]
    status["phase"] = "Failed"
    ended = {"exitCode": code, "finishedAt": f"2026-11-30T05:05:{second:02d}Z"}
    status["containerStatuses"][0]["state"] = {"terminated": ended}


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (69, 69), (70, 70), (137, 70)])
def test_a_failure_says_why_with_the_last_lines_of_rank_0(
    server: TrainerServer, folder: Path, params: Params, code: int, expected: int
) -> None:
    def create() -> None:
        end_of(server, 0, code, 30)
        lines = [f"2026-11-30T05:04:{n:02d}Z line {n}" for n in range(30)]
        server.logs[server.pods[0]["metadata"]["name"]] = lines
        server.finish(RECORDED["failed"])

    server.on_create = create
    with pytest.raises(NodesError) as caught:
        run(folder, params)
    message = str(caught.value)
    assert "failed: jobset failed due to reaching max number of restarts" in message
    assert f"Node 0 ended with exit code {code}; its last lines:\n" in message
    assert message.endswith("\n  line 29")
    assert "  line 10\n" in message
    assert "  line 9\n" not in message
    assert caught.value.exit_code == expected
    assert (server.job, shared(folder).exists()) == (None, False)


@pytest.mark.parametrize(
    ("ends", "node"),
    [
        ({0: (75, 10), 1: (1, 12)}, 1),  # stopped, because of the other one's settings
        ({0: (70, 40), 1: (137, 10)}, 1),  # waited for the other one, which was killed
        ({0: (70, 10), 1: (70, 40)}, 0),
        ({1: (1, 10)}, 1),  # rank 0's pod is gone
    ],
)
def test_a_failure_names_the_node_that_is_the_reason(
    server: TrainerServer,
    folder: Path,
    params: Params,
    ends: dict[int, tuple[int, int]],
    node: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def create() -> None:
        for index, (code, second) in ends.items():
            end_of(server, index, code, second)
        server.logs = {pod["metadata"]["name"]: [f"{STAMP} of node {n}"] for n, pod in enumerate(server.pods)}
        server.pods = [server.pods[index] for index in ends]
        server.finish(RECORDED["failed"])

    server.on_create = create
    with pytest.raises(NodesError) as caught:
        run(folder, params)
    code = ends[node][0]
    assert str(caught.value).endswith(f"Node {node} ended with exit code {code}; its last lines:\n  of node {node}")
    assert caught.value.exit_code == (1 if code == 1 else 70)
    assert f"of node {node}\n" in capfd.readouterr().err


def test_a_failure_without_pods_says_so(server: TrainerServer, folder: Path, params: Params) -> None:
    def create() -> None:
        server.pods = []
        server.finish(RECORDED["failed"])

    server.on_create = create
    with pytest.raises(NodesError, match="No exit code of a node is known; rank 0's log is empty"):
        run(folder, params)


def test_a_time_limit_names_the_setting(server: TrainerServer, folder: Path, params: Params) -> None:
    condition = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
    server.on_create = lambda: server.finish(condition)
    with pytest.raises(NodesError, match=r"its time limit, 604800 s \(tasks\.train\.time_limit\)"):
        run(folder, params)


def test_a_trainjob_that_somebody_deleted_is_named(server: TrainerServer, folder: Path, params: Params) -> None:
    def look() -> None:
        server.job, server.pods = None, []

    server.on_look = look
    with pytest.raises(NodesError, match="was deleted by somebody"):
        run(folder, params)
    assert not shared(folder).exists()


def test_a_complete_trainjob_without_a_model_is_an_error(server: TrainerServer, folder: Path, params: Params) -> None:
    server.on_create = server.finish
    with pytest.raises(NodesError, match=r"model\.safetensors: the TrainJob is complete, but"):
        run(folder, params)


def test_a_server_that_does_not_answer_for_a_while_changes_nothing(
    server: TrainerServer, folder: Path, params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    server.broken = 3
    finish = succeeds(server, folder)

    def create() -> None:
        finish()
        server.broken = 4

    server.on_create = create
    run(folder, params)
    assert len([line for line in caplog.messages if "does not answer" in line]) == 2
    assert (server.job, len(server.posted)) == (None, 1)


def test_a_server_that_stays_away_leaves_the_trainjob_to_the_next_try(
    server: TrainerServer, folder: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_calls, "PATIENCE", 0.2)

    def create() -> None:
        server.broken = 10**6

    server.on_create = create
    with pytest.raises(NodesError, match="is left as it is") as caught:
        run(folder, params)
    assert caught.value.exit_code == 70
    assert (server.deleted, shared(folder).is_dir()) == (0, True)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"has_trainer": False}, "this cluster has no Kubeflow Trainer .* Install version 2.2 or later"),
        ({"has_runtime": False}, "namespace kubeflow has no TrainingRuntime yolact-torch .*apply -k deploy/train"),
        ({"forbidden": True}, r"no right to get trainjobs\.trainer\.kubeflow\.org in namespace kubeflow"),
    ],
)
def test_a_cluster_that_lacks_something_is_told_what(
    server: TrainerServer, folder: Path, params: Params, state: dict[str, Any], message: str
) -> None:
    for name, value in state.items():
        setattr(server, name, value)
    with pytest.raises(SettingsError, match=message):
        run(folder, params)
    assert not shared(folder).exists()


def test_a_try_that_may_not_follow_leaves_the_nodes_their_data(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    server.create({"metadata": {"name": "earlier"}, "spec": {}})
    shared(folder).mkdir()
    (shared(folder) / "work.json").write_text("{}")
    server.forbidden = True
    with pytest.raises(SettingsError, match="no right to"):
        run(folder, params)
    assert (server.deleted, (shared(folder) / "work.json").is_file()) == (0, True)


def test_a_volume_that_is_full_is_left_as_it_was(
    server: TrainerServer, folder: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(shared(folder)))

    monkeypatch.setattr(shutil, "copytree", is_full)
    with pytest.raises(OSError, match="No space left"):
        run(folder, params)
    assert (server.posted, shared(folder).exists()) == ([], False)


def test_results_that_cannot_be_copied_stay_for_the_next_try(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    server.on_create = succeeds(server, folder)
    (folder / "model").write_text("where the model belongs")
    with pytest.raises(FileExistsError):
        run(folder, params)
    (folder / "model").unlink()
    run(folder, params)
    assert (len(server.posted), (folder / "model" / "model.safetensors").read_text()) == (1, "w")
    assert (server.job, shared(folder).exists()) == (None, False)


def test_what_an_admission_webhook_says_is_not_taken_for_a_missing_right(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    server.refusal = RECORDED["answers"]["denied"]
    with pytest.raises(NodesError, match=r"answers 403: Forbidden: admission webhook .* denied the request"):
        run(folder, params)


@pytest.mark.parametrize("moment", ["while it is made", "while it runs"])
def test_a_request_to_stop_ends_the_trainjob(server: TrainerServer, folder: Path, params: Params, moment: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        server.on_look = server.on_create = lambda: None
        os.kill(os.getpid(), signal.SIGTERM)

    setattr(server, "on_create" if moment == "while it is made" else "on_look", stop)
    try:
        with pytest.raises(InterruptedRunError, match=r"stopped by SIGTERM: TrainJob \S+ is deleted"):
            run(folder, params)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (server.job, server.deleted, shared(folder).exists()) == (None, 1, False)


def test_a_request_to_stop_while_data_is_copied_leaves_nothing(
    server: TrainerServer, folder: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, copytree = signal.getsignal(signal.SIGTERM), shutil.copytree

    def copy_half(*arguments: Any, **options: Any) -> None:
        copytree(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(shutil, "copytree", copy_half)
    try:
        with pytest.raises(InterruptedRunError):
            run(folder, params)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (server.posted, shared(folder).exists()) == ([], False)


@pytest.mark.parametrize(
    ("is_old", "has_trainjob", "stays"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_what_a_stop_has_left_on_the_volume_goes_with_the_next_training(
    server: TrainerServer, folder: Path, params: Params, is_old: bool, has_trainjob: bool, stays: bool
) -> None:
    other = folder / "volume" / "run-0-nodes"
    (other / "processed").mkdir(parents=True)
    (other / FOLLOWER_FILE).write_text("a try")
    (folder / "volume" / "run-0").mkdir()  # its checkpoints
    if is_old:
        day_before_yesterday = time.time() - 2 * 86_400
        os.utime(other / FOLLOWER_FILE, (day_before_yesterday, day_before_yesterday))
    if has_trainjob:
        server.others.append(f"yolact-train-{hashlib.sha256(b'run-0').hexdigest()[:12]}")
    server.on_create = succeeds(server, folder)
    run(folder, params)
    assert (other.exists(), (folder / "volume" / "run-0").is_dir()) == (stays, True)
    assert not shared(folder).exists()


def test_a_folder_is_not_left_over_while_its_trainjob_is_followed(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    looks, ages = iter(range(100)), []

    def look() -> None:
        file = shared(folder) / FOLLOWER_FILE
        ages.append(time.time() - file.stat().st_mtime)
        if next(looks) == 1:
            succeeds(server, folder)()
        os.utime(file, (0, 0))

    server.on_look = look
    run(folder, params)
    assert max(ages) < 60


def test_a_try_whose_node_was_lost_leaves_the_trainjob_to_the_later_one(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    def look() -> None:
        (shared(folder) / FOLLOWER_FILE).write_text("a later try")

    server.on_look = look
    with pytest.raises(NodesError, match="a later try of this task follows it"):
        run(folder, params)
    assert (server.deleted, shared(folder).is_dir()) == (0, True)


def test_without_the_volume_nothing_is_made(server: TrainerServer, folder: Path, params: Params) -> None:
    (folder / "volume").rmdir()
    with pytest.raises(SettingsError, match=r"tasks\.train\.nodes needs the volume of checkpoints there"):
        run(folder, params)
    assert server.posted == []


def test_an_argument_that_is_not_of_the_compiler_is_refused(
    server: TrainerServer, folder: Path, params: Params
) -> None:
    with pytest.raises(SettingsError, match="nodes: not what `python -m pipelines compile` writes"):
        run(folder, params, nodes='{"count": 2}')


# Real trainings ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def tree(folder: Path, repository: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a small training; its data, and an empty store, are in the folder."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    store = folder / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(repository))
    make_split(folder / "processed", "train", [1, 2, 4, 5])
    make_split(folder / "processed", "val", [3])
    (folder / "processed/eval/stats.json").write_text(json.dumps({"digest": DIGEST, "split_digests": SPLIT_DIGESTS}))
    settings: dict[str, Any] = yaml.safe_load((repository / "conf" / "base.yaml").read_text(encoding="utf-8"))
    settings["model"] |= MODEL | {"backbone_blocks": [1, 1, 1, 1]}
    settings["train"] |= TRAIN | {"epochs": 2, "batch_size": 2, "validate_every": 2, "log_every": 1}
    settings["runtime"] |= RUNTIME
    return settings


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_outside_of_a_cluster_two_nodes_are_two_processes_that_give_the_weights_of_one(
    folder: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One epoch of two steps, small enough to be in every run of the tests.

    Trained weights to start from freeze batch norm, whose sums in channels_last PyTorch rounds too coarsely on a CPU.
    """
    monkeypatch.delenv(POD_VARIABLE, raising=False)
    torch.manual_seed(0)
    save_model(Yolact(parse_params(tree).model, 2), ["red", "blue"], folder / "start")
    tree["model"]["initial_weights"] = str(folder / "start")
    tree["train"] |= {"epochs": 1, "lr": 1e-2, "warmup_steps": 0, "validate_every": 1}
    run(folder, parse_params(tree))
    assert "[train] training processes: 2\n" in capfd.readouterr().err
    one = folder / "one"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    training.run(
        parse_params(tree),
        train_data_dir=folder / "processed/train",
        eval_data_dir=folder / "processed/eval",
        model_dir=one / "model",
        metrics_path=one / "train.json",
        plots_dir=one / "plots",
        checkpoints_dir=one / "checkpoints",
    )
    torch.set_num_threads(threads)
    start, mine, theirs = load_file(folder / "start" / "model.safetensors"), weights(folder), weights(one)
    assert mine.keys() == theirs.keys()
    assert max((theirs[name] - start[name]).abs().max() for name in start) > 1e-2
    for name, expected in theirs.items():
        assert torch.allclose(mine[name], expected, rtol=1e-5, atol=1e-5), name


@pytest.mark.slow
def test_two_nodes_give_the_weights_of_two_processes_on_this_machine(
    server: TrainerServer, folder: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pods are processes here, with the variables that the Trainer gives them."""
    params, port, nodes = parse_params(tree), free_port(), []
    logs = [(folder / f"node-{rank}.log").open("w") for rank in (0, 1)]

    def create() -> None:
        command = server.posted[0]["spec"]["trainer"]["command"]
        for rank in (0, 1):
            here = {"PET_NNODES": "2", "PET_NODE_RANK": str(rank), "PET_MASTER_ADDR": "127.0.0.1"}
            environment = os.environ | here | {"PET_MASTER_PORT": str(port)}
            nodes.append(subprocess.Popen([sys.executable, *command[1:]], env=environment, stderr=logs[rank]))

    def look() -> None:
        if len(nodes) == 2 and all(process.poll() is not None for process in nodes):
            assert [process.returncode for process in nodes] == [0, 0], (folder / "node-0.log").read_text()
            server.finish()

    server.on_create, server.on_look = create, look
    run(folder, params, version=installed_version("train"))
    assert "[train] training processes: 1 on each of 2 nodes" in (folder / "node-0.log").read_text()

    monkeypatch.delenv(POD_VARIABLE)
    two = folder / "two"
    (two / "volume").mkdir(parents=True)
    (two / "processed").symlink_to(folder / "processed")
    run(two, params)  # outside of a cluster
    mine, theirs = weights(folder), weights(two)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
