"""Faults of annotated images, collected rather than stopped at: each names its file, the reason and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from yolact.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One fault of one image's files."""

    file: str
    """Relative to the data set's folder, with ``/``."""
    reason: str
    """What was found and the way out."""

    def __post_init__(self) -> None:
        """What is not UTF-8 in either is escaped, so that both can be written."""
        object.__setattr__(self, "file", writable(self.file))
        object.__setattr__(self, "reason", writable(self.reason))

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class ProblemError(DataError):
    """The files of one image cannot be used; holds every `Problem` found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def writable(text: str) -> str:
    r"""Text with ``\udcfc`` for what is not UTF-8, as the bytes of a file's name that are not, in Python's reading."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


Result = TypeVar("Result")


def keep_problems(problems: list[Problem], read: Callable[[], Result]) -> Result | None:
    """What ``read`` returns; when it raises `ProblemError`, its problems are kept and None is returned."""
    try:
        return read()
    except ProblemError as error:
        problems += error.problems
        return None
