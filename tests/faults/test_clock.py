"""The lock of promotions between machines whose clocks differ."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.faults import clock
from yolact_ops.registry import lock

PROMOTION = """
import sys
from mlflow import MlflowClient
from yolact_ops.commands.errors import clear_errors
from yolact_ops.registry import lock

with clear_errors(), lock.hold(MlflowClient(sys.argv[1]), "yolact", "another machine", patience=0) as held:
    held.check()
    print("took it")
"""


def elsewhere(store: str, repository: Path, offset: str) -> subprocess.CompletedProcess[str]:
    """Another promotion, on a machine with another time."""
    return subprocess.run(
        [sys.executable, "-c", PROMOTION, store],
        env=os.environ | {"PYTHONPATH": str(repository)} | clock(offset),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_a_process_whose_clock_is_ahead_takes_the_lock_and_the_holder_notices(store: str, repository: Path) -> None:
    client = MlflowClient(store)
    with lock.hold(client, "yolact", "here") as held:
        held.check()
        other = elsewhere(store, repository, "+1h")
        assert other.stdout == "took it\n", other.stderr
        with pytest.raises(lock.LockedError, match="was lost"):
            held.check()
    assert client.search_registered_models() == []


def test_a_process_whose_clock_is_behind_waits(store: str, repository: Path) -> None:
    client = MlflowClient(store)
    with lock.hold(client, "yolact", "here") as held:
        other = elsewhere(store, repository, "-1h")
        assert (other.returncode, other.stdout) == (1, "")
        assert "another promotion is running: here" in other.stderr
        held.check()
