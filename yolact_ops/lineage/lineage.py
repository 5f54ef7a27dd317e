"""Where a result came from: code, settings, data, libraries, machine.

Everything here also works outside a git repository or without the git program; what cannot be known is None
and becomes no tag, never a guess.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from yolact.errors import DataError
from yolact_ops.settings.params import Params

LIBRARIES = ("torch", "torchvision", "numpy", "mlflow", "dvc", "kfp")
"""Distributions whose versions are recorded, besides Python's own."""

STEPS = ("source", "ingest", "preprocess", "train", "evaluate", "register")
"""Stages of ``dvc.yaml``, in order."""

IMAGE_VARIABLE, IMAGE_DIGEST_VARIABLE = "YOLACT_IMAGE", "YOLACT_IMAGE_DIGEST"
"""Environment variables that tell a container the name and the digest of its image; nothing inside it knows them."""
COMMIT_VARIABLE = "YOLACT_COMMIT"
"""The commit that an image was built from, where there is no git repository."""
CODE_VARIABLE = "YOLACT_CODE_VERSION"
"""The code's version, where there is no git repository."""
PIPELINE_RUN_VARIABLE = "KFP_RUN_ID"
"""Id of the Kubeflow pipeline run."""

PIPELINE_OUTPUTS = ("data", "dvc.lock", "metrics", "plots", "reports")
"""Tracked paths that the steps themselves rewrite; a change there does not make the code dirty."""
SETTINGS = "params.yaml"
"""Changed settings are no changed code: a run has them all as parameters, and a model version carries them."""

_USER = re.compile(r"(?<=://)[^/\s]*@")
_SSH_PASSWORD = re.compile(r"(?<=://)([^/:\s]*):[^/\s]*@")
_QUERY = re.compile(r"[?#].*$")


@dataclass(frozen=True)
class Lineage:
    """What a run or a model version was made from."""

    git_commit: str | None
    git_dirty: bool | None
    """Tracked files, but `PIPELINE_OUTPUTS` and `SETTINGS`, differ from the commit, or Python files are not in git."""
    git_branch: str | None
    """None also when HEAD is detached."""
    git_remote: str | None
    """URL of ``origin``, without credentials."""
    code_version: str | None
    """What ``git describe`` says: tag, commits since; ``-dirty`` where `git_dirty`."""
    package_version: str | None
    """Of the distribution yolact-pipeline."""
    image: str | None
    """Container image, see `IMAGE_VARIABLE`."""
    image_digest: str | None
    pipeline_run_id: str | None
    dvc_lock_hash: str | None
    """SHA-256 of what ``dvc.lock`` says of the steps before this one, see `hash_dvc_lock`."""
    params_hash: str
    """SHA-256 of the canonical JSON of all settings, see `hash_params`."""
    data_digest: str | None
    """Digest of the processed data, as preprocess wrote it into ``stats.json``."""
    host: str
    user: str
    gpu: str | None
    """Name of the first GPU."""
    versions: dict[str, str]
    """Version by name: ``python``, ``cuda`` where there is a GPU, and `LIBRARIES`; what is not there is left out."""

    def as_tags(self) -> dict[str, str]:
        """Tags for a run or a model version; facts that are not known are left out."""
        facts = {
            "git_commit": self.git_commit,
            "git_dirty": None if self.git_dirty is None else str(self.git_dirty).lower(),
            "git_branch": self.git_branch,
            "git_remote": self.git_remote,
            "code_version": self.code_version,
            "package_version": self.package_version,
            "image": self.image,
            "image_digest": self.image_digest,
            "pipeline_run_id": self.pipeline_run_id,
            "dvc_lock_hash": self.dvc_lock_hash,
            "params_hash": self.params_hash,
            "data_digest": self.data_digest,
            "host": self.host,
            "user": self.user,
            "gpu": self.gpu,
        }
        facts |= {f"{name}_version": number for name, number in self.versions.items()}
        return {name: value for name, value in facts.items() if value}


def gather_lineage(
    params: Params, *, processed_dir: Path | None = None, root: Path = Path(), step: str = "register"
) -> Lineage:
    """Collect the lineage of the repository at ``root``.

    Args:
        params: the settings in use.
        processed_dir: output folder of preprocess; None where no data is concerned.
        root: folder of ``dvc.lock``, inside the git work tree (or not in one).
        step: which of `STEPS` this is.

    Raises:
        DataError: ``processed_dir`` has no usable ``stats.json``.
    """
    commit, dirty = git_state(root, ignoring=[SETTINGS])
    described = git_output(root, "describe", "--tags", "--always")
    remote = git_output(root, "remote", "get-url", "origin")
    lock = root / "dvc.lock"
    return Lineage(
        git_commit=commit or _stated(COMMIT_VARIABLE),
        git_dirty=dirty,
        git_branch=git_output(root, "symbolic-ref", "--short", "--quiet", "HEAD"),
        git_remote=None if remote is None else without_credentials(remote),
        code_version=f"{described}-dirty" if described and dirty else described or _stated(CODE_VARIABLE),
        package_version=_version("yolact-pipeline"),
        image=_stated(IMAGE_VARIABLE),
        image_digest=_stated(IMAGE_DIGEST_VARIABLE),
        pipeline_run_id=_stated(PIPELINE_RUN_VARIABLE),
        dvc_lock_hash=hash_dvc_lock(lock, before=step) if lock.is_file() else None,
        params_hash=hash_params(params),
        data_digest=None if processed_dir is None else read_data_digest(processed_dir),
        host=platform.node() or "unknown",
        user=user_name(),
        gpu=_gpu()[0],
        versions=_installed_versions(),
    )


def git_state(root: Path = Path(), ignoring: Sequence[str] = ()) -> tuple[str | None, bool | None]:
    """The commit checked out at ``root``, and whether tracked files differ from it or Python files are not in it.

    Changes in `PIPELINE_OUTPUTS` and in the tracked paths of ``ignoring`` do not count. Both are None outside a git
    repository.
    """
    commit = git_output(root, "rev-parse", "--verify", "HEAD")
    return commit, None if commit is None else _is_dirty(root, ignoring)


def hash_params(params: BaseModel) -> str:
    """SHA-256 (hex) of settings, or of a section, as JSON with sorted keys: equal settings, equal hash."""
    tree = params.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    """SHA-256 (hex) of what a lock file says of the stages before one of `STEPS`, as JSON with sorted keys.

    While ``dvc repro`` runs a stage, the file has that stage's last state or none, and older states of later ones.
    Without those the hash taken then can be taken again from the file that is committed afterwards, so a run or a
    registered version can be traced to it.

    Raises:
        ValueError: the text is not that of a DVC lock file.
    """
    try:
        stages = dict(yaml.safe_load(text)["stages"])
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ValueError(type(error).__name__) from error
    for later in STEPS[STEPS.index(before) :]:
        stages.pop(later, None)
    return hashlib.sha256(json.dumps(stages, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def find_lock_commit(lock_hash: str, root: Path = Path(), newest: int = 200) -> str | None:
    """The commit of the repository at ``root`` whose ``dvc.lock`` has that hash; None where none has.

    Args:
        lock_hash: see `hash_lock_text`.
        root: inside the git work tree (or not in one).
        newest: how many of the commits that changed ``dvc.lock`` are looked at.
    """
    commits = git_output(root, "log", "--all", f"--max-count={newest}", "--format=%H", "--", "dvc.lock")
    for commit in (commits or "").splitlines():
        text = git_output(root, "show", f"{commit}:./dvc.lock")
        with contextlib.suppress(ValueError):
            if text is not None and hash_lock_text(text) == lock_hash:
                return commit
    return None


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
    """The digest of all processed data that preprocess wrote into ``stats.json``.

    Raises:
        DataError: the file is missing, is not JSON or has no digest.
    """
    digest = _read_statistics(processed_dir).get("digest")
    if not isinstance(digest, str) or not digest:
        raise _lacks(processed_dir, "digest")
    return digest


def read_split_digests(processed_dir: Path) -> dict[str, str]:
    """The digests of ``train`` and ``val``, each of its images and annotations, from ``stats.json``.

    Raises:
        DataError: the file is missing, is not JSON or has no such digests.
    """
    digests = _read_statistics(processed_dir).get("split_digests")
    if not isinstance(digests, dict) or not all(digests.get(split) for split in ("train", "val")):
        raise _lacks(processed_dir, "split_digests")
    return digests


def _read_statistics(processed_dir: Path) -> dict[str, Any]:
    path = processed_dir / "stats.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Run the preprocess step first.") from None
    except ValueError as error:
        raise DataError(f"{path}: not a JSON object ({error}). Run the preprocess step again.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path}: not a JSON object. Run the preprocess step again.")
    return tree


def _lacks(processed_dir: Path, key: str) -> DataError:
    return DataError(f"{processed_dir / 'stats.json'}: key {key!r} is missing or empty. Run the preprocess step again.")


def user_name() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


def data_source(params: Params) -> str:
    """Where the raw data comes from, as the user named it, without credentials."""
    return shown_source(params.data.source)


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


def _is_dirty(root: Path, ignoring: Sequence[str]) -> bool:
    excluded = [f":(exclude){path}" for path in (*PIPELINE_OUTPUTS, *ignoring)]
    changed = git_output(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    new_code = git_output(root, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    return bool(changed or new_code)


def git_output(root: Path, *arguments: str) -> str | None:
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


def _stated(variable: str) -> str | None:
    """What an environment variable says, unless it says that it does not know."""
    value = os.environ.get(variable)
    return None if value in (None, "", "unknown") else value


def _installed_versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": _gpu()[1]} | {name: _version(name) for name in LIBRARIES}
    return {name: number for name, number in found.items() if number}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _gpu() -> tuple[str | None, str | None]:
    """Name of the first GPU, and the version of CUDA; None where there is none."""
    import torch  # takes a second, and steps that only hash files do without

    if not torch.cuda.is_available():
        return None, None
    return torch.cuda.get_device_name(0), torch.version.cuda
