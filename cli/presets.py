"""Presets: ``conf/base.yaml`` holds every setting; the other files there are small differences from it.

Composing one is a deep merge: sections are merged key by key, any other value (lists too) replaces the base's.
The result is ``params.yaml``, the only file that the steps read.
"""

from __future__ import annotations

import difflib
import io
import itertools
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from yolact.config import parse_params
from yolact.errors import SettingsError
from yolact.files import write_text_atomic

BASE = "base"
CONF = Path("conf")
PARAMS = Path("params.yaml")


@dataclass(frozen=True)
class Change:
    """One setting that differs between two settings files; None stands for a key that is not there."""

    key: str
    old: str | None
    new: str | None


def preset_names(conf: Path = CONF) -> list[str]:
    """Names of the presets in ``conf``, sorted.

    Raises:
        SettingsError: the folder has no ``base.yaml``.
    """
    if not (conf / f"{BASE}.yaml").is_file():
        raise SettingsError(f"{conf}/{BASE}.yaml: no such file. Run `yolact preset` from the repository's root.")
    return sorted(path.stem for path in conf.glob("*.yaml") if path.stem != BASE)


def describe(name: str, conf: Path = CONF) -> str:
    """The first paragraph of the comment at the head of a preset's file, as one line; empty when there is none."""
    lines = (line.lstrip("#").strip() for line in _head(_preset_path(name, conf).read_text(encoding="utf-8")))
    return " ".join(itertools.takewhile(bool, lines))


def compose(name: str, overrides: Sequence[str] = (), conf: Path = CONF) -> str:
    """Text of the ``params.yaml`` that preset ``name`` makes, with the base's comments.

    Args:
        name: a preset, or ``base``.
        overrides: ``KEY=VALUE`` each, with dots in the key and YAML in the value: ``train.lr=2e-3``.
        conf: folder of the presets.

    Raises:
        SettingsError: the preset is not there, or a file or an override has an unknown key or a wrong value.
    """
    path = _preset_path(name, conf)
    base = conf / f"{BASE}.yaml"
    tree = _read(base)
    parse_params(_plain(tree), origin=str(base))
    if path != base:
        _merge(tree, _read(path), origin=str(path))
        parse_params(_plain(tree), origin=str(path))
    for override in overrides:
        _merge(tree, _parse_override(override), origin=f"-S {override}")
    parse_params(_plain(tree), origin=" ".join(f"-S {override}" for override in overrides))
    return _render(tree, _header(name, describe(name, conf), overrides))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Settings that differ between two nested mappings, with dotted keys, in the order of ``new``, then ``old``."""
    before, after = _flatten(old), _flatten(new)
    keys = [*after, *(key for key in before if key not in after)]
    return [
        Change(key, _shown(before, key), _shown(after, key))
        for key in keys
        if (key in before) != (key in after) or before.get(key) != after.get(key)
    ]


def print_list(console: Console | None = None) -> None:
    """Print each preset's name and description."""
    table = Table("preset", "what it is for")
    for name in preset_names():
        table.add_row(name, describe(name))
    (console or Console()).print(table)


def print_preset(name: str, *, whole: bool, console: Console | None = None) -> None:
    """Print what a preset changes in the base, or the whole settings file it makes."""
    console = console or Console()
    text = compose(name)
    if whole:
        print(text, end="")
        return
    console.print(f"[bold]{name}[/bold]: {describe(name)}", highlight=False)
    differences = changes(_plain(_read(CONF / f"{BASE}.yaml")), _load_text(text))
    console.print(_table(differences, old="base", new=name))


def use(name: str, overrides: Sequence[str] = (), console: Console | None = None) -> None:
    """Write preset ``name`` with ``overrides`` to ``params.yaml`` and print what changed there.

    Raises:
        SettingsError: see `compose`; ``params.yaml`` is then as it was.
    """
    console = console or Console()
    text = compose(name, overrides)
    old = _old_params()
    write_text_atomic(PARAMS, text)
    if old is None:
        console.print(f"{PARAMS} written from preset {name}; no readable one was there before.", highlight=False)
        return
    differences = changes(old, _load_text(text))
    if not differences:
        console.print(f"{PARAMS} is preset {name}; no setting changed.", highlight=False)
        return
    console.print(f"{PARAMS} is preset {name} now. Changed:", highlight=False)
    console.print(_table(differences, old="was", new="is"))


def _preset_path(name: str, conf: Path) -> Path:
    names = preset_names(conf)
    if name not in (BASE, *names):
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        raise SettingsError(f"no preset {name!r} in {conf}/; {hint}")
    return conf / f"{name}.yaml"


def _yaml() -> YAML:
    yaml = YAML()  # round trip: keeps comments, order and the spelling of numbers
    yaml.width = 120
    return yaml


def _read(path: Path) -> CommentedMap:
    try:
        tree = _yaml().load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, CommentedMap):
        raise SettingsError(f"{path}: must be a mapping of settings")
    return tree


def _load_text(text: str) -> dict[str, Any]:
    tree: dict[str, Any] = _plain(_yaml().load(text))
    return tree


def _old_params() -> dict[str, Any] | None:
    """The settings in ``params.yaml`` as they are, valid or not; None when it is not there or not YAML."""
    try:
        return _plain(_read(PARAMS))
    except (FileNotFoundError, SettingsError):
        return None


def _parse_override(override: str) -> dict[str, Any]:
    """``train.lr=2e-3`` as ``{"train": {"lr": 0.002}}``."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise SettingsError(f"-S {override}: must be KEY=VALUE with dots in the key, as train.lr=2e-3")
    try:
        value = _yaml().load(text)
    except YAMLError as error:
        raise SettingsError(f"-S {override}: the value is not valid YAML: {error}") from error
    tree: Any = value
    for key in reversed(keys):
        tree = {key: tree}
    return dict(tree)


def _merge(base: CommentedMap, difference: Mapping[str, Any], origin: str, above: str = "") -> None:
    """Put ``difference`` into ``base``, section by section; unknown keys are left to `parse_params` to name."""
    for key, value in difference.items():
        if isinstance(base.get(key), CommentedMap):
            if not isinstance(value, Mapping):
                raise SettingsError(f"{origin}: {above}{key}: is a section, it cannot be set to {value!r}")
            _merge(base[key], value, origin, f"{above}{key}.")
        else:
            base[key] = value


def _plain(tree: Any) -> Any:
    """The same tree without ruamel's own types, which remember how a value was spelt."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    for kind in (bool, int, float, str):
        if isinstance(tree, kind):
            return kind(tree)
    return tree


def _header(name: str, description: str, overrides: Sequence[str]) -> str:
    command = shlex.join(["yolact", "preset", "use", name, *(part for item in overrides for part in ("-S", item))])
    text = f"Preset {name}, written by `{command}`. {description}".rstrip()
    lines = textwrap.wrap(text, width=116, break_long_words=False, break_on_hyphens=False)
    lines.append("What each key means and allows: yolact/config.py. This file is the only one that the steps read.")
    return "\n".join(f"# {line}" for line in lines)


def _head(text: str) -> list[str]:
    """The comment lines before the first key or empty line."""
    return list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))


def _render(tree: CommentedMap, header: str) -> str:
    """YAML text with ``header`` in place of the comment at the head of the base."""
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    text = stream.getvalue()
    body = "\n".join(text.splitlines()[len(_head(text)) :]).strip("\n")
    return f"{header}\n\n{body}\n"


def _flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{above}{key}."))
        else:
            flat[f"{above}{key}"] = value
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str | None:
    if key not in flat:
        return None
    value = flat[key]
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _table(differences: Sequence[Change], old: str, new: str) -> Table:
    table = Table(Column("setting", no_wrap=True), Column(old, overflow="fold"), Column(new, overflow="fold"))
    for change in differences:
        table.add_row(change.key, change.old or "-", change.new or "-")
    return table
