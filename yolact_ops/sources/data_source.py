"""Parse ``data.source``: the forms of all kinds of source, each of which has its own module.

A kind of source has `fetch`, which brings the data to this machine, and `state`, which detects changes of its content
without fetching it. Remote sources are fetched into a folder of downloads that outlives `data/raw`, so a second run
fetches nothing and an interrupted transfer resumes. That folder can be removed at any time.
"""

from __future__ import annotations

import re
from pathlib import Path

from yolact.errors import DataError
from yolact_ops.lineage.redaction import without_credentials
from yolact_ops.settings.params import DataConfig
from yolact_ops.sources import web
from yolact_ops.sources.bucket import Bucket
from yolact_ops.sources.dvc_path import DvcPath
from yolact_ops.sources.local import Local
from yolact_ops.sources.state import State
from yolact_ops.sources.web import Web
from yolact_ops.transfer.storage import S3Address

SPELLINGS = (
    "Supported are: sample; voc2012; sbd; a folder; an archive (.tar, .tar.gz, .tgz, .zip); https://HOST/ARCHIVE, "
    "to which #sha256=HEX may be added; s3://BUCKET/FOLDER or s3://BUCKET/ARCHIVE; dvc:REPOSITORY#PATH@REVISION."
)

Source = Local | Web | Bucket | DvcPath


def find_source(data: DataConfig) -> Source | None:
    """Parse ``data.source``; None for ``sample``.

    Raises:
        DataError: it is not a supported source.
    """
    text = data.source
    if text == "sample":
        return None
    if text == "voc2012":
        return Web(text, data.mirrors.voc2012, web.VOC2012_FILE)
    if text == "sbd":
        return Web(text, data.mirrors.sbd, web.SBD_FILE)
    if text.startswith("s3://"):
        return Bucket(S3Address.parse(text))
    if text.startswith(("https://", "http://")):
        return _web(text)
    if text.startswith("dvc:"):
        return _dvc_path(text)
    if "://" in text:
        raise DataError(f"data.source: {text!r} is an address of an unknown kind. {SPELLINGS}")
    path = Path(text).expanduser()
    if not path.exists():
        raise DataError(f"data.source: {text!r} does not exist (looked for {path.absolute()}). {SPELLINGS}")
    return Local(path)


def state_of(source: Source | None) -> State:
    """State of the source that `find_source` returned.

    Raises:
        DataError: it is unavailable.
    """
    return State("generated") if source is None else source.state()


def _web(text: str) -> Web:
    url, mark, sha256 = text.partition("#sha256=")
    if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError(
            f"data.source: {without_credentials(url)}: the checksum {sha256[:80]!r} is not a SHA-256 (64 hex digits)."
        )
    return Web(url, [url], sha256=sha256.lower() or None)


def _dvc_path(text: str) -> DvcPath:
    repository, _, rest = text.removeprefix("dvc:").rpartition("#")
    path, _, revision = rest.rpartition("@")
    if not (repository and path and revision):
        raise DataError(
            f"data.source: {text!r} lacks a part. Write dvc:REPOSITORY#PATH@REVISION, such as "
            "dvc:https://example.com/team/images.git#data/images@v2."
        )
    if revision.startswith("-") or repository.startswith("-"):
        raise DataError(f"data.source: {text!r}: neither repository nor revision can begin with '-'.")
    expanded = Path(repository).expanduser()
    return DvcPath(str(expanded.resolve()) if expanded.exists() else repository, path.strip("/"), revision)
