"""Journals on disk: order, kills, what is sent again, and what a store's errors mean."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from botocore.exceptions import SSLError as BotoSSLError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException, RestException
from requests import ConnectionError as NoConnection
from requests import HTTPError
from requests.exceptions import MissingSchema, SSLError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from yolact.errors import DataError
from yolact_ops.tracking import journal as journal_module
from yolact_ops.tracking.journal import Journal, JournalBusyError, Lane
from yolact_ops.tracking.run_record import RunRecord
from yolact_ops.tracking.sender import JournalSender
from yolact_ops.tracking.store import Failure, failure_of, reason_of
from yolact_ops.tracking.sync import send_journal

RECORD = RunRecord("r" * 32, "1", "yolact", "http://127.0.0.1:1")


def open_journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "tracking" / RECORD.run_id, RECORD, patience=0.1)


def metric(name: str, value: float, step: int = 0, time: int = 1) -> dict[str, Any]:
    return {"metrics": {name: value}, "time": time, "step": step, "model_id": None}


class Store:
    """A test double of an MLflow client; records what it receives, or fails as set."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int, int]] = []
        self.tags: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.errors: list[Exception] = []
        """Raised by the next calls, one each."""
        self.bad = ""
        """A request with a metric or parameter of this name is refused."""
        self.stage = "active"

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.errors:
            raise self.errors.pop(0)

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        self._called(f"batch of {len(metrics)}, {len(params)}, {len(tags)}")
        if self.bad in {found.key for found in [*metrics, *params]}:
            raise MlflowException.invalid_parameter_value("bad name")
        self.params |= {found.key: found.value for found in params}
        self.metrics += [(found.key, found.value, found.timestamp, found.step) for found in metrics]
        self.tags |= {tag.key: tag.value for tag in tags}

    def update_run(self, run_id: str, status: str) -> None:
        self._called(status)

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self._called(f"{status} at {end_time}")

    def log_artifact(self, run_id: str, path: str, artifact_path: str) -> None:
        self._called(f"file {artifact_path}")
        self.files[f"{artifact_path}/{Path(path).name}"] = Path(path).read_bytes()

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(lifecycle_stage=self.stage))


entries = st.lists(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text(), max_size=3), max_size=12)


class Killed(BaseException):
    """Ends a process, in a test."""


@contextmanager
def killed_before(change: int | None) -> Iterator[None]:
    """Simulate a kill before the n-th change of a file in the block, or none."""
    left = [-1 if change is None else change]

    def counted(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def change_or_die(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed(name)
            left[0] -= 1
            return do(*arguments, **options)

        return change_or_die

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for owner, name in ((os, "replace"), (os, "truncate"), (Path, "write_text"), (Path, "write_bytes")):
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield


takes = st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 3)), max_size=12)


@settings(deadline=None)
@given(entries, takes, st.sampled_from([0, 1 << 20]))
@example([{"a": 1}, {"a": 2}, {"a": 3}, {"b" * 30: 4}, {"a": 5}], [(0, None), (1, None), (2, 2)], 0)
def test_a_lane_returns_unsent_entries_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[Any],
    takes: list[tuple[int, int | None]],
    compacted_above: int,
) -> None:
    """With kills at any time; sent entries may be repeated if recording them was interrupted, but none is lost."""
    path = tmp_path_factory.mktemp("lane") / "records.jsonl"
    sent = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "COMPACTED_ABOVE", compacted_above)
        for number in range(len(found)):
            take, kill = takes[number] if number < len(takes) else (0, None)
            lane = Lane(path)  # as after a kill
            lane.append(found[number])
            taken = lane.read(take)
            assert [entry for entry, _ in taken] == found[sent : number + 1][:take]
            if taken:
                with killed_before(kill):
                    lane.mark_sent(sum(length for _, length in taken))
            left = len(Lane(path).read(100))
            noted = number + 1 - left
            assert noted == sent + len(taken) if kill is None else noted <= sent + len(taken)
            sent = noted
        lane = Lane(path)
    assert [entry for entry, _ in lane.read(100)] == found[sent:]
    assert lane.is_empty == (sent == len(found))


def test_an_incomplete_line_after_a_power_failure_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Lane(path).append({"a": 1})
    path.write_bytes(path.read_bytes() + b'{"b":')
    lane = Lane(path)
    lane.append({"c": 3})
    assert [entry for entry, _ in lane.read(10)] == [{"a": 1}, {"c": 3}]


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """No file can grow above ``size`` bytes in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_incomplete_line_on_a_full_disk_is_removed(tmp_path: Path) -> None:
    lane = Lane(tmp_path / "records.jsonl")
    lane.append({"a": 1})
    with disk_full_at(lane.path.stat().st_size + 5), pytest.raises(OSError, match="File too large"):
        lane.append({"b": 2})
    lane.append({"c": 3})
    for found in (lane, Lane(lane.path)):
        assert [entry for entry, _ in found.read(10)] == [{"a": 1}, {"c": 3}]


DAMAGED = b'{"metrics":{"b{"status":"FAILED","time":3}\n'


def test_a_damaged_line_is_set_aside_and_the_rest_is_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, store = open_journal(tmp_path), Store()
    journal.records.append(metric("a", 1.0))
    with journal.records.path.open("ab") as file:
        file.write(DAMAGED + b"17\n")
    journal.release()
    journal = open_journal(tmp_path)
    journal.records.append(metric("c", 3.0))
    assert journal.left() == "2 metrics and 2 notes"
    sender = JournalSender(store, journal)
    sender.start()
    sender.close(10)
    assert [name for name, *_ in store.metrics] == ["a", "c"]
    kept = [json.loads(line) for line in (journal.folder / "refused.jsonl").read_text().splitlines()]
    assert [one["entry"] for one in kept] == [{"unreadable": DAMAGED.decode()}, {"unreadable": "17\n"}]
    assert "a damaged line of the journal" in caplog.text
    assert "yolact sync" not in caplog.text, "sending them again is useless"


def test_a_lane_that_is_sent_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "COMPACTED_ABOVE", 1000)
    lane = Lane(tmp_path / "records.jsonl")
    for step in range(500):
        lane.append(metric("loss", 1.0, step))
        lane.mark_sent(lane.read(1)[0][1])
    assert lane.path.stat().st_size < 1200


def test_a_sent_journal_leaves_no_folder_and_an_unsent_one_outlives_the_process(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.records.append(metric("loss", 1.5))
    (tmp_path / "page.html").write_text("first")
    journal.add_file(tmp_path / "page.html", "eval")
    (tmp_path / "page.html").write_text("second")
    assert journal.left() == "1 metric and 1 file"
    journal.release()

    again = Journal(journal.folder)
    assert again.record == RECORD
    store = Store()
    sender = JournalSender(store, again)
    sender.records.send_all()
    sender.files.send_all()
    again.release()
    assert store.metrics == [("loss", 1.5, 1, 0)]
    assert store.files == {"eval/page.html": b"first"}
    assert not journal.folder.exists()


def test_a_journal_is_sent_by_one_process_at_a_time(tmp_path: Path) -> None:
    first = open_journal(tmp_path)
    with pytest.raises(JournalBusyError, match="in use by another process"):
        open_journal(tmp_path)
    first.release()
    open_journal(tmp_path).release()


HELD = """
import sys; from pathlib import Path; from yolact_ops.tracking.journal import Journal
from yolact_ops.tracking.run_record import RunRecord
folder = Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    journal = Journal(folder, RunRecord(folder.name, "1", "yolact", ""))
    (folder.parent.parent / "held").touch(exist_ok=False)
    (folder.parent.parent / "held").unlink()
    journal.release()
"""


def test_a_lock_is_removed_with_its_journal_and_not_before(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "tracking" / RECORD.run_id
    command = [sys.executable, "-c", HELD, str(folder), "100"]
    several = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(repository)}) for _ in range(3)]
    assert [process.wait(60) for process in several] == [0, 0, 0]
    assert list(folder.parent.iterdir()) == []


def test_a_folder_that_is_not_a_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="is not the journal of a run"):
        Journal(tmp_path / "other")
    with pytest.raises(DataError, match="is not the journal of a run"):
        Journal(tmp_path / "tracking" / "gone")
    assert not list(tmp_path.glob("tracking/*"))


def test_order_and_times_are_kept_and_requests_are_few(tmp_path: Path) -> None:
    journal, store = open_journal(tmp_path), Store()
    journal.records.append({"status": "RUNNING", "time": None})
    for step in range(2500):
        journal.records.append(metric("loss", step / 10, step, time=1000 + step))
    journal.records.append({"tags": {"note": "old"}})
    journal.records.append({"tags": {"note": "new"}})
    journal.records.append({"status": "FINISHED", "time": 77})
    JournalSender(store, journal).records.send_all()
    assert store.metrics == [("loss", step / 10, 1000 + step, step) for step in range(2500)]
    assert store.tags == {"note": "new"}
    batches = ["batch of 1000, 0, 0", "batch of 1000, 0, 0", "batch of 500, 0, 1"]
    assert store.calls == ["RUNNING", *batches, "FINISHED at 77"]
    journal.release()


def test_a_failed_entry_is_retried_and_later_ones_wait(tmp_path: Path) -> None:
    journal, store = open_journal(tmp_path), Store()
    store.errors = [NoConnection("refused")]
    journal.records.append(metric("a", 1.0))
    sender = JournalSender(store, journal).records
    with pytest.raises(NoConnection):
        sender.send_all()
    journal.records.append(metric("b", 2.0))
    sender.send_all()
    assert [name for name, *_ in store.metrics] == ["a", "b"]
    journal.release()


def test_an_entry_that_mlflow_rejects_is_set_aside_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, store = open_journal(tmp_path), Store()
    store.bad = "bad"
    for name in ("a", "bad", "b"):
        journal.records.append(metric(name, 1.0))
    JournalSender(store, journal).records.send_all()
    assert [name for name, *_ in store.metrics] == ["a", "b"]
    assert journal.left() == "1 refused entry"
    journal.release()
    assert '"bad":1.0' in (journal.folder / "refused.jsonl").read_text().replace(" ", "")
    assert "bad name" in caplog.text
    assert str(journal.folder / "refused.jsonl") in caplog.text


def test_a_rejected_parameter_does_not_lose_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, store = open_journal(tmp_path), Store()
    store.bad = "bad"
    journal.records.append({"params": {"a": "1", "bad": "2", "b": "3"}})
    JournalSender(store, journal).records.send_all()
    assert store.params == {"a": "1", "b": "3"}
    assert "rejects the parameter bad of run" in caplog.text
    journal.release()
    assert json.loads((journal.folder / "refused.jsonl").read_text())["entry"] == {"params": {"bad": "2"}}


KILLED = """
import os, sys
from pathlib import Path
from yolact_ops.tracking.journal import Journal
from yolact_ops.tracking.run_record import RunRecord
folder = Path(sys.argv[1])
journal = Journal(folder, RunRecord(folder.name, "1", "yolact", ""))
journal.add_status("RUNNING", None)
if sys.argv[2] == "finished":
    journal.add_status("FINISHED", 5)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_a_run_whose_process_was_killed_ends_as_killed(tmp_path: Path, repository: Path, end: str) -> None:
    folder = tmp_path / "tracking" / RECORD.run_id
    environment = os.environ | {"PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", KILLED, str(folder), end], env=environment, check=False)
    killed_at = int((folder / "records.jsonl").stat().st_mtime * 1000)
    store = Store()
    send_journal(folder, store)  # type: ignore[arg-type]
    assert store.calls == ["RUNNING", f"KILLED at {killed_at}" if end == "killed" else "FINISHED at 5"]
    assert not folder.exists()


def test_a_run_that_another_process_works_on_is_left_alone(tmp_path: Path) -> None:
    journal, store = open_journal(tmp_path), Store()
    journal.add_status("RUNNING", None)
    with pytest.raises(JournalBusyError):
        send_journal(journal.folder, store)  # type: ignore[arg-type]
    assert store.calls == []
    journal.release()


def test_entries_of_a_deleted_run_are_not_set_aside(tmp_path: Path) -> None:
    journal, store = open_journal(tmp_path), Store()
    store.bad, store.stage = "a", "deleted"
    journal.records.append(metric("a", 1.0))
    with pytest.raises(Exception, match="was deleted; restore it with `mlflow runs restore"):
        JournalSender(store, journal).records.send_all()
    assert journal.left() == "1 metric"
    journal.release()


def test_a_full_artifact_store_does_not_block_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, store = open_journal(tmp_path), Store()
    (tmp_path / "page.html").write_text("page")
    journal.add_file(tmp_path / "page.html", "eval")
    journal.records.append(metric("a", 1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store.log_artifact = full  # type: ignore[method-assign]
    sender = JournalSender(store, journal)
    sender.start()
    sender.close(10)
    assert [name for name, *_ in store.metrics] == ["a"]
    assert "No space left on device" in caplog.text
    assert f"yet: 1 file of run {RECORD.run_id}" in caplog.text
    assert f"yolact sync {tmp_path}" in caplog.text
    assert (journal.folder / "files.jsonl").exists()


def rest(code: str) -> RestException:
    return RestException({"error_code": code, "message": "m"})


def http(status: int) -> HTTPError:
    return HTTPError("m", response=SimpleNamespace(status_code=status))  # type: ignore[arg-type]


def s3(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def wrapped(inner: Exception) -> Exception:
    """As boto3's transfers do."""
    try:
        try:
            raise inner
        except Exception as error:
            raise S3UploadFailedError("failed to upload") from error
    except S3UploadFailedError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MlflowException("API request failed with exception"), Failure.UNAVAILABLE),
        (rest("TEMPORARILY_UNAVAILABLE"), Failure.UNAVAILABLE),
        (rest("REQUEST_LIMIT_EXCEEDED"), Failure.UNAVAILABLE),
        (rest("PERMISSION_DENIED"), Failure.REFUSED),
        (rest("UNAUTHENTICATED"), Failure.REFUSED),
        (rest("RESOURCE_DOES_NOT_EXIST"), Failure.REFUSED),
        (rest("INVALID_PARAMETER_VALUE"), Failure.INVALID),
        (http(500), Failure.UNAVAILABLE),
        (http(507), Failure.UNAVAILABLE),
        (http(403), Failure.REFUSED),
        (http(413), Failure.INVALID),
        (NoConnection("refused"), Failure.UNAVAILABLE),
        (OperationalError("SELECT", {}, Exception("database is locked")), Failure.UNAVAILABLE),
        (EndpointConnectionError(endpoint_url="http://s3"), Failure.UNAVAILABLE),
        (NoCredentialsError(), Failure.REFUSED),
        (SSLError("certificate"), Failure.REFUSED),
        (MissingSchema("no http://"), Failure.REFUSED),
        (s3("NoSuchBucket", 404), Failure.REFUSED),
        (s3("InvalidAccessKeyId", 400), Failure.REFUSED),
        (s3("RequestTimeout", 400), Failure.UNAVAILABLE),
        (s3("OperationAborted", 409), Failure.UNAVAILABLE),
        (s3("PreconditionFailed", 412), Failure.UNAVAILABLE),
        (s3("TooManyRequests", 429), Failure.UNAVAILABLE),
        (s3("XMinioStorageFull", 507), Failure.UNAVAILABLE),
        (BotoSSLError(endpoint_url="https://s3", error="certificate"), Failure.REFUSED),
        (wrapped(s3("AccessDenied", 403)), Failure.REFUSED),
        (wrapped(s3("SlowDown", 503)), Failure.UNAVAILABLE),
        (OSError(28, "No space left on device"), Failure.UNAVAILABLE),
        (ZeroDivisionError(), Failure.REFUSED),
    ],
    ids=str,
)
def test_errors_of_the_store_are_classified(error: Exception, failure: Failure) -> None:
    assert failure_of(error) is failure


def test_a_databases_error_is_given_in_its_drivers_words() -> None:
    with pytest.raises(OperationalError) as raised, create_engine("sqlite://").connect() as connection:
        connection.execute(text("SELECT * FROM pets"))
    error = MlflowException("(sqlite3.OperationalError) no such table: pets\n[SQL: SELECT * FROM pets]")
    error.__cause__ = raised.value
    assert reason_of(raised.value) == reason_of(error) == "no such table: pets"
