"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def voc_mini() -> Path:
    """A small set of real photos in VOC layout, kept beside the checkout on some machines."""
    folder = SHARED / "voc-mini"
    if not folder.is_dir():
        pytest.skip("real photos are not here: no folder ../shared/voc-mini beside the checkout")
    return folder


@pytest.fixture(scope="session")
def reference_fixtures() -> Path:
    """Numbers computed by the published YOLACT, kept beside the checkout on some machines."""
    folder = SHARED / "reference" / "fixtures"
    if not folder.is_dir():
        pytest.skip("reference numbers are not here: no folder ../shared/reference/fixtures beside the checkout")
    return folder
