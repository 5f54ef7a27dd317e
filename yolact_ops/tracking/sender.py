"""Send a journal to MLflow in background threads, so that a run never waits for the network.

Sending is idempotent, for when a response is lost: MLflow's SQL stores identify a metric by name, step, time and value;
tags, parameters, inputs, the run's status and files are replaced by equal ones. Only MLflow's old file store
(``mlruns/`` without a database) shows such metrics twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_ops.tracking.journal import UNREADABLE, Entry, Journal, Lane
from yolact_ops.tracking.store import Failure, TrackingError, failure_of, reason_of, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100
"""Limits per request (mlflow.utils.validation: MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH)."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between attempts, doubled after each failure."""
CLOSING_PATIENCE = 60.0
"""Seconds without progress after which the end of a run stops waiting; MLflow's own timeouts take minutes."""


def send_records(client: MlflowClient, journal: Journal, entries: Sequence[Entry]) -> int:
    """Send the first entries of `Journal.records` that fit into one request, and return their number.

    An entry is one of ``{"metrics": {name: value}, "time": ms, "step": n, "model_id": id or null}``,
    ``{"tags": {name: value}}``, ``{"params": {name: value}}``, ``{"status": name, "time": ms or null}`` and
    ``{"inputs": [{...}]}`` with the fields of an `mlflow.entities.Dataset` and its ``context``.
    """
    run_id, first = journal.record.run_id, entries[0]
    if "status" in first:
        if first["time"] is None:
            client.update_run(run_id, status=first["status"])
        else:
            client.set_terminated(run_id, first["status"], first["time"])
        return 1
    if "inputs" in first:
        _send_inputs(client, run_id, first["inputs"])
        return 1
    return _send_batch(client, run_id, entries)


def _send_batch(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> int:
    from mlflow.entities import Metric, Param, RunTag

    metrics: list[Metric] = []
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    count = 0
    for entry in entries:
        if entry.keys() & {"status", "inputs", UNREADABLE}:
            break
        new = entry.get("metrics", {})
        sizes = (len(metrics) + len(new), len(params | entry.get("params", {})), len(tags | entry.get("tags", {})))
        if count and any(size > most for size, most in zip(sizes, (MOST_METRICS, MOST_PARAMS, MOST_TAGS), strict=True)):
            break
        for name, value in new.items():
            metrics.append(Metric(name, value, entry["time"], entry["step"], model_id=entry.get("model_id")))
        params |= entry.get("params", {})
        tags |= entry.get("tags", {})
        count += 1
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(name, value) for name, value in params.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    return count


def _send_inputs(client: MlflowClient, run_id: str, inputs: Sequence[Entry]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    sets = [
        DatasetInput(
            Dataset(**{name: value for name, value in fields.items() if name != "context"}),
            tags=[InputTag("mlflow.data.context", fields["context"])],
        )
        for fields in inputs
    ]
    client.log_inputs(run_id, datasets=sets)


def send_files(client: MlflowClient, journal: Journal, entries: Sequence[Entry]) -> int:
    """Store the file of the first entry (`Journal.add_file`) with the run, remove its copy, and return 1."""
    entry = entries[0]
    copy = journal.copy_of(entry)
    if copy.is_file():  # otherwise it was sent, and the process died before recording that
        client.log_artifact(journal.record.run_id, str(copy), entry["path"])
        journal.drop_copy(entry)
    return 1


class Sender:
    """Sends one lane of a journal. A failure is reported once and retried until it succeeds or the run ends.

    Args:
        client: client of the store that has the run.
        journal: the journal.
        lane: the journal's lane to send.
        send: sends entries, and returns how many it sent.
        what: name of the entries in messages, as ``metrics``.
    """

    def __init__(
        self,
        client: MlflowClient,
        journal: Journal,
        lane: Lane,
        send: Callable[[MlflowClient, Journal, Sequence[Entry]], int],
        what: str,
    ) -> None:
        self._client, self._journal, self._lane, self._send, self._what = client, journal, lane, send, what
        self._closing = threading.Event()
        self._abandoned = False
        self._singly = 0  # number of entries to send one by one, because one of them is invalid
        self._thread = threading.Thread(target=self._work, name=f"MLflow {what}", daemon=True)
        self.error: Exception | None = None
        """Error of the last attempt; None after a success."""

    def start(self) -> None:
        """Send in the background, until `close`."""
        self._thread.start()

    def send_all(self) -> None:
        """Send everything in this thread.

        Raises:
            Exception: an error of the store; the failed entry and all later ones stay in the lane.
        """
        while not self._lane.is_empty:
            self._step()

    def hurry(self) -> None:
        """Retry at once, and stop after the next attempt that fails; one that is under way does not count."""
        self._closing.set()
        self._lane.wake()

    def close(self, patience: float) -> None:
        """Wait until everything is sent, an attempt fails, or ``patience`` seconds pass without progress; then stop."""
        self.hurry()
        position, end = self._lane.position, time.monotonic() + patience
        while self._thread.is_alive() and time.monotonic() < end:
            self._thread.join(0.2)
            if self._lane.position != position:
                position, end = self._lane.position, time.monotonic() + patience
        self._abandoned = True

    def _work(self) -> None:
        wait = FIRST_WAIT
        while not self._abandoned:
            if self._lane.is_empty:
                if self._closing.is_set():
                    return
                self._lane.wait(1.0)
                continue
            is_last = self._closing.is_set()  # read first: the server may return during the attempt
            try:
                self._step()
            except Exception as error:  # any error: it must not end the thread silently
                self._report(error)
                if is_last:
                    return
                self._closing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                wait = FIRST_WAIT

    def _step(self) -> None:
        """Send one request. Entries that the store rejects as invalid, or that are unreadable, are set aside."""
        pending = self._lane.read(1 if self._singly else MOST_METRICS)
        entries = [entry for entry, _ in pending]
        try:
            if UNREADABLE in entries[0]:
                self._set_aside(entries[0], "a damaged line of the journal")
                count = 1
            else:
                count = self._send(self._client, self._journal, entries)
        except Exception as error:
            if failure_of(error) is not Failure.INVALID:
                raise
            if len(pending) > 1:
                self._singly = len(pending)
                return
            self._check_run()
            self._send_parts(entries[0], error)
            count = 1
        if self._abandoned:
            return
        self._lane.mark_sent(sum(length for _, length in pending[:count]))
        self._singly = max(0, self._singly - count)
        if self.error is not None:
            log.info("%s accepts the %s of run %s again", shown_uri(), self._what, self._journal.record.run_id)
            self.error = None

    def _send_parts(self, entry: Entry, error: Exception) -> None:
        """Send an invalid entry's metrics, parameters or tags one by one, and set aside those that are invalid.

        Raises:
            Exception: an error of the store; all of them are sent again.
        """
        parts, refused = _parts(entry), []
        if len(parts) == 1:
            refused = [(entry, reason_of(error))]
            parts = []
        for part in parts:
            try:
                self._send(self._client, self._journal, [part])
            except Exception as invalid:
                if failure_of(invalid) is not Failure.INVALID:
                    raise
                refused.append((part, reason_of(invalid)))
        for part, reason in refused:
            self._set_aside(part, reason)

    def _check_run(self) -> None:
        """Check that the run exists: MLflow calls valid entries of a deleted run invalid.

        Raises:
            RunGoneError: the run was deleted.
        """
        run_id = self._journal.record.run_id
        if self._client.get_run(run_id).info.lifecycle_stage != "active":
            raise RunGoneError(f"run {run_id} was deleted; restore it with `mlflow runs restore --run-id {run_id}`")

    def _set_aside(self, entry: Entry, reason: str) -> None:
        self._journal.set_aside(entry, reason)
        log.warning(
            "%s rejects %s of run %s (%s); the rest is sent, and it is kept in %s",
            shown_uri(),
            _named(entry) or f"some of the {self._what}",
            self._journal.record.run_id,
            reason,
            self._journal.folder / "refused.jsonl",
        )

    def _report(self, error: Exception) -> None:
        first, self.error = self.error is None, error
        if first:
            log.warning(
                "%s %s; the %s of run %s cannot be logged: %s\nThe run continues; they are kept in %s and sent later.",
                shown_uri(),
                "is unavailable" if failure_of(error) is Failure.UNAVAILABLE else "refuses",
                self._what,
                self._journal.record.run_id,
                reason_of(error),
                self._journal.folder,
            )


def _parts(entry: Entry) -> list[Entry]:
    """The entry split into one for each of its metrics, parameters or tags."""
    kind = next((key for key in ("metrics", "params", "tags") if key in entry), None)
    return [entry] if kind is None else [entry | {kind: {name: value}} for name, value in entry[kind].items()]


def _named(entry: Entry) -> str:
    """What an entry holds, by name: ``the parameter train.lr``; empty for other kinds."""
    kinds = {"metrics": "metric", "params": "parameter", "tags": "tag"}
    return next((f"the {word} {', '.join(entry[key])}" for key, word in kinds.items() if key in entry), "")


class RunGoneError(TrackingError):
    """The journal's run was deleted in the store."""


class JournalSender:
    """Sends the two lanes of a journal in parallel, so that a full artifact store does not block metrics."""

    def __init__(self, client: MlflowClient, journal: Journal) -> None:
        self.journal = journal
        self.records = Sender(client, journal, journal.records, send_records, "metrics")
        self.files = Sender(client, journal, journal.files, send_files, "files")

    def start(self) -> None:
        """Send in the background, until `close`."""
        for sender in (self.records, self.files):
            sender.start()

    def close(self, patience: float = CLOSING_PATIENCE) -> None:
        """Stop sending, release the journal, and report what is left and how to send it later."""
        for sender in (self.records, self.files):
            sender.hurry()
        for sender in (self.records, self.files):
            sender.close(patience)
        try:
            # What MLflow rejects was reported, and sending it again is useless.
            left = "" if self.journal.is_taken else self.journal.left()
        finally:
            self.journal.release()
        if left:
            model_dir = self.journal.folder.parent.parent
            log.warning(
                "not in MLflow (%s) yet: %s of run %s. They are kept in %s; send them later with: yolact sync%s",
                shown_uri(),
                left,
                self.journal.record.run_id,
                self.journal.folder,
                "" if model_dir == Path("models") else f" {model_dir}",
            )
