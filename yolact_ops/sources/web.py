"""An archive at an HTTP address, or at several mirrors; and the published archives of VOC 2012 and SBD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from yolact_ops.lineage.redaction import without_credentials
from yolact_ops.sources.downloads import download_folder
from yolact_ops.sources.state import State, content_hash
from yolact_ops.transfer.disk import file_digest
from yolact_ops.transfer.download import DownloadError, KnownFile, ask_version, fetch_file

VOC2012_FILE = KnownFile(size=1_999_639_040, md5="6cd6e144f989b92b3379bac3b3de84fd")
"""The devkit's VOCtrainval_11-May-2012.tar."""

SBD_FILE = KnownFile(size=1_419_539_633, md5="82b4d87ceb2ed10f6038a1cba92111cb")
"""The release's benchmark.tgz (Hariharan et al. 2011), as torchvision's SBDataset checks it; it includes the images."""


@dataclass(frozen=True)
class Web:
    """An archive at one address, or at several that have the same file."""

    name: str
    """Name as in ``data.source``, without the checksum."""
    urls: Sequence[str]
    known: KnownFile | None = None
    sha256: str | None = None
    """Hex, if ``data.source`` has it."""

    def fetch(self, downloads: Path) -> Path:
        """Download the archive, and return its path."""
        name = PurePosixPath(unquote(urlsplit(self.urls[0]).path)).name
        target = download_folder(downloads, self.name) / (name if name not in ("", "..") else "archive")
        fetch_file(self.urls, target, self.known)
        if self.sha256 is not None and (found := file_digest(target, "sha256")) != self.sha256:
            target.unlink()
            raise DownloadError(
                f"{without_credentials(self.urls[0])}: has the SHA-256 {found}, but data.source says {self.sha256}. It "
                "was removed. Run it again; if it happens again, ask the provider of the file which checksum is right."
            )
        return target

    def state(self) -> State:
        """State from the published checksum, or from what the server reports about its file."""
        if self.known is not None:
            return State(content_hash(self.known.md5), 1, self.known.size)
        if self.sha256 is not None:
            return State(content_hash(self.sha256), 1)
        version = ask_version(self.urls[0])
        return State(content_hash([version.etag, version.last_modified, version.size]), 1, max(version.size, 0) or None)
