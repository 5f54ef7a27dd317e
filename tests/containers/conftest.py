"""Fixtures of the tests in the container image. `make test-containers` builds the image and runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

Docker = Callable[..., str]


@pytest.fixture(scope="session")
def image() -> str:
    """Name of the image under test."""
    name = os.environ.get("YOLACT_TEST_IMAGE", "")
    if not name:
        pytest.skip("no image: `make test-containers` builds one and runs these tests")
    return name


@pytest.fixture(scope="session")
def docker(image: str) -> Docker:
    """Run a ``docker`` command and return its standard output; the test fails if it fails or takes minutes."""

    def run(*command: str, timeout: float = 300) -> str:
        done = subprocess.run(["docker", *command], capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"docker {' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    return run
