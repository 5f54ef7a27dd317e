"""Folders of downloads, kept so that a second run fetches nothing and an interrupted transfer resumes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from yolact_ops.lineage.redaction import without_credentials


def download_folder(downloads: Path, address: str) -> Path:
    """The folder for one address's downloads; its name does not reveal a password."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    shown = re.sub(r"[^A-Za-z0-9._-]+", "-", without_credentials(address))[-40:].strip("-.")
    return downloads / f"{shown}-{digest}"
