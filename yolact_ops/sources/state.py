"""The state of a source, which shows whether its content changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """What shows a change of a source without fetching it."""

    fingerprint: str
    """SHA-256 (hex) of names, sizes and times, ETags, a checksum or a git commit, depending on the source."""
    files: int | None = None
    size: int | None = None
    """Bytes."""


def content_hash(value: object) -> str:
    """SHA-256 (hex) of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
