"""Wait for a run: report what changes and what its tasks print, and retry it if that may help."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from rich.console import Console
from rich.live import Live

from pipelines.connection import BUSY, ClusterError
from pipelines.display import describe, explain_failure, make_table
from pipelines.logs import own_lines
from pipelines.nodes import PENDING, Node
from pipelines.reader import RunReader
from pipelines.runs import RunStatus, State, TaskStatus
from yolact.errors import YolactError

INTERVAL = 10.0
"""Seconds between two looks at the run."""

PATIENCE = 900.0
"""Seconds that a server may be unavailable while waiting for a run."""

RETRY_PATIENCE = 120.0
"""Seconds that the server may take to show a retried run as running again."""

PROGRESS = re.compile(r"\[[\w-]+\] ")
"""Start of the lines of a step that tell its progress."""


class RunFailedError(YolactError, RuntimeError):
    """The run failed or was stopped."""

    exit_code = 3


class Screen(Protocol):
    """Where a wait reports."""

    def tell(self, text: str) -> None:
        """A message about the wait itself."""

    def show(self, run: RunStatus) -> None:
        """The run as it is now."""

    def progress(self, task: TaskStatus, line: str) -> None:
        """A line that a task has printed."""


class Lines:
    """A line for each change, for pipes and logs of CI."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def tell(self, text: str) -> None:
        print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", flush=True)

    def show(self, run: RunStatus) -> None:
        for task in run.tasks:
            state = describe(task)
            if self._seen.get(task.name, State.NOT_REACHED) != state:
                self._seen[task.name] = state
                self.tell(f"{task.name}: {state}")

    def progress(self, task: TaskStatus, line: str) -> None:
        self.tell(f"{task.name}: {PROGRESS.sub('', line, count=1)}")


class LiveTable:
    """A table of the tasks that changes in place, for terminals."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: dict[str, str] = {}

    def tell(self, text: str) -> None:
        self._live.console.print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", markup=False, highlight=False)

    def show(self, run: RunStatus) -> None:
        self._live.update(make_table(run, self._last), refresh=True)

    def progress(self, task: TaskStatus, line: str) -> None:
        self._last[task.name] = PROGRESS.sub("", line, count=1)


@contextmanager
def open_screen() -> Iterator[Screen]:
    """A live table if standard output is a terminal, lines otherwise."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        yield LiveTable(live)


def wait(reader: RunReader, run_id: str, screen: Screen, retries: int = 0) -> RunStatus:
    """Look at a run until it ends.

    The server may be unavailable for `PATIENCE` seconds.

    Args:
        reader: reads it.
        run_id: its id.
        screen: shows it.
        retries: how often a run that failed is retried, if all causes may be gone then.

    Raises:
        ClusterError: the server refuses, or stays unavailable; the run continues.
    """
    output = _Output(reader, screen)
    left, retried = retries, float("-inf")
    last_answer = time.monotonic()
    said = ""
    while True:
        try:
            run = reader.read(run_id)
            last_answer = time.monotonic()
            output.show_new(run)
            screen.show(run)
            if run.lacking and run.lacking != said:
                said = run.lacking
                screen.tell(said)
            is_stale = run.is_over and time.monotonic() - retried < RETRY_PATIENCE and not output.has_changed(run)
            if run.is_over and not is_stale:
                if not (left and run.may_pass):
                    return run
                for line in explain_failure(run):
                    screen.tell(line)
                screen.tell(f"retrying the run ({retries - left + 1} of {retries})")
                output.remember(run)
                reader.cluster.retry(run_id)
                left, retried = left - 1, time.monotonic()
        except ClusterError as error:
            is_token_old = error.status == 401 and reader.cluster.connection.renews_tokens
            away = error.status is None or error.status in BUSY or is_token_old
            if not away or time.monotonic() - last_answer > PATIENCE:
                raise ClusterError(
                    f"{error} The run continues; wait again with `python -m pipelines wait {run_id}`.",
                    status=error.status,
                ) from error
            screen.tell(f"the server {'refuses the token' if is_token_old else 'does not answer'}; trying again")
        time.sleep(INTERVAL)


def check_success(run: RunStatus, address: str) -> None:
    """Do nothing if the run succeeded.

    Args:
        run: the run.
        address: of the run in the web interface, for the message.

    Raises:
        RunFailedError: it did not; the message has the failed tasks, the causes, the ends of logs, and what to do.
    """
    if run.state is State.SUCCEEDED:
        return
    head = f"run {run.name} ({run.run_id}) {'was stopped' if run.state is State.STOPPED else 'failed'}"
    raise RunFailedError("\n".join([head, *explain_failure(run), f"See {address}"]))


class _Output:
    """What the pods have printed, and how much of it has been shown."""

    def __init__(self, reader: RunReader, screen: Screen) -> None:
        self._reader = reader
        self._screen = screen
        self._shown: dict[str, int] = {}
        """Lines by node."""
        self._ended: set[str] = set()
        """Nodes whose whole log has been shown."""
        self._before_retry: tuple[object, ...] | None = None

    def show_new(self, run: RunStatus) -> None:
        for task in run.tasks:
            for node in task.attempts[-1:]:
                if node.phase != PENDING and node.id not in self._ended:
                    self._show(run.run_id, task, node)

    def _show(self, run_id: str, task: TaskStatus, node: Node) -> None:
        try:
            text = self._reader.logs.read(run_id, node)
        except ClusterError:  # not there yet, or no source has it: the end of the wait says so
            text = ""
        if task.state is State.RUNNING:
            text = text[: text.rfind("\n") + 1]  # the last line may be incomplete
        else:
            self._ended.add(node.id)
        lines = [line for line in own_lines(text) if PROGRESS.match(line)]
        for line in lines[self._shown.get(node.id, 0) :]:
            self._screen.progress(task, line)
        self._shown[node.id] = max(len(lines), self._shown.get(node.id, 0))

    def remember(self, run: RunStatus) -> None:
        """Keep the state before a retry, to recognise when the server still gives it."""
        self._before_retry = _marks(run)

    def has_changed(self, run: RunStatus) -> bool:
        return _marks(run) != self._before_retry


def _marks(run: RunStatus) -> tuple[object, ...]:
    return (run.state, run.finished, *((task.state, task.started) for task in run.tasks))
