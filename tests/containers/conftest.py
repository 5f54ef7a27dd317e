"""What the tests of the image share. `.ci/containers` builds the image and runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

Docker = Callable[..., str]


@pytest.fixture(scope="session")
def image() -> str:
    """Name of the image that is tested."""
    name = os.environ.get("YOLACT_TEST_IMAGE", "")
    if not name:
        pytest.skip("no image: `bash .ci/containers` builds one and runs these tests")
    return name


@pytest.fixture(scope="session")
def docker(image: str) -> Docker:
    """Runs a ``docker`` command and returns its standard output; one that fails, or takes minutes, fails the test."""

    def run(*command: str, timeout: float = 300) -> str:
        done = subprocess.run(["docker", *command], capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"docker {' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    return run
