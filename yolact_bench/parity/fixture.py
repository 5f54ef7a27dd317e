"""Fixture files: named arrays or settings, with a record of what was read, to find arrays that no check used."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact.errors import DataError

META = "meta_json"
"""Name of the array with the settings of a file, a JSON string."""

UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
"""Errors that NumPy raises for a damaged ``.npz`` file."""

_MISSING = object()


class Settings:
    """A tree of settings from JSON, with errors that name missing keys."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value under nested keys, or ``default``."""
        value = self.tree
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    def __getitem__(self, keys: str | tuple[str, ...]) -> Any:
        keys = (keys,) if isinstance(keys, str) else keys
        value = self.get(*keys, default=_MISSING)
        if value is _MISSING:
            raise DataError(f"{META} has no {'.'.join(keys)}")
        return value


class Fixture:
    """The content of one file under names like ``folder/name``.

    Args:
        entries: arrays or JSON values; each is read on demand.
        meta: the tree of ``meta_json``.
        tree: the whole tree of a JSON file; None for arrays.
    """

    def __init__(self, entries: Mapping[str, Any], meta: Any = None, tree: Any = None) -> None:
        self.meta = Settings(meta)
        self.tree = tree
        self.names = [name for name in entries if name != META]
        self._entries = entries
        self._read: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def unused(self) -> list[str]:
        """Names that were not read."""
        return [name for name in self.names if name not in self._read]

    def has(self, folder: str) -> bool:
        """Whether a folder is not empty."""
        return any(name.startswith(f"{folder}/") for name in self.names)

    def children(self, folder: str = "") -> list[str]:
        """Names directly in a folder, of arrays and folders, in the file's order."""
        prefix = f"{folder}/" if folder else ""
        below = (name.removeprefix(prefix) for name in self.names if name.startswith(prefix))
        return list(dict.fromkeys(rest.partition("/")[0] for rest in below))

    def value(self, name: str) -> Any:
        """The content under a name.

        Raises:
            DataError: the name is missing, or its content cannot be read.
        """
        if name not in self._entries:
            raise DataError(f"the file has no {name}")
        if name not in self._read:
            self._read[name] = None
            try:
                self._read[name] = self._entries[name]
            except UNREADABLE as error:
                raise DataError(f"{name} cannot be read: {error}") from error
        return self._read[name]

    def tensor(self, name: str) -> Tensor:
        """An array; half-precision floats become float32.

        Raises:
            DataError: see `value`; or it is not an array of numbers.
        """
        array = np.asarray(self.value(name))
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} is not an array of numbers (found {array.dtype})")
        tensor = torch.from_numpy(array.copy())
        return tensor.float() if tensor.dtype == torch.float16 else tensor

    def number(self, name: str) -> float:
        """A single number."""
        return float(self.tensor(name).item())

    def masks(self, packed: str, shape: str) -> Tensor:
        """Masks (uint8, 0 or 1) stored as bits, with their shape in another array.

        Raises:
            DataError: the shape needs more bits.
        """
        sides = [int(side) for side in self.tensor(shape).tolist()]
        count = int(np.prod(sides))
        bits = np.unpackbits(self.tensor(packed).numpy())
        if len(bits) < count:
            raise DataError(f"{packed} has {len(bits)} bits, but {shape} needs {count}")
        return torch.from_numpy(bits[:count].reshape(sides))


def read_npz(path: Path) -> Fixture:
    """Open an ``.npz`` file; arrays are read on demand.

    Raises:
        DataError: it is damaged or truncated, holds a bare array, or its ``meta_json`` is not JSON.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError("contains a single array; a fixture is an archive of named arrays (numpy.savez)")
        meta = json.loads(str(arrays[META])) if META in arrays else {}
    except UNREADABLE as error:
        raise DataError(f"damaged or truncated: {error}") from error
    return Fixture(arrays, meta)


def read_json(path: Path) -> Fixture:
    """Open a JSON file; values of nested objects get names like ``outer/inner``.

    Raises:
        DataError: it is not JSON.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"damaged or truncated, not JSON: {error}") from error
    entries: dict[str, Any] = {}
    for outer, row in tree.items() if isinstance(tree, dict) else ():
        if isinstance(row, dict):
            entries |= {f"{outer}/{inner}": value for inner, value in row.items()}
        else:
            entries[outer] = row
    return Fixture(entries, tree=tree)
