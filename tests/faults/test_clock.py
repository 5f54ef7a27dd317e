"""Machines whose clocks are wrong: the lock of promotions, requests to S3, journals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.faults import clock
from tests.servers.servers import s3_server, use_s3
from yolact_ops.registry import lock
from yolact_ops.tracking.journal import Journal
from yolact_ops.tracking.run_record import RunRecord

PROMOTION = """
import sys
from mlflow import MlflowClient
from yolact_ops.commands.errors import clear_errors
from yolact_ops.registry import lock

with clear_errors(), lock.hold(MlflowClient(sys.argv[1]), "yolact", "another machine", patience=0) as held:
    held.check()
    print("took it")
"""


FETCH = """
from pathlib import Path
from yolact_ops.commands.errors import clear_errors
from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client

with clear_errors():
    client, address = make_client(), S3Address.parse("s3://bucket")
    fetch_objects(client, address, list_objects(client, address), Path("files"))
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


@pytest.mark.parametrize("offset", ["+1h", "-1d"])
def test_s3_refuses_a_wrong_clock_which_is_named_and_the_next_run_fetches_the_files(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, offset: str
) -> None:
    (tmp_path / "s3/bucket").mkdir(parents=True)
    (tmp_path / "s3/bucket/one.bin").write_bytes(b"content")
    command = [sys.executable, "-c", FETCH]
    with s3_server(tmp_path / "s3") as address:
        use_s3(monkeypatch, address)
        environment = os.environ | {"PYTHONPATH": str(repository)}
        wrong = subprocess.run(
            command, cwd=tmp_path, env=environment | clock(offset), stderr=subprocess.PIPE, text=True, check=False
        )
        assert wrong.returncode == 1
        assert "this machine's clock and its own differ. Set the clock." in wrong.stderr
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "files/one.bin").read_bytes() == b"content"


@pytest.mark.slow
def test_a_journal_of_a_clock_that_jumped_is_sent_by_another_one_and_nothing_is_lost(
    store: str, tmp_path: Path, repository: Path
) -> None:
    """Its clock was right, a day behind, then a day ahead, and it was killed; that of `sync` is two days behind."""
    client = MlflowClient(store)
    run_id = client.create_run(client.create_experiment("clocks")).info.run_id
    journal = Journal(tmp_path / "models/tracking" / run_id, RunRecord(run_id, "1", "clocks", store))
    journal.add_status("RUNNING", None)
    now, day = int(time.time() * 1000), 86_400_000
    moments = (now, now - day, now + day)
    for step, moment in enumerate(moments, 1):
        journal.records.append({"metrics": {"loss": 1 / step}, "time": moment, "step": step, "model_id": None})
    journal.release()
    subprocess.run(
        [sys.executable, "-m", "yolact_cli.main", "sync"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)} | clock("-2d"),
        check=True,
    )
    history = [(found.step, found.value, found.timestamp) for found in client.get_metric_history(run_id, "loss")]
    assert sorted(history) == [(step, 1 / step, moment) for step, moment in enumerate(moments, 1)]
    assert client.get_run(run_id).info.status == "KILLED"
    assert list((tmp_path / "models/tracking").glob("*/*")) == []
