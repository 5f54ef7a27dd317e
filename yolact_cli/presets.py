"""`yolact preset`: list, show and use presets; `yolact_ops.settings.presets` composes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from yolact.errors import SettingsError
from yolact.files import write_text_atomic
from yolact.models.published import PUBLISHED_MODELS
from yolact_ops.reports.formatting import flatten
from yolact_ops.settings.presets import CONF, PARAMS, base_path, compose, describe, preset_names
from yolact_ops.settings.yaml_text import parse_yaml, plain, read_yaml

LONG_LIST = 60
"""Longest list of lists, in characters, that is shown on one line."""


@dataclass(frozen=True)
class Change:
    """A setting that differs between two settings files; None for a missing key."""

    key: str
    old: str | None
    new: str | None


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Settings that differ between two nested mappings, with dotted keys; those of ``new`` first."""
    before, after = flatten(old), flatten(new)
    keys = [*after, *(key for key in before if key not in after)]
    return [
        Change(key, *(shown(side[key]) if key in side else None for side in (before, after)))
        for key in keys
        if (key in before) != (key in after) or before.get(key) != after.get(key)
    ]


def shown(value: Any) -> str:
    """A setting's value as in YAML; a long list of lists has a line per row."""
    if value is None:
        return "null"
    if isinstance(value, list) and len(str(value)) > LONG_LIST and isinstance(value[0], list):
        return "\n".join(map(str, value))
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def print_list(console: Console | None = None) -> None:
    """Print each preset's name and description: the project's, then the published configurations."""
    console = console or Console(highlight=False)
    for title, names in (("project", preset_names()), ("published", list(PUBLISHED_MODELS))):
        table = Table(Column(f"{title} preset", no_wrap=True, min_width=22), Column("purpose", ratio=1))
        for name in names:
            table.add_row(name, describe(name))
        console.print(table)


def print_preset(name: str, *, whole: bool, console: Console | None = None) -> None:
    """Print what a preset changes in conf/base.yaml, or the whole settings file that it makes."""
    console = console or Console()
    text = compose(name)
    if whole:
        print(text, end="")
        return
    console.print(f"[bold]{name}[/bold]: {describe(name)}", highlight=False)
    differences = changes(plain(read_yaml(base_path(CONF))), plain(parse_yaml(text, name)))
    console.print(_table(differences, old="base", new=name))


def use(name: str, overrides: Sequence[str] = (), model: str | None = None, console: Console | None = None) -> None:
    """Write preset ``name``, with another ``model`` and ``overrides``, to ``params.yaml`` and print the changes.

    Raises:
        SettingsError: see `compose`; ``params.yaml`` stays unchanged.
    """
    console = console or Console()
    text = compose(name, overrides, model=model)
    what = f"{name} with the network {model}" if model else name
    old = _old_params()
    write_text_atomic(PARAMS, text)
    if old is None:
        console.print(f"{PARAMS} written from preset {what}; there was no readable one before.", highlight=False)
        return
    differences = changes(old, plain(parse_yaml(text, name)))
    if not differences:
        console.print(f"{PARAMS} is preset {what} already; no setting changed.", highlight=False)
        return
    console.print(f"{PARAMS} is now preset {what}. Changed:", highlight=False)
    console.print(_table(differences, old="before", new="now"))


def _old_params() -> dict[str, Any] | None:
    """The settings in ``params.yaml``, valid or not; None if it is missing or not YAML."""
    try:
        tree: dict[str, Any] = plain(read_yaml(PARAMS))
        return tree
    except (FileNotFoundError, SettingsError):
        return None


def _table(differences: Sequence[Change], old: str, new: str) -> Table:
    table = Table(Column("setting", no_wrap=True), Column(old, overflow="fold"), Column(new, overflow="fold"))
    for change in differences:
        table.add_row(*map(escape, (change.key, change.old or "-", change.new or "-")))
    return table
