"""Sending a journal to MLflow, in a thread of its own, so that a run never waits for the network.

What is sent twice, because the answer got lost, does no harm: MLflow's SQL stores know a metric by its name, step, time
and value and keep one; tags, parameters, inputs, the run's state and files are replaced by what is equal. Only MLflow's
old store of plain files (``mlruns/`` without a database) shows metrics that were sent again twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_ops.tracking.journal import UNREADABLE, Entry, Journal, Lane
from yolact_ops.tracking.store import TrackingError, Trouble, reason_of, shown_uri, trouble_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100
"""In one request (mlflow.utils.validation: MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH)."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between tries, doubled after each that fails."""
CLOSING_PATIENCE = 60.0
"""Seconds without progress after which the end of a run does not wait any longer; MLflow's requests take minutes to
give a silent server up."""


def send_records(client: MlflowClient, journal: Journal, entries: Sequence[Entry]) -> int:
    """Send the first entries of `Journal.records` that fit into one request, and return how many those are.

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
    if copy.is_file():  # else it was sent, and the process died before it could note that
        client.log_artifact(journal.record.run_id, str(copy), entry["path"])
        journal.drop_copy(entry)
    return 1


class Sender:
    """Sends one lane of a journal. A failure is told once, and tried again until it works or the run ends.

    Args:
        client: of the store that has the run.
        journal: whose lane it is.
        lane: of the journal.
        send: how its entries are sent.
        what: its content in messages, as ``metrics``.
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
        self._singly = 0  # so many of the next entries go one by one, because one of them is at fault
        self._thread = threading.Thread(target=self._work, name=f"MLflow {what}", daemon=True)
        self.trouble: Exception | None = None
        """What the last try failed with; None after a success."""

    def start(self) -> None:
        """Begin to send in the background, until `close`."""
        self._thread.start()

    def send_all(self) -> None:
        """Send everything here and now.

        Raises:
            Exception: what the store raised; the entry at fault and all later ones stay in the lane.
        """
        while not self._lane.is_empty:
            self._step()

    def hurry(self) -> None:
        """Try at once, and stop after a failure."""
        self._closing.set()
        self._lane.wake()

    def close(self, patience: float) -> None:
        """Wait until all is sent, a try fails, or nothing gets through for ``patience`` seconds; then stop."""
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
            try:
                self._step()
            except Exception as error:  # whatever it is, it must not end the thread in silence
                self._tell(error)
                if self._closing.is_set():
                    return
                self._closing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                wait = FIRST_WAIT

    def _step(self) -> None:
        """Send one request. An entry that the store will never take, or that cannot be read, is set aside."""
        pending = self._lane.read(1 if self._singly else MOST_METRICS)
        entries = [entry for entry, _ in pending]
        try:
            if UNREADABLE in entries[0]:
                self._set_aside(entries[0], "a damaged line of the journal")
                count = 1
            else:
                count = self._send(self._client, self._journal, entries)
        except Exception as error:
            if trouble_of(error) is not Trouble.INVALID:
                raise
            if len(pending) > 1:
                self._singly = len(pending)
                return
            self._check_run()
            self._set_aside(entries[0], reason_of(error))
            count = 1
        if self._abandoned:
            return
        self._lane.mark_sent(sum(length for _, length in pending[:count]))
        self._singly = max(0, self._singly - count)
        if self.trouble is not None:
            log.info("%s takes the %s of run %s again", shown_uri(), self._what, self._journal.record.run_id)
            self.trouble = None

    def _check_run(self) -> None:
        """MLflow calls an entry of a deleted run invalid; then it is not the entry's fault.

        Raises:
            RunGoneError: the run was deleted.
        """
        run_id = self._journal.record.run_id
        if self._client.get_run(run_id).info.lifecycle_stage != "active":
            raise RunGoneError(f"run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` brings it back")

    def _set_aside(self, entry: Entry, reason: str) -> None:
        self._journal.set_aside(entry, reason)
        log.warning(
            "%s cannot be given some of the %s of run %s (%s); they are kept in %s",
            shown_uri(),
            self._what,
            self._journal.record.run_id,
            reason,
            self._journal.folder / "refused.jsonl",
        )

    def _tell(self, error: Exception) -> None:
        first, self.trouble = self.trouble is None, error
        if first:
            log.warning(
                "%s %s the %s of run %s: %s\nThe run goes on; they are kept in %s and sent as soon as that works.",
                shown_uri(),
                "refuses" if trouble_of(error) is not Trouble.AWAY else "is away or in trouble, and cannot take",
                self._what,
                self._journal.record.run_id,
                reason_of(error),
                self._journal.folder,
            )


class RunGoneError(TrackingError):
    """The run of a journal was deleted in the store."""


class JournalSender:
    """Sends a journal: its two lanes side by side, so that a full artifact store does not hold metrics back."""

    def __init__(self, client: MlflowClient, journal: Journal) -> None:
        self.journal = journal
        self.records = Sender(client, journal, journal.records, send_records, "metrics")
        self.files = Sender(client, journal, journal.files, send_files, "files")

    def start(self) -> None:
        """Begin to send in the background."""
        for sender in (self.records, self.files):
            sender.start()

    def close(self, patience: float = CLOSING_PATIENCE) -> None:
        """Stop sending, release the journal, and say what is left of it and how to send that later."""
        for sender in (self.records, self.files):
            sender.hurry()
        for sender in (self.records, self.files):
            sender.close(patience)
        try:
            left = "" if self.journal.is_sent else self.journal.left()
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
