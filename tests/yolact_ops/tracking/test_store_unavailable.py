"""Servers that fail, refuse or lose responses during a run: real MLflow on PostgreSQL with artifacts on S3."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.server.auth.client import AuthServiceClient

from components.evaluate import step as evaluate
from tests.components.test_evaluate_report import KnownPredictor, write_data
from tests.servers.mlflow_servers import BUCKET, MlflowServer, S3Server
from tests.servers.servers import CuttingProxy, s3_server
from yolact_ops.settings.params import Params
from yolact_ops.tracking import sender as sender_module
from yolact_ops.tracking.evaluations import read_evaluation
from yolact_ops.tracking.run_record import RunRecord
from yolact_ops.tracking.runs import resume_run, start_run
from yolact_ops.tracking.store import StoreUnavailableError, TrackingError
from yolact_ops.tracking.sync import sync

RUN_FILE = Path("models/run.json")
JOURNALS = Path("models/tracking")
ADMIN, PASSWORD, OTHER_PASSWORD = "admin", "correct horse battery staple", "troubador and three"
TOKEN = "a token, not a password"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; retries are fast."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a kept connection may have been closed
    monkeypatch.setattr(sender_module, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(sender_module, "LONGEST_WAIT", 0.2)
    return tmp_path


@pytest.fixture
def proxy(on_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """A proxy to the server that can cut connections."""
    proxy = CuttingProxy(on_server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    yield proxy
    proxy.close()


def cut(proxy: CuttingProxy) -> None:
    proxy.dead_after = 0


def restore(proxy: CuttingProxy) -> None:
    proxy.dead_after = None


def history(address: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(address).get_metric_history(run_id, name)]


def artifacts(address: str, run_id: str, folder: str) -> list[str]:
    return [file.path for file in MlflowClient(address).list_artifacts(run_id, folder)]


def wait_for(done: Callable[[], bool]) -> None:
    for _ in range(600):
        if done():
            return
        threading.Event().wait(0.05)
    pytest.fail("it did not happen")


def problems() -> list[str]:
    """What is left after a sync."""
    return [outcome.problem for outcome in sync(JOURNALS) if outcome.problem]


@contextmanager
def requests_by_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the threads that made HTTP requests in the block."""
    names: list[str] = []
    send = requests.Session.send

    def noted(self: requests.Session, *arguments: Any, **options: Any) -> requests.Response:
        names.append(threading.current_thread().name)
        return send(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(requests.Session, "send", noted)
        yield names


def test_a_server_restarted_during_training_gets_everything_once(
    params: Params, on_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path("picture.txt").write_text("picture")
    with start_run(params, RUN_FILE) as tracker:
        main = threading.current_thread().name
        with requests_by_thread(monkeypatch) as threads:
            for step in range(1, 11):
                tracker.log_metrics({"loss": 1 / step}, step)
            wait_for(lambda: len(history(on_server.address, tracker.run_id, "loss")) == 10)
            threads.clear()
            on_server.stop()
            try:
                for step in range(11, 31):
                    tracker.log_metrics({"loss": 1 / step}, step)
                tracker.log_artifact(Path("picture.txt"), "validation")
                wait_for(lambda: "is unavailable" in caplog.text)
            finally:
                on_server.start()
            for step in range(31, 41):
                tracker.log_metrics({"loss": 1 / step}, step)
            assert threads
            assert main not in threads  # the training never waited for the network
    assert history(on_server.address, tracker.run_id, "loss") == [(step, 1 / step) for step in range(1, 41)]
    times = [m.timestamp for m in MlflowClient(on_server.address).get_metric_history(tracker.run_id, "loss")]
    assert times == sorted(times)
    assert artifacts(on_server.address, tracker.run_id, "validation") == ["validation/picture.txt"]
    assert MlflowClient(on_server.address).get_run(tracker.run_id).info.status == "FINISHED"
    assert not list(JOURNALS.glob("*/*"))


def test_a_lost_response_duplicates_nothing(
    params: Params,
    proxy: CuttingProxy,
    on_server: MlflowServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # so that the journal resends it
    with start_run(params, RUN_FILE) as tracker:
        tracker.log_metrics({"warm": 1.0}, 1)
        wait_for(lambda: history(on_server.address, tracker.run_id, "warm") == [(1, 1.0)])
        proxy.cuts_at = [proxy.passed + 1]  # the server gets the next request, but its response is lost
        tracker.log_metrics({"loss": 0.5, "nan": float("nan"), "inf": float("inf")}, 2)
        wait_for(lambda: "is unavailable" in caplog.text)
    assert not proxy.cuts_at
    assert history(on_server.address, tracker.run_id, "loss") == [(2, 0.5)]
    for name in ("nan", "inf"):
        assert len(history(on_server.address, tracker.run_id, name)) == 1


def test_with_a_server_that_never_comes_back_no_file_is_lost_and_sync_sends_the_rest(
    params: Params, proxy: CuttingProxy, on_server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    Path("page.html").write_text("page")
    with start_run(params, RUN_FILE) as tracker:
        cut(proxy)
        tracker.log_metrics({"loss": 0.25}, 7)
        tracker.log_artifact(Path("page.html"), "eval")
        Path("page.html").unlink()
    warning = caplog.messages[-1]
    assert re.search(rf"yet: 1 metric and 1 file and \d notes? of run {tracker.run_id}", warning)
    assert warning.endswith(f"kept in models/tracking/{tracker.run_id}; send them later with: yolact sync")

    assert "could not reach the tracking store" in problems()[0]
    restore(proxy)
    assert problems() == []
    assert history(on_server.address, tracker.run_id, "loss") == [(7, 0.25)]
    assert artifacts(on_server.address, tracker.run_id, "eval") == ["eval/page.html"]
    assert MlflowClient(on_server.address).get_run(tracker.run_id).info.status == "FINISHED"
    assert not list(JOURNALS.glob("*/*"))


def test_evaluate_ends_with_its_files_while_the_server_is_unavailable(
    params: Params, proxy: CuttingProxy, on_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = params.evaluate.model_copy(update={"batch_size": 3, "gallery_images": 1})
    params = params.model_copy(update={"evaluate": small})
    with start_run(params, RUN_FILE) as tracker:
        pass
    write_data(tmp_path / "processed")
    monkeypatch.setattr(evaluate.Predictor, "load", lambda directory, config, **options: KnownPredictor(**options))
    cut(proxy)
    evaluate.run(
        params,
        eval_data_dir=tmp_path / "processed",
        model_dir=Path("models"),
        metrics_path=Path("metrics/eval.json"),
        report_dir=Path("reports/eval"),
        plots_dir=Path("plots/eval"),
    )
    ap = json.loads(Path("metrics/eval.json").read_text())["mask"]["AP"]
    assert Path("reports/eval/index.html").is_file()
    client = MlflowClient(on_server.address)
    assert "eval/mask_AP" not in client.get_run(tracker.run_id).data.metrics

    restore(proxy)
    with resume_run(params, RUN_FILE):  # as register does: all is there before it begins
        assert client.get_run(tracker.run_id).data.metrics["eval/mask_AP"] == ap
    ground_truth, rows = read_evaluation(client, tracker.run_id)
    assert ground_truth == json.loads((tmp_path / "processed/val.json").read_text())
    assert rows == json.loads(Path("reports/eval/detections.json").read_text())
    tables = json.loads(client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert tables == [{"path": "eval/per_class.json", "type": "table"}]
    assert {"eval/per_class.json", "eval/pr_curves.png"} <= set(artifacts(on_server.address, tracker.run_id, "eval"))


def test_register_needs_the_server_and_a_new_training_too(params: Params, proxy: CuttingProxy) -> None:
    with start_run(params, RUN_FILE) as tracker:
        pass
    cut(proxy)
    with pytest.raises(StoreUnavailableError, match="could not reach the tracking store"), resume_run(params, RUN_FILE):
        pytest.fail("must not start")
    with pytest.raises(StoreUnavailableError), start_run(params, RUN_FILE):
        pytest.fail("must not start")
    assert RunRecord.read(RUN_FILE) == tracker.record
    assert not list(JOURNALS.glob("*/*"))


def test_a_training_resumes_from_its_checkpoint_while_the_server_is_unavailable(
    params: Params, proxy: CuttingProxy, on_server: MlflowServer
) -> None:
    with pytest.raises(KeyboardInterrupt), start_run(params, RUN_FILE) as first:
        first.log_metrics({"loss": 2.0}, 1)
        raise KeyboardInterrupt
    RUN_FILE.unlink()  # as DVC does before it runs the step again
    cut(proxy)
    with start_run(params, RUN_FILE, resume=first.record) as second:
        second.log_metrics({"loss": 1.0}, 2)
    assert RunRecord.read(RUN_FILE) == first.record
    restore(proxy)
    assert problems() == []
    assert history(on_server.address, first.run_id, "loss") == [(1, 2.0), (2, 1.0)]


KILLED = """
import sys; from pathlib import Path; from yolact_ops.settings.params import load_params
from yolact_ops.tracking.runs import start_run
with start_run(load_params(Path(sys.argv[1])), Path("models/run.json")) as tracker:
    print("ready", flush=True)
    input()
    for step in range(1, 4):
        tracker.log_metrics({"loss": 1 / step}, step)
    tracker.log_artifact(Path("picture.txt"), "validation")
    print("logged", flush=True)
    input()
"""


def test_what_a_killed_pod_could_not_send_is_kept_with_its_checkpoints(
    params: Params, proxy: CuttingProxy, on_server: MlflowServer, tmp_path: Path
) -> None:
    volume = tmp_path / "volume" / "run-1" / "tracking"
    with pytest.raises(KeyboardInterrupt), start_run(params, tmp_path / "pod-1/run.json", journals=volume) as first:
        cut(proxy)
        first.log_metrics({"loss": 2.0}, 1)
        raise KeyboardInterrupt
    shutil.rmtree(tmp_path / "pod-1")
    with start_run(params, tmp_path / "pod-2/run.json", resume=first.record, journals=volume) as second:
        second.log_metrics({"loss": 1.0}, 2)
        restore(proxy)
    assert history(on_server.address, first.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert not list(volume.glob("*/*"))
    assert not (tmp_path / "pod-2/tracking").exists()


def test_what_a_finished_training_in_a_pod_could_not_send_is_stored_with_the_model(
    params: Params, proxy: CuttingProxy, on_server: MlflowServer, tmp_path: Path
) -> None:
    volume = tmp_path / "volume" / "run-1" / "tracking"
    with start_run(params, tmp_path / "pod/model/run.json", journals=volume) as train:
        cut(proxy)
        train.log_metrics({"loss": 2.0}, 1)
        train.log_artifact(tmp_path / "pod/model/run.json", "validation")
    assert volume.is_dir()  # in case the model is not stored
    shutil.move(tmp_path / "pod/model", tmp_path / "next")
    restore(proxy)
    with resume_run(params, tmp_path / "next/run.json", step="evaluate") as evaluate:
        evaluate.log_metrics({"AP": 0.5})
    assert history(on_server.address, train.run_id, "loss") == [(1, 2.0)]
    assert history(on_server.address, train.run_id, "AP") == [(0, 0.5)]
    assert artifacts(on_server.address, train.run_id, "validation") == ["validation/run.json"]
    assert MlflowClient(on_server.address).get_run(train.run_id).info.status == "FINISHED"


def test_a_step_that_needs_the_server_fails_if_it_did_not_receive_everything_at_the_end(
    params: Params, proxy: CuttingProxy, on_server: MlflowServer
) -> None:
    with start_run(params, RUN_FILE) as tracker:
        pass
    with (
        pytest.raises(TrackingError, match="did not receive everything of run"),
        resume_run(params, RUN_FILE) as register,
    ):
        cut(proxy)
        register.log_metrics({"AP": 0.5})
    restore(proxy)
    with resume_run(params, RUN_FILE):
        assert history(on_server.address, tracker.run_id, "AP") == [(0, 0.5)]


def test_what_a_killed_step_could_not_send_is_sent_by_the_next_run(
    params: Params, proxy: CuttingProxy, on_server: MlflowServer, repository: Path
) -> None:
    Path("picture.txt").write_text("picture")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(repository / "conf" / "base.yaml")],
        env=os.environ | {"PYTHONPATH": str(repository)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        cut(proxy)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "logged\n"
        process.send_signal(signal.SIGKILL)
    killed = RunRecord.read(RUN_FILE).run_id
    assert history(on_server.address, killed, "loss") == []
    assert "could not reach" in problems()[0]

    restore(proxy)
    with start_run(params, RUN_FILE) as other:
        wait_for(lambda: not (JOURNALS / killed).exists())
    assert other.run_id != killed
    assert history(on_server.address, killed, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert artifacts(on_server.address, killed, "validation") == ["validation/picture.txt"]


def test_a_missing_bucket_blocks_only_files(
    params: Params, on_server: MlflowServer, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    Path("page.html").write_text("page")
    bucket = s3.folder / BUCKET
    bucket.rename(s3.folder / "elsewhere")
    bucket.write_text("no folder, so nothing can be put into it")
    try:
        with start_run(params, RUN_FILE) as tracker:
            tracker.log_artifact(Path("page.html"), "eval")
            tracker.log_metrics({"loss": 1.0}, 1)
        assert history(on_server.address, tracker.run_id, "loss") == [(1, 1.0)]
        assert re.search(r"; the files of run \w+ cannot be logged", caplog.text)
        assert f"yet: 1 file of run {tracker.run_id}" in caplog.messages[-1]
    finally:
        bucket.unlink()
        (s3.folder / "elsewhere").rename(bucket)
    assert problems() == []
    assert artifacts(on_server.address, tracker.run_id, "eval") == ["eval/page.html"]


def test_a_store_that_accepts_no_more_files_loses_none(
    params: Params,
    on_server: MlflowServer,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client writes directly to S3, to a server that refuses all writes, as if it were full."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(on_server.address)
    client.create_experiment("direct", artifact_location=f"s3://{BUCKET}/direct")
    params = params.model_copy(update={"register_": params.register_.model_copy(update={"experiment": "direct"})})
    Path("page.html").write_text("page")
    with s3_server(s3.folder, "--read-only") as read_only, monkeypatch.context() as patch:
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", read_only)
        with start_run(params, RUN_FILE) as tracker:
            tracker.log_artifact(Path("page.html"), "eval")
            tracker.log_metrics({"loss": 1.0}, 1)
    assert history(on_server.address, tracker.run_id, "loss") == [(1, 1.0)]
    assert "the files of run" in caplog.text
    assert f"yet: 1 file of run {tracker.run_id}" in caplog.messages[-1]
    assert problems() == []
    assert artifacts(on_server.address, tracker.run_id, "eval") == ["eval/page.html"]
    assert (s3.folder / BUCKET / "direct" / tracker.run_id / "artifacts/eval/page.html").read_text() == "page"


def guarded_server(folder: Path, authorization: str, **settings: str) -> Iterator[MlflowServer]:
    """An MLflow server with a login that the function ``authorization`` checks."""
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nadmin_username = {ADMIN}\n"
        f"admin_password = {PASSWORD}\nauthorization_function = {authorization}\n"
    )
    settings |= {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests"}
    store = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    server = MlflowServer(folder, ["--app-name", "basic-auth", *store], settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """With a password."""
    function = "mlflow.server.auth:authenticate_request_basic_auth"
    yield from guarded_server(tmp_path_factory.mktemp("guarded"), function)


@pytest.fixture
def token_server(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """With a token, `TOKEN`."""
    for name in ("RUN_ID", "EXPERIMENT_ID", "TRACKING_USERNAME", "TRACKING_PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    function = "tests.servers.token_login:authenticate"
    settings = {"PYTHONPATH": str(repository), "TOKEN": TOKEN, "ADMIN": ADMIN}
    (folder := tmp_path / "server").mkdir()
    for server in guarded_server(folder, function, **settings):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield server


@pytest.fixture
def login(guarded: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Logs in with a password."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    return lambda password: monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_a_wrong_password_is_reported_at_the_start_of_evaluate_too(
    params: Params, login: Callable[[str], None]
) -> None:
    login(PASSWORD)
    with start_run(params, RUN_FILE):
        pass
    before = RUN_FILE.read_bytes()
    login("wrong")
    for opening in (start_run(params, RUN_FILE), resume_run(params, RUN_FILE, needs_store=False)):
        with pytest.raises(TrackingError, match=r"(?s)401.*MLFLOW_TRACKING_PASSWORD") as raised, opening:
            pytest.fail("must not start")
        assert not isinstance(raised.value, StoreUnavailableError)
        assert "wrong" not in str(raised.value)
    assert RUN_FILE.read_bytes() == before
    assert not list(JOURNALS.glob("*/*"))


def test_a_password_that_changes_during_training_is_reported_and_stops_nothing(
    params: Params, login: Callable[[str], None], guarded: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    login(PASSWORD)
    accounts = AuthServiceClient(guarded.address)
    with start_run(params, RUN_FILE) as tracker:
        accounts.update_user_password(ADMIN, OTHER_PASSWORD, current_password=PASSWORD)
        tracker.log_metrics({"loss": 0.5}, 3)
        wait_for(lambda: "refuses; the metrics" in caplog.text)
    assert "401" in caplog.text
    assert re.search(rf"yet: 1 metric and \d notes? of run {tracker.run_id}", caplog.messages[-1])
    assert "401" in problems()[0]
    login(OTHER_PASSWORD)
    assert problems() == []
    assert history(guarded.address, tracker.run_id, "loss") == [(3, 0.5)]
    accounts.update_user_password(ADMIN, PASSWORD, current_password=OTHER_PASSWORD)


def test_a_token_gives_access_and_a_wrong_one_is_reported(
    params: Params, token_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    with start_run(params, RUN_FILE) as tracker:
        tracker.log_metrics({"loss": 0.5}, 3)
    assert problems() == []
    assert history(token_server.address, tracker.run_id, "loss") == [(3, 0.5)]
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "stolen")
    with pytest.raises(TrackingError, match=r"(?s)401.*MLFLOW_TRACKING_TOKEN") as raised, start_run(params, RUN_FILE):
        pytest.fail("must not start")
    assert "stolen" not in str(raised.value)
