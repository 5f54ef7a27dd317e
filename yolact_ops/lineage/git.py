"""Query git about a working tree. Imports only the standard library, as the image build has nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

PIPELINE_OUTPUTS = ("data", "dvc.lock", "metrics", "plots", "reports")
"""Tracked paths that the steps rewrite; changes there do not make the code dirty."""


def git_state(root: Path = Path(), ignoring: Sequence[str] = ()) -> tuple[str | None, bool | None]:
    """The commit checked out at ``root``, and whether tracked files differ from it or Python files are untracked.

    Changes in `PIPELINE_OUTPUTS` and in the tracked paths of ``ignoring`` do not count. Both values are None outside a
    git repository.
    """
    commit = git_output(root, "rev-parse", "--verify", "HEAD")
    return commit, None if commit is None else _is_dirty(root, ignoring)


def git_output(root: Path, *arguments: str) -> str | None:
    """Stripped output of a git command; None if it fails or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _is_dirty(root: Path, ignoring: Sequence[str]) -> bool:
    excluded = [f":(exclude){path}" for path in (*PIPELINE_OUTPUTS, *ignoring)]
    changed = git_output(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    new_code = git_output(root, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    return bool(changed or new_code)
