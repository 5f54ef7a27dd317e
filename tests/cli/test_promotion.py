"""`yolact promote`, `rollback`, `history` and `lineage`: what people see when there is nothing to work on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from cli.main import app
from tests.components.registry_versions import add_version


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without anything, which takes MLflow seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path, repository: Path) -> Path:
    """A working folder with settings and an empty store."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, "mlflow.db")
    shutil.copy(repository / "conf" / "base.yaml", "params.yaml")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote"], "has no model 'yolact'. Register one first: dvc repro register"),
        (["rollback"], "has no model 'yolact'"),
        (["history"], "has no model 'yolact'"),
        (["history", "--name", "other"], "has no model 'other'"),
        (["lineage", "models:/yolact@champion"], "has no model 'yolact'"),
        (["lineage", "yolact"], "'yolact' names no version; write models:/yolact@champion or models:/yolact/3"),
        (["promote", "--force"], "a forced promotion needs a reason"),
    ],
)
def test_what_is_not_there_is_named_with_the_way_out(project: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_model_without_champion_has_an_empty_history(project: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    add_version(client, {"cat": 10})
    result = CliRunner().invoke(app, ["history"])
    assert result.exit_code == 0
    assert "nothing was promoted yet" in result.output
    result = CliRunner().invoke(app, ["lineage", "yolact@champion"])
    assert (result.exit_code, "nothing was promoted yet" in result.output) == (1, True)


def test_the_lineage_of_a_version_that_says_little_says_so(project: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    add_version(client, {"cat": 10})
    result = CliRunner().invoke(app, ["lineage", "yolact/1"])
    assert result.exit_code == 0
    for part in ("yolact version 1 (candidate)", "data_digest", "to rebuild it:", "the code is not known"):
        assert part in result.output
