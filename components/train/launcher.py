"""Start the processes of a training, one for each GPU, with torchrun; on one machine, or as one of several nodes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from components.train.supervisor import SHELL_SIGNAL
from yolact.distributed import PeerError
from yolact.engine.interrupts import InterruptedRunError
from yolact.errors import EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, DataError, SettingsError, YolactError
from yolact.settings import RuntimeConfig
from yolact_ops.commands.container import share_threads

PEER_PATIENCE = 60.0
"""Seconds for a failed process to end."""
SAME_PATIENCE = 30.0
"""Seconds for the first process on a machine to end with an error that the others have too."""

log = logging.getLogger(__name__)


def number_of_processes(runtime: RuntimeConfig) -> int:
    """The number of processes that train on this machine: ``runtime.processes``, with a number for ``auto``."""
    if runtime.processes != "auto":
        return runtime.processes
    return max(torch.cuda.device_count(), 1) if runtime.device in ("auto", "cuda") else 1


def launch(processes: int, nodes: int, module: Sequence[str]) -> int:
    """Run a module in several processes that train together, until all on this machine have ended.

    When one fails, the others are stopped. Nothing is started again; that is left to the supervisor.

    Args:
        processes: their number on this machine.
        nodes: number of machines; with several, torchrun finds in ``PET_*`` which one this is and where they meet.
        module: name and arguments of the module.

    Returns:
        The exit code of the process that is the reason, `SHELL_SIGNAL` + N if signal N ended it; 0 if none failed.
    """
    from torch.distributed import run as torchrun  # slow to import, and most trainings do without
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    share_threads(processes)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it repeats what the processes say
    options = ["--nproc-per-node", str(processes), "--max-restarts", "0", "--log-dir", os.devnull]  # no folder of logs
    if nodes == 1:
        options += ["--standalone", "--local-addr", "localhost"]
    log.info("training processes: %d%s", processes, f" on each of {nodes} nodes" if nodes > 1 else "")
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", *module]))
    except SignalException as stopped:
        return SHELL_SIGNAL + stopped.sigval
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                log.error("the process of rank %d ended by %s", rank, signal.Signals(-failure.exitcode).name)
        code = min((failure.exitcode for failure in error.failures.values()), key=_place)
        return SHELL_SIGNAL - code if code < 0 else code
    return 0


@contextmanager
def reason_first(local_rank: int) -> Iterator[None]:
    """In a process of `launch`: end after the process that has the reason, which then is the first to fail.

    A stop, and often what is wrong with settings or data, is common to all processes: the first one on this machine
    reports it, and has time to end before the launcher stops the others.
    """
    try:
        yield
    except YolactError as error:
        patience = PEER_PATIENCE if isinstance(error, PeerError) and not _is_asked_to_stop() else 0.0
        if local_rank != 0 and isinstance(error, DataError | SettingsError | InterruptedRunError):
            patience = SAME_PATIENCE
        if patience:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # of the launcher, once the other process has ended
            time.sleep(patience)
        raise


def _is_asked_to_stop() -> bool:
    """Whether SIGTERM has come already, see `yolact.engine.interrupts.Interrupts`."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def _place(code: int) -> int:
    """Place of an exit code among those of processes that ended together: the lowest is the reason."""
    if code == -signal.SIGTERM:  # from the launcher, for those that were left
        return 4
    if code == EX_TEMPFAIL:
        return 3
    if code < 0 or code == EX_SOFTWARE:
        return 2
    return 1 if code == EX_UNAVAILABLE else 0
