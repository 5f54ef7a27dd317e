"""The server when its registry, its disk or its clock fails: it answers with the model that it has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from tests.components.registry_versions import add_model
from tests.faults.faults import clock, filled, read_only, small_disk
from tests.servers.mlflow_servers import MlflowServer, PostgresServer
from tests.servers.servers import CuttingProxy
from tests.serving.conftest import command, error_of, model_dir, network, png, post, running, wait
from tests.serving.test_feedback import report_of, send
from yolact.settings import DEFAULT_DETECTION

__all__ = ["model_dir", "network", "png"]


@pytest.fixture
def line(on_server: MlflowServer, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """The network between the server and a registry that has a champion."""
    client = MlflowClient(on_server.address)
    version = add_model(client, "served", model_dir, DEFAULT_DETECTION)
    client.set_registered_model_alias("served", "champion", str(version))
    made = CuttingProxy(on_server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setattr("serving.following.FIRST_RETRY", 0.5)
    yield made
    made.close()


@pytest.mark.parametrize("fault", ["cut", "503", "slow", "database"])
def test_the_model_is_served_while_the_registry_fails(
    line: CuttingProxy, png: bytes, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with running(model="models:/served@champion", poll=0.2) as server:
        wait(lambda: server.service.is_ready, 120)
        if fault == "database":
            postgres.stop()
        else:
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1" if fault == "slow" else "30")
            line.fail(fault)
        try:
            wait(lambda: server.service.following.source_error, 120)
            ready = requests.get(f"{server.address}/readyz", timeout=30)
            assert ready.status_code == 200
            assert "could not" in ready.json()["source_error"]
            assert post(f"{server.address}/predict", png).status_code == 200
        finally:
            if fault == "database":
                postgres.start()
        line.heal()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        wait(lambda: server.service.following.source_error is None, 120)


def test_feedback_that_cannot_be_written_is_refused_and_prediction_goes_on(
    model_dir: Path, tmp_path: Path, png: bytes
) -> None:
    (tmp_path / "kept").mkdir()
    with running(model=str(model_dir), feedback=tmp_path / "kept") as server:
        report = report_of(server.address, png)
        with read_only(tmp_path / "kept"):
            answer = send(server.address, report)
            assert answer.status_code == 507
            assert "cannot be stored" in error_of(answer)
            assert post(f"{server.address}/predict", png).status_code == 200
        assert list((tmp_path / "kept").iterdir()) == []
        assert send(server.address, report).status_code == 201


@pytest.mark.slow
def test_a_server_whose_clock_jumps_answers_and_keeps_feedback(model_dir: Path, tmp_path: Path, png: bytes) -> None:
    """A day ahead, two days back, and to the right time again."""
    moment, kept = tmp_path / "clock", tmp_path / "kept"
    moment.write_text("+0")
    with command(model_dir, "--feedback", str(kept), **clock(moment)) as (process, address):
        report = report_of(address, png)
        for number, (offset, day) in enumerate((("+1d", 1), ("-1d", -1), ("+0", 0)), 1):
            moment.write_text(offset)
            time.sleep(1.5)  # until the file is read again
            assert requests.get(f"{address}/readyz", timeout=30).status_code == 200
            assert post(f"{address}/predict", png).status_code == 200
            answer = send(address, report)
            today = datetime.now(UTC) + timedelta(days=day)
            assert answer.json()["id"].startswith(f"{today:%Y%m%d}-"), "the clock did not jump"
            assert len(list(kept.glob("instances_*.json"))) == number
        process.terminate()
        assert process.wait(60) == 0


def test_feedback_on_a_full_disk_is_refused_and_leaves_no_half_of_a_report(
    model_dir: Path, tmp_path: Path, png: bytes
) -> None:
    """With room for the image alone, and with none."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk, running(model=str(model_dir), feedback=disk) as server:
        report = report_of(server.address, png)
        for free in (4096, 0):  # the disk's blocks have 4096 bytes, and the image fits into one
            with filled(disk, free):
                answer = send(server.address, report)
                assert answer.status_code == 507
                assert "cannot be stored" in error_of(answer)
                assert [path for path in disk.rglob("*") if path.is_file()] == [disk / ".filler"]
                assert post(f"{server.address}/predict", png).status_code == 200
        assert send(server.address, report).status_code == 201
