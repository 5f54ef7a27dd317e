"""Runs that are really killed: their results are bit-identical to those of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.yolact.engine.runs import REPOSITORY
from yolact.engine.interrupts import (
    EX_TEMPFAIL,
    InterruptedRunError,
    Interrupts,
    LoaderKilledError,
    dead_workers_reported,
)

SETTINGS: dict[str, Any] = {
    "images": 6,
    "epochs": 5,
    "validate_every": 2,
    "checkpoint_every_steps": 1,
    "ema_decay": 0.9,
    "loss": {"max_masks_per_image": 1, "positive_iou": 0.2, "negative_iou": 0.1},
}
"""15 steps, each followed by a checkpoint, so that most of the time one is being written."""


def start(folder: Path, **changes: Any) -> subprocess.Popen[str]:
    """Start or resume a run in its own process group."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(SETTINGS | changes))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.yolact.engine.runs", "settings.json"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    return log


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "models" / "checkpoints").glob("*.pt"))


def wait_until(process: subprocess.Popen[str], seen: Any) -> None:
    end = time.monotonic() + 200
    while not seen():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.001)


def number_of(folder: Path) -> int:
    """Number of the newest checkpoint; 0 without any."""
    names = checkpoints(folder)
    return int(names[-1].split("-")[0]) if names else 0


def half_written(folder: Path) -> bool:
    """Whether a checkpoint is partly written."""
    for path in (folder / "models" / "checkpoints").glob(".checkpoint.*.part"):
        try:
            if path.stat().st_size > 100_000:
                return True
        except FileNotFoundError:
            pass
    return False


def assert_same_end(found: Path, expected: Path) -> None:
    one, other = (torch.load(folder / "done.pt", weights_only=True) for folder in (found, expected))
    assert one["history"] == other["history"]
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    first, second = (load_file(folder / "models" / "model.safetensors") for folder in (found, expected))
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finish(start(folder))
    return folder


@pytest.mark.slow
def test_a_run_killed_at_random_points_ends_as_the_uninterrupted_one(straight: Path, tmp_path: Path) -> None:
    """Three times: twice a random moment after a random number of checkpoints, once while one is being written."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for kill in range(3):
        process = start(tmp_path)
        before = number_of(tmp_path)
        wanted = before + chance.randint(1, 4)
        wait_until(process, lambda wanted=wanted: number_of(tmp_path) >= wanted)
        if kill == 1:
            wait_until(process, lambda: half_written(tmp_path))
        else:
            time.sleep(chance.random() * 0.05)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"seed {seed}"
        assert not (tmp_path / "done.pt").exists()
    log = finish(start(tmp_path))
    assert "Traceback" not in log, f"seed {seed}"
    assert_same_end(tmp_path, straight)
    assert not list((tmp_path / "models").rglob("*.part"))


def test_a_damaged_newest_checkpoint_costs_one_interval(straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_until(process, lambda: number_of(tmp_path) >= 6)
    process.kill()
    process.communicate()
    newest = tmp_path / "models" / "checkpoints" / checkpoints(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    log = finish(start(tmp_path))
    assert f"{newest.name}: not readable, skipped (its content is not what was written)" in log
    assert_same_end(tmp_path, straight)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_run_asked_to_stop_writes_a_checkpoint_and_says_so(straight: Path, tmp_path: Path, name: str) -> None:
    process = start(tmp_path)
    wait_until(process, lambda: number_of(tmp_path) >= 5)
    process.send_signal(getattr(signal, name))
    _, log = process.communicate(timeout=200)
    assert process.returncode == EX_TEMPFAIL == 75, log
    assert f"stopped by {name}; a checkpoint is written" in log
    assert "Traceback" not in log
    if name == "SIGTERM":
        finish(start(tmp_path))
        assert_same_end(tmp_path, straight)


def test_ctrl_c_stops_a_run_though_loader_processes_get_it_too(tmp_path: Path) -> None:
    """As a terminal sends it: to the whole process group."""
    process = start(tmp_path, workers=2, checkpoint_every_steps=0, epochs=500, validate_every=1000)
    wait_until(process, lambda: number_of(tmp_path) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=200)
    assert process.returncode == EX_TEMPFAIL, log
    assert "stopped by SIGINT; a checkpoint is written" in log
    with pytest.raises(ProcessLookupError):  # no loader process remains
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterms_to_the_whole_group_stop_a_run_as_one(tmp_path: Path, workers: int) -> None:
    """As launchers send them, the second while the first is being handled, or while the program ends."""
    process = start(tmp_path, workers=workers, checkpoint_every_steps=0, epochs=500, validate_every=1000)
    wait_until(process, lambda: number_of(tmp_path) >= 2)
    os.killpg(process.pid, signal.SIGTERM)
    while process.poll() is None:
        time.sleep(0.2)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    _, log = process.communicate(timeout=200)
    assert process.returncode == EX_TEMPFAIL, log
    assert "stopped by SIGTERM; a checkpoint is written" in log
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_loader_process_that_hangs_ends_with_the_program() -> None:
    """It ignores the SIGTERM that Python sends it, and Python would wait for it."""
    program = (
        "import multiprocessing, time\n"
        "from yolact.data import loader\n"
        "from tests.yolact.engine.runs import make_images, small_params\n"
        "from pathlib import Path\n"
        "from tempfile import TemporaryDirectory\n"
        "with TemporaryDirectory() as folder:\n"
        "    annotations = make_images(Path(folder), 4)\n"
        "    data = loader.CocoInstances.load(annotations, annotations.parent)\n"
        "    started = multiprocessing.Event()\n"
        "    def hang(*_):\n"
        "        started.set()\n"
        "        time.sleep(600)\n"
        "    loader.TrainingSet.__getitem__ = hang\n"
        "    batches, _ = loader.training_loader(data, small_params().train, 64, workers=1, pin=False)\n"
        "    waiting = iter(batches)\n"
        "    assert started.wait(60)\n"
        "    (child,) = multiprocessing.active_children()\n"
        "    child.terminate()\n"
        "    child.join(1)\n"
        "    print('still there' if child.is_alive() else 'gone', flush=True)\n"
    )
    assert run_program(program) == ("still there\n", 0)


def test_the_death_of_a_loader_process_is_an_error_unless_a_stop_was_requested() -> None:
    interrupts = Interrupts()
    death = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    with (
        pytest.raises(LoaderKilledError, match=r"lower runtime.workers.*resumes from the last.*pid 7.*Terminated"),
        dead_workers_reported(interrupts),
    ):
        raise death
    interrupts.requested = "SIGTERM"
    with (
        pytest.raises(InterruptedRunError, match="resumes from the last checkpoint"),
        dead_workers_reported(interrupts),
    ):
        raise death
    with pytest.raises(RuntimeError, match="shapes"), dead_workers_reported(interrupts):
        raise RuntimeError("shapes do not match")


def run_program(program: str) -> tuple[str, int]:
    """Run a Python program; returns its output and exit code."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout, done.returncode


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
def test_sigterm_after_a_request_changes_nothing_and_ctrl_c_ends_the_run_at_once(first: str) -> None:
    program = (
        "import os, signal, time\n"
        "from yolact.engine.interrupts import Interrupts\n"
        "interrupts = Interrupts()\n"
        "with interrupts.watched():\n"
        f"    os.kill(os.getpid(), signal.{first})\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(interrupts.requested, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "with interrupts.watched():\n"
        "    pass\n"
        "print('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    assert run_program(program) == (f"{first}\nstill here\n", -signal.SIGINT)
