"""Read and write settings in YAML 1.2, as DVC reads them, preserving comments and spelling."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from yolact.errors import SettingsError

WIDTH = 120
"""Maximum length of a written line."""


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML text into ruamel's types, which keep comments, order and the spelling of numbers, see `plain`.

    Args:
        text: YAML.
        origin: where the text comes from, named in errors.

    Raises:
        SettingsError: it is not YAML, or a key is repeated.
    """
    try:
        return _yaml().load(text)
    except (YAMLError, ValueError) as error:
        raise SettingsError(f"{origin}: not valid YAML: {error}") from error


def read_yaml(path: Path) -> CommentedMap:
    """Read a file of settings, see `parse_yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        SettingsError: it is not YAML, or not a mapping.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, CommentedMap):
        raise SettingsError(f"{path}: must be a mapping of settings")
    return tree


def write_yaml(tree: CommentedMap) -> str:
    """YAML text of a tree, including its comments; ``null`` is written out."""
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    return stream.getvalue()


def plain(tree: Any) -> Any:
    """The same tree in Python's built-in types."""
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    for kind in (bool, int, float, str):
        if isinstance(tree, kind):
            return kind(tree)
    return tree


class _Representer(RoundTripRepresenter):
    """Write ``null``, where ruamel writes nothing."""

    def represent_none(self, data: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _yaml() -> YAML:
    yaml = YAML()  # round trip
    yaml.Representer = _Representer
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = WIDTH
    return yaml
