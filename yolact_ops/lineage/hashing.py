"""Hashes of settings and files: equal content, equal hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel


def hash_params(params: BaseModel) -> str:
    """SHA-256 (hex) of settings, or of a section of them, as JSON with sorted keys."""
    tree = params.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_files(*paths: Path) -> str:
    """SHA-256 (hex) of the files' contents in order, each preceded by its length in bytes.

    A single file has its plain hash, as from ``sha256sum``.
    """
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) > 1:
            digest.update(f"{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
