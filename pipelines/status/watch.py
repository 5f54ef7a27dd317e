"""Wait for a run: report what changes and what its tasks print, and retry it if that may help."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from rich.console import Console
from rich.live import Live

from pipelines.servers.connection import BUSY, ClusterError
from pipelines.status.display import describe, explain_failure, make_table
from pipelines.status.logs import PROGRESS, NewLines, own_lines
from pipelines.status.nodes import PENDING, Node
from pipelines.status.reader import RunReader
from pipelines.status.runs import RunStatus, State
from yolact.errors import YolactError

INTERVAL = 10.0
"""Seconds between two looks at the run."""

PATIENCE = 900.0
"""Seconds that a server may be unavailable while waiting for a run."""


class RunFailedError(YolactError, RuntimeError):
    """The run failed or was stopped."""

    exit_code = 3


class Screen(Protocol):
    """Where a wait reports."""

    def tell(self, text: str) -> None:
        """A message about the wait itself."""

    def show(self, run: RunStatus, printed: Mapping[str, Sequence[str]]) -> None:
        """The run as it is now, and what tasks have printed since the last call, by their names."""


class Lines:
    """A line for each change, for pipes and logs of CI."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._is_starting = False

    def tell(self, text: str) -> None:
        print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", flush=True)

    def show(self, run: RunStatus, printed: Mapping[str, Sequence[str]]) -> None:
        if not run.is_over and all(task.state is State.NOT_REACHED for task in run.tasks):
            if not self._is_starting:
                self.tell("the run is starting")
            self._is_starting = True  # also after a retry, when what was done is not known for a moment
            return
        self._is_starting = False
        for task in run.tasks:
            state = describe(task)
            lines = [f"{task.name}: {line}" for line in printed.get(task.name, ())]
            without_time = describe(replace(task, started=None))  # it changes a little when a pod is removed
            if self._seen.get(task.name, State.NOT_REACHED) != without_time:
                self._seen[task.name] = without_time
                lines.insert(len(lines) if task.is_over else 0, f"{task.name}: {state}")
            for line in lines:
                self.tell(line)


class LiveTable:
    """A table of the tasks that changes in place, for terminals."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: dict[str, str] = {}

    def tell(self, text: str) -> None:
        self._live.console.print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", markup=False, highlight=False)

    def show(self, run: RunStatus, printed: Mapping[str, Sequence[str]]) -> None:
        self._last |= {name: lines[-1] for name, lines in printed.items() if lines}
        self._live.update(make_table(run, self._last), refresh=True)


@contextmanager
def open_screen() -> Iterator[Screen]:
    """A live table if standard output is a terminal, lines otherwise."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    with Live(console=Console(), auto_refresh=False) as live:
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
    output = _Output(reader)
    left = retries
    last_answer = time.monotonic()
    said = ""
    while True:
        try:
            run = reader.read(run_id)
        except ClusterError as error:
            may_come_back = error.status in (None, *BUSY) or (
                error.status == 401 and reader.cluster.connection.renews_tokens
            )
            if error.status == 404:
                raise
            if not may_come_back or time.monotonic() - last_answer > PATIENCE:
                raise ClusterError(
                    f"{error} The run continues; wait again with `python -m pipelines wait {run_id}`.",
                    status=error.status,
                ) from error
            if str(error) != said:
                said = str(error)
                screen.tell(f"trying again: {said}")
            time.sleep(INTERVAL)
            continue
        last_answer = time.monotonic()
        screen.show(run, output.take_new(run))
        if run.lacking and run.lacking != said:
            said = run.lacking
            screen.tell(said)
        if run.is_over:
            if not (left and run.may_pass):
                return run
            for line in explain_failure(run):
                screen.tell(line)
            screen.tell(f"retrying the run ({retries - left + 1} of {retries})")
            left -= 1
            try:
                reader.cluster.retry(run_id)
            except ClusterError as error:
                screen.tell(f"the run cannot be retried: {error}")
                return run
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
    """What the pods have printed since the last look."""

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader
        self._logs: dict[tuple[str, datetime | None], NewLines] = {}
        """By `Node.key`."""
        self._ended: set[tuple[str, datetime | None]] = set()
        """Those whose end has been read."""

    def take_new(self, run: RunStatus) -> dict[str, list[str]]:
        """The new lines that tell a task's progress, by the task's name."""
        found: dict[str, list[str]] = {}
        for task in run.tasks:
            for node in task.attempts:
                if node.phase != PENDING and node.key not in self._ended:
                    is_running = node is task.attempts[-1] and task.state is State.RUNNING
                    lines = self._logs.setdefault(node.key, NewLines()).take(self._read(run.run_id, node, is_running))
                    found.setdefault(task.name, []).extend(PROGRESS.sub("", line, count=1) for line in lines)
                    if not is_running:
                        self._ended.add(node.key)
        return found

    def _read(self, run_id: str, node: Node, is_running: bool) -> list[str]:
        try:
            text = self._reader.logs.read(run_id, node)
        except ClusterError:  # not there yet, or no source has it: the end of the wait says so
            return []
        if is_running:
            text = text[: text.rfind("\n") + 1]  # the last line may be incomplete
        return [line for line in own_lines(text) if PROGRESS.match(line)]
