"""Groups of commands: which errors become messages, and their exit codes."""

from __future__ import annotations

import errno

import pytest
import typer
from typer.testing import CliRunner, Result

from yolact.errors import YolactError
from yolact_ops.commands.errors import ErrorGroup, clear_errors


class RefusedError(YolactError):
    exit_code = 3


def ended_with(error: Exception) -> Result:
    app = typer.Typer(cls=ErrorGroup, pretty_exceptions_enable=False)

    @app.callback()
    def main() -> None:
        pass

    @app.command()
    def work() -> None:
        raise error

    return CliRunner().invoke(app, ["work"])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (YolactError("a.jpg: broken"), 1, "a.jpg: broken"),
        (RefusedError("not better"), 3, "not better"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), 1, "a.jpg: No such file or directory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/raw"),
            1,
            "data/raw: no space left on device. Make room, or use another disk.",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "data/.raw.x.part"),
            1,
            "data: read-only file system. Use a folder that can be written.",
        ),
    ],
)
def test_a_user_error_is_its_message_alone_and_its_exit_code(error: Exception, code: int, message: str) -> None:
    result = ended_with(error)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"{message}\n")


def test_a_module_of_an_extra_that_is_missing_names_the_extra_and_any_other_is_a_bug() -> None:
    missing = ended_with(ModuleNotFoundError("No module named 'mlflow.tracking'", name="mlflow.tracking"))
    assert missing.exit_code == 1
    assert missing.output.startswith("mlflow is not installed. This needs the extra `pipeline`: pip install")
    assert isinstance(ended_with(ModuleNotFoundError("No module named 'fpn'", name="fpn")).exception, ImportError)


def test_a_bug_is_not_reported_as_a_message() -> None:
    assert isinstance(ended_with(ZeroDivisionError("bug")).exception, ZeroDivisionError)


def test_a_closed_standard_output_is_not_an_error_of_the_command() -> None:
    result = ended_with(BrokenPipeError(32, "Broken pipe"))
    assert (result.exit_code, result.stderr) == (1, "")


def test_a_hint_follows_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), clear_errors("train", lambda: " Try again."):
        raise YolactError("broken.")
    assert capsys.readouterr().err == "\ntrain failed: broken. Try again.\n"
