"""`yolact serve`: which model its argument names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from yolact_cli import serve
from yolact_cli.main import app


@pytest.mark.parametrize(
    ("argument", "model"),
    [("models:/yolact@champion", "models:/yolact@champion"), ("mine", "sub/mine"), ("x.onnx", "sub/x.onnx")],
)
def test_a_path_is_that_of_the_callers_folder_and_a_registered_model_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, model: str
) -> None:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").touch()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    called: dict[str, Any] = {}
    monkeypatch.setattr(serve, "run", lambda model, **options: called.update(options, model=model))
    done = CliRunner().invoke(app, ["serve", argument, "--port", "81", "--candidate", argument], catch_exceptions=False)
    assert done.exit_code == 0
    assert (called["model"], called["candidate"]) == (model, model)
    assert (called["port"], called["host"]) == (81, None)
