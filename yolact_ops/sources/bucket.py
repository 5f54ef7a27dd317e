"""A folder or an archive in an S3 bucket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yolact_ops.sources.downloads import download_folder
from yolact_ops.sources.state import State, content_hash
from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client


@dataclass(frozen=True)
class Bucket:
    """A folder or an archive in an S3 bucket."""

    address: S3Address

    def fetch(self, downloads: Path) -> Path:
        """Fetch the folder of files or the archive, and return its path."""
        client = make_client()
        objects = list_objects(client, self.address)
        folder = download_folder(downloads, f"{client.meta.endpoint_url} {self.address}") / "files"
        fetch_objects(client, self.address, objects, folder)
        return folder / objects[0].path if objects[0].key == self.address.key else folder

    def state(self) -> State:
        """State from each file's key, size and ETag."""
        objects = list_objects(make_client(), self.address)
        lines = [[item.key, item.size, item.etag] for item in objects]
        return State(content_hash(lines), len(objects), sum(item.size for item in objects))
