"""Read state_dicts (PyTorch's ``.pth``, ``.safetensors``), with a specific error for each kind of bad file.

No code in a file is run: PyTorch's pickles are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from yolact.errors import WeightsError

ZIP_START = b"PK\x03\x04"
"""First bytes of ``torch.save`` files since PyTorch 1.6."""

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of older ones, including the published weights: a pickled magic number."""

WRAPPERS = ("state_dict", "model")
"""Keys under which training programs save the state_dict next to other data."""

DATA_PARALLEL_PREFIX = "module."
"""Prefix that ``torch.nn.DataParallel`` adds to every name."""

OTHER_STARTS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer instead of the file; run `git lfs pull`",
    b"<": "a web page or XML, which servers send instead of a file; download it again",
    b"\x80": "a pickle that PyTorch did not write",
}
"""Types of files that are mistaken for weights, by their first bytes."""

SHOWN = 3
"""Number of names that a message lists before it counts the rest."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU, from a ``torch.save`` or safetensors file.

    A state_dict under one of the keys `WRAPPERS` is unwrapped, and the prefix of ``DataParallel`` is removed.

    Raises:
        WeightsError: the file is missing, of another kind, truncated or corrupt, holds objects other than plain data
            and tensors, or no state_dict.
    """
    state = _find_state_dict(_read(path), path)
    if all(name.startswith(DATA_PARALLEL_PREFIX) for name in state):
        state = {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in state.items()}
    return {name: tensor.detach() for name, tensor in state.items()}


def read_checked(path: Path) -> dict[str, Tensor]:
    """`read_state_dict` for a file with a hash in its name, see `named_hash`; the name of others says nothing.

    Raises:
        WeightsError: see `read_state_dict`; or the file is another one than its name says.
    """
    state = read_state_dict(path)  # first: its errors say more
    if difference := other_content(path):
        raise WeightsError(f"{path}: is damaged or another file than its name says: {difference}")
    return state


def other_content(path: Path) -> str:
    """How a file's content differs from what `named_hash` says of it; empty if it does not."""
    expected = named_hash(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[: len(expected)]
    return "" if digest == expected else f"its SHA-256 begins with {digest}, not {expected}"


def named_hash(path: Path) -> str:
    """The first digits of the SHA-256 in a file name of torch.hub, as ``resnet50-0676ba61.pth``; empty without any."""
    found = re.search(r"-([0-9a-f]{8,64})\.[^.]*$", path.name)
    return found[1] if found else ""


def shortened(names: Sequence[str]) -> str:
    """``a, b, c and 4 more``."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _read(path: Path) -> Any:
    """The file's content."""
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder; name the file of weights in it")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return _read_safetensors(path)
    _check_kind(path, start)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for an unsafe or corrupt file
        raise WeightsError(_explained(path, str(error))) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: is not a safetensors file, or is truncated: {error}") from error


def _check_kind(path: Path, start: bytes) -> None:
    """Reject a file that ``torch.save`` did not write, or that is truncated."""
    if not start:
        raise WeightsError(f"{path}: is empty")
    if start.startswith(ZIP_START):
        _check_archive(path)
    elif ZIP_START.startswith(start) or (len(start) < len(LEGACY_START) and LEGACY_START.startswith(start)):
        raise WeightsError(_damaged(path))
    elif not start.startswith(LEGACY_START):
        kind = next((kind for known, kind in OTHER_STARTS.items() if start.lstrip().startswith(known)), None)
        if kind is None:
            kind = "text" if _is_text(start) else "of an unknown type"
        raise WeightsError(f"{path}: is not a file of PyTorch weights; it is {kind}")


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # also a name that is no UTF-8, an unknown version
        raise WeightsError(_damaged(path)) from None
    if "data.pkl" not in names:
        raise WeightsError(
            f"{path}: is a zip archive, but not one of PyTorch; it holds {shortened(names) or 'nothing'}"
        )
    if "constants.pkl" in names:
        raise WeightsError(f"{path}: is a TorchScript program; save its state_dict() with torch.save instead")


def _is_text(start: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r" for byte in start)


def _explained(path: Path, error: str) -> str:
    """Why ``torch.load`` could not read a file, derived from its error message."""
    refused = re.search(r"GLOBAL ([\w.]+)", error)
    if refused:
        return _refusal(path, refused[1])
    if "Unsupported operand" in error:
        return f"{path}: is pickled in a way that cannot be read safely; save it with torch.save's own pickle_protocol"
    return _damaged(path)


def _damaged(path: Path) -> str:
    size = path.stat().st_size
    return f"{path}: is truncated or damaged; it has {size:,} bytes. Compare with its source and download it again"


def _refusal(path: Path, name: str) -> str:
    return (
        f"{path}: holds Python objects ({name}), not only tensors. Reading them can run arbitrary code, so they are "
        "rejected. If you trust the file, save the tensors alone, where its classes are installed: content = "
        f"torch.load({path.name!r}, weights_only=False); then torch.save(content.state_dict(), 'plain.pth') for a "
        "network, or torch.save(content['state_dict'], 'plain.pth') for a dictionary that has it under that key"
    )


def _find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if _is_state_dict(content):
        return dict(content)
    inner = [key for key in WRAPPERS if isinstance(content, dict) and _is_state_dict(content.get(key))]
    if len(inner) > 1:
        raise WeightsError(f"{path}: holds more than one state_dict ({', '.join(inner)}); save the right one alone")
    if not inner:
        raise WeightsError(f"{path}: holds no state_dict (tensors by name), but {_described(content)}")
    return dict(content[inner[0]])


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _described(content: Any) -> str:
    """The content in words: ``a dictionary of epoch (int), weights (list)``."""
    if isinstance(content, Tensor):
        return f"one tensor of shape {tuple(content.shape)}"
    if isinstance(content, dict):
        others = [f"{key} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
        tensors = len(content) - len(others)
        parts = [f"{tensors} {'tensor' if tensors == 1 else 'tensors'}"] if tensors else []
        return f"a dictionary of {' and '.join([*parts, *([shortened(others)] if others else [])]) or 'nothing'}"
    return f"one object of type {type(content).__name__}"
