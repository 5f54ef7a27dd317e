"""What this process may use of the machine: CPU cores and memory.

The kernel's control groups (cgroups) know the limits, in version 1 and 2. A container sees its own group as the root of
``/sys/fs/cgroup``, or below it at the path in ``/proc/self/cgroup``; the groups above limit a process, too. A request
for CPU that is no limit is in none of them: in a pod it is in ``PYTHON_CPU_COUNT``, the variable with which Python 3.13
overrides its own count. Local runs of a pipeline ignore that variable, as they ignore the cluster's resources.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CPU_COUNT_VARIABLE = "PYTHON_CPU_COUNT"
POD_VARIABLE = "KUBERNETES_SERVICE_HOST"
"""Kubernetes sets it in every pod."""

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Number of CPU cores that this process may use, at least 1: its affinity, and `cpu_limit`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_limit() or cores)


def cpu_limit() -> int | None:
    """CPU cores that the pod requests, or else the limit of its control groups, rounded up, at least 1; None without
    either."""
    given = os.environ.get(CPU_COUNT_VARIABLE, "") if POD_VARIABLE in os.environ else ""
    if given.isdigit():
        return max(int(given), 1)
    limit = min(map(_quota, _groups("cpu")), default=math.inf)
    return None if math.isinf(limit) else max(math.ceil(limit), 1)


def oom_kills() -> int | None:
    """How many processes of this container the kernel has killed for lack of memory; None if unknown."""
    text = _first_text("memory", "memory.oom_control", "memory.events")
    counts = [line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None


def memory_limit() -> int | None:
    """Bytes of memory that this container may use; None without a limit, or if unknown."""
    text = _first_text("memory", "memory.limit_in_bytes", "memory.max").strip()
    return int(text) if text.isdigit() and int(text) < 2**60 else None  # version 1 writes a large number for none


def _quota(group: Path) -> float:
    """CPU cores that a group may use; infinity without a limit."""
    text = _text(group / "cpu.max") or " ".join(_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    numbers = text.split()  # microseconds of CPU time in each period of so many microseconds
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):  # -1 and max stand for no limit
        return math.inf
    return int(numbers[0]) / int(numbers[1])


def _first_text(controller: str, *names: str) -> str:
    """Content of the first of these files that the own group has, or else one above; empty if there is none."""
    return next((text for group in _groups(controller) for name in names if (text := _text(group / name))), "")


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control groups: the own one, then those above.

    Args:
        controller: of version 1, as ``memory``.
    """
    for line in _text(_OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _ROOT / controller if controllers else _ROOT  # version 2 has one tree for all controllers
        own = PurePosixPath(path.lstrip("/"))
        yield from (root / group for group in (own, *own.parents))


def _text(file: Path) -> str:
    """Content of a file; empty if it cannot be read."""
    with suppress(OSError):
        return file.read_text(encoding="utf-8")
    return ""
