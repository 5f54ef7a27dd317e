"""The server when its registry or its disk fails: it answers with the model that it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from tests.components.registry_versions import add_model
from tests.faults.faults import filled, small_disk
from tests.servers.mlflow_servers import MlflowServer
from tests.servers.servers import CuttingProxy
from tests.serving.conftest import error_of, model_dir, network, png, post, running, wait
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
    monkeypatch.setattr("serving.following.FIRST_RETRY", 0.5)
    yield made
    made.close()


@pytest.mark.parametrize("fault", [{"dead_after": 0}, {"status": 503}], ids=["cut", "503"])
def test_the_model_is_served_while_the_registry_fails(line: CuttingProxy, png: bytes, fault: dict[str, int]) -> None:
    with running(model="models:/served@champion", poll=0.2) as server:
        wait(lambda: server.service.is_ready, 120)
        for name, value in fault.items():
            setattr(line, name, value)
        wait(lambda: server.service.following.source_error, 120)
        ready = requests.get(f"{server.address}/readyz", timeout=30)
        assert ready.status_code == 200
        assert "could not" in ready.json()["source_error"]
        assert post(f"{server.address}/predict", png).status_code == 200
        for name in fault:
            setattr(line, name, None)
        wait(lambda: server.service.following.source_error is None, 120)


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
