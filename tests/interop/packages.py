"""Programs and libraries of others that use what the project makes: `requirements.txt` lists them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def needed(name: str) -> ModuleType:
    """A module that `make test-interop` installs; there it must work, elsewhere the tests skip without it."""
    if "YOLACT_TEST_INTEROP" in os.environ:
        return importlib.import_module(name)
    module: ModuleType = pytest.importorskip(name, reason=f"{name} is not installed; `make test-interop` installs it")
    return module
