"""Presets: ``conf/base.yaml`` has every setting; a preset has only its differences from it.

The project's presets are the other files in ``conf``; the published configurations of `yolact.models.published` are
presets too. Composing is a deep merge: sections are merged key by key, any other value (lists too) replaces the base's.
``FIRST+SECOND`` merges several, in this order; a preset that sets nothing of ``model``, as ``modern``, suits any other.
The result is ``params.yaml``, the only file that the steps read, or the parameter of a pipeline.
"""

from __future__ import annotations

import itertools
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from yolact.errors import SettingsError, suggestion
from yolact.models.published import PUBLISHED_MODELS, find_published
from yolact_ops.settings.overrides import merge, parse_override
from yolact_ops.settings.params import Params, load_params, parse_params
from yolact_ops.settings.yaml_text import WIDTH, parse_yaml, plain, read_yaml, write_yaml

BASE = "base"
JOIN = "+"
"""Between the names of presets that are combined."""
CONF = Path("conf")
PACKAGED = Path(__file__).with_name("conf")
"""The project's presets as the wheel brings them (setup.py), for a working folder that has no ``conf``."""
PARAMS = Path("params.yaml")


def preset_names(conf: Path = CONF) -> list[str]:
    """Names of the presets in ``conf``, sorted; without the published configurations.

    Raises:
        SettingsError: the folder has no ``base.yaml``, or a file has the name of a published configuration.
    """
    base = base_path(conf)
    names = sorted(path.stem for path in base.parent.glob("*.yaml") if path != base)
    for name in names:
        if name in PUBLISHED_MODELS:
            raise SettingsError(f"{conf}/{name}.yaml: {name} is a published configuration; give the file another name")
    return names


def describe(name: str, conf: Path = CONF) -> str:
    """Purpose of a preset, in one line: the first paragraph of its file's head comment, or empty; of a combination,
    those of all.

    Raises:
        SettingsError: there is no such preset.
    """
    if JOIN in name:
        return " ".join(describe(part, conf) for part in name.split(JOIN))
    if name in PUBLISHED_MODELS:
        return PUBLISHED_MODELS[name].description
    lines = (line.lstrip("#").strip() for line in _head(_preset_path(name, conf).read_text(encoding="utf-8")))
    return " ".join(itertools.takewhile(bool, lines))


def compose(name: str, overrides: Sequence[str] = (), conf: Path = CONF, model: str | None = None) -> str:
    """Text of the ``params.yaml`` of preset ``name``, with the base's comments.

    Args:
        name: a preset, a published configuration, or ``base``; or several, joined by `JOIN`.
        overrides: ``KEY=VALUE`` each, with dots in the key and YAML in the value: ``train.lr=2e-3``.
        conf: folder of the presets.
        model: a published configuration whose section ``model`` replaces the preset's.

    Raises:
        SettingsError: there is no such preset or model, or a file or an override has an unknown key or a wrong value.
    """
    tree, _ = _compose(name, overrides, conf, model)
    text = _render(tree, _header(name, describe(name, conf), overrides, model))
    if plain(parse_yaml(text, f"preset {name}")) != plain(tree):
        raise SettingsError(
            f"preset {name}: a value changes when it is written as YAML and read again; simplify the -S"
        )
    return text


def choose(preset: str | None, file: Path = PARAMS, overrides: Sequence[str] = ()) -> Params:
    """The settings of a preset, or of a file if none is named, with ``overrides`` as in `compose`.

    Raises:
        SettingsError: see `compose`; or the file is missing or invalid.
    """
    if preset is not None:
        return _compose(preset, overrides, CONF, None)[1]
    params = load_params(file)
    return change(params, overrides) if overrides else params


def change(params: Params, overrides: Sequence[str]) -> Params:
    """The settings with ``overrides`` as in `compose`.

    Raises:
        SettingsError: an override has an unknown key or a wrong value.
    """
    return _override(params.model_dump(mode="json", by_alias=True), overrides)


def _compose(name: str, overrides: Sequence[str], conf: Path, model: str | None) -> tuple[CommentedMap, Params]:
    """The tree of `compose`, and its settings.

    Each layer is checked, so that an error names the right one; a later layer or an override may mend it.
    """
    base = base_path(conf)
    tree = read_yaml(base)
    params = parse_params(plain(tree), origin=str(base))
    failure: SettingsError | None = None
    for origin, difference in _differences(name, conf, model):
        merge(tree, difference, origin)
        try:
            params, failure = parse_params(plain(tree), origin), None
        except SettingsError as error:
            failure = failure or error
    try:
        if overrides:
            params, failure = _override(tree, overrides), None
    except SettingsError as error:
        if failure is None:
            raise
        raise SettingsError(f"{failure}\n{error}") from None  # the override may be what mends it, but for a slip
    if failure is not None:
        raise failure
    return tree, params


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> Params:
    """Merge overrides into settings, and check the result."""
    for override in overrides:
        merge(tree, parse_override(override), origin=f"-S {override}")
    return parse_params(plain(tree), origin=" ".join(f"-S {override}" for override in overrides))


def base_path(conf: Path) -> Path:
    """Path of ``base.yaml``, beside the presets: in ``conf``, or in `PACKAGED` where `CONF` does not exist.

    Raises:
        SettingsError: there is no such file.
    """
    folder = PACKAGED if conf == CONF and PACKAGED.is_dir() and not CONF.is_dir() else conf
    base = folder / f"{BASE}.yaml"
    if not base.is_file():
        raise SettingsError(f"{base}: no such file. Run `yolact preset` from the repository's root.")
    return base


def _differences(name: str, conf: Path, model: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The differences of the presets and then of the model from the base, each with its origin for errors."""
    layers: list[tuple[str, Mapping[str, Any]]] = []
    for part in name.split(JOIN):
        if part in PUBLISHED_MODELS:
            layers.append((part, _spelt(PUBLISHED_MODELS[part].settings())))
        elif part != BASE:
            path = _preset_path(part, conf)
            layers.append((str(path), read_yaml(path)))
    if model is not None:
        layers.append((f"--model {model}", _spelt({"model": find_published(model).settings()["model"]})))
    return layers


def _preset_path(name: str, conf: Path) -> Path:
    names = preset_names(conf)
    if name not in (BASE, *names):
        known = [*names, *PUBLISHED_MODELS]
        hint = suggestion(name, known) or f"there are: {', '.join(known)}"
        raise SettingsError(f"no preset {name!r}; {hint}")
    return base_path(conf).with_name(f"{name}.yaml")


def _spelt(value: Any) -> Any:
    """The same settings in the style of ``base.yaml``: lists in brackets, integers without a decimal point."""
    if isinstance(value, Mapping):
        return {key: _spelt(item) for key, item in value.items()}
    if isinstance(value, list):
        return _in_brackets([_spelt(item) for item in value])
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _in_brackets(items: Sequence[Any]) -> CommentedSeq:
    sequence = CommentedSeq(items)
    sequence.fa.set_flow_style()
    return sequence


def _header(name: str, description: str, overrides: Sequence[str], model: str | None) -> str:
    words = ["yolact", "preset", "use", name, *(["--model", model] if model else [])]
    command = shlex.join([*words, *(part for item in overrides for part in ("-S", item))])
    network = f"Its network is that of {model}." if model else ""
    text = f"Preset {name}, written by `{command}`. {description} {network}".rstrip()
    lines = textwrap.wrap(text, width=116, break_long_words=False, break_on_hyphens=False)
    lines.append("What each key means and allows: yolact/settings.py. This file is the only one that the steps read.")
    return "\n".join(f"# {line}" for line in lines)


def _head(text: str) -> list[str]:
    """The comment lines before the first key or blank line."""
    return list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))


def _render(tree: CommentedMap, header: str) -> str:
    """YAML text with ``header`` in place of the base's head comment."""
    _break_long_values(tree)
    text = write_yaml(tree)
    body = "\n".join(text.splitlines()[len(_head(text)) :]).strip("\n")
    return f"{header}\n\n{body}\n"


def _break_long_values(section: CommentedMap, indent: int = 0) -> None:
    """Put each row of a list of lists, and each key of a mapping in braces, on its own line if the value and its
    comment are too long for one line. ruamel would break a line within a key, which is not valid YAML."""
    for key, value in section.items():
        if isinstance(value, CommentedMap):
            if indent + len(f"{key}: {plain(value)}") > WIDTH:
                value.fa.set_block_style()
            _break_long_values(value, indent + 2)
        elif isinstance(value, CommentedSeq) and any(isinstance(row, list) for row in value):
            comment = section.ca.items.get(key)
            remark = comment[2].value.splitlines()[0] if comment and comment[2] else ""
            if indent + len(f"{key}: {plain(value)} {remark}") > WIDTH:
                rows = CommentedSeq(_in_brackets(row) if isinstance(row, list) else row for row in value)
                rows.fa.set_block_style()
                section[key] = rows
