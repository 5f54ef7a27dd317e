"""What the container of a process may use, and how the process keeps to it.

The kernel's control groups (cgroups) know the limits, in version 1 and 2. A container sees its own group as the root of
``/sys/fs/cgroup``, or below it at the path in ``/proc/self/cgroup``. A request for CPU that is no limit is in neither:
in a pod it is in ``PYTHON_CPU_COUNT``, the variable with which Python 3.13 overrides its own count. Local runs of a
pipeline ignore that variable, as they ignore the cluster's resources.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

CPU_COUNT_VARIABLE = "PYTHON_CPU_COUNT"
POD_VARIABLE = "KUBERNETES_SERVICE_HOST"
"""Kubernetes sets it in every pod."""
THREADS_VARIABLE = "OMP_NUM_THREADS"
UMASK = 0o027
"""Files of a task in a pod: the owner writes, the group (of a volume with ``fsGroup``) reads, others do neither."""

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def keep_to_container() -> None:
    """Take no more threads than the container has cores, and in a pod write files that not everybody can read.

    Without a limit of CPU, and where ``OMP_NUM_THREADS`` is set, the number of threads stays. PyTorch would take a
    thread for each core of the node, and threads beyond the limit spin while they wait for each other.
    """
    if _cpu_limit() is not None and THREADS_VARIABLE not in os.environ:
        threads = usable_cpus()
        os.environ[THREADS_VARIABLE] = str(threads)  # read when PyTorch is imported, also by child processes
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    if POD_VARIABLE in os.environ:
        os.umask(os.umask(UMASK) | UMASK)


def share_threads(processes: int) -> None:
    """Give each of the processes that this one starts its share of the cores in threads, or fewer if
    ``OMP_NUM_THREADS`` says so.

    Without it, PyTorch takes a thread for each core in every process, and torchrun leaves a process a single one.
    """
    share, given = max(usable_cpus() // processes, 1), os.environ.get(THREADS_VARIABLE, "")
    os.environ[THREADS_VARIABLE] = given if given.isdigit() and 0 < int(given) < share else str(share)


def usable_cpus() -> int:
    """Number of CPU cores that this process may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _cpu_limit() or cores)


def oom_kills() -> int | None:
    """How many processes of this container the kernel has killed for lack of memory; None if unknown."""
    text = _cgroup_text("memory", "memory.oom_control", "memory.events")
    counts = [line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None


def memory_limit() -> int | None:
    """Bytes of memory that this container may use; None without a limit, or if unknown."""
    text = _cgroup_text("memory", "memory.limit_in_bytes", "memory.max").strip()
    return int(text) if text.isdigit() and int(text) < 2**60 else None  # version 1 writes a large number for none


def _cpu_limit() -> int | None:
    """CPU cores that the pod requests, or the container's limit, rounded down, at least 1; None without either."""
    given = os.environ.get(CPU_COUNT_VARIABLE, "") if POD_VARIABLE in os.environ else ""
    if given.isdigit():
        return max(int(given), 1)
    quota = _cgroup_text("cpu", "cpu.cfs_quota_us", "cpu.max").split()
    period = quota[1:] or _cgroup_text("cpu", "cpu.cfs_period_us", "").split()
    if not (quota and period and quota[0].isdigit() and period[0].isdigit()):  # -1 and max stand for no limit
        return None
    return max(int(quota[0]) // int(period[0]), 1)


def _cgroup_text(controller: str, version_1: str, version_2: str) -> str:
    """Content of a file of this process's control group; empty if there is none.

    Args:
        controller: of version 1, as ``memory``.
        version_1: the file's name in version 1.
        version_2: the file's name in version 2; empty if only version 1 has it.
    """
    with suppress(OSError):
        for line in _OWN.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                root, name = _ROOT / controller, version_1
            elif not controllers and version_2:
                root, name = _ROOT, version_2
            else:
                continue
            for folder in (root / path.lstrip("/"), root):
                with suppress(OSError):
                    return (folder / name).read_text(encoding="utf-8")
    return ""
