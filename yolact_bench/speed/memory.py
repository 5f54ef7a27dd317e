"""The most memory that one contestant takes, measured in a process of its own so that no other counts."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from yolact.devices import peak_resident
from yolact.errors import SettingsError
from yolact.inference.timing import median

PASSES = 3
"""Runs over the batch: with the second one allocators reach their steady state."""


@dataclass(frozen=True)
class PeakMemory:
    """The most memory in use at one time, MiB."""

    kind: Literal["resident", "gpu"]
    """``resident``: of the whole process, with Python and its libraries; ``gpu``: PyTorch's tensors on the GPU."""
    loading: float
    """While libraries were imported and the network was built."""
    work: float
    """While images were processed or trained on; where the system cannot start the count again (it can on Linux and on
    GPUs), with loading."""


class Work(Protocol):
    """What is measured in a new process; must be picklable."""

    def load(self) -> Callable[[], object]:
        """Build a contestant; returns what it does with one batch."""


def measure_memory(name: str, work: Work, device: torch.device, threads: int, processes: int = 1) -> PeakMemory:
    """Do ``work`` a few times in a new process.

    Args:
        name: of the contestant, for errors.
        threads: of PyTorch on the CPU.
        processes: one after the other, each new, whose medians are returned. Resident memory depends on where the
            system's allocator finds room: it differed by a tenth between processes that did the same. On a GPU there is
            one process, whatever is said here.

    Raises:
        SettingsError: the contestant cannot be loaded; or the process was ended from outside.
    """
    peaks = [_in_new_process(name, work, device, threads) for _ in range(processes if device.type == "cpu" else 1)]
    return PeakMemory(peaks[0].kind, median([peak.loading for peak in peaks]), median([peak.work for peak in peaks]))


def _in_new_process(name: str, work: Work, device: torch.device, threads: int) -> PeakMemory:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        try:
            return executor.submit(_measure_here, work, device, threads).result()
        except BrokenProcessPool:
            raise SettingsError(
                f"{name}: the process that measures its memory was ended from outside, for want of memory "
                "perhaps; --no-memory leaves this out"
            ) from None


def _measure_here(work: Work, device: torch.device, threads: int) -> PeakMemory:
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    peak, restart = _gpu_counter(device) if device.type == "cuda" else (peak_resident, restart_peak_resident)
    restart()
    run = work.load()
    gc.collect()
    loading = peak()
    restart()
    for _ in range(PASSES):
        run()
    return PeakMemory("gpu" if device.type == "cuda" else "resident", loading / 2**20, peak() / 2**20)


def _gpu_counter(device: torch.device) -> tuple[Callable[[], int], Callable[[], None]]:
    def restart() -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    return lambda: torch.cuda.max_memory_allocated(device), restart


def restart_peak_resident() -> None:
    """Let `peak_resident` count from now on, where the system can (proc(5), ``clear_refs``)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
