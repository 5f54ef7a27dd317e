"""Other implementations: Python files that ``--against FILE.py`` names.

Any error in such a file becomes a `SettingsError` that names the file and the line.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from yolact.errors import SettingsError

PROTOCOL = "docs/benchmarks.md has the protocol"


def load_backend(file: Path, function: str, methods: Sequence[str], **arguments: Any) -> Any:
    """The object that a file's ``function`` returns for ``arguments``; it has all of ``methods``.

    Raises:
        SettingsError: the file is missing, cannot be imported or does not follow the protocol.
    """
    load = load_function(file, function)
    try:
        backend = load(**arguments)
    except Exception as error:  # somebody else's code may raise anything
        raise SettingsError(f"--against {file}: {function} failed: {_explain(error)}") from error
    missing = ", ".join(method for method in methods if not callable(getattr(backend, method, None)))
    if missing:
        raise SettingsError(f"--against {file}: what {function} returned has no method {missing}; {PROTOCOL}")
    return backend


def load_function(file: Path, name: str) -> Callable[..., Any]:
    """A function of a file.

    Raises:
        SettingsError: the file is missing, cannot be imported or has no such function.
    """
    function: Callable[..., Any] | None = getattr(_import(file), name, None)
    if not callable(function):
        raise SettingsError(f"--against {file}: has no function {name}; {PROTOCOL}")
    return function


def call(file: Path | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of ``file``; without a file it is our own, and its errors propagate unchanged.

    Raises:
        SettingsError: the file's function raised something.
    """
    if file is None:
        return function(*arguments)
    try:
        return function(*arguments)
    except Exception as error:  # somebody else's code may raise anything
        raise SettingsError(f"--against {file}: {_explain(error)}") from error


def _import(file: Path) -> ModuleType:
    if not file.is_file():
        raise SettingsError(f"--against {file}: no such file")
    name = f"_backend_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SettingsError(f"--against {file}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody else's code may raise anything
        del sys.modules[name]
        raise SettingsError(f"--against {file}: cannot be imported: {_explain(error)}") from error
    return module


def _explain(error: Exception) -> str:
    """The error on one line, with the innermost location in the code."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
