"""The step `train` with several processes: stopped, killed and ended as a training that torchrun started by hand."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.components.test_train import MODEL, OURS, RUNTIME, TRAIN, make_split, make_workplace, runs
from yolact.engine.checkpoint_files import newest_checkpoint
from yolact_ops.settings.params import load_params

PATIENCE = 1200
"""Seconds: a busy machine imports PyTorch slowly, in each process."""
STEP = ["-m", "components.train.step"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def settings(repository: Path) -> dict[str, Any]:
    """Three epochs of three steps, two images each; a checkpoint after each step."""
    tree = load_params(repository / "conf" / "base.yaml").model_dump(mode="json", by_alias=True)
    tree["model"] |= MODEL | {"backbone_blocks": [1, 1, 1, 1]}
    tree["train"] |= TRAIN | {"epochs": 3, "batch_size": 2, "validate_every": 2, "log_every": 1}
    tree["runtime"] |= RUNTIME | {"processes": 2, "checkpoint_every_steps": 1}
    return tree


@pytest.fixture(scope="module")
def make_folder(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any], empty_store: Path
) -> Callable[[], Path]:
    def make() -> Path:
        folder = make_workplace(tmp_path_factory.mktemp("processes"), settings, empty_store)
        make_split(folder / "data" / "processed", "train", [1, 2, 4, 5, 6, 7])
        return folder

    return make


def start(folder: Path, repository: Path, *launcher: str, **environment: str) -> subprocess.Popen[str]:
    """Start the step in a folder, one thread in each process; with a launcher or on its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    for name in OURS:
        inherited.pop(name, None)
    return subprocess.Popen(
        [sys.executable, *launcher, *STEP],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for the end; the log."""
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, log
    return log


def wait_until(what: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.01)


def newest_number(folder: Path) -> int:
    return newest_checkpoint(folder / "models" / "checkpoints")[1]


def ranks_of(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """The processes that train, by rank."""
    children = psutil.Process(process.pid).children(recursive=True)
    return {child.environ()["RANK"]: child for child in children if "RANK" in child.environ()}


def assert_same_end(found: Path, expected: Path) -> None:
    mine, theirs = (load_file(folder / "models" / "model.safetensors") for folder in (found, expected))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name in ("losses.csv", "lr.csv", "ap.csv"):
        assert (found / "plots/train" / name).read_text() == (expected / "plots/train" / name).read_text()


@pytest.fixture(scope="module")
def by_hand(make_folder: Callable[[], Path], repository: Path) -> Path:
    """The folder of a training of two that torchrun started, without a supervisor, and nothing disturbed."""
    folder = make_folder()
    with start(folder, repository, *TORCHRUN) as process:
        finish(process)
    return folder


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_killed_end_as_those_that_torchrun_started(
    make_folder: Callable[[], Path], by_hand: Path, repository: Path
) -> None:
    folder = make_folder()
    with start(folder, repository) as process:
        wait_until(lambda: newest_number(folder) >= 2, process)
        process.send_signal(signal.SIGTERM)
        log = finish(process, code=75)
    assert "[train] training processes: 2" in log
    assert "train failed: stopped by SIGTERM; a checkpoint is written" in log
    assert log.count("a checkpoint is written") == 1
    assert "Traceback" not in log
    (run,) = runs(folder)
    assert run.info.status == "KILLED"

    before = newest_number(folder)
    with start(folder, repository) as process:
        wait_until(lambda: newest_number(folder) > before, process)
        first = ranks_of(process)
        assert first.keys() == {"0", "1"}
        first["1"].kill()
        log = finish(process)
    assert "the process of rank 1 ended by SIGKILL" in log
    assert re.search(
        r"the training process was killed \(SIGKILL.*\): starting again from the checkpoint of step [1-9]", log
    ), log
    assert log.count("[train] resuming after epoch") == 2
    assert "Traceback" not in log
    assert not any(child.is_running() for child in first.values())
    (again,) = runs(folder)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert_same_end(folder, by_hand)


@pytest.mark.slow
def test_a_stopped_process_is_a_hang_and_all_start_again(
    make_folder: Callable[[], Path], settings: dict[str, Any], by_hand: Path, repository: Path
) -> None:
    """SIGSTOP, as a machine that swaps or a debugger: the other process waits for it, and nothing has an error."""
    folder = make_folder()
    patience = 180  # seconds; a busy machine needs most of them to start
    (folder / "params.yaml").write_text(
        yaml.safe_dump(settings | {"runtime": settings["runtime"] | {"hang_timeout": patience}})
    )
    with start(folder, repository) as process:
        wait_until(lambda: newest_number(folder) >= 2, process)
        first = ranks_of(process)
        first["1"].suspend()
        log = finish(process)
    assert f"no sign of life for {patience} s; the stacks of all threads" in log
    assert re.search(r"the training process hung: .*: starting again from the checkpoint of step [1-9]", log), log
    assert not any(child.is_running() for child in first.values())
    assert_same_end(folder, by_hand)


def test_an_error_of_all_processes_is_reported_once_and_not_tried_again(
    make_folder: Callable[[], Path], repository: Path
) -> None:
    folder = make_folder()
    (folder / "data/processed/train/train.json").unlink()
    with start(folder, repository) as process:
        log = finish(process, code=1)
    # PyTorch's own line, where one process ends while the other still connects:
    log = re.sub(r"^\[E\d{4} .*Gloo.*\n", "", log, flags=re.MULTILINE)
    what = "data/processed/train/train.json: no such file. Run the preprocess step first: dvc repro preprocess"
    assert log == f"[train] training processes: 2\n\ntrain failed: {what}\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def node(rank: int, port: int, nodes: int = 2) -> dict[str, str]:
    """What the Kubeflow Trainer sets in the pod of a node."""
    return {
        "PET_NNODES": str(nodes),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }


def is_listening(port: int) -> bool:
    return any(found.laddr.port == port and found.status == psutil.CONN_LISTEN for found in psutil.net_connections())


def test_a_node_that_waits_for_the_others_ends_at_once_when_asked_to(
    make_folder: Callable[[], Path], repository: Path
) -> None:
    port = free_port()
    with start(make_folder(), repository, **node(0, port)) as process:
        wait_until(lambda: is_listening(port), process)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        log = finish(process, code=75)
    assert time.monotonic() - begin < 20  # torchrun's own patience is 30 s
    assert "train failed: stopped by SIGTERM. The same command resumes from the last checkpoint" in log


@pytest.fixture
def nodes(make_folder: Callable[[], Path], settings: dict[str, Any], repository: Path) -> Iterator[Any]:
    """Start two nodes of one process each, in one folder as on a shared volume."""
    folder = make_folder()
    tree = settings | {"runtime": settings["runtime"] | {"processes": 1}}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    started: list[subprocess.Popen[str]] = []

    def begin() -> list[subprocess.Popen[str]]:
        port = free_port()
        started[:] = [start(folder, repository, **node(rank, port)) for rank in range(2)]
        return started

    yield folder, begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_nodes_end_as_one_with_two_processes_also_after_a_lost_one(nodes: Any, by_hand: Path) -> None:
    folder, begin = nodes
    first, second = begin()
    wait_until(lambda: newest_number(folder) >= 2, first)
    second.kill()
    log = finish(first, code=70)
    assert "another process of this run has failed or is gone" in log
    assert log.count("training processes: 1 on each of 2 nodes") == 1  # nothing was started again
    assert "starting again" not in log
    for process in begin():
        finish(process)
    assert_same_end(folder, by_hand)
