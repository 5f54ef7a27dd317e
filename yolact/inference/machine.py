"""Describe the machine that a measurement ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from yolact.limits import usable_cpus


@dataclass(frozen=True)
class Machine:
    """Hardware, software and time: without them a measurement means nothing."""

    date: str
    """ISO 8601, UTC."""
    system: str
    processor: str
    instructions: str
    """The best vector instruction set that PyTorch uses here, such as AVX512."""
    cores: int
    """Cores that this process may use."""
    memory_gib: float | None
    load_average: float | None
    """One-minute load average before the measurement: other work makes timings unreliable."""
    gpu: str | None
    gpu_memory_gib: float | None
    python: str
    torch: str
    cuda: str | None
    """The CUDA version that PyTorch was built for, if a GPU was measured."""
    threads: int
    """PyTorch's CPU threads."""


def describe_machine(device: torch.device) -> Machine:
    """Describe this machine now, with its GPU if ``device`` is one."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Machine(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=usable_cpus(),
        memory_gib=_memory_gib(),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        gpu=gpu.name if gpu else "Apple GPU" if device.type == "mps" else None,
        gpu_memory_gib=round(gpu.total_memory / 2**30, 1) if gpu else None,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda if gpu else None,
        threads=torch.get_num_threads(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not POSIX, or unknown
        return None
