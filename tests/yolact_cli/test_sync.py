"""`yolact sync` with nothing to send, and without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from tests.servers.servers import free_port
from yolact_cli.main import app
from yolact_ops.tracking.journal import Journal
from yolact_ops.tracking.run_record import RunRecord
from yolact_ops.tracking.store import DEFAULT_TRACKING_URI

RECORD = RunRecord("a" * 32, "1", "yolact", "")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_nothing_to_send(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    result = CliRunner().invoke(app, ["sync"])
    assert (result.exit_code, result.stdout) == (0, "models/tracking: nothing to send\n")
    assert list(tmp_path.rglob("*")) == [tmp_path / "models"]


def test_a_missing_folder_is_an_error() -> None:
    result = CliRunner().invoke(app, ["sync", "nowhere"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nowhere: no such folder" in result.stderr


def test_a_server_that_is_still_unavailable_is_named_and_the_journal_stays(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    folder = tmp_path / "models" / "tracking" / RECORD.run_id
    journal = Journal(folder, RunRecord(RECORD.run_id, "1", "yolact", address))
    journal.records.append({"tags": {"a": "b"}})
    journal.release()
    before = (folder / "records.jsonl").read_bytes()
    result = CliRunner().invoke(app, ["sync"])
    assert result.exit_code == 1
    assert f"run {RECORD.run_id}: sent nothing" in result.stdout
    assert f"could not reach the tracking store at {address}" in result.stdout
    assert (folder / "records.jsonl").read_bytes() == before


def test_a_journal_that_cannot_be_read_is_named_and_the_others_are_sent(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = client.create_run(client.create_experiment("yolact")).info.run_id
    good = Journal(tmp_path / "models" / "tracking" / run_id, RunRecord(run_id, "1", "yolact", DEFAULT_TRACKING_URI))
    good.records.append({"tags": {"a": "b"}})
    good.release()
    torn = Journal(tmp_path / "models" / "tracking" / "0torn", RunRecord("0torn", "1", "yolact", DEFAULT_TRACKING_URI))
    torn.records.append({"tags": {"a": "b"}})
    torn.release()
    torn.records.path.unlink()
    torn.records.path.mkdir()  # no list: an OSError
    result = CliRunner().invoke(app, ["sync"])
    assert result.exit_code == 1
    assert "run 0torn: sent nothing\n  [Errno" in result.stdout
    assert f"run {run_id}: sent 1 note\n" in result.stdout
    assert client.get_run(run_id).data.tags["a"] == "b"
