"""Concurrent and killed promotions on a real MLflow server with PostgreSQL and S3."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from components.promote.promotion import Request, promote, rollback
from tests.components.promoting import promote_version
from tests.components.registry_versions import add_version
from tests.servers.mlflow_servers import MlflowServer
from yolact_cli.main import app
from yolact_ops.registry import lock
from yolact_ops.registry.history import read_history
from yolact_ops.registry.versions import CHAMPION, RegisteredModel
from yolact_ops.settings.params import Params, load_params

PROCESSES = 3


@pytest.fixture
def name() -> str:
    """Name of a registered model that no other test uses."""
    return f"yolact-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(on_server: MlflowServer) -> MlflowClient:
    return MlflowClient(tracking_uri=on_server.address)


@pytest.fixture
def params_file(repository: Path, tmp_path: Path) -> Path:
    """Settings whose gate every version passes."""
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["promote"] |= {"samples": 100, "min_gain": -1.0, "max_doubt": 1.0, "max_class_loss": 1.0, "min_first": 0.0}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def ask(params: Params, name: str, version: int) -> Any:
    return promote(params, Request(version=version, name=name), eval_data_dir=Path("nowhere"))


def test_concurrent_promotions_leave_one_champion_and_every_decision(
    client: MlflowClient, name: str, params_file: Path
) -> None:
    versions = [add_version(client, {"cat": 10 + k}, name=name) for k in range(PROCESSES)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.components.promoting"])
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        asked = [pool.submit(promote_version, str(params_file), name, version) for version in versions]
        outcomes = [future.result(timeout=300) for future in asked]
    assert [status for status, _ in outcomes] == ["promoted"] * PROCESSES
    history = read_history(RegisteredModel.open(client, name))
    decisions = history.decisions
    assert [decision.number for decision in decisions] == list(range(1, PROCESSES + 1))
    assert sorted(decision.version for decision in decisions) == versions
    assert {decision.state for decision in decisions} == {"done"}
    # Each was compared with the champion that the previous one made: none overwrote another unnoticed.
    assert [decision.previous for decision in decisions] == [None, *(d.version for d in decisions[:-1])]
    assert history.champion == decisions[-1].version
    assert not history.moved_by_hand
    assert [model.name for model in client.search_registered_models(f"name LIKE '{name}%'")] == [name]


@pytest.mark.parametrize(("moment", "champion", "state"), [("before", 1, "abandoned"), ("after", 2, "done")])
def test_a_promotion_killed_before_or_after_the_alias_moves_is_settled_by_the_next(
    client: MlflowClient, name: str, params_file: Path, repository: Path, moment: str, champion: int, state: str
) -> None:
    params = load_params(params_file)
    for found in (10, 20, 30):
        add_version(client, {"cat": found}, name=name)
    ask(params, name, 1)
    killed = subprocess.run(
        [sys.executable, "-m", "tests.components.promoting", str(params_file), name, "2", moment, "5"],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository)},
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    model = RegisteredModel.open(client, name)
    history = read_history(model)
    assert [decision.state for decision in history.decisions] == ["done", "intended"]
    assert history.champion == champion
    assert [decision.version for decision in history.unsettled] == [2]

    ask(params, name, 3)  # the dead process's lock has expired: its lifetime was five seconds, or the next waits for it
    history = read_history(model)
    assert [decision.state for decision in history.decisions] == ["done", state, "done"]
    assert history.decisions[-1].previous == champion
    assert model.alias(CHAMPION) == 3
    assert rollback(params, name=name).version == champion


def test_a_held_lock_is_waited_for_and_its_holder_named(client: MlflowClient, name: str) -> None:
    with (
        lock.hold(client, name, "Ada on her laptop") as held,
        pytest.raises(lock.LockedError, match=r"Ada on her laptop, since .* UTC"),
        lock.hold(client, name, "Bob", patience=0.5),
    ):
        pytest.fail("two hold the lock")
    assert held.lock_name == f"{name}.promotion-lock"
    with lock.hold(client, name, "Bob", patience=0):
        pass


def test_an_expired_lock_is_broken_and_its_slow_holder_notices(client: MlflowClient, name: str) -> None:
    with lock.hold(client, name, "slow", lifetime=0.2) as slow:
        time.sleep(0.3)
        with lock.hold(client, name, "quick") as quick:
            quick.check()
            with pytest.raises(lock.LockedError, match="was lost"):
                slow.check()
            slow.release()  # which must not delete the lock of the quick one
            quick.check()
    assert client.search_registered_models(f"name LIKE '{name}%'") == []


def test_a_lock_is_recognised_after_its_response_was_lost(
    client: MlflowClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = lock._create

    def asked_twice(*arguments: Any) -> bool:
        return create(*arguments) and create(*arguments)

    monkeypatch.setattr(lock, "_create", asked_twice)
    with lock.hold(client, name, "Ada", patience=0) as held:
        held.check()
    assert client.search_registered_models(f"name LIKE '{name}%'") == []


def test_a_live_lock_renamed_by_mistake_is_restored(client: MlflowClient, name: str) -> None:
    """Between the check of an expired lock and its rename, another process took the lock."""
    with lock.hold(client, name, "dead", lifetime=0.0) as dead:
        seen = client.get_registered_model(dead.lock_name)
    with lock.hold(client, name, "alive") as alive:
        lock._break(client, seen)
        alive.check()
    assert client.search_registered_models(f"name LIKE '{name}%'") == []


def test_the_commands_refuse_promote_force_and_roll_back(
    client: MlflowClient, name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(repository / "conf" / "base.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")

    def yolact(*arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(app, [*arguments, "--name", name])
        assert result.exit_code == exit_code, result.output
        return result.output

    add_version(client, {"cat": 20, "dog": 20}, name=name)
    assert "version 1 is the champion now (champion was: none)" in yolact("promote")
    add_version(client, {"cat": 24, "dog": 14}, name=name)
    refusal = yolact("promote", exit_code=3)
    assert "version 2 is refused; nothing was changed (champion is: version 1)" in refusal
    assert "REFUSED  promote.max_class_loss: class dog (40 objects) loses 0.1" in refusal
    assert f'yolact promote --name {name} --version 2 --force --reason "..."' in refusal
    add_version(client, {"cat": 30, "dog": 30}, name=name)
    assert "version 3 would be promoted" in yolact("promote", "--dry-run")
    assert RegisteredModel.open(client, name).alias(CHAMPION) == 1
    promoted = json.loads(yolact("promote", "--json"))
    assert (promoted["status"], promoted["previous_champion"]) == ("promoted", 1)
    assert "is the champion already" in yolact("promote")
    forced = yolact("promote", "--version", "2", "--force", "--reason", "dogs are out of season")
    assert "version 2 is the champion now (champion was: version 3), by force" in forced
    assert "version 3 is the champion again (was: 2)" in yolact("rollback", "--reason", "they are not")

    tree = json.loads(yolact("history", "--json"))
    assert (tree["champion"], tree["moved_by_hand"]) == (3, False)
    assert [(d["action"], d["previous"], d["version"], d["forced"]) for d in tree["decisions"]] == [
        ("promote", None, 1, False),
        ("promote", 1, 3, False),
        ("promote", 3, 2, True),
        ("rollback", 2, 3, False),
    ]
    assert {decision["who"] for decision in tree["decisions"]} == {"ada"}
    table = yolact("history")
    for part in ("1 -> 3", "forced promote", "dogs are out of season", "they are not", f"champion of {name}: 3"):
        assert part in table
