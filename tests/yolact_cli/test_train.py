"""`yolact train`: the settings that it writes; `dvc repro` itself is tested in tests/test_pipeline.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yolact_cli import train
from yolact_cli.main import app
from yolact_ops.settings.params import load_params


@pytest.fixture
def started(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are started in a project's folder; all fail with 3."""
    shutil.copytree(repository / "conf", tmp_path / "conf")
    shutil.copy(repository / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        assert not check
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(train.subprocess, "run", run)
    return commands


def test_the_preset_is_written_with_the_folder_and_dvc_is_started(started: list[list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "my: images, #1"
    folder.mkdir()
    arguments = ["train", str(folder), "--preset", "smoke", "-S", "train.epochs=7"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3, result.output  # DVC's
    assert [command[-3:] for command in started] == [["-m", "dvc", "repro"]]
    params = load_params()
    assert (params.data.source, params.train.epochs, params.model.image_size) == (str(folder), 7, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder or archive (looked for"),
        ([".", "--preset", "smok"], "no preset 'smok'; did you mean 'smoke'?"),
        ([".", "-S", "train.epoch=1"], "train.epoch: unknown key"),
        ([".", "-S", "model.backbone_weights=imagenet-v2"], "imagenet-v2: there are none for efficientnet_lite0; use"),
        ([".", "-S", "model.backbone_weights=imagenet-v3"], "no such file; did you mean 'imagenet-v2'?"),
        ([".", "-S", "model.initial_weights=https://example.com/a"], "https://example.com/a: no such folder."),
    ],
)
def test_nothing_is_written_or_started_after_a_mistake(
    started: list[list[str]], arguments: list[str], message: str
) -> None:
    before = Path("params.yaml").read_text()
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert (Path("params.yaml").read_text(), started) == (before, [])


def test_outside_of_a_checkout_nothing_is_written_and_the_message_says_what_to_do(
    started: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "dvc.yaml").unlink()
    before = Path("params.yaml").read_text()
    result = CliRunner().invoke(app, ["train", "."])
    assert result.exit_code == 1
    assert "dvc.yaml: no such file." in result.output
    assert "clone the repository" in result.output
    assert (Path("params.yaml").read_text(), started) == (before, [])
