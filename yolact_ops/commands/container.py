"""How commands and tasks keep to what they may use (`yolact.limits`): threads, and modes of files."""

from __future__ import annotations

import os
import sys

from yolact.limits import POD_VARIABLE, cpu_limit, usable_cpus

THREADS_VARIABLE = "OMP_NUM_THREADS"
SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""What GNU OpenMP, whose threads PyTorch's wheels for Linux use, reads when it is loaded: how a thread waits."""
SPINS = "1000"
"""Turns of a waiting thread's loop before it sleeps; docs/benchmarks.md has what others cost."""
UMASK = 0o027
"""Files of a task in a pod: the owner writes, the group (of a volume with ``fsGroup``) reads, others do neither."""


def keep_to_container() -> None:
    """Keep the threads to the limit, see `limit_threads`, and in a pod write files that not everybody can read."""
    limit_threads()
    if POD_VARIABLE in os.environ:
        os.umask(os.umask(UMASK) | UMASK)


def limit_threads() -> None:
    """Take no more threads than the container has cores.

    Without a limit of CPU, and where ``OMP_NUM_THREADS`` is set, the number of threads stays. PyTorch would take a
    thread for each core of the node, and threads beyond the limit wait for each other.
    """
    if cpu_limit() is not None and THREADS_VARIABLE not in os.environ:
        threads = usable_cpus()
        os.environ[THREADS_VARIABLE] = str(threads)  # read when PyTorch is imported, also by child processes
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)


def wait_briefly() -> None:
    """Let a computing thread that waits for the others spin for a moment only, unless the environment says how.

    By default it spins for milliseconds, and takes the core from the thread that it waits for where the machine has
    other work, too. For steps, which run for long; alone, a network's latency is better with the default. Has an effect
    before PyTorch is imported, and on child processes.
    """
    if not any(name in os.environ for name in SPIN_VARIABLES):
        os.environ[SPIN_VARIABLES[0]] = SPINS


def share_threads(processes: int) -> None:
    """Give each of the processes that this one starts its share of the cores in threads, or fewer if
    ``OMP_NUM_THREADS`` says so.

    Without it, PyTorch takes a thread for each core in every process, and torchrun leaves a process a single one.
    """
    share, given = max(usable_cpus() // processes, 1), os.environ.get(THREADS_VARIABLE, "")
    os.environ[THREADS_VARIABLE] = given if given.isdigit() and 0 < int(given) < share else str(share)
