"""``dvc.lock``: its hash, which identifies the data and model of a run, and the commit with that hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import yaml

from yolact.errors import DataError
from yolact_ops.lineage.git import git_output

STEPS = ("source", "ingest", "preprocess", "train", "evaluate", "register")
"""Stages of ``dvc.yaml``, in order."""


def hash_dvc_lock(path: Path, *, before: str = "register") -> str:
    """SHA-256 (hex) of a lock file, see `hash_lock_text`.

    Raises:
        DataError: the file is not a DVC lock file.
    """
    try:
        return hash_lock_text(path.read_text(encoding="utf-8"), before=before)
    except ValueError as error:
        raise DataError(f"{path}: not a DVC lock file ({error}). Run `dvc repro` again.") from error


def hash_lock_text(text: str, *, before: str = "register") -> str:
    """SHA-256 (hex) of a lock file's entries of the stages before one of `STEPS`, as JSON with sorted keys.

    While ``dvc repro`` runs a stage, the file still has old entries of that stage and later ones. Leaving these out
    gives the same hash from the file that is committed afterwards, which traces a run or a registered version to it.

    Raises:
        ValueError: the text is not a DVC lock file.
    """
    try:
        stages = dict(yaml.safe_load(text)["stages"])
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ValueError(type(error).__name__) from error
    for later in STEPS[STEPS.index(before) :]:
        stages.pop(later, None)
    return hashlib.sha256(json.dumps(stages, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def find_lock_commit(lock_hash: str, root: Path = Path(), newest: int = 200) -> str | None:
    """The commit of the repository at ``root`` whose ``dvc.lock`` has that hash, or None.

    Args:
        lock_hash: see `hash_lock_text`.
        root: a folder inside or outside a git work tree.
        newest: number of commits that changed ``dvc.lock`` to search.
    """
    commits = git_output(root, "log", "--all", f"--max-count={newest}", "--format=%H", "--", "dvc.lock")
    for commit in (commits or "").splitlines():
        text = git_output(root, "show", f"{commit}:./dvc.lock")
        with contextlib.suppress(ValueError):
            if text is not None and hash_lock_text(text) == lock_hash:
                return commit
    return None
