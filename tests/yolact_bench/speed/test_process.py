"""`yolact_bench.speed.process`."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from yolact.errors import SettingsError
from yolact_bench.speed import process
from yolact_bench.speed.process import Process, in_new_process, last_of_turn


def load(first: int) -> list[int]:
    return [first]


def add(loaded: list[int], number: int) -> tuple[int, list[int]]:
    loaded.append(number)
    return os.getpid(), loaded


def run_out_of_memory(_: list[int]) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def die(_: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_keeps_what_it_has_loaded_and_raises_the_errors_of_its_functions() -> None:
    with Process("a", load, 1) as one:
        number, loaded = one.call(add, 2)
        assert (loaded, number != os.getpid()) == ([1, 2], True)
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            one.call(run_out_of_memory)
        assert one.call(add, 3) == (number, [1, 2, 3])
        with pytest.raises(SettingsError, match="a: its process was killed, perhaps because memory ran out"):
            one.call(die)


def test_a_process_that_cannot_load_ends() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        Process("a", int, "x")


def test_a_new_process_ends_with_its_function() -> None:
    assert in_new_process(sum, [1, 2]) == 3
    number = in_new_process(os.getpid)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, 1), (0.4, 1), (0.6, 2), (10.0, process.RUNS)])
def test_the_last_run_of_a_turn_counts(monkeypatch: pytest.MonkeyPatch, seconds: float, runs: int) -> None:
    """Each run takes half a second of this clock."""
    now = [0.0]
    monkeypatch.setattr(process, "LONG", seconds)
    monkeypatch.setattr(process.time, "perf_counter", lambda: now[0])

    def run() -> float:
        now[0] += 0.5
        return now[0]

    assert last_of_turn(run) == runs * 0.5
