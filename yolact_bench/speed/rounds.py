"""Backends timed in alternating rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from yolact.errors import SettingsError
from yolact.inference.timing import Laps, median

TimedRun = Callable[[int], Sequence[float]]
"""Takes the number of a run and returns the milliseconds of each stage."""


class Rounds:
    """Times backends that take turns: if the machine's speed drifts, all are affected alike.

    Args:
        runs: one run of each backend, by the backend's name; all take turns in this order.
        runs_per_round: runs of each backend in a round; the round's times are their means.
        progress: receives a line about the current activity.
    """

    def __init__(
        self, runs: Mapping[str, TimedRun], progress: Callable[[str], None], *, runs_per_round: int = 1
    ) -> None:
        self._runs = runs
        self._progress = progress
        self._runs_per_round = runs_per_round
        self.times: dict[str, list[list[float]]] = {name: [] for name in runs}
        """Milliseconds of each stage, round by round, by backend."""

    def warm_up(self, rounds: int) -> None:
        """Run each backend for some rounds without timing, to fill caches and let compilers and autotuners finish."""
        for name, run in self._runs.items():
            self._progress(f"{name}: warming up")
            for number in range(rounds * self._runs_per_round):
                run(number)

    def measure(self, rounds: int) -> None:
        """Time all backends in each of some rounds."""
        for number in range(rounds):
            self._progress(f"round {number + 1} of {rounds}")
            first = number * self._runs_per_round
            rows = [[run(first + index) for run in self._runs.values()] for index in range(self._runs_per_round)]
            for times, runs in zip(self.times.values(), zip(*rows, strict=True), strict=True):
                times.append(np.mean(runs, axis=0).tolist())

    def medians(self, name: str) -> list[float]:
        """Median milliseconds of each stage and of the total of a backend, each computed separately."""
        return [median(stage) for stage in [*zip(*self.times[name], strict=True), self.totals(name)]]

    def totals(self, name: str) -> list[float]:
        """Milliseconds of all stages together, round by round."""
        return [sum(times) for times in self.times[name]]

    def speed(self, name: str, reference: str) -> float:
        """A backend's speed relative to the reference's, see `relative_speed`."""
        return relative_speed(self.totals(name), self.totals(reference))


def relative_speed(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of the reference's time over this one in the same round."""
    return median([other / own for own, other in zip(times, reference, strict=True)])


def time_stages(stages: Iterable[Callable[[Any], Any]], device: torch.device, *, cpu_time: bool = False) -> list[float]:
    """Milliseconds of each stage; each takes the previous stage's result, the first None.

    Args:
        cpu_time: CPU time of all threads of this process, instead of elapsed time.
    """
    value, times = None, []
    laps = Laps(device, time.process_time if cpu_time else time.perf_counter)
    for stage in stages:
        value = stage(value)
        times.append(laps.lap())
    return times


@contextmanager
def tuned_gpu(device: torch.device, batch: int) -> Iterator[None]:
    """Let cuDNN benchmark its algorithms on a GPU, and report a lack of memory as `enough_memory` does."""
    tuned = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tuned or device.type == "cuda"
    try:
        with enough_memory(batch):
            yield
    finally:
        torch.backends.cudnn.benchmark = tuned


@contextmanager
def enough_memory(batch: int) -> Iterator[None]:
    """Report a lack of GPU memory as a user error.

    Raises:
        SettingsError: the GPU's memory is too small for the batch.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingsError(f"the GPU's memory is too small for this; try a smaller --batch (now {batch})") from error
