"""Train in a child process, or several, and start again after a crash, a kill or a hang.

Parent and child share a socket, the child's standard input. Through it the child sends signs of life, and each notices
the other's end. A child that only launches the processes that train (`components.train.launcher`) gives them its end:
they send the signs of life, each with its own process id. Every process that trains leads a process group of its own,
so Ctrl-C and signals to a group reach only the parent, which passes each one on once.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from yolact.engine.interrupts import InterruptedRunError
from yolact.errors import EX_SOFTWARE, EX_TEMPFAIL, YolactError
from yolact.limits import memory_limit, oom_kills

LOOK_EVERY = 1.0
"""Seconds between two looks at the child, and at least between two signs of life."""
STACKS_PAUSE = 0.3
"""Seconds for a hanging process to write where it is, before the next one does: together they would mix their lines."""
STOP_PATIENCE = 60.0
"""Seconds for a hanging process to stop by itself: if it is only slow, it writes a checkpoint."""
END_PATIENCE = 10.0
"""Seconds until the child's own child processes, once killed, are gone."""
WORK_VARIABLE = "YOLACT_TRAINING"
"""Environment variable with which the parent passes the work to the child and the processes that it launches."""

SHELL_SIGNAL = 128
"""A launcher's exit code is this + N, as a shell's, when a process that trains ended by signal N."""

log = logging.getLogger(__name__)


class CrashedError(YolactError):
    """The training crashed too often without progress.

    Args:
        message: what happened last, and how often.
        exit_code: 128 + N after signal N, as in a shell, else `EX_SOFTWARE`.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def supervise(
    command: Sequence[str],
    work: str,
    *,
    newest_checkpoint: Callable[[], tuple[int, int]],
    max_restarts: int,
    hang_timeout: float,
) -> int:
    """Run a command that calls `supervised`; start it again after a crash, a kill or a hang.

    A stop that was asked for and a user error end it: only signals, `EX_SOFTWARE` and hangs are crashes.

    Args:
        command: calls `supervised`, or launches several processes that do.
        work: a text for `supervised`.
        newest_checkpoint: steps done and number of the newest checkpoint, from which the command resumes.
        max_restarts: restarts in a row without a newer checkpoint.
        hang_timeout: seconds without a sign of life after which the child hangs; 0 for never.

    Returns:
        The child's exit code.

    Raises:
        CrashedError: no restart is left.
        InterruptedRunError: SIGTERM or SIGINT came, and the child did not end by itself.
    """
    child = _Child(command, work, hang_timeout)
    furthest, without_progress = (0, 0), 0
    with child.signals_passed_on():
        while True:
            kills_before = oom_kills()
            code, hung = child.run()
            crashed = code < 0 or code == EX_SOFTWARE or (hung and child.stopped_by is None)
            if code == 0 or not crashed:
                return code
            if child.stopped_by is not None:
                raise InterruptedRunError(
                    f"stopped by {child.stopped_by}. The same command resumes from the last checkpoint, or starts over "
                    f"if there is none (exit code {EX_TEMPFAIL})"
                )
            step, number = newest_checkpoint()
            if (step, number) > furthest and step > 0:
                furthest, without_progress = (step, number), 0
            what = _what_happened(code, hung, hang_timeout, kills_before)
            if without_progress == max_restarts:
                times = (
                    f", {max_restarts + 1} times without a new checkpoint in between (runtime.max_restarts: "
                    f"{max_restarts})"
                )
                raise CrashedError(
                    f"{what}{times if max_restarts else ''}. The last checkpoint is of step {step}; the same command "
                    "resumes from there",
                    128 - code if code < 0 and not hung else EX_SOFTWARE,
                )
            without_progress += 1
            log.warning(
                "%s: starting again from %s (restart %d of %d without progress)",
                what,
                f"the checkpoint of step {step}" if step else "the beginning",
                without_progress,
                max_restarts,
            )


class _Child:
    """The child process, one start after the other; see `supervise`."""

    def __init__(self, command: Sequence[str], work: str, hang_timeout: float) -> None:
        self.stopped_by: str | None = None
        """Name of the first signal that was passed on."""
        self._command = command
        self._environment = os.environ | {WORK_VARIABLE: work}
        self._hang_timeout = hang_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._training: list[int] = []
        """Ids of the processes that train, each from its first sign of life on: the child, or what it launched."""
        self._is_training_told = False
        """Whether a signal was passed on to them."""

    @contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> tuple[int, bool]:
        """Run the command to its end: its return code (negative for a signal), and whether it hung."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = subprocess.Popen(self._command, stdin=theirs.fileno(), env=self._environment, process_group=0)
            self._unread, self._training = b"", []
            self._process = process
            try:
                if self.stopped_by is not None:  # it came before there was a process
                    process.terminate()
                hung = self._watch(process, ours)
            finally:
                self._end_all(process, ours)
            code = process.wait()
            return (SHELL_SIGNAL - code if code > SHELL_SIGNAL else code), hung

    def _watch(self, process: subprocess.Popen[bytes], link: socket.socket) -> bool:
        """Wait for the end of the process; whether it hung."""
        last_sign = time.monotonic()
        while process.poll() is None:
            if select.select([link], [], [], LOOK_EVERY)[0]:
                try:
                    signs = link.recv(4096)
                except ConnectionError:  # it ended without reading all
                    signs = b""
                if signs:
                    last_sign = time.monotonic()
                    self._note_training(signs)
                else:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(LOOK_EVERY)
            if self._hang_timeout and time.monotonic() - last_sign > self._hang_timeout:
                self._stop_hanging(process)
                return True
        return False

    def _note_training(self, signs: bytes) -> None:
        """Note the senders of signs of life; one that is new after a signal to the others gets it too."""
        *lines, self._unread = (self._unread + signs).split(b"\n")
        for process in map(int, dict.fromkeys(lines)):
            if process not in self._training:
                self._training.append(process)
                if self.stopped_by is not None and self._is_training_told:
                    _signal(os.kill, process, signal.Signals[self.stopped_by])

    def _stop_hanging(self, process: subprocess.Popen[bytes]) -> None:
        log.error("no sign of life for %g s; the stacks of all threads:", self._hang_timeout)
        leaders = self._training or [process.pid]
        for leader in leaders:
            for member in _group(leader):
                _signal(os.kill, member, signal.SIGQUIT)
                time.sleep(STACKS_PAUSE)
        for leader in leaders:
            _signal(os.kill, leader, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_PATIENCE)

    def _end_all(self, process: subprocess.Popen[bytes], link: socket.socket) -> None:
        """Kill the process, if it still runs, those that it launched, and their child processes, which hold the files
        that they have locked."""
        _signal(os.killpg, process.pid, signal.SIGKILL)
        process.wait()
        self._process = None
        with suppress(OSError):  # macOS: nobody has the other end
            link.shutdown(socket.SHUT_WR)  # those that are left end themselves, see `_end_with_parent`
        if not _is_closed(link, LOOK_EVERY):
            for group in self._training:
                _signal(os.killpg, group, signal.SIGKILL)
            _is_closed(link, END_PATIENCE)
        end = time.monotonic() + END_PATIENCE
        for group in {process.pid, *self._training}:
            with suppress(ChildProcessError):  # as process 1 of a container, this one inherits them; else it has none
                while time.monotonic() < end:
                    if os.waitpid(-group, os.WNOHANG)[0] == 0:
                        time.sleep(0.01)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number).name
        if self._process is None:
            return
        self._is_training_told = bool(self._training)
        for process in self._training or [self._process.pid]:
            _signal(os.kill, process, signal.Signals(number))


def _signal(send: Callable[[int, int], None], process: int, number: signal.Signals) -> None:
    """Send a signal to a process (`os.kill`) or to the group that it leads (`os.killpg`), if it is still there."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError if only zombies are left
        send(process, number)


def _group(leader: int) -> list[int]:
    """The processes of a process group, its leader first."""

    def group_of(process: int) -> int | None:
        with suppress(ProcessLookupError, PermissionError):
            return os.getpgid(process)
        return None

    members = [process for process in psutil.pids() if group_of(process) == leader]
    return sorted(members, key=lambda process: process != leader)


def _is_closed(link: socket.socket, seconds: float) -> bool:
    """Wait until nobody has the other end of a socket any more; whether that is so."""
    end = time.monotonic() + seconds
    with suppress(OSError):  # a timeout too
        while (left := end - time.monotonic()) > 0:
            link.settimeout(left)
            if not link.recv(4096):
                return True
    return False


def _what_happened(code: int, hung: bool, hang_timeout: float, kills_before: int | None) -> str:
    """A clause about the end of the training process; see `_Child.run` for ``code`` and ``hung``."""
    kills_after = oom_kills()
    limit = memory_limit()
    memory = f"memory (limit {limit / 2**30:.2f} GiB)" if limit else "memory"
    is_oom = kills_before is not None and kills_after is not None and kills_after > kills_before
    if hung:
        return f"the training process hung: no sign of life for {hang_timeout:g} s (runtime.hang_timeout)"
    if code == EX_SOFTWARE:
        oom = f" when the kernel had killed another process for lack of {memory}" if is_oom else ""
        return f"the training process ended with the error above{oom}"
    killed = f"the training process was killed ({signal.Signals(-code).name}"
    if is_oom:
        return f"{killed}, by the kernel for lack of {memory}; more memory, or a smaller train.batch_size, helps)"
    if code == -signal.SIGKILL and kills_after is None:
        return f"{killed}, perhaps by the kernel for lack of memory)"
    return f"{killed})"


class ParentLink:
    """A child's end of the socket, see `supervised`; to call is to tell the parent that this process makes progress."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._sign = f"{os.getpid()}\n".encode()
        self._last = 0.0

    def __call__(self) -> None:
        """Send a sign of life; no more than one in `LOOK_EVERY` seconds is sent."""
        now = time.monotonic()
        if now - self._last < LOOK_EVERY:
            return
        self._last = now
        with suppress(OSError):  # the parent is gone, or a terminal has suspended it
            self._link.send(self._sign, socket.MSG_DONTWAIT)

    def give_to_children(self) -> None:
        """Make it the standard input of the processes that this one starts, for their `supervised`."""
        os.dup2(self._link.fileno(), 0)


@contextmanager
def supervised() -> Iterator[tuple[str, ParentLink]]:
    """In the child: receive the work from `supervise`, and end with the parent.

    Exceptions are printed and become the exit code `EX_SOFTWARE`. On a fault in native code, and when the parent asks
    because of a hang, the stacks of all threads are written to standard error.

    Yields:
        The work, and the link to the parent: to be called once when this process begins to train, then whenever
        progress was made.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    link = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:  # other programs that this process starts must not hold the socket
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_end_with_parent, args=[link], name="end with parent", daemon=True).start()
    try:
        yield os.environ[WORK_VARIABLE], ParentLink(link)
    except Exception:
        traceback.print_exc()
        raise SystemExit(EX_SOFTWARE) from None


def _end_with_parent(link: socket.socket) -> None:
    """Kill this process group when the parent is gone: another parent may start the same work."""
    with suppress(OSError):
        while link.recv(1):
            pass
    os.killpg(0, signal.SIGKILL)
