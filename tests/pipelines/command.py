"""Calls ``python -m pipelines`` in this process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipelines.__main__ import app


class Output:
    """The result of a command."""

    def __init__(self, result: Any) -> None:
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code: int = result.exit_code
        self.out: str = result.stdout
        self.err: str = result.stderr

    @property
    def run_id(self) -> str:
        match = re.search(r"id  (\S+)", self.out)
        assert match
        return match[1]


def call(*arguments: str | Path) -> Output:
    return Output(CliRunner().invoke(app, [str(argument) for argument in arguments]))
