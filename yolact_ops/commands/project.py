"""Commands that are started in a sub-folder work in the project's folder, as those of git and DVC do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

PROJECT_FILES = ("dvc.yaml", "params.yaml")
"""Files of a project's folder; one without the first is a project too if the command is started there."""
CALLER = "yolact.caller"
"""Key of a command's context for the folder where it was started."""


def project_above(folder: Path) -> Path | None:
    """The nearest parent of ``folder`` with the files of a project; None if ``folder`` has settings, or no parent."""
    if (folder / PROJECT_FILES[1]).is_file():
        return None
    return next((up for up in folder.parents if all((up / name).is_file() for name in PROJECT_FILES)), None)


class ProjectCommand(TyperCommand):
    """A command that works in the project's folder and says so if it was started below it.

    Relative paths on the command line are relative to the folder where it was started; defaults, and the paths in
    ``params.yaml``, to the project's folder.
    """

    def invoke(self, ctx: Any) -> Any:
        """Change the folder of the process, then call the command."""
        ctx.meta[CALLER] = caller = Path.cwd()
        project = project_above(caller)
        if project is not None:
            for name, value in ctx.params.items():
                if ctx.get_parameter_source(name).name == "COMMANDLINE":
                    ctx.params[name] = _from(project, caller, value)
            print(f"working in {project}, the nearest folder with {' and '.join(PROJECT_FILES)}", file=sys.stderr)
            os.chdir(project)
        return super().invoke(ctx)


class ProjectTyper(typer.Typer):
    """A group whose commands are `ProjectCommand`s."""

    def command(self, name: str | None = None, **options: Any) -> Any:
        """As `typer.Typer.command`."""
        return super().command(name, cls=ProjectCommand, **options)


def _from(project: Path, caller: Path, value: Any) -> Any:
    """A path of ``caller``, or each in a list, as seen from ``project``; other values are unchanged."""
    if isinstance(value, list | tuple):
        return [_from(project, caller, item) for item in value]
    if not isinstance(value, Path) or value.is_absolute():
        return value
    return Path(os.path.relpath(caller / value, project))
