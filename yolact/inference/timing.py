"""Timing that is correct on CPUs and GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch


def synchronise(device: torch.device) -> None:
    """Wait for all work queued on a GPU; otherwise only the time to launch it would be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Laps:
    """Measure milliseconds from one call of `lap` to the next, by a clock that gives seconds."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        synchronise(device)
        self._last = clock()

    def lap(self) -> float:
        """Milliseconds since the last call, or since the start; waits for the device."""
        synchronise(self._device)
        now = self._clock()
        elapsed = (now - self._last) * 1000
        self._last = now
        return elapsed


def median(values: Sequence[float]) -> float:
    """The median as a Python float."""
    return float(np.median(values))
