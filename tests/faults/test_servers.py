"""Servers behind a network that fails: MLflow that errs or is slow, PostgreSQL that restarts, S3 that loses objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
from mlflow import MlflowClient

from tests.servers.mlflow_servers import MlflowServer, PostgresServer
from tests.servers.servers import CuttingProxy, FileServer, s3_server, serving, use_s3
from yolact.errors import DataError
from yolact_ops.settings.params import Params
from yolact_ops.tracking import sender
from yolact_ops.tracking.runs import resume_run, start_run
from yolact_ops.tracking.store import StoreUnavailableError
from yolact_ops.tracking.sync import sync
from yolact_ops.transfer import download, storage
from yolact_ops.transfer.download import DownloadError, ServerUnavailableError, fetch_file
from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client

RUN_FILE = Path("models/run.json")
CONTENT = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder; retries are fast."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(sender, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storage, "MAX_TRIES", 2)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.01)


# MLflow ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(on_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """The network between this machine and MLflow."""
    made = CuttingProxy(on_server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    yield made
    made.close()


def history(server: MlflowServer, run_id: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(server.address).get_metric_history(run_id, "loss")]


def wait_for_text(caplog: pytest.LogCaptureFixture, text: str) -> None:
    for _ in range(1200):
        if text in caplog.text:
            return
        Event().wait(0.05)
    pytest.fail(f"it did not say {text!r} but {caplog.text}")


@pytest.mark.parametrize("fault", ["status", "delay"])
def test_errors_and_slow_answers_of_mlflow_stop_nothing_and_lose_nothing(
    params: Params,
    line: CuttingProxy,
    on_server: MlflowServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """A slow server has the metrics, but its answer comes too late: they are sent again, and are there once."""
    with start_run(params, RUN_FILE) as tracker:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        setattr(line, fault, {"status": 503, "delay": 3.0}[fault])
        for step in range(1, 6):
            tracker.log_metrics({"loss": 1 / step}, step)
        wait_for_text(caplog, "is unavailable; the metrics of run")
        setattr(line, fault, {"status": None, "delay": 0.0}[fault])
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    assert history(on_server, tracker.run_id) == [(step, 1 / step) for step in range(1, 6)]
    assert MlflowClient(on_server.address).get_run(tracker.run_id).info.status == "FINISHED"
    assert not list(Path("models/tracking").glob("*/*"))


def test_what_needs_mlflow_ends_with_a_message_when_it_answers_with_an_error(
    params: Params, line: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a kept connection is cut
    with start_run(params, RUN_FILE):
        pass
    line.status = 500
    for opening in (start_run(params, RUN_FILE), resume_run(params, RUN_FILE)):
        with pytest.raises(StoreUnavailableError, match=r"(?s)could not .*500.*Check that the MLflow server"), opening:
            pytest.fail("must not start")


def test_a_database_restarted_under_mlflow_gets_everything_once(
    params: Params, on_server: MlflowServer, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run(params, RUN_FILE) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        postgres.stop()
        try:
            tracker.log_metrics({"loss": 0.5}, 2)
            wait_for_text(caplog, "the metrics of run")
        finally:
            postgres.start()
        tracker.log_metrics({"loss": 0.25}, 3)
    for outcome in sync(Path("models/tracking")):
        assert not outcome.problem
    assert history(on_server, tracker.run_id) == [(1, 1.0), (2, 0.5), (3, 0.25)]


# S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "s3/bucket"
    folder.mkdir(parents=True)
    for name in ("one.bin", "two.bin"):
        (folder / name).write_bytes(CONTENT)
    return folder


@pytest.fixture
def s3_line(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """The network between this machine and S3."""
    with s3_server(bucket.parent) as address:
        made = CuttingProxy(address)
        use_s3(monkeypatch, made.url)
        yield made
        made.close()


def fetch(into: Path, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Fetch the bucket; ``meanwhile`` happens after it was listed."""
    client, address = make_client(), S3Address.parse("s3://bucket")
    objects = list_objects(client, address)
    meanwhile()
    return fetch_objects(client, address, objects, into)


def test_an_error_of_s3_is_named_and_the_next_run_fetches_the_rest(s3_line: CuttingProxy, tmp_path: Path) -> None:
    s3_line.status = 503
    with pytest.raises(ServerUnavailableError, match=r"s3://bucket.*the server answered 503"):
        fetch(tmp_path / "files")
    s3_line.status = None
    assert fetch(tmp_path / "files") == 2 * len(CONTENT)
    assert (tmp_path / "files/two.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["gone", "cut short"])
def test_an_object_that_is_gone_or_cut_short_after_it_was_listed_is_named(
    s3_line: CuttingProxy, tmp_path: Path, fault: str
) -> None:
    client = make_client()

    def meanwhile() -> None:
        client.delete_object(Bucket="bucket", Key="two.bin")
        if fault == "cut short":
            client.put_object(Bucket="bucket", Key="two.bin", Body=CONTENT[:1000])

    with pytest.raises((DataError, DownloadError), match=r"s3://bucket/two\.bin.*: "):
        fetch(tmp_path / "files", meanwhile)
    assert not (tmp_path / "files/two.bin").exists()


# HTTP ------------------------------------------------------------------------------------------------------------


def test_a_download_that_stalls_is_tried_again_where_it_stalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (5, 1))
    with serving(FileServer(CONTENT)) as server:
        line = CuttingProxy(f"http://127.0.0.1:{server.port}")
        line.delay = 3.0
        address = server.url.replace(str(server.port), line.url.rpartition(":")[2])
        with pytest.raises(DownloadError, match=r"tried \d times in a row"):
            fetch_file([address], tmp_path / "voc.tar")
        line.delay = 0.0
        fetch_file([address], tmp_path / "voc.tar")
        line.close()
    assert (tmp_path / "voc.tar").read_bytes() == CONTENT
