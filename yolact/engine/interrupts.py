"""Requests to stop: SIGTERM, as when a pod is evicted, and SIGINT (Ctrl-C)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from yolact.errors import EX_SOFTWARE, EX_TEMPFAIL, YolactError


class InterruptedRunError(YolactError):
    """The run was asked to stop; the same command resumes from its last checkpoint."""

    exit_code = EX_TEMPFAIL


class Interrupts:
    """Turns the first SIGTERM or SIGINT into a request to stop, within `watched`.

    From then on SIGTERM is ignored until the process ends: launchers send it twice (to a process and to its whole
    group), and writes in progress must finish. A second SIGINT ends the process as usual. Outside the main thread,
    within another watch, and after a request, no handler is set.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the received signal."""
        self._at_once = False
        self._is_watched = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Set the handlers, and restore the previous ones at the end (after a request, not SIGTERM's)."""
        if not self._may_set_handlers():
            yield
            return
        self._is_watched = True
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            self._is_watched = False
            if self.requested:
                del before[signal.SIGTERM]
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context in which a request raises `InterruptedRunError` immediately: for work that is repeated anyway."""
        self._at_once = True
        try:
            if self.requested:
                self._stop()
            yield
        finally:
            self._at_once = False

    def stop_if_requested(self) -> None:
        """Act on a request that came before the first step.

        Raises:
            InterruptedRunError: a stop was requested.
        """
        if self.requested:
            raise InterruptedRunError(
                f"stopped by {self.requested} before a step was trained. The same command starts over, or resumes "
                f"from the last checkpoint (exit code {EX_TEMPFAIL})"
            )

    def _may_set_handlers(self) -> bool:
        is_main = threading.current_thread() is threading.main_thread()
        return is_main and not self._is_watched and self.requested is None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # unlike a Python handler, stays at interpreter shutdown
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._at_once:
            self._stop()

    def _stop(self) -> None:
        raise InterruptedRunError(stop_message(self.requested))


class LoaderKilledError(YolactError):
    """A loader process was killed, most often because memory ran out; a supervisor starts the training again."""

    exit_code = EX_SOFTWARE


@contextmanager
def dead_workers_reported(interrupts: Interrupts) -> Iterator[None]:
    """Say what the death of a loader process means; after a request to stop, the signal reached that process too.

    PyTorch reports such a death wherever the main process is, so the state of the current step is unknown and no
    checkpoint can be written.

    Raises:
        InterruptedRunError: a stop was requested and a loader process is dead.
        LoaderKilledError: a loader process is dead.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        if interrupts.requested is None:
            raise LoaderKilledError(
                "a loader process was killed, most likely because memory ran out. Set a lower runtime.workers, or give "
                "the training more memory (a container also more shared memory, /dev/shm). The same command resumes "
                f"from the last checkpoint. ({str(error).strip().splitlines()[0]})"
            ) from error
        raise InterruptedRunError(
            f"stopped by {interrupts.requested}, which ended a loader process as well. The same command resumes from "
            f"the last checkpoint (exit code {EX_TEMPFAIL})"
        ) from error


def stop_message(signal_name: str | None) -> str:
    """The final message of an interrupted run."""
    return (
        f"stopped by {signal_name or 'a signal to another process'}; a checkpoint is written. The same command resumes "
        f"from there (exit code {EX_TEMPFAIL})"
    )
