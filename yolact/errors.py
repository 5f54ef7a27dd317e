"""Errors that users can fix. Commands print their message without a traceback and exit with their code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EX_UNAVAILABLE = 69
"""Exit code (sysexits.h) when a server is unavailable: the same command may succeed later."""

EX_SOFTWARE = 70
"""Exit code (sysexits.h) of a crash: an unexpected exception, or a killed loader process."""

EX_TEMPFAIL = 75
"""Exit code (sysexits.h) for a temporary failure: nothing is wrong, and the same command resumes."""


class YolactError(Exception):
    """Base class of errors whose message says what is wrong, where, and how to fix it."""

    exit_code = 1
    """Exit code of a command that ends with this error."""


class SettingsError(YolactError, ValueError):
    """A setting is unknown, missing, of a wrong type or invalid; names the file and the key."""


class DataError(YolactError, ValueError):
    """Input data is missing or invalid; names the file."""


class WeightsError(YolactError, ValueError):
    """A weights file is missing, damaged or does not fit the network; names the file and the keys."""


class ExportError(YolactError, RuntimeError):
    """A network cannot be exported, or an exported network cannot be run; names the file or the missing library."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """``did you mean 'resnet50'?`` with the most similar of the known names; empty if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""
