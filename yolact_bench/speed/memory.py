"""Peak memory of one backend, measured in a process of its own to leave out all others."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from yolact.devices import peak_resident
from yolact.errors import SettingsError
from yolact.inference.timing import median
from yolact_bench.speed.process import in_new_process, prepare

PASSES = 3
"""Runs over the batch; the second one brings the allocators to their steady state."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory, MiB."""

    kind: Literal["resident", "gpu"]
    """``resident``: memory of the whole process, with Python and its libraries; ``gpu``: PyTorch's tensors on the
    GPU."""
    loading: float
    """Peak while libraries were imported and the network was built."""
    work: float
    """Peak while images were processed or trained on; includes loading if the system cannot reset the count (Linux and
    GPUs can)."""


class Work(Protocol):
    """The work measured in a new process; must be picklable."""

    def load(self) -> Callable[[], object]:
        """Build a backend; returns a function that processes one batch with it."""


def measure_memory(name: str, work: Work, device: torch.device, threads: int, processes: int = 1) -> PeakMemory:
    """Run ``work`` a few times in a new process.

    Args:
        name: name of the backend, for errors.
        threads: PyTorch's threads on the CPU.
        processes: new processes, one after the other, whose median is the result. Resident memory depends on the
            system's allocator: it differed by a tenth between identical processes. On a GPU one process is enough.

    Raises:
        SettingsError: the backend cannot be loaded, or the process was killed.
    """
    peaks = [_in_new_process(name, work, device, threads) for _ in range(processes if device.type == "cpu" else 1)]
    return PeakMemory(peaks[0].kind, median([peak.loading for peak in peaks]), median([peak.work for peak in peaks]))


def _in_new_process(name: str, work: Work, device: torch.device, threads: int) -> PeakMemory:
    try:
        measured: PeakMemory = in_new_process(_measure_here, work, device, threads)
    except BrokenProcessPool:
        raise SettingsError(
            f"{name}: the process that measures its memory was killed, perhaps because it ran out of memory; "
            "--no-memory skips this measurement"
        ) from None
    return measured


def _measure_here(work: Work, device: torch.device, threads: int) -> PeakMemory:
    return load_measured(work, device, threads)[0]


def load_measured(work: Work, device: torch.device, threads: int) -> tuple[PeakMemory, Callable[[], object]]:
    """Load ``work`` in this process and run it a few times; returns also the function of `Work.load`."""
    prepare(device, threads)
    peak, restart = _gpu_counter(device) if device.type == "cuda" else (peak_resident, restart_peak_resident)
    restart()
    run = work.load()
    gc.collect()
    loading = peak()
    restart()
    for _ in range(PASSES):
        run()
    kind: Literal["resident", "gpu"] = "gpu" if device.type == "cuda" else "resident"
    return PeakMemory(kind, loading / 2**20, peak() / 2**20), run


def _gpu_counter(device: torch.device) -> tuple[Callable[[], int], Callable[[], None]]:
    def restart() -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    return lambda: torch.cuda.max_memory_allocated(device), restart


def restart_peak_resident() -> None:
    """Reset the peak that `peak_resident` reports, if the system can (proc(5), ``clear_refs``)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
