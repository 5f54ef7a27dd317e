"""Commands that are killed, run out of memory, get damaged input, or find another time."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest
from mlflow import MlflowClient

from tests.faults.conftest import Place
from tests.faults.faults import assert_refused, clock, files_of, kill_at_replacement, leftovers, limit_memory
from tests.faults.test_disks import ARGUMENTS

pytestmark = pytest.mark.slow

COMPARED = {
    "ingest": "data/raw",
    "preprocess": "data/processed",
    "train": "models/model.safetensors",
    "evaluate": "metrics",
    "register": "reports/registration.json",
    "predict": "out",
}
"""What each command writes, the same each time; of the results of `predict`, the times are not."""


def written(place: Place, name: str) -> dict[str, bytes]:
    output = COMPARED[name]
    return {
        path: content
        for path, content in files_of(place.root).items()
        if path.startswith(output) and not path.endswith("predict.json")
    }


@pytest.mark.parametrize("name", [name for name in COMPARED if name != "train"])
def test_a_killed_command_leaves_the_earlier_result_and_the_next_one_completes(place: Place, name: str) -> None:
    """Killed just before a file or a folder gets its final name: everything is written, nothing published."""
    place.succeeds(name, *ARGUMENTS.get(name, ()))
    before = written(place, name)
    assert before
    killed = place.run(name, *ARGUMENTS.get(name, ()), before=partial(kill_at_replacement, 1))
    assert killed.code == -signal.SIGKILL
    assert written(place, name) == before
    place.succeeds(name, *ARGUMENTS.get(name, ()))
    assert written(place, name) == before
    assert leftovers(place.root) == []


LOCKS = {
    "ingest": ("data/raw", "data/.raw.lock"),
    "preprocess": ("data/processed", "data/.processed.lock"),
    "train": ("models", ".models.lock"),
    "predict": ("out", ".out.lock"),
}
"""The folder that each command writes for the longest time, and its lock."""


@pytest.mark.parametrize("name", [*LOCKS])
def test_a_second_command_that_writes_the_same_folder_is_refused_and_the_first_one_completes(
    place: Place, name: str
) -> None:
    arguments, (folder, lock) = ARGUMENTS.get(name, ()), LOCKS[name]
    place.succeeds(name, *arguments)
    before = written(place, name)
    assert before
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(
            place.run, name, *arguments, before=partial(kill_at_replacement, 1, number=signal.SIGSTOP)
        )
        deadline = time.monotonic() + 120
        while not (path := place.root / lock).is_file() or not (text := path.read_text()):
            assert time.monotonic() < deadline, "the first command has not locked the folder"
            assert not first.done(), first.result().output
            time.sleep(0.05)
        process = psutil.Process(int(text.split()[1]))
        try:
            while process.status() != psutil.STATUS_STOPPED:
                assert time.monotonic() < deadline, "the first command has not come to its first replacement"
                time.sleep(0.05)
            second = place.run(name, *arguments)
        finally:
            process.resume()
    assert_refused(second, f"{folder}: process {process.pid} on ", " is writing there")
    assert first.result().code == 0, first.result().output
    assert written(place, name) == before
    assert leftovers(place.root) == []


def kill_before(function: str) -> None:
    """Have this process killed when it calls a method of MLflow's client."""
    setattr(MlflowClient, function, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("moment", ["log_model_artifacts", "create_model_version", "set_registered_model_alias"])
def test_a_register_that_was_killed_anywhere_is_completed_to_one_version(place: Place, moment: str) -> None:
    place.set({"register": {"model_name": "other"}})
    killed = place.run("register", before=partial(kill_before, moment))
    assert killed.code == -signal.SIGKILL, killed.output
    place.succeeds("register")
    client = MlflowClient(f"sqlite:///{place.root / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'other'")
    assert version.status == "READY"
    assert client.get_model_version_by_alias("other", "candidate").version == version.version


DAMAGED = [
    ("preprocess", "data/raw/VOCdevkit/VOC2012/SegmentationObject/*.png"),
    ("train", "data/processed/train/train.json"),
    ("train", "data/processed/eval/stats.json"),
    ("evaluate", "data/processed/eval/val.json"),
    ("evaluate", "models/model.safetensors"),
    ("evaluate", "models/run.json"),
    ("register", "metrics/eval.json"),
    ("register", "models/model.json"),
    ("predict", "models/model.safetensors"),
    ("export", "models/model.json"),
]


def test_input_that_was_cut_short_is_named(place: Place) -> None:
    place.remove("models/checkpoints")
    for name, file in DAMAGED:
        path = sorted(place.root.glob(file))[0]
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        outcome = place.run(name, *ARGUMENTS.get(name, ()))
        assert_refused(outcome, path.name)
        path.write_bytes(whole)


def test_a_training_without_memory_says_what_to_change(place: Place) -> None:
    """The limit of address space leaves nothing for a step's activations; the kernel's own kill: test_supervisor."""
    place.remove("models")
    place.set(
        {"train": {"batch_size": 6}, "model": {"image_size": 550, "anchor_scales": [[24], [48], [96], [192], [384]]}}
    )
    outcome = place.run("train", before=partial(limit_memory, 400_000_000))
    assert_refused(outcome, "out of memory", "Try one of these", "train.accumulate")


def test_a_clock_that_jumps_back_changes_neither_resuming_nor_the_result(place: Place) -> None:
    """A day back between two starts: the newest checkpoint is that of the highest number, not of the latest time."""
    undisturbed = (place.root / "models/model.safetensors").read_bytes()
    place.remove("models")
    killed = place.run("train", before=partial(kill_at_replacement, 3, ".pt"))
    assert killed.code == -signal.SIGKILL
    place.set({"runtime": {"max_restarts": 1}})  # the training is a new process then, which libfaketime needs
    resumed = place.succeeds("train", environment=clock("-1d"))
    assert "resuming after" in resumed
    assert (place.root / "models/model.safetensors").read_bytes() == undisturbed
