"""Words in the names of files and folders that say which split is meant."""

from __future__ import annotations

import re

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "trainset": "train",
    "valset": "val",
    "eval": "val",
    "testset": "test",
}
"""Split by word, in lower case."""


def split_of(path: str) -> str | None:
    """The split that a path (with ``/``) names: in its file's name, or else in its closest folder that names one."""
    for part in reversed(path.rsplit(".", 1)[0].split("/")):
        found = {SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", part.lower()) if word in SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def folder_split(path: str) -> str | None:
    """The split that the folders of a file (a path with ``/``) name."""
    return split_of(f"{path.rpartition('/')[0]}/_")
