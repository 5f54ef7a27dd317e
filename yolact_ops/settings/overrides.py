"""Overrides of settings: a nested mapping, or ``KEY=VALUE`` from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from yolact.errors import SettingsError
from yolact_ops.settings.yaml_text import parse_yaml

_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan"}
"""Words that Hydra or YAML takes for something else."""


def parse_override(override: str, option: str = "-S") -> dict[str, Any]:
    """Parse ``train.lr=2e-3`` to ``{"train": {"lr": 0.002}}``; ``option`` is named in errors."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        example = "train.lr=2e-3" if option == "-S" else "tasks.train.gpus=0"
        raise SettingsError(f"{option} {override}: must be KEY=VALUE with dots in the key, as {example}")
    tree: Any = parse_yaml(text, f"{option} {override}")
    for key in reversed(keys):
        tree = {key: tree}
    return dict(tree)


def merge(base: dict[str, Any], difference: Mapping[str, Any], origin: str, above: str = "") -> None:
    """Merge ``difference`` into ``base``, section by section; keys are not checked here."""
    for key, value in difference.items():
        if isinstance(base.get(key), dict):
            if not isinstance(value, Mapping):
                raise SettingsError(f"{origin}: {above}{key}: is a section, it cannot be set to {value!r}")
            merge(base[key], value, origin, f"{above}{key}.")
        elif not _same(base, key, value):  # equal values keep the base's spelling
            base[key] = value


def _same(base: Mapping[str, Any], key: str, value: Any) -> bool:
    return key in base and bool(base[key] == value) and isinstance(base[key], bool) == isinstance(value, bool)


def hydra_override(key: str, value: Any) -> str | None:
    """``KEY=VALUE`` in the grammar of ``dvc exp run -S``, which is Hydra's (hydra.cc, "Basic Override syntax").

    None if the grammar has no form that DVC takes as this value: text with ``${`` (an interpolation) or characters that
    cannot be printed, and mappings whose keys are not simple words.
    """
    text = _in_hydra(value)
    return None if text is None else f"{key}={text}"


def _in_hydra(value: Any) -> str | None:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return _hydra_text(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and _is_plain(key) for key in value):
            return None
        items = [(f"{key}:", _in_hydra(item)) for key, item in value.items()]
        opening, closing = "{}"
    else:
        items = [("", _in_hydra(item)) for item in value]
        opening, closing = "[]"
    if any(text is None for _, text in items):
        return None
    return f"{opening}{','.join(f'{name}{text}' for name, text in items)}{closing}"


def _hydra_text(text: str) -> str | None:
    if "${" in text or not text.isprintable():
        return None
    if _is_plain(text):
        return text
    # In quotes, backslashes count as such only before a quote, which the closing one is too.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    ending = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{chr(92) * ending}"'


def _is_plain(text: str) -> bool:
    """Whether text means itself without quotes, both in Hydra and in YAML."""
    plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", text) and re.search(r"[A-Za-z]", text)
    return bool(plain) and text.lower().lstrip(".") not in _NOT_TEXT
