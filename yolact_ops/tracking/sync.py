"""Sending what runs could not send while their server was away: ``yolact sync``, and at the start of each run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.errors import YolactError
from yolact_ops.tracking.journal import Journal, JournalBusyError, RunRecord, find_journals
from yolact_ops.tracking.sender import JournalSender
from yolact_ops.tracking.store import (
    DEFAULT_TRACKING_URI,
    connect,
    default_environment,
    reason_of,
    shown_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one journal."""

    folder: Path
    sent: str
    """For people, as ``312 metrics and 4 files``."""
    problem: str
    """Why something of it is left; empty where nothing is."""


def sync(parent: Path) -> Iterator[Outcome]:
    """Send every journal below ``parent`` (``models/tracking``), one after the other.

    They go to ``MLFLOW_TRACKING_URI``, or to where their runs had begun where that is not set.
    """
    for folder in find_journals(parent):
        try:
            record = RunRecord.read(folder / "run.json")
            begun = {} if record.tracking_uri == DEFAULT_TRACKING_URI else {"MLFLOW_TRACKING_URI": record.tracking_uri}
            with default_environment(begun):
                yield send_journal(folder, connect())
        except (YolactError, OSError, ValueError) as error:  # one bad journal must not hold the others back
            yield Outcome(folder, "nothing", str(error))


def send_journal(folder: Path, client: MlflowClient) -> Outcome:
    """Send what is left in a journal; it is removed when MLflow has everything.

    Raises:
        JournalBusyError: a step is working with it, and sends it itself.
        DataError: it is no journal.
    """
    journal = Journal(folder, patience=0)
    try:
        before, sender, problems = journal.left(), JournalSender(client, journal), []
        for lane in (sender.records, sender.files):
            try:
                lane.send_all()
            except Exception as error:  # the other lane may get through
                problems.append(f"{shown_uri()}: {reason_of(error)}")
        if journal.refused:
            problems.append(f"what MLflow will never take, and why, is in {folder / 'refused.jsonl'}")
        left = journal.left()
        if problems:
            problems.insert(0, f"{left} left; remove {folder} to give that up")
        return Outcome(folder, before if left == "nothing" else f"{before}, but for {left}", "\n".join(problems))
    finally:
        journal.release()


def send_leftovers(parent: Path, but: str, client: MlflowClient) -> None:
    """Begin to send the journals of other runs of the same store, in a thread that nothing waits for.

    Args:
        parent: of the journals.
        but: id of the run whose journal is left alone.
        client: of the store, which has answered.
    """
    found = [folder for folder in find_journals(parent) if folder.name != but]
    if found:
        threading.Thread(target=_send_each, args=(found, client), name="MLflow leftovers", daemon=True).start()


def _send_each(folders: list[Path], client: MlflowClient) -> None:
    for folder in folders:
        try:
            if RunRecord.read(folder / "run.json").tracking_uri != shown_uri():
                continue
            outcome = send_journal(folder, client)
        except JournalBusyError:
            continue
        except (YolactError, OSError, ValueError) as error:
            outcome = Outcome(folder, "nothing", str(error))
        if outcome.problem:
            log.warning("%s of an earlier run: %s", folder, outcome.problem)
        else:
            log.info("an earlier run's %s went to %s", outcome.sent, shown_uri())
