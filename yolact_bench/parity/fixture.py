"""Fixture files: named arrays or settings, with a record of what was read, so that nothing is left out unseen."""

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
"""Array with the settings that a file was made with, as a JSON string."""

UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
"""What a damaged ``.npz`` file makes NumPy raise."""

_MISSING = object()


class Settings:
    """A tree of settings out of JSON, whose missing keys are named."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value below nested keys, or ``default`` where there is none."""
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
        entries: arrays, or what JSON gives; each is read when asked for.
        meta: the tree of ``meta_json``.
        tree: what a JSON file holds; None for arrays.
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
        """Names that nothing has read."""
        return [name for name in self.names if name not in self._read]

    def has(self, folder: str) -> bool:
        """Whether there is anything in a folder."""
        return any(name.startswith(f"{folder}/") for name in self.names)

    def children(self, folder: str = "") -> list[str]:
        """What stands right below a folder, files and folders, in the file's order."""
        prefix = f"{folder}/" if folder else ""
        below = (name.removeprefix(prefix) for name in self.names if name.startswith(prefix))
        return list(dict.fromkeys(rest.partition("/")[0] for rest in below))

    def value(self, name: str) -> Any:
        """What the file holds under a name.

        Raises:
            DataError: there is nothing, or it cannot be read.
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
        """An array; floats that were stored in half precision come as float32.

        Raises:
            DataError: see `value`, or it is no array of numbers.
        """
        array = np.asarray(self.value(name))
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} is no array of numbers (found {array.dtype})")
        tensor = torch.from_numpy(array.copy())
        return tensor.float() if tensor.dtype == torch.float16 else tensor

    def number(self, name: str) -> float:
        """A single number."""
        return float(self.tensor(name).item())

    def masks(self, packed: str, shape: str) -> Tensor:
        """Masks (uint8, 0 or 1) stored as bits, with their shape stored apart.

        Raises:
            DataError: there are fewer bits than the shape needs.
        """
        sides = [int(side) for side in self.tensor(shape).tolist()]
        count = int(np.prod(sides))
        bits = np.unpackbits(self.tensor(packed).numpy())
        if len(bits) < count:
            raise DataError(f"{packed} has {len(bits)} bits, {shape} asks for {count}")
        return torch.from_numpy(bits[:count].reshape(sides))


def read_npz(path: Path) -> Fixture:
    """Open an ``.npz`` file; arrays are read when asked for.

    Raises:
        DataError: it is damaged or cut short, holds a bare array, or its ``meta_json`` is not JSON.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError("holds one bare array; a fixture is an archive of named arrays (numpy.savez)")
        meta = json.loads(str(arrays[META])) if META in arrays else {}
    except UNREADABLE as error:
        raise DataError(f"damaged or cut short: {error}") from error
    return Fixture(arrays, meta)


def read_json(path: Path) -> Fixture:
    """Open a JSON file; of objects in an object, the inner ones' values get names like ``outer/inner``.

    Raises:
        DataError: it is not JSON.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"damaged or cut short, not JSON: {error}") from error
    entries: dict[str, Any] = {}
    for outer, row in tree.items() if isinstance(tree, dict) else ():
        if isinstance(row, dict):
            entries |= {f"{outer}/{inner}": value for inner, value in row.items()}
        else:
            entries[outer] = row
    return Fixture(entries, tree=tree)
