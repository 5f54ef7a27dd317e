"""The command of a step: its settings, exit codes and messages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from yolact.errors import DataError, SettingsError, WeightsError, YolactError
from yolact_ops.commands.secrets import SECRET_FILES_VARIABLE
from yolact_ops.commands.step import run_command
from yolact_ops.settings.params import Params, load_params


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the settings of conf/base.yaml."""
    (tmp_path / "params.yaml").write_text((repository / "conf" / "base.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a step's work as its command does, and return its exit code."""

    def call(work: Callable[[Params], None], *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["step.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command("train", work)
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0

    return call


def failing(error: BaseException) -> Callable[[Params], None]:
    def work(params: Params) -> None:
        raise error

    return work


def test_settings_come_from_params_yaml_in_the_working_folder(command: Callable[..., int], workplace: Path) -> None:
    seen: list[Params] = []
    assert command(seen.append) == 0
    assert seen == [load_params(workplace / "params.yaml")]


def test_a_step_reads_its_secrets_from_files(
    command: Callable[..., int], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "SOME_PASSWORD").write_text("of the file\n")
    monkeypatch.setattr(os, "environ", os.environ | {SECRET_FILES_VARIABLE: str(workplace / "SOME_PASSWORD")})
    seen: list[str] = []
    assert command(lambda _: seen.append(os.environ["SOME_PASSWORD"])) == 0
    assert seen == ["of the file"]


def test_settings_can_come_from_another_file(command: Callable[..., int], workplace: Path) -> None:
    tree = yaml.safe_load((workplace / "params.yaml").read_text())
    tree["train"]["epochs"] = 77
    (workplace / "conf").mkdir()
    (workplace / "conf" / "mine.yaml").write_text(yaml.safe_dump(tree))
    seen: list[Params] = []
    assert command(seen.append, "--params", "conf/mine.yaml") == 0
    assert [params.train.epochs for params in seen] == [77]


@pytest.mark.parametrize("kind", [YolactError, DataError, SettingsError, WeightsError])
def test_a_user_error_is_a_message_and_exit_code_1(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], kind: type[YolactError]
) -> None:
    assert command(failing(kind("image.jpg: is broken; replace it"))) == 1
    assert capsys.readouterr() == ("", "\ntrain failed: image.jpg: is broken; replace it\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(13, "Permission denied", "models/model.json"),
            "models/model.json: permission denied. Give yourself read and write permission, or use another folder.",
        ),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (OSError("cannot identify image file"), "cannot identify image file"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_file_that_cannot_be_read_or_written_is_a_message_too(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], error: OSError, said: str
) -> None:
    assert command(failing(error)) == 1
    assert capsys.readouterr() == ("", f"\ntrain failed: {said}\n")


@pytest.mark.parametrize("lock", ["", "[", "stages:\n  ingest:\n    outs: [{path: data/other}]\n"])
def test_an_output_without_a_dvc_record_has_no_hint(
    monkeypatch: pytest.MonkeyPatch, workplace: Path, capsys: pytest.CaptureFixture[str], lock: str
) -> None:
    (workplace / "dvc.lock").write_text(lock)
    monkeypatch.setattr(sys, "argv", ["step.py"])
    with pytest.raises(SystemExit):
        run_command("ingest", failing(DataError("damaged.")), outputs=[Path("data/raw")])
    assert capsys.readouterr().err == "\ningest failed: damaged.\n"


def test_a_real_file_error_names_the_file(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(lambda params: (Path("params.yaml") / "x").write_text("")) == 1
    assert capsys.readouterr().err == "\ntrain failed: params.yaml/x: Not a directory\n"


def test_missing_settings_say_how_to_write_them(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(failing(AssertionError("not reached")), "--params", "nowhere.yaml") == 1
    message = capsys.readouterr().err
    assert message.startswith("\ntrain failed: nowhere.yaml: no such file.")
    assert "yolact preset use" in message


def test_every_wrong_setting_is_named_before_any_work(
    command: Callable[..., int], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((workplace / "params.yaml").read_text())
    tree["train"] |= {"epochs": 0, "lrr": 1}
    (workplace / "params.yaml").write_text(yaml.safe_dump(tree))
    assert command(failing(AssertionError("not reached"))) == 1
    message = capsys.readouterr().err
    assert "params.yaml: train.epochs: " in message
    assert "params.yaml: train.lrr: unknown key; did you mean 'lr'?" in message


@pytest.mark.parametrize("arguments", [["--parms", "x"], ["params.yaml"]])
def test_a_wrong_option_is_exit_code_2(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert command(failing(AssertionError("not reached")), *arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own
    with pytest.raises(ZeroDivisionError):
        run_command("train", failing(ZeroDivisionError("a bug")))


def test_log_lines_go_to_standard_error_with_the_step(repository: Path) -> None:
    code = (
        "import logging; from yolact_ops.commands.step import run_command\n"
        "def work(params):\n"
        "    logging.getLogger('yolact.engine').info('epoch %d', params.train.epochs)\n"
        "    logging.getLogger('yolact.engine').debug('hidden')\n"
        "run_command('train', work)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path.cwd(),
        env={"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "[train] epoch 100\n")
