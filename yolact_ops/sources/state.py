"""The state of a source: what tells that its content changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """By what a change of the source is noticed, without bringing it here."""

    fingerprint: str
    """SHA-256 (hex) of names, sizes and times, ETags, a checksum or a git commit: whatever the source offers."""
    files: int | None = None
    size: int | None = None
    """Bytes."""


def content_hash(value: object) -> str:
    """SHA-256 (hex) of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
