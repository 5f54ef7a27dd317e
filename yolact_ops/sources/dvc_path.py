"""A path that a git repository tracks, by DVC or by git itself."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yolact.errors import DataError
from yolact.files import write_json_atomic
from yolact_ops.lineage.redaction import redact, without_credentials
from yolact_ops.sources.access import git_access
from yolact_ops.sources.downloads import download_folder
from yolact_ops.sources.local import files_below
from yolact_ops.sources.state import State, content_hash
from yolact_ops.sources.tracked import fetch_tracked, is_temporary
from yolact_ops.transfer.disk import file_digest
from yolact_ops.transfer.download import DownloadError, ServerUnavailableError

GIT_TIMEOUT = 300.0
"""Timeout for a server to list its branches and tags, seconds."""

_NETWORK = re.compile(r"resolve host|[Cc]onnect|timed out|returned error: 5\d\d|hung up|early EOF")
"""In what git says when a retry may succeed."""

log = logging.getLogger(__name__)


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
        """Text for ``data.source``, with the commit that the revision currently refers to."""
        return f"dvc:{self.repository}#{self.path}@{self._commit()}"

    def fetch(self, downloads: Path) -> Path:
        """Fetch the folder or file from the repository's DVC remote or cache, and return its path."""
        commit = self._commit()
        place = download_folder(downloads, str(self))
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
        except Exception as error:  # DVC, git and each kind of storage have their own exception types
            kind = ServerUnavailableError if is_temporary(error) else DownloadError
            raise kind(
                f"data.source: {self}: {_chain(error)}. Check the path and the revision, and that its data was pushed "
                "(`dvc push` there) to a remote that this machine can read. Run it again: fetched files are kept."
            ) from None
        write_json_atomic(record, {"commit": commit, "files": _described(content)})
        return found

    def state(self) -> State:
        """State from the commit that the revision currently refers to."""
        return State(content_hash([self.path, self._commit()]))

    def _commit(self) -> str:
        """The revision's commit; an abbreviated or full commit id is returned unchanged."""
        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        command = ["git", "ls-remote", "--", self.repository, self.revision, f"{self.revision}^{{}}"]
        try:
            with git_access(self.repository):
                environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # never ask for a password
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT, env=environment
                )
        except subprocess.TimeoutExpired:
            raise ServerUnavailableError(
                f"data.source: {self}: the repository's server did not answer in {GIT_TIMEOUT:g} s. Check the address "
                "and the network, and run it again."
            ) from None
        except OSError as error:
            raise DownloadError(f"data.source: {self}: git cannot be run ({error}). Install it.") from None
        if done.returncode:
            kind = ServerUnavailableError if _NETWORK.search(done.stderr) else DownloadError
            raise kind(
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


def _is_intact(record: Path, commit: str, content: Path) -> bool:
    """Whether a folder still has, byte for byte, what was fetched from the commit according to its record."""
    try:
        tree = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: the files are then checked against the repository
        return False
    if not isinstance(tree, dict) or tree.get("commit") != commit:
        return False
    if tree.get("files") == _described(content):
        return True
    log.warning("%s: files were changed or removed after they were fetched; they are fetched again", content)
    return False


def _described(content: Path) -> dict[str, dict[str, int | str]]:
    """Size in bytes and MD5 (hex) of each file below a folder, by its path there."""
    return {
        path.relative_to(content).as_posix(): {"size": path.stat().st_size, "md5": file_digest(path, "md5")}
        for path in sorted(files_below(content))
    }


def _chain(error: BaseException) -> str:
    """The messages of an error and of its causes."""
    messages = []
    at: BaseException | None = error
    while at is not None:
        if (text := redact(str(at)).strip().rstrip(".")) and text not in messages:
            messages.append(text)
        at = at.__cause__
    return ": ".join(messages) or type(error).__name__
