"""Report errors that the user can fix, the same way in every command."""

from __future__ import annotations

import errno
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from yolact.errors import YolactError
from yolact.files import FULL

_PERMISSION = "Give yourself read and write permission, or use another folder."
_ADVICE = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "Use a folder that can be written.",
    **dict.fromkeys(FULL, "Make room, or use another disk."),
}
"""What to do about errors of the file system, by their number."""

PIPELINE_MODULES = frozenset({"boto3", "botocore", "dvc", "kfp", "mlflow", "psutil", "requests", "sqlalchemy"})
"""Modules that only the extra `pipeline` installs, as far as commands import them first."""


@contextmanager
def clear_errors(step: str = "", hint: Callable[[], str] = str) -> Iterator[None]:
    """Print user errors without a traceback, to standard error, and exit with their code (1 for an `OSError`).

    User errors are every `YolactError`, every failed file or connection (`OSError`), and a module of an extra that is
    not installed; any other exception is a bug and keeps its traceback.

    Args:
        step: prefix of the message, as ``train failed: ``.
        hint: called after a user error; returns text to append to the message.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of standard output has exited, as `head` does; Typer handles it
        raise
    except (YolactError, OSError) as error:
        title = f"\n{step} failed: " if step else ""
        print(f"{title}{_explain(error)}{hint()}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    except ModuleNotFoundError as error:
        if (module := (error.name or "").partition(".")[0]) not in PIPELINE_MODULES:
            raise
        print(
            f"{module} is not installed. This needs the extra `pipeline`: pip install 'yolact-pipeline[pipeline]', or "
            "`make install` in a checkout.",
            file=sys.stderr,
        )
        raise SystemExit(1) from error


def require_module(name: str) -> None:
    """Check that a module is installed, without the seconds that its import may take.

    Raises:
        ModuleNotFoundError: it is not.
    """
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class ErrorGroup(TyperGroup):
    """A group of commands that report user errors as `clear_errors` describes."""

    def invoke(self, ctx: Any) -> Any:
        with clear_errors():
            return super().invoke(ctx)


def _explain(error: YolactError | OSError) -> str:
    if not (isinstance(error, OSError) and error.strerror and error.filename):
        return str(error) or type(error).__name__
    path = Path(str(error.filename))
    advice = _ADVICE.get(error.errno or 0)
    if advice is None:
        return f"{path}: {error.strerror}"
    if path.suffix in (".part", ".lock"):  # not the user's; the folder is
        path = path.parent
    return f"{path}: {error.strerror.lower()}. {advice}"
