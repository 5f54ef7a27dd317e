"""What ``data.source`` can name, and bringing it to this machine.

Remote sources are fetched into a folder of downloads, which outlives `data/raw`, so that a second run fetches nothing
and a broken transfer goes on. Removing that folder loses nothing but time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from yolact.errors import DataError
from yolact.files import write_json_atomic
from yolact_ops.lineage.redaction import redact, without_credentials
from yolact_ops.settings.params import DataConfig
from yolact_ops.sources.access import git_access
from yolact_ops.sources.tracked import fetch_tracked
from yolact_ops.transfer.disk import file_digest
from yolact_ops.transfer.download import DownloadError, KnownFile, ask_version, fetch_file
from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client

log = logging.getLogger(__name__)

VOC2012_FILE = KnownFile(size=1_999_639_040, md5="6cd6e144f989b92b3379bac3b3de84fd")
"""The devkit's VOCtrainval_11-May-2012.tar."""

SBD_FILE = KnownFile(size=1_419_539_633, md5="82b4d87ceb2ed10f6038a1cba92111cb")
"""The release's benchmark.tgz (Hariharan et al. 2011), as torchvision's SBDataset checks it; it holds images too."""

SPELLINGS = (
    "Supported are: sample; voc2012; sbd; a folder; an archive (.tar, .tar.gz, .tgz, .zip); https://HOST/ARCHIVE, "
    "to which #sha256=HEX may be added; s3://BUCKET/FOLDER or s3://BUCKET/ARCHIVE; dvc:REPOSITORY#PATH@REVISION."
)


GIT_TIMEOUT = 300.0
"""Seconds for a server to say what its branches and tags are."""


@dataclass(frozen=True)
class State:
    """By what a change of the source is noticed, without bringing it here."""

    fingerprint: str
    """SHA-256 (hex) of names, sizes and times, ETags, a checksum or a git commit: whatever the source offers."""
    files: int | None = None
    size: int | None = None
    """Bytes."""


@dataclass(frozen=True)
class Local:
    """A folder or an archive on this machine."""

    path: Path

    def fetch(self, downloads: Path) -> Path:
        """The folder or archive itself."""
        return self.path

    def state(self) -> State:
        """By each file's path, size and time of change."""
        paths = sorted(files_below(self.path))
        stats = [path.stat() for path in paths]
        names = [path.relative_to(self.path).as_posix() for path in paths]
        lines = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
        return State(_hash(lines), len(paths), sum(stat.st_size for stat in stats))


@dataclass(frozen=True)
class Web:
    """An archive at one address, or at several that hold the same file."""

    name: str
    """As in ``data.source``, without a checksum."""
    urls: Sequence[str]
    known: KnownFile | None = None
    sha256: str | None = None
    """Hex, where ``data.source`` says it."""

    def fetch(self, downloads: Path) -> Path:
        """The downloaded archive."""
        name = PurePosixPath(unquote(urlsplit(self.urls[0]).path)).name
        target = _place(downloads, self.name) / (name if name not in ("", "..") else "archive")
        fetch_file(self.urls, target, self.known)
        if self.sha256 is not None and (found := file_digest(target, "sha256")) != self.sha256:
            target.unlink()
            raise DownloadError(
                f"{without_credentials(self.urls[0])}: has the SHA-256 {found}, but data.source says {self.sha256}. It "
                "was removed. Run it again; if it stays so, ask who keeps the file which of the two is right."
            )
        return target

    def state(self) -> State:
        """By the published checksum, or by what the server says of its file."""
        if self.known is not None:
            return State(_hash(self.known.md5), 1, self.known.size)
        if self.sha256 is not None:
            return State(_hash(self.sha256), 1)
        version = ask_version(self.urls[0])
        return State(_hash([version.etag, version.last_modified, version.size]), 1, max(version.size, 0) or None)


@dataclass(frozen=True)
class Bucket:
    """A folder or an archive in an S3 bucket."""

    address: S3Address

    def fetch(self, downloads: Path) -> Path:
        """The folder of the downloaded files, or the downloaded archive."""
        client = make_client()
        objects = list_objects(client, self.address)
        folder = _place(downloads, f"{client.meta.endpoint_url} {self.address}") / "files"
        fetch_objects(client, self.address, objects, folder)
        return folder / objects[0].path if objects[0].key == self.address.key else folder

    def state(self) -> State:
        """By each file's key, size and ETag."""
        objects = list_objects(make_client(), self.address)
        lines = [[item.key, item.size, item.etag] for item in objects]
        return State(_hash(lines), len(objects), sum(item.size for item in objects))


@dataclass(frozen=True)
class DvcPath:
    """A path that a git repository tracks, by DVC or by git itself, at a revision."""

    repository: str
    """A folder or anything that git can clone."""
    path: str
    revision: str
    """Commit, tag or branch."""

    def __str__(self) -> str:
        return f"dvc:{without_credentials(self.repository)}#{self.path}@{self.revision}"

    def pinned(self) -> str:
        """As ``data.source`` spells it, with the commit that the revision names now."""
        return f"dvc:{self.repository}#{self.path}@{self._commit()}"

    def fetch(self, downloads: Path) -> Path:
        """The folder or file, from the repository's DVC remote or cache."""
        commit = self._commit()
        place = _place(downloads, str(self))
        record, content = place / "commit.json", place / "content"
        found = content / PurePosixPath(self.path).name
        if found.exists() and _is_intact(record, commit, content):
            return found
        record.unlink(missing_ok=True)
        try:
            with git_access(self.repository):
                fetch_tracked(self.repository, self.path, commit, content, str(self))
        except DataError:
            raise
        except Exception as error:  # DVC, git and each kind of storage raise types of their own
            raise DownloadError(
                f"data.source: {self}: {_chain(error)}. Check the path and the revision, and that its data was pushed "
                "(`dvc push` there) to a remote that this machine can read. Run it again: files that arrived are kept."
            ) from None
        write_json_atomic(record, {"commit": commit, "files": _described(content)})
        return found

    def state(self) -> State:
        """By the commit that the revision names now."""
        return State(_hash([self.path, self._commit()]))

    def _commit(self) -> str:
        """The revision's commit; an abbreviated or full commit id stands for itself."""
        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        command = ["git", "ls-remote", "--", self.repository, self.revision, f"{self.revision}^{{}}"]
        try:
            with git_access(self.repository):
                environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # nobody is there to answer
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT, env=environment
                )
        except subprocess.TimeoutExpired:
            raise DownloadError(
                f"data.source: {self}: the repository's server did not answer in {GIT_TIMEOUT:g} s. Check the address "
                "and the network, and run it again."
            ) from None
        except OSError as error:
            raise DownloadError(f"data.source: {self}: git cannot be run ({error}). Install it.") from None
        if done.returncode:
            raise DownloadError(
                f"data.source: {self}: git cannot read the repository: {redact(done.stderr).strip()}. Check its "
                "address, and that this machine may read it."
            )
        found = {name: commit for commit, name in (line.split("\t") for line in done.stdout.splitlines())}
        for name in (f"refs/tags/{self.revision}^{{}}", f"refs/tags/{self.revision}", f"refs/heads/{self.revision}"):
            if name in found:
                return found[name]
        if self.revision in found:  # HEAD, or a ref in full
            return found[self.revision]
        if re.fullmatch(r"[0-9a-f]{7,39}", self.revision):
            return self.revision
        raise DownloadError(f"data.source: {self}: the repository has no branch, tag or commit {self.revision!r}.")


Source = Local | Web | Bucket | DvcPath


def find_source(data: DataConfig) -> Source | None:
    """What ``data.source`` names; None for ``sample``.

    Raises:
        DataError: it is nothing that can be brought here.
    """
    text = data.source
    if text == "sample":
        return None
    if text == "voc2012":
        return Web(text, data.mirrors.voc2012, VOC2012_FILE)
    if text == "sbd":
        return Web(text, data.mirrors.sbd, SBD_FILE)
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
    """State of what `find_source` found.

    Raises:
        DataError: it is out of reach.
    """
    return State("generated") if source is None else source.state()


def files_below(path: Path) -> Iterator[Path]:
    """The files of a folder, also behind links to folders, as copying takes them; a file is its own only one.

    A link to a folder around it is not followed, nor one back on the way; one to nowhere is left out.
    """
    if path.is_file():
        yield path
    elif path.is_dir():
        for place, names in walk(path):
            yield from (place / name for name in names if (place / name).is_file())


def walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder in a folder, itself first, with the names in it that are no folders; see `files_below` for links.

    Raises:
        OSError: a folder cannot be read.
    """
    for root, folders, names in os.walk(path, followlinks=True, onerror=_raise):
        place = Path(root)
        folders[:] = [name for name in sorted(folders) if not _leads_back(place / name, path)]
        yield place, names


def _leads_back(path: Path, root: Path) -> bool:
    """Whether it is a link to a folder that was passed on the way from ``root``, or to one around such."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    passed = (folder for folder in path.parents if folder.is_relative_to(root))
    return any(folder.resolve().is_relative_to(target) for folder in passed)


def _raise(error: OSError) -> None:
    raise error


def _web(text: str) -> Web:
    url, mark, sha256 = text.partition("#sha256=")
    if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError(
            f"data.source: {without_credentials(url)}: the checksum {sha256[:80]!r} is no SHA-256 (64 hex digits)."
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


def _place(downloads: Path, address: str) -> Path:
    """The folder of one address's downloads; its name gives away no password."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    shown = re.sub(r"[^A-Za-z0-9._-]+", "-", without_credentials(address))[-40:].strip("-.")
    return downloads / f"{shown}-{digest}"


def _is_intact(record: Path, commit: str, content: Path) -> bool:
    """Whether a folder still holds, byte for byte, what its record says was fetched of a commit."""
    try:
        tree = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or a damaged one: what is there is then checked against the repository
        return False
    if not isinstance(tree, dict) or tree.get("commit") != commit:
        return False
    if tree.get("files") == _described(content):
        return True
    log.warning("%s: files were changed or lost since they were fetched; they are fetched again", content)
    return False


def _described(content: Path) -> dict[str, dict[str, int | str]]:
    """Size in bytes and MD5 (hex) of each file below a folder, by its path there."""
    return {
        path.relative_to(content).as_posix(): {"size": path.stat().st_size, "md5": file_digest(path, "md5")}
        for path in sorted(files_below(content))
    }


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _chain(error: BaseException) -> str:
    """The messages of an error and of its causes."""
    messages = []
    at: BaseException | None = error
    while at is not None:
        if (text := redact(str(at)).strip().rstrip(".")) and text not in messages:
            messages.append(text)
        at = at.__cause__
    return ": ".join(messages) or type(error).__name__
