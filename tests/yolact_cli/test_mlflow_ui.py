"""`yolact mlflow`: the address of the last run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from yolact_cli.main import app

RECORD = {"run_id": "abc", "experiment_id": "1", "experiment": "yolact", "tracking_uri": "sqlite:///mlflow.db"}


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were started, in a folder where train has run; none of them really runs."""
    commands: list[list[str]] = []

    def note(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "run.json").write_text(json.dumps(RECORD))
    return commands


def test_the_pages_of_the_local_file_open_on_the_last_run(started: list[list[str]]) -> None:
    result = CliRunner().invoke(app, ["mlflow", "--port", "5123"])
    assert result.exit_code == 0
    assert "http://127.0.0.1:5123/#/experiments/1/runs/abc?workflowType=machine_learning" in result.stdout
    (command,) = started
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[4:] == ["--backend-store-uri", "sqlite:///mlflow.db", "--port", "5123"]


def test_a_server_is_only_named(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker.example")
    Path("models/run.json").write_text(json.dumps(RECORD | {"tracking_uri": "http://tracker.example"}))
    result = CliRunner().invoke(app, ["mlflow"])
    assert result.exit_code == 0
    assert "http://tracker.example/#/experiments/1/runs/abc?workflowType=machine_learning" in result.stdout
    assert not started


def test_without_a_run_the_web_interface_starts_too(started: list[list[str]]) -> None:
    Path("models/run.json").unlink()
    result = CliRunner().invoke(app, ["mlflow"])
    assert result.exit_code == 0
    assert "(this folder has no run yet): http://127.0.0.1:5000\n" in result.stdout
    assert started[0][4:] == ["--backend-store-uri", "sqlite:///mlflow.db", "--port", "5000"]


def test_without_a_run_a_server_is_named_too(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker.example")
    Path("models/run.json").unlink()
    result = CliRunner().invoke(app, ["mlflow"])
    assert result.exit_code == 0
    assert "This folder has none yet." in result.stdout
    assert not started


def test_a_damaged_record_is_named(started: list[list[str]]) -> None:
    Path("models/run.json").write_text("[")
    result = CliRunner().invoke(app, ["mlflow"])
    assert result.exit_code == 1
    assert "not the record of a run" in result.stderr
