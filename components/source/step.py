"""The step `source`: identify the data before it is fetched, so that a pipeline's caches distinguish revisions.

A branch or a tag is resolved to its current commit; anything else (a bucket, a folder, an archive) gets a fingerprint
of its content. This takes seconds, so it runs every time, while fetching and preprocessing are cached.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from yolact.errors import SettingsError
from yolact.models.weight_sources import check_weight_sources
from yolact_ops.lineage.redaction import shown_source, without_credentials
from yolact_ops.settings.params import Params
from yolact_ops.sources.data_source import find_source, state_of
from yolact_ops.sources.dvc_path import DvcPath

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PinnedData:
    """One revision of the data."""

    params: Params
    """Settings, with the revision's commit in ``data.source`` if it has one."""
    fingerprint: str
    """SHA-256 (hex), see `yolact_ops.sources.state.State`; ``generated`` for the sample."""


def run(params: Params, *, repository: str = "", path: str = "", revision: str = "") -> PinnedData:
    """Identify the data that ``data.source`` currently refers to.

    Args:
        params: settings; uses ``data``, and checks what ``model`` starts from.
        repository, path, revision: a git repository, a path in it that DVC or git tracks, and a commit, tag or branch;
            if given, all three, they replace ``data.source``.

    Raises:
        SettingsError: one of the three is missing, or an address contains a password; or see `check_weight_sources`.
        WeightsError: see `check_weight_sources`.
        DataError: the source is missing or unavailable.
    """
    check_weight_sources(params.model, files=False)  # files may be on a volume that only the training has
    params = choose_source(params, repository=repository, path=path, revision=revision)
    source = find_source(params.data)
    if isinstance(source, DvcPath):
        params = _with_source(params, source.pinned())
    fingerprint = state_of(source).fingerprint
    log.info("%s, fingerprint %s", shown_source(params.data.source), fingerprint[:16])
    return PinnedData(params, fingerprint)


def choose_source(params: Params, *, repository: str = "", path: str = "", revision: str = "") -> Params:
    """The settings with the data source that `run` will identify; nothing is contacted yet.

    Args:
        params, repository, path, revision: see `run`.

    Raises:
        SettingsError: see `run`.
    """
    given = {"data_repository": repository, "data_path": path, "data_revision": revision}
    if any(given.values()):
        missing = ", ".join(name for name, value in given.items() if not value)
        if missing:
            raise SettingsError(
                f"{missing}: empty. Set all of {', '.join(given)} to name a revision of the data, or none to use "
                "data.source"
            )
        params = _with_source(params, f"dvc:{repository}#{path}@{revision}")
    _check_no_password(params.data.source)
    return params


def _check_no_password(source: str) -> None:
    records = "its address contains a password, which every record of the run would show. Remove it, and"
    if source.startswith("dvc:"):
        before, _, after = source.removeprefix("dvc:").rpartition("#")
        if (repository := before or after) != without_credentials(repository):
            raise SettingsError(
                f"the data's git repository: {records} give it by git's credential helper or the secret `git` "
                "(pipelines/README.md)."
            )
    elif source.startswith(("https://", "http://")) and "@" in urlsplit(source).netloc:
        raise SettingsError(f"data.source: {records} put it into ~/.netrc; on a cluster, put the data into a bucket.")


def _with_source(params: Params, source: str) -> Params:
    return params.model_copy(update={"data": params.data.model_copy(update={"source": source})})
