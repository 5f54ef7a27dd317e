"""Reference of the commands, from their definitions in Typer."""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Iterator
from typing import Any

import typer.main

APPS = {"yolact": "yolact_cli.main", "python -m pipelines": "pipelines.__main__"}
"""Module with the Typer application of each command."""


def commands(name: str) -> str:
    """The page of a command with all those below it, Markdown."""
    command = typer.main.get_command(importlib.import_module(APPS[name]).app)
    parts = [f"# `{name}`", _text(command.help or "")]
    for path, below in _leaves(command, name):
        context = below.context_class(below, info_name=path)
        parts += [f"## `{path}`", _text(below.help or "")]
        parts.append(f"```console\n$ {path} {' '.join(below.collect_usage_pieces(context))}\n```")
        for parameter in below.params:
            record = parameter.get_help_record(context)
            if record:  # None: hidden
                parts.append(f"`{_one_line(record[0])}`\n:   {_text(record[1])}")
    return "\n\n".join(parts) + "\n"


def _leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All commands below a group. Typer brings a copy of Click of its own, so the types have no public name."""
    for name, below in command.commands.items():
        if hasattr(below, "commands"):
            yield from _leaves(below, f"{path} {name}")
        elif not below.hidden:
            yield f"{path} {name}", below


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(text: str) -> str:
    """Plain text as Markdown: what is between backticks stays code, the rest has no markup."""
    parts = re.split(r"(`[^`]*`)", _one_line(text.replace("\b", "")))
    return "".join(part if part.startswith("`") else _escape(part) for part in parts)


def _escape(text: str) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", html.escape(text, quote=False))
