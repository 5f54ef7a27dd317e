"""Fixtures of the tests of pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def repository_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the repository's root, as a user does: ``params.yaml`` and ``conf`` are there."""
    monkeypatch.chdir(repository)
