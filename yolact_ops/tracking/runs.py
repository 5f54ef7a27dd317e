"""Open a run. One run spans train, evaluate and register; `yolact_ops.tracking.run_record` decides which.

The store is ``MLFLOW_TRACKING_URI``, or else the SQLite file ``mlflow.db`` in the working folder (the repository's
root) with artifacts in ``mlruns/`` next to it; ``mlflow ui`` there shows both. MLflow stores the absolute path of an
experiment's artifacts: after the folder is moved, metrics and parameters of old runs are still there, but artifacts
are read from and written to the old path. To move folders, run ``mlflow server`` and set ``MLFLOW_TRACKING_URI``.

A run is RUNNING while a step works on it, FINISHED between steps, FAILED after an error and KILLED after Ctrl-C or
SIGTERM; the next step or attempt sets it to RUNNING again. One whose process was killed becomes KILLED when the
training is given up, at the next start of a run here, or by ``yolact sync``.

An unavailable server. Everything logged goes to a journal in ``models/tracking/<run id>/`` and from there to MLflow in
background threads (`yolact_ops.tracking.sender`): nothing waits for the network and nothing is lost. Only starting a
new run needs the server; evaluate and a resumed training do not. What is not sent by the end of a step is sent by
the next step of the run or by ``yolact sync``. A step whose folder disappears with its pod (Kubeflow Pipelines) needs
the store at its end too; there, train keeps its journal with its checkpoints.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.engine.interrupts import InterruptedRunError
from yolact_ops.settings.params import Params
from yolact_ops.tracking.journal import FOLDER, Journal
from yolact_ops.tracking.run_record import TRAIN_RUN_TAG, FoundRun, RunRecord, which_run, which_run_unasked
from yolact_ops.tracking.sender import JournalSender
from yolact_ops.tracking.store import (
    StoreUnavailableError,
    connect,
    default_environment,
    new_client,
    reported,
    shown_uri,
)
from yolact_ops.tracking.sync import send_leftovers
from yolact_ops.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

LAST_PATIENCE = 10.0
"""Seconds that the end of an interrupted run waits for MLflow; a pod that is moved is killed after 30 by default."""

_SENDING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""While a journal is sent, the sender retries; retries by MLflow itself would only delay the entries behind."""

log = logging.getLogger(__name__)


@contextmanager
def start_run(
    params: Params, run_file: Path, *, resume: RunRecord | None = None, journals: Path | None = None
) -> Iterator[Tracker]:
    """Open the run of the train step, and write ``run_file``.

    Args:
        params: logged in full; the experiment ``register.experiment`` is created if necessary.
        run_file: ``models/run.json``.
        resume: the run of an interrupted training, which resumes even while its store is unavailable.
        journals: parent folder of the journal, if it must outlive the folder of ``run_file``; what is unsent at the
            end is copied to the latter for the next steps. None: the folder of ``run_file``.

    Raises:
        StoreUnavailableError: the store is unavailable, and no run is resumed.
        TrackingError: the store refuses, or does not have the run that ``MLFLOW_RUN_ID`` names.
        JournalBusyError: another process works on the run.
    """
    run_file.parent.mkdir(parents=True, exist_ok=True)
    opened = _open(params, resume, needs_store=resume is None)
    record = opened.run.record
    with _working(opened, journals or journals_of(run_file)) as tracker:
        if not opened.is_unavailable:
            tracker.describe(params, step="train", known=opened.run.params)
        record.write(run_file)
        yield tracker
    if journals is not None and (left := journals / record.run_id).is_dir():
        shutil.copytree(left, run_file.parent / FOLDER / left.name, dirs_exist_ok=True)


@contextmanager
def resume_run(
    params: Params, run_file: Path, *, step: str = "register", needs_store: bool = True
) -> Iterator[Tracker]:
    """Open the run that the train step recorded in ``run_file``, for evaluate and register.

    Args:
        params: logged in full if the run is not the train step's.
        run_file: ``models/run.json``.
        step: name of the current step.
        needs_store: fail if the store is unavailable at the start or the end; otherwise the step works without it, and
            its journal is sent later.

    Raises:
        DataError: ``run_file`` is missing or invalid.
        StoreUnavailableError: the store is unavailable, and the step needs it.
        TrackingError: the store refuses, does not have the run that ``MLFLOW_RUN_ID`` names, or did not receive
            everything by the end of a step that needs it.
        JournalBusyError: another process works on the run.
    """
    recorded = RunRecord.read(run_file)
    opened = _open(params, recorded, needs_store=needs_store)
    with _working(opened, journals_of(run_file), train_run_id=recorded.run_id, needs_store=needs_store) as tracker:
        if opened.run.is_new:
            tracker.describe(params, step=step, known=opened.run.params)
        if tracker.run_id != recorded.run_id and not opened.run.is_owned:
            tracker.set_tags({TRAIN_RUN_TAG: recorded.run_id})
        yield tracker


@dataclass(frozen=True)
class _Opened:
    """A run that a step is about to work on."""

    client: MlflowClient
    run: FoundRun
    is_unavailable: bool = False
    """The store was unavailable."""


def _open(params: Params, recorded: RunRecord | None, *, needs_store: bool) -> _Opened:
    """Find the run of a step; if the store is unavailable and not needed, use the recorded run."""
    try:
        with default_environment({} if needs_store else _SENDING):
            client = connect()
            return _Opened(client, which_run(client, params.register_.experiment, recorded))
    except StoreUnavailableError as error:
        if needs_store or recorded is None or recorded.tracking_uri != shown_uri():
            raise
        log.warning("%s\nThe step continues; its metrics are sent when the server is back.", str(error).split("\n")[0])
        return _Opened(new_client(), which_run_unasked(recorded), is_unavailable=True)


@contextmanager
def _working(
    opened: _Opened, parent: Path, *, train_run_id: str | None = None, needs_store: bool = False
) -> Iterator[Tracker]:
    """Send the run's journal, below ``parent``, while a step works; set the run's status if it is owned."""
    run, is_unavailable = opened.run, opened.is_unavailable
    with default_environment({} if needs_store else _SENDING):
        journal = _open_journal(parent, opened)
        sender = JournalSender(opened.client, journal)
        tracker = Tracker(opened.client, journal, train_run_id=train_run_id, is_unavailable=is_unavailable)
        if run.is_owned:
            tracker.set_status("RUNNING", ended=False)
        if not is_unavailable:
            _send_first(sender, opened, needs_store=needs_store)
        sender.start()
        if not is_unavailable:
            send_leftovers(parent, run.record.run_id, opened.client)
        try:
            yield tracker
        except BaseException as error:
            if run.is_owned:
                is_stopped = isinstance(error, KeyboardInterrupt | InterruptedRunError)
                with suppress(OSError):  # such as a full disk; the first error is the one to report
                    tracker.set_status("KILLED" if is_stopped else "FAILED", ended=True)
            sender.close(LAST_PATIENCE)
            raise
        try:
            if run.is_owned:
                tracker.set_status("FINISHED", ended=True)
        finally:
            sender.close()
        if needs_store and not journal.is_taken:
            raise StoreUnavailableError(
                f"{shown_uri()} did not receive everything of run {run.record.run_id}, which this step needs before it "
                "ends. Run it again when the server and its artifact store work."
            )


def _open_journal(parent: Path, opened: _Opened) -> Journal:
    """The run's journal; if it cannot be written, the run is marked as failed."""
    try:
        return Journal(parent / opened.run.record.run_id, opened.run.record)
    except OSError:
        if opened.run.is_owned and not opened.is_unavailable:
            _mark_failed(opened)
        raise


def _mark_failed(opened: _Opened) -> None:
    """Mark the run as failed at once, bypassing the journal."""
    with suppress(Exception), default_environment(_SENDING):  # the first error is the one to report
        opened.client.set_terminated(opened.run.record.run_id, "FAILED")


def _send_first(sender: JournalSender, opened: _Opened, *, needs_store: bool) -> None:
    """Send what earlier steps left, and the status, so that a refusal is reported before the step's work begins.

    Raises:
        TrackingError: the store fails; if it is unavailable, only where the step needs it or the run is new.
    """
    journal, run = sender.journal, opened.run
    try:
        with reported("open the run"):
            sender.records.send_all()
    except BaseException as error:
        if isinstance(error, StoreUnavailableError) and not needs_store and not run.is_new:
            return
        if run.is_new and journal.is_new:
            journal.discard()
        if run.is_new and run.is_owned:
            _mark_failed(opened)
        journal.release()
        raise


def journals_of(run_file: Path) -> Path:
    """Folder of the journals: next to ``run_file``, or in the repository that runs a DVC experiment.

    An experiment of ``dvc exp run --temp`` has a temporary folder, which disappears at its end.
    """
    root = os.environ.get("DVC_ROOT")
    if root and os.environ.get("MLFLOW_TRACKING_URI") and not run_file.is_absolute():
        return Path(root) / run_file.parent / FOLDER
    return run_file.parent / FOLDER
