"""`yolact summary`: the numbers of the last run, or which step is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from yolact.errors import DataError
from yolact_cli.main import app
from yolact_cli.summary import Results, read_results

FILES: dict[str, Any] = {
    "metrics/train.json": {"seconds_per_step": 0.1234567},
    "metrics/eval.json": {"box": {"AP": 0.31, "AP50": 0.6549}, "mask": {"AP": 0.2, "AP50": 0.5126}},
    "reports/registration.json": {"name": "yolact", "version": 7, "alias": "candidate"},
}


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a finished run leaves it, made the current one."""
    for name, tree in FILES.items():
        write(tmp_path, name, tree)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root: Path, name: str, tree: Any) -> None:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(tree), encoding="utf-8")


def test_results_are_read_from_the_steps_files(run_folder: Path) -> None:
    assert read_results(run_folder) == Results(0.31, 0.6549, 0.2, 0.5126, 0.1234567, "yolact", "7", "candidate")


def test_the_table_shows_ap_seconds_version_and_three_next_commands(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["summary"])
    assert result.exit_code == 0
    for text in ("0.310", "0.655", "0.200", "0.513", "0.123 s", "yolact version 7", "alias candidate"):
        assert text in result.stdout
    for command in ("make mlflow", "reports/eval/index.html", "dvc exp run -S train.lr"):
        assert command in result.stdout


def test_an_unmeasured_value_is_a_dash_and_a_missing_alias_is_reported(run_folder: Path) -> None:
    write(run_folder, "metrics/eval.json", {"box": {"AP": None, "AP50": None}, "mask": {"AP": None, "AP50": None}})
    write(run_folder, "reports/registration.json", FILES["reports/registration.json"] | {"alias": None})
    result = CliRunner().invoke(app, ["summary"])
    assert result.exit_code == 0
    assert "None" not in result.stdout
    assert "without an alias" in result.stdout


@pytest.mark.parametrize(
    ("name", "step"),
    [("metrics/train.json", "train"), ("metrics/eval.json", "evaluate"), ("reports/registration.json", "register")],
)
def test_a_missing_file_is_named_with_the_step_that_writes_it(run_folder: Path, name: str, step: str) -> None:
    (run_folder / name).unlink()
    result = CliRunner().invoke(app, ["summary"])
    assert result.exit_code == 1
    assert result.stderr.strip() == f"{name}: no such file; run the step that writes it: dvc repro {step}"


def test_a_broken_or_incomplete_file_is_named(run_folder: Path) -> None:
    write(run_folder, "metrics/eval.json", {"box": {"AP": 0.1}, "mask": {}})
    with pytest.raises(DataError, match=r"eval\.json: has no box\.AP50; .*dvc repro evaluate"):
        read_results(run_folder)
    (run_folder / "metrics" / "train.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.json: not valid JSON .*dvc repro train"):
        read_results(run_folder)
