"""Names of checkpoint files; no PyTorch is needed to read them.

A checkpoint is one file, ``NNNNNN-step_SSSSSSSS-DDDDDDDDDDDDDDDD.pt``: its number in the run, the steps done, and the
first digits of its content's SHA-256.
"""

from __future__ import annotations

import re
from pathlib import Path

DIGEST_DIGITS = 16
"""Hexadecimal digits of SHA-256 in a name: 64 bits, against accidents (not against forgery)."""

_NAME = re.compile(rf"(?P<number>\d{{6,}})-step_(?P<step>\d{{8,}})-[0-9a-f]{{{DIGEST_DIGITS}}}\.pt")


def checkpoint_name(number: int, step: int, digest: str) -> str:
    """The name of checkpoint ``number`` of a run, after ``step`` steps."""
    return f"{number:06d}-step_{step:08d}-{digest}.pt"


def checkpoint_paths(directory: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; empty if there is no such folder."""
    return sorted((path for path in directory.glob("*.pt") if _NAME.fullmatch(path.name)), key=number_of)


def number_of(path: Path) -> int:
    """A checkpoint's number in its run."""
    return int(path.name.partition("-")[0])


def newest_checkpoint(directory: Path) -> tuple[int, int]:
    """Steps done and number of the newest checkpoint in a folder; (0, 0) without any.

    Both grow during a run: a checkpoint after a validation has the steps of the one before it, and the next number.
    """
    found = [_NAME.fullmatch(path.name) for path in checkpoint_paths(directory)]
    newest = found[-1] if found else None
    return (int(newest["step"]), int(newest["number"])) if newest else (0, 0)
