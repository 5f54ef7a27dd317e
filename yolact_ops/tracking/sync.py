"""Send journals left by earlier runs: ``yolact sync``, and at the start of each run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.errors import YolactError
from yolact_ops.tracking.journal import Journal, JournalBusyError, find_journals
from yolact_ops.tracking.run_record import RUN_FILE, RunRecord
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
    """Result of sending one journal."""

    folder: Path
    sent: str
    """What was sent, as ``312 metrics and 4 files``."""
    problem: str
    """Why something is left; empty if nothing is."""


def sync(parent: Path) -> Iterator[Outcome]:
    """Send every journal below ``parent`` (``models/tracking``) in turn.

    They go to ``MLFLOW_TRACKING_URI`` or, if that is not set, to the store where their runs began.
    """
    for folder in find_journals(parent):
        try:
            record = RunRecord.read(folder / RUN_FILE)
            begun = {} if record.tracking_uri == DEFAULT_TRACKING_URI else {"MLFLOW_TRACKING_URI": record.tracking_uri}
            with default_environment(begun):
                yield send_journal(folder, connect())
        except (YolactError, OSError, ValueError) as error:  # one bad journal must not block the others
            yield Outcome(folder, "nothing", str(error))


def send_journal(folder: Path, client: MlflowClient) -> Outcome:
    """Send the rest of a journal, and remove it once MLflow has everything. A run left RUNNING becomes KILLED.

    Raises:
        JournalBusyError: a step is using it, and sends it itself.
        DataError: the folder is not a journal.
    """
    journal = Journal(folder, patience=0)
    try:
        journal.end_if_killed()
        before, sender, problems = journal.left(), JournalSender(client, journal), []
        for lane in (sender.records, sender.files):
            try:
                lane.send_all()
            except Exception as error:  # the other lane may succeed
                problems.append(f"{shown_uri()}: {reason_of(error)}")
        if journal.refused:
            problems.append(f"what MLflow rejected, and why, is in {folder / 'refused.jsonl'}")
        left = journal.left()
        if problems:
            problems.insert(0, f"{left} left; remove {folder} to drop them")
        return Outcome(folder, before if left == "nothing" else f"{before}, except {left}", "\n".join(problems))
    finally:
        journal.release()


def send_leftovers(parent: Path, but: str, client: MlflowClient) -> None:
    """Start a background thread that sends the journals of other runs of the same store.

    Args:
        parent: folder of the journals.
        but: id of the run whose journal is skipped.
        client: a connected client of the store.
    """
    found = [folder for folder in find_journals(parent) if folder.name != but]
    if found:
        threading.Thread(target=_send_each, args=(found, client), name="MLflow leftovers", daemon=True).start()


def _send_each(folders: list[Path], client: MlflowClient) -> None:
    for folder in folders:
        try:
            if RunRecord.read(folder / RUN_FILE).tracking_uri != shown_uri():
                continue
            outcome = send_journal(folder, client)
        except JournalBusyError:
            continue
        except (YolactError, OSError, ValueError) as error:
            outcome = Outcome(folder, "nothing", str(error))
        if outcome.problem:
            log.warning("%s of an earlier run: %s", folder, outcome.problem)
        else:
            log.info("sent %s of an earlier run to %s", outcome.sent, shown_uri())
