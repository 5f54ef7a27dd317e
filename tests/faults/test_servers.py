"""Servers behind a network that fails: MLflow that errs or is slow, PostgreSQL that restarts, S3 that loses objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from botocore.config import Config
from mlflow import MlflowClient

from tests.faults.faults import filled, read_only, small_disk
from tests.servers.mlflow_servers import MlflowServer, PostgresServer
from tests.servers.servers import CuttingProxy, FileServer, s3_server, serving, use_s3
from tests.small_networks import tiny_config
from yolact.errors import DataError, YolactError
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_ops.prediction.model import load_predictor
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


def impatient(**given: Any) -> Config:
    """Settings of boto3 for a server that must answer within half a second."""
    return Config(**given | {"read_timeout": 0.5})


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


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_sync_on_a_full_or_read_only_disk_is_named_and_the_next_one_sends_everything_once(
    params: Params,
    line: CuttingProxy,
    on_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as disk, monkeypatch.context() as there:
        there.chdir(disk)
        Path("picture.txt").write_text("picture")
        with start_run(params, RUN_FILE) as tracker:
            line.fail("cut")
            for step in range(1, 6):
                tracker.log_metrics({"loss": 1 / step}, step)
            tracker.log_artifact(Path("picture.txt"), "validation")
        line.heal()
        with filled(disk, 0) if fault == "full" else read_only(disk):
            problems = [outcome.problem for outcome in sync(disk / "models/tracking")]
        assert len(problems) == 1
        assert {"full": "No space left", "read-only": "Read-only file system"}[fault] in problems[0]
        assert [outcome.problem for outcome in sync(disk / "models/tracking")] == [""]
        assert not list(Path("models/tracking").glob("*/*"))
    assert history(on_server, tracker.run_id) == [(step, 1 / step) for step in range(1, 6)]
    client = MlflowClient(on_server.address)
    assert [file.path for file in client.list_artifacts(tracker.run_id, "validation")] == ["validation/picture.txt"]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


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


def test_an_s3_server_that_stalls_is_named_and_the_next_run_fetches_the_rest(
    s3_line: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "Config", impatient)
        s3_line.fail("slow")
        with pytest.raises(ServerUnavailableError, match=r"s3://bucket.*: the connection broke \(ReadTimeoutError\)"):
            fetch(tmp_path / "files")
    s3_line.heal()
    assert fetch(tmp_path / "files") == 2 * len(CONTENT)


@pytest.fixture
def on_s3(bucket: Path, s3_line: CuttingProxy) -> Path:
    """Folder of a network in the bucket."""
    save_model(Yolact(tiny_config(), 1), ["cat"], bucket / "model")
    return bucket / "model"


def predict() -> str:
    return load_predictor("s3://bucket/model", device="cpu")[1]


@pytest.mark.parametrize("fault", ["cut", "503", "slow"])
def test_a_network_on_s3_whose_server_fails_is_named_and_the_next_try_works(
    on_s3: Path, s3_line: CuttingProxy, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Before the first answer; then within the weights, or, as an answer that has begun has its status, after it."""
    for after in (0, 1 if fault == "503" else (on_s3 / WEIGHTS_FILE).stat().st_size // 2):
        with monkeypatch.context() as patch:
            if fault == "slow":
                patch.setattr(storage, "Config", impatient)
            s3_line.fail(fault, after)
            with pytest.raises(ServerUnavailableError, match=r"^s3://bucket/model"):
                predict()
        s3_line.heal()
    assert predict() == "s3://bucket/model"


@pytest.mark.parametrize("fault", ["gone", "cut short"])
@pytest.mark.parametrize("file", [WEIGHTS_FILE, DESCRIPTION_FILE])
def test_a_network_on_s3_whose_file_is_gone_or_cut_short_is_named(on_s3: Path, file: str, fault: str) -> None:
    client, there, whole = make_client(), {"Bucket": "bucket", "Key": f"model/{file}"}, (on_s3 / file).read_bytes()
    client.delete_object(**there)
    if fault == "cut short":
        client.put_object(**there, Body=whole[: len(whole) // 2])
    with pytest.raises(YolactError, match=file) as failed:
        predict()
    assert failed.value.exit_code == 1
    client.put_object(**there, Body=whole)
    assert predict() == "s3://bucket/model"


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
