"""Settings of a run, composed: ``conf/base.yaml`` holds every setting; a preset is a small difference from it.

The project's presets are the other files of ``conf``; the published configurations are presets too, made from
`yolact.models.published`. Composing one is a deep merge: sections are merged key by key, any other value (lists too)
replaces the base's. The result is ``params.yaml``, the only file that the steps read, or the parameter of a pipeline.
"""

from __future__ import annotations

import difflib
import io
import itertools
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from yolact.errors import SettingsError
from yolact.models.published import PUBLISHED_MODELS, find_published
from yolact_ops.settings.params import Params, load_params, parse_params

BASE = "base"
WIDTH = 120
"""Longest line of a written file."""

CONF = Path("conf")
PARAMS = Path("params.yaml")


def preset_names(conf: Path = CONF) -> list[str]:
    """Names of the presets in ``conf``, sorted; the published configurations are not among them.

    Raises:
        SettingsError: the folder has no ``base.yaml``, or a file has the name of a published configuration.
    """
    base = base_path(conf)
    names = sorted(path.stem for path in conf.glob("*.yaml") if path != base)
    for name in names:
        if name in PUBLISHED_MODELS:
            raise SettingsError(f"{conf}/{name}.yaml: {name} is a published configuration; give the file another name")
    return names


def describe(name: str, conf: Path = CONF) -> str:
    """What a preset is for, as one line.

    For a file that is the first paragraph of the comment at its head; empty when there is none.

    Raises:
        SettingsError: the preset is not there.
    """
    if name in PUBLISHED_MODELS:
        return PUBLISHED_MODELS[name].description
    lines = (line.lstrip("#").strip() for line in _head(_preset_path(name, conf).read_text(encoding="utf-8")))
    return " ".join(itertools.takewhile(bool, lines))


def compose(name: str, overrides: Sequence[str] = (), conf: Path = CONF, model: str | None = None) -> str:
    """Text of the ``params.yaml`` that preset ``name`` makes, with the base's comments.

    Args:
        name: a preset, a published configuration, or ``base``.
        overrides: ``KEY=VALUE`` each, with dots in the key and YAML in the value: ``train.lr=2e-3``.
        conf: folder of the presets.
        model: a published configuration whose section ``model`` takes the place of the preset's.

    Raises:
        SettingsError: the preset or the model is not there, or a file or an override has an unknown key or a wrong
            value.
    """
    base = base_path(conf)
    description = describe(name, conf)
    tree = read(base)
    parse_params(plain(tree), origin=str(base))
    for origin, difference in _differences(name, conf, model):
        merge(tree, difference, origin)
        parse_params(plain(tree), origin)
    for override in overrides:
        merge(tree, parse_override(override), origin=f"-S {override}")
    parse_params(plain(tree), origin=" ".join(f"-S {override}" for override in overrides))
    return _render(tree, _header(name, description, overrides, model))


def choose(preset: str | None, file: Path = PARAMS, overrides: Sequence[str] = ()) -> Params:
    """The settings of a preset, or of a file if none is named, with ``overrides`` as `compose` takes them.

    Raises:
        SettingsError: see `compose`; or the file is missing or faulty.
    """
    if preset is not None:
        return parse_params(plain(load_text(compose(preset, overrides))), origin=f"preset {preset}")
    params = load_params(file)
    if not overrides:
        return params
    tree = read(file)
    for override in overrides:
        merge(tree, parse_override(override), origin=f"-S {override}")
    return parse_params(plain(tree), origin=" ".join(f"-S {override}" for override in overrides))


def base_path(conf: Path) -> Path:
    """The file that presets differ from.

    Raises:
        SettingsError: it is not there.
    """
    base = conf / f"{BASE}.yaml"
    if not base.is_file():
        raise SettingsError(f"{base}: no such file. Run `yolact preset` from the repository's root.")
    return base


def _differences(name: str, conf: Path, model: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """What the preset and then the model set over the base, each with its origin for messages."""
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if name in PUBLISHED_MODELS:
        layers.append((name, _spelt(PUBLISHED_MODELS[name].settings())))
    elif name != BASE:
        path = _preset_path(name, conf)
        layers.append((str(path), read(path)))
    if model is not None:
        layers.append((f"--model {model}", _spelt({"model": find_published(model).settings()["model"]})))
    return layers


def _preset_path(name: str, conf: Path) -> Path:
    names = preset_names(conf)
    if name not in (BASE, *names):
        known = [*names, *PUBLISHED_MODELS]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
        raise SettingsError(f"no preset {name!r}; {hint}")
    return conf / f"{name}.yaml"


class _Representer(RoundTripRepresenter):
    """Writes ``null``, where ruamel leaves nothing."""

    def represent_none(self, data: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _yaml() -> YAML:
    yaml = YAML()  # round trip: keeps comments, order and the spelling of numbers
    yaml.Representer = _Representer
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = WIDTH
    return yaml


def read(path: Path) -> CommentedMap:
    """A YAML file of settings, comments and spelling kept.

    Raises:
        SettingsError: it is not YAML, or no mapping.
    """
    try:
        tree = _yaml().load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, CommentedMap):
        raise SettingsError(f"{path}: must be a mapping of settings")
    return tree


def load_text(text: str) -> dict[str, Any]:
    """YAML text as plain values."""
    tree: dict[str, Any] = plain(_yaml().load(text))
    return tree


def parse_override(override: str, option: str = "-S") -> dict[str, Any]:
    """``train.lr=2e-3`` as ``{"train": {"lr": 0.002}}``; ``option`` is named in errors."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        example = "train.lr=2e-3" if option == "-S" else "tasks.train.gpus=0"
        raise SettingsError(f"{option} {override}: must be KEY=VALUE with dots in the key, as {example}")
    try:
        value = _yaml().load(text)
    except YAMLError as error:
        raise SettingsError(f"{option} {override}: the value is not valid YAML: {error}") from error
    tree: Any = value
    for key in reversed(keys):
        tree = {key: tree}
    return dict(tree)


def merge(base: CommentedMap, difference: Mapping[str, Any], origin: str, above: str = "") -> None:
    """Put ``difference`` into ``base``, section by section; unknown keys are left to `parse_params` to name."""
    for key, value in difference.items():
        if isinstance(base.get(key), CommentedMap):
            if not isinstance(value, Mapping):
                raise SettingsError(f"{origin}: {above}{key}: is a section, it cannot be set to {value!r}")
            merge(base[key], value, origin, f"{above}{key}.")
        elif not _same(base, key, value):  # the same value keeps the base's spelling
            base[key] = value


def _same(base: CommentedMap, key: str, value: Any) -> bool:
    return key in base and bool(base[key] == value) and isinstance(base[key], bool) == isinstance(value, bool)


def _spelt(value: Any) -> Any:
    """The same settings as ``base.yaml`` spells them: lists in brackets, whole numbers without a point."""
    if isinstance(value, Mapping):
        return {key: _spelt(item) for key, item in value.items()}
    if isinstance(value, list):
        return _in_brackets([_spelt(item) for item in value])
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _in_brackets(items: Sequence[Any]) -> CommentedSeq:
    sequence = CommentedSeq(items)
    sequence.fa.set_flow_style()
    return sequence


def plain(tree: Any) -> Any:
    """The same tree without ruamel's own types, which remember how a value was spelt."""
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    for kind in (bool, int, float, str):
        if isinstance(tree, kind):
            return kind(tree)
    return tree


def _header(name: str, description: str, overrides: Sequence[str], model: str | None) -> str:
    words = ["yolact", "preset", "use", name, *(["--model", model] if model else [])]
    command = shlex.join([*words, *(part for item in overrides for part in ("-S", item))])
    network = f"Its network is that of {model}." if model else ""
    text = f"Preset {name}, written by `{command}`. {description} {network}".rstrip()
    lines = textwrap.wrap(text, width=116, break_long_words=False, break_on_hyphens=False)
    lines.append("What each key means and allows: yolact/settings.py. This file is the only one that the steps read.")
    return "\n".join(f"# {line}" for line in lines)


def _head(text: str) -> list[str]:
    """The comment lines before the first key or empty line."""
    return list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))


def _render(tree: CommentedMap, header: str) -> str:
    """YAML text with ``header`` in place of the comment at the head of the base."""
    _break_long_lists(tree)
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    text = stream.getvalue()
    body = "\n".join(text.splitlines()[len(_head(text)) :]).strip("\n")
    return f"{header}\n\n{body}\n"


def _break_long_lists(section: CommentedMap, indent: int = 0) -> None:
    """Put each row of a list of lists on a line of its own where the whole, with its comment, is too long for one."""
    for key, value in section.items():
        if isinstance(value, CommentedMap):
            _break_long_lists(value, indent + 2)
        elif isinstance(value, CommentedSeq) and any(isinstance(row, list) for row in value):
            comment = section.ca.items.get(key)
            remark = comment[2].value.splitlines()[0] if comment and comment[2] else ""
            if indent + len(f"{key}: {plain(value)} {remark}") > WIDTH:
                rows = CommentedSeq(_in_brackets(row) if isinstance(row, list) else row for row in value)
                rows.fa.set_block_style()
                section[key] = rows
