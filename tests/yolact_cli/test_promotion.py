"""`yolact promote`, `rollback`, `history` and `lineage`: messages and tables."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from components.promote.promotion import rollback
from tests.components.registry_versions import add_version
from yolact_cli.main import app
from yolact_ops.registry.versions import CHAMPION, RegisteredModel
from yolact_ops.settings.params import load_params


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
def test_what_is_missing_is_named_with_how_to_fix_it(project: Path, arguments: list[str], message: str) -> None:
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


def test_a_narrow_terminal_and_a_file_show_whole_digests_and_reasons(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    digest, reason = "0123456789abcdef" * 4, "it stumbles in the rain [and at night]"
    for found in (10, 20):
        add_version(client, {"cat": found}, data_digest=digest)
        RegisteredModel.open(client, "yolact").set_alias(CHAMPION, found // 10)
    first = CliRunner().invoke(app, ["promote", "--version", "1", "--force", "--reason", reason])
    assert first.exit_code == 0, first.output
    rollback(load_params("params.yaml"), reason=reason)
    monkeypatch.setenv("COLUMNS", "80")
    for command, text in ((["lineage", "yolact/1"], digest), (["history"], reason)):
        assert text in CliRunner().invoke(app, command).output  # in a file
        with monkeypatch.context() as patch:
            patch.setenv("FORCE_COLOR", "1")  # as on a terminal
            shown = re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(app, command).output)
        assert "…" not in shown
        assert command == ["history"] or digest in re.sub(r"\s", "", shown)  # over two lines


def test_a_refusal_names_the_command_that_overrules_it_with_the_model(project: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    add_version(client, {"cat": 0}, name="night")
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"min_first: [0-9.]+", "min_first: 0.9", settings))
    result = CliRunner().invoke(app, ["promote", "--name", "night"])
    assert result.exit_code == 3
    assert 'yolact promote --name night --version 1 --force --reason "..."' in result.output


def test_the_lineage_of_a_version_with_few_tags_says_what_is_unknown(project: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    add_version(client, {"cat": 10})
    result = CliRunner().invoke(app, ["lineage", "yolact/1"])
    assert result.exit_code == 0
    for part in ("yolact version 1 (candidate)", "data_digest", "to rebuild it:", "the code is unknown"):
        assert part in result.output
