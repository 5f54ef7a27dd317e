"""Where a result came from: code, settings, data, libraries, machine.

Everything here also works outside a git repository or without the git program; what cannot be known is None
and becomes no tag, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from pydantic import BaseModel

from yolact.config import Params
from yolact.errors import DataError

LIBRARIES = ("torch", "torchvision", "mlflow")
"""Distributions whose versions are recorded, besides Python's own."""

PIPELINE_OUTPUTS = ("data", "dvc.lock", "metrics", "plots", "reports")
"""Tracked paths that the steps themselves rewrite; a change there does not make the code dirty."""

_USER = re.compile(r"(?<=://)[^/\s]*@")
_SSH_PASSWORD = re.compile(r"(?<=://)([^/:\s]*):[^/\s]*@")
_QUERY = re.compile(r"[?#].*$")


@dataclass(frozen=True)
class Lineage:
    """What a run or a model version was made from."""

    git_commit: str | None
    git_dirty: bool | None
    """Tracked files differ from the commit (`PIPELINE_OUTPUTS` aside), or Python files are not in git."""
    git_branch: str | None
    """None also when HEAD is detached."""
    git_remote: str | None
    """URL of ``origin``, without credentials."""
    dvc_lock_hash: str | None
    """SHA-256 of what ``dvc.lock`` says, see `hash_dvc_lock`."""
    params_hash: str
    """SHA-256 of the canonical JSON of all settings, see `hash_params`."""
    data_digest: str | None
    """Digest of the processed data, as preprocess wrote it into ``stats.json``."""
    host: str
    versions: dict[str, str]
    """Version by name: ``python`` and `LIBRARIES`; a library that is not installed is left out."""

    def as_tags(self) -> dict[str, str]:
        """Tags for a run or a model version; facts that are not known are left out."""
        facts = {
            "git_commit": self.git_commit,
            "git_dirty": None if self.git_dirty is None else str(self.git_dirty).lower(),
            "git_branch": self.git_branch,
            "git_remote": self.git_remote,
            "dvc_lock_hash": self.dvc_lock_hash,
            "params_hash": self.params_hash,
            "data_digest": self.data_digest,
            "host": self.host,
        }
        facts |= {f"{name}_version": number for name, number in self.versions.items()}
        return {name: value for name, value in facts.items() if value}


def gather_lineage(params: Params, *, processed_dir: Path | None = None, root: Path = Path()) -> Lineage:
    """Collect the lineage of the repository at ``root``.

    Args:
        params: the settings in use.
        processed_dir: output folder of preprocess; None where no data is concerned.
        root: folder of ``dvc.lock``, inside the git work tree (or not in one).

    Raises:
        DataError: ``processed_dir`` has no usable ``stats.json``.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    remote = _git(root, "remote", "get-url", "origin")
    lock = root / "dvc.lock"
    return Lineage(
        git_commit=commit,
        git_dirty=None if commit is None else _is_dirty(root),
        git_branch=_git(root, "symbolic-ref", "--short", "--quiet", "HEAD"),
        git_remote=None if remote is None else without_credentials(remote),
        dvc_lock_hash=hash_dvc_lock(lock) if lock.is_file() else None,
        params_hash=hash_params(params),
        data_digest=None if processed_dir is None else read_data_digest(processed_dir),
        host=platform.node() or "unknown",
        versions=_installed_versions(),
    )


def hash_params(params: BaseModel) -> str:
    """SHA-256 (hex) of settings, or of a section, as JSON with sorted keys: equal settings, equal hash."""
    tree = params.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_dvc_lock(path: Path) -> str:
    """SHA-256 (hex) of a lock file's stages, as JSON with sorted keys, without the stage ``register``.

    While ``dvc repro`` runs register, the file has that stage's last state or none. Without it the hash taken
    then is the hash of the file that is committed afterwards, so a registered version can be traced to it.

    Raises:
        DataError: the file is not a DVC lock file.
    """
    try:
        stages = dict(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"])
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a DVC lock file ({type(error).__name__}). Run `dvc repro` again.") from error
    stages.pop("register", None)
    return hashlib.sha256(json.dumps(stages, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_files(*paths: Path) -> str:
    """SHA-256 (hex) of the files' contents one after the other, each preceded by its length in bytes.

    One file alone is hashed plainly, as ``sha256sum`` does.
    """
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) > 1:
            digest.update(f"{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_data_digest(processed_dir: Path) -> str:
    """The digest that preprocess wrote into ``stats.json``.

    Raises:
        DataError: the file is missing, is not JSON or has no digest.
    """
    path = processed_dir / "stats.json"
    try:
        digest = json.loads(path.read_text(encoding="utf-8")).get("digest")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Run the preprocess step first.") from None
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a JSON object ({error}). Run the preprocess step again.") from error
    if not isinstance(digest, str) or not digest:
        raise DataError(f"{path}: key 'digest' is missing or empty. Run the preprocess step again.")
    return digest


def without_credentials(url: str) -> str:
    """A URL without user, password, query and fragment; an SSH login name (``git@``) is not a secret and stays.

    Text that is no URL, as a path or ``git@host:folder``, is returned as it is.
    """
    if "://" not in url:
        return url
    is_ssh = url.split("://")[0].endswith("ssh")
    url = _SSH_PASSWORD.sub(r"\1@", url) if is_ssh else _USER.sub("", url)
    return _QUERY.sub("", url)


def shown_source(text: str) -> str:
    """``data.source`` without passwords, for messages and records.

    Only an address on the web loses what follows ``?`` and ``#``; in ``dvc:REPOSITORY#PATH@REVISION`` and in the keys
    of a bucket these are no secrets but say which data is meant.
    """
    if text.startswith(("https://", "http://")):
        return without_credentials(text)
    if text.startswith("dvc:"):
        repository, mark, rest = text.rpartition("#")
        return f"{without_credentials(repository)}{mark}{rest}"
    return redact(text)


def redact(text: str) -> str:
    """``text`` without the user and password of any URL in it."""
    return _USER.sub("", text)


def _is_dirty(root: Path) -> bool:
    excluded = [f":(exclude){path}" for path in PIPELINE_OUTPUTS]
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    new_code = _git(root, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    return bool(changed or new_code)


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, stripped; None when git, the repository or the thing asked for is not there."""
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


def _installed_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
