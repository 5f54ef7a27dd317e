"""Which code a run is of, for the caches and for the record."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from yolact_ops.lineage.git import git_output

ROOT = Path(__file__).parents[2]
ROOMS = ("yolact", "components")
"""What a task's result depends on."""


def code_version(root: Path = ROOT) -> str:
    """The git commit; with files that differ from it also a digest of the code; without git the package's version.

    Equal code has an equal version, and changed code another one.
    """
    commit = git_output(root, "rev-parse", "--verify", "HEAD")
    if commit and git_output(root, "status", "--porcelain", "--untracked-files=all", "--", *ROOMS) == "":
        return commit
    return f"{commit or version('yolact-pipeline')}-{_digest(root)[:16]}"


def _digest(root: Path) -> str:
    """SHA-256 (hex) over names and contents of the files that tasks run."""
    paths = sorted(path for room in ROOMS for end in ("py", "j2") for path in (root / room).rglob(f"*.{end}"))
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()
