"""`yolact serve`: which model its argument names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import serving.server
from yolact_cli import serve
from yolact_cli.main import app
from yolact_ops.commands.secrets import SECRET_FILES_VARIABLE


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


def test_the_server_reads_its_secrets_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token and MLflow's address, as ``deploy/serving`` mounts them."""
    given = {"YOLACT_SERVE_TOKEN": "a token", "MLFLOW_TRACKING_URI": "http://mlflow.example"}
    for name, value in given.items():
        (tmp_path / name).write_text(f"{value}\n")
    files = os.pathsep.join(str(tmp_path / name) for name in given)
    kept = {name: value for name, value in os.environ.items() if name not in given}
    monkeypatch.setattr(os, "environ", kept | {SECRET_FILES_VARIABLE: files})
    seen: list[tuple[bytes | None, str]] = []
    monkeypatch.setattr(
        serving.server,
        "serve",
        lambda settings, _: seen.append((settings.read_token(), os.environ["MLFLOW_TRACKING_URI"])),
    )
    serve.run("models:/yolact@champion")
    assert seen == [(b"a token", "http://mlflow.example")]
