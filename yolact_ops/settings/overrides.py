"""Overrides of settings: a nested mapping, or ``KEY=VALUE`` from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolact.errors import SettingsError
from yolact_ops.settings.yaml_text import parse_yaml


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
