"""Problems of annotated images, which are collected: each names the file, what is wrong and how to fix it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from yolact.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One problem of an image's files."""

    file: str
    """Relative to the data set's folder, with ``/``."""
    reason: str
    """What is wrong and how to fix it."""
    kind: str = ""
    """The same for all problems alike, in words of its own (``mask without a pixel``); summaries count them by it."""
    changed: bool = False
    """For a warning: whether something certain was changed; otherwise something is doubtful."""

    def __post_init__(self) -> None:
        """Escape what is not UTF-8, so that both texts can be written to files."""
        object.__setattr__(self, "file", writable(self.file))
        object.__setattr__(self, "reason", writable(self.reason))

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class ProblemError(DataError):
    """The files of one image cannot be used; has every `Problem` found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def writable(text: str) -> str:
    r"""Text with escapes such as ``\udcfc`` for surrogates, Python's form of file-name bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


Result = TypeVar("Result")


def keep_problems(problems: list[Problem], read: Callable[[], Result]) -> Result | None:
    """Call ``read``; if it raises `ProblemError`, append its problems to the list and return None."""
    try:
        return read()
    except ProblemError as error:
        problems += error.problems
        return None
