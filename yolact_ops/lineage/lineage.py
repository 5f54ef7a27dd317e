"""The lineage of a result: code, settings, data, libraries, machine.

Works outside a git repository and without git too; what is unknown is None, never a guess, and gets no tag.
"""

from __future__ import annotations

import getpass
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from yolact_ops.lineage.dvc_lock import hash_dvc_lock
from yolact_ops.lineage.git import git_output, git_state
from yolact_ops.lineage.hashing import hash_params
from yolact_ops.lineage.redaction import shown_source, without_credentials
from yolact_ops.lineage.statistics import read_data_digest
from yolact_ops.lineage.variables import (
    CODE_VARIABLE,
    COMMIT_VARIABLE,
    IMAGE_DIGEST_VARIABLE,
    IMAGE_VARIABLE,
    PIPELINE_RUN_VARIABLE,
)

if TYPE_CHECKING:
    from yolact_ops.settings.params import DataParams

LIBRARIES = ("torch", "torchvision", "numpy", "mlflow", "dvc", "kfp")
"""Distributions whose versions are recorded, besides Python's own."""

SETTINGS = "params.yaml"
"""Changed settings do not count as changed code: a run logs them all, and a model version includes them."""


@dataclass(frozen=True)
class Lineage:
    """What a run or a model version was made from."""

    git_commit: str | None
    git_dirty: bool | None
    """Tracked files other than `git.PIPELINE_OUTPUTS` and `SETTINGS` differ from the commit, or Python files are
    untracked."""
    git_branch: str | None
    """Also None if HEAD is detached."""
    git_remote: str | None
    """URL of ``origin``, without credentials."""
    code_version: str | None
    """Output of ``git describe`` (tag, commits since), with ``-dirty`` if `git_dirty`."""
    package_version: str | None
    """Version of the distribution yolact-pipeline."""
    image: str | None
    """Container image, see `IMAGE_VARIABLE`."""
    image_digest: str | None
    pipeline_run_id: str | None
    dvc_lock_hash: str | None
    """SHA-256 of the entries in ``dvc.lock`` of the steps before this one, see `hash_dvc_lock`."""
    params_hash: str
    """SHA-256 of the canonical JSON of all settings, see `hash_params`."""
    data_digest: str | None
    """Digest of the processed data, from ``stats.json``."""
    host: str
    user: str
    gpu: str | None
    """Name of the first GPU."""
    versions: dict[str, str]
    """Version by name: ``python``, ``cuda`` with a GPU, and those of `LIBRARIES` that are installed."""

    def as_tags(self) -> dict[str, str]:
        """Tags for a run or a model version, without unknown facts."""
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
    params: BaseModel, *, eval_data_dir: Path | None = None, root: Path = Path(), step: str = "register"
) -> Lineage:
    """Collect the lineage of the repository at ``root``.

    Args:
        params: all settings.
        eval_data_dir: output of preprocess for evaluation; None without data.
        root: folder of ``dvc.lock``, inside or outside a git work tree.
        step: the current step, one of `dvc_lock.STEPS`.

    Raises:
        DataError: ``eval_data_dir`` has no usable ``stats.json``.
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
        data_digest=None if eval_data_dir is None else read_data_digest(eval_data_dir),
        host=platform.node() or "unknown",
        user=user_name(),
        gpu=_gpu()[0],
        versions=_installed_versions(),
    )


def user_name() -> str:
    """Name of the current user, or ``unknown``."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


def data_source(params: DataParams) -> str:
    """``data.source`` without credentials."""
    return shown_source(params.data.source)


def shown_settings(params: DataParams) -> dict[str, Any]:
    """All settings as plain values, for records: without credentials in the addresses of data."""
    tree: dict[str, Any] = params.model_dump(mode="json", by_alias=True)
    tree["data"]["source"] = data_source(params)
    for name, urls in tree["data"]["mirrors"].items():
        tree["data"]["mirrors"][name] = [shown_source(url) for url in urls]
    return tree


def _stated(variable: str) -> str | None:
    """Value of an environment variable; None if it is unset, empty or ``unknown``."""
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
    """Name of the first GPU and the CUDA version; None without a GPU."""
    import torch  # here, because it takes a second and not every step needs it

    if not torch.cuda.is_available():
        return None, None
    return torch.cuda.get_device_name(0), torch.version.cuda
