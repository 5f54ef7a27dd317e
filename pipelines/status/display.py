"""States of runs and tasks in words, as lines and as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines.status.causes import Cause
from pipelines.status.runs import RunStatus, State, TaskStatus
from yolact_ops.reports.formatting import duration


def describe(task: TaskStatus) -> str:
    """A task's state in words: what it waits for, which attempt runs, why it failed."""
    number, most = len(task.attempts), task.max_attempts
    if task.state is State.WAITING:
        after = f" (try {number} of {most} failed: {printable(task.cause.text)})" if task.cause else ""
        return f"waiting for {task.detail}{after}"
    if task.state is State.RUNNING:
        return f"running{f' (try {number} of {most})' if number > 1 else ''}"
    if task.state is State.SUCCEEDED:
        return f"succeeded{_after(task)}{f' (try {number})' if number > 1 else ''}"
    if task.state in (State.FAILED, State.STOPPED):
        cause = f": {printable(task.cause.text)}" if task.cause else ""
        tries = f" (try {number} of {most})" if number > 1 and task.failed else ""
        return f"{task.state}{_after(task) if task.state is State.FAILED else ''}{tries}{cause}"
    return str(task.state)


def describe_run(run: RunStatus) -> Iterator[str]:
    """A run and its tasks, a line each."""
    yield f"run {printable(run.name)}: {run.state}{', and being stopped' if run.is_stopping else ''}"
    yield f"  id       {run.run_id}"
    for label, moment in (("created", run.created), ("finished", run.finished)):
        if moment:
            yield f"  {label:8} {moment.astimezone():%Y-%m-%d %H:%M:%S}"
    width = max((len(task.name) for task in run.tasks), default=0)
    for task in run.tasks:
        yield f"  {_clock(task.started):8}  {task.name:{width}}  {describe(task)}"
    if run.lacking:
        yield run.lacking


def explain_failure(run: RunStatus) -> Iterator[str]:
    """Why a run failed: for each task that failed the cause, the end of its log, and what to do.

    A run may have been stopped because a task had failed before.
    """
    if run.start_cause:
        yield f"the run could not start: {printable(run.start_cause.text)}"
        yield from _what_to_do(run.start_cause, run)
    for task in run.tasks:
        if task.state is not State.FAILED and not (task.state is State.STOPPED and task.cause):
            continue
        yield f"task {task.name}: {describe(task)}"
        yield from (f"  | {printable(line)}" for line in task.log_end)
        if task.cause:
            yield from _what_to_do(task.cause, run)
    if run.state is State.FAILED and not run.start_cause and not run.failed_tasks:
        yield "no task is known to have failed; the web interface may say more"


def make_table(run: RunStatus, last_lines: Mapping[str, str]) -> Table:
    """The tasks of a run as a table.

    Args:
        run: the run.
        last_lines: the last line of output of a task, by the task's name.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("task", "since", "state"):
        table.add_column(heading, no_wrap=heading != "state")
    for task in run.tasks:
        lines = [describe(task), *([last_lines[task.name]] if task.name in last_lines else [])]
        style = {State.FAILED: "red", State.RUNNING: "bold", State.NOT_REACHED: "dim"}.get(task.state, "")
        table.add_row(escape(task.name), _clock(task.started), escape("\n".join(lines)), style=style)
    return table


def advise(cause: Cause, run: RunStatus) -> str:
    """What to do about a cause, with the run's id in its commands; empty if only the log can say."""
    return re.sub(r"\bRUN\b", run.run_id, cause.advice)


def printable(text: str) -> str:
    """A text of somebody else without what would control the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def age(moment: datetime | None) -> str:
    """How long ago a moment was; ``-`` for None."""
    return duration((datetime.now(UTC) - moment).total_seconds() if moment else None)


def _what_to_do(cause: Cause, run: RunStatus) -> Iterator[str]:
    if cause.advice:
        yield f"  What to do: {advise(cause, run)}"


def _after(task: TaskStatus) -> str:
    if not (task.started and task.finished):
        return ""
    return f" after {duration((task.finished - task.started).total_seconds())}"


def _clock(moment: datetime | None) -> str:
    return f"{moment.astimezone():%H:%M:%S}" if moment else ""
