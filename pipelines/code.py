"""Which code a run is of, for the caches and for the record."""

from __future__ import annotations

import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("yolact", "components")
"""What a task's result depends on."""


def code_version(root: Path = ROOT) -> str:
    """The git commit; with files that differ from it also a digest of the code; without git the package's version.

    Equal code has an equal version, and changed code another one.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit and not _git(root, "status", "--porcelain", "--untracked-files=all", "--", *ROOMS):
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


def _git(root: Path, *arguments: str) -> str:
    try:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
