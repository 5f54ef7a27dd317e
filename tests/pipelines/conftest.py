"""Fixtures of the tests of pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import options, remote
from pipelines.servers import connection
from pipelines.status import watch
from tests.conftest import SHARED
from tests.pipelines.kfp_server import Definition, Server, serve
from tests.pipelines.tiny import compile_to

DEFINITION = SHARED / "kfp" / "kfp-api-v2beta1-2.17.0.swagger.json"
"""Next to the checkout on some machines; without it the requests are compared with a fixed list."""


@pytest.fixture
def repository_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the repository's root, as a user does: ``params.yaml`` and ``conf`` are there."""
    monkeypatch.chdir(repository)


@pytest.fixture(scope="session")
def definition() -> Definition | None:
    return Definition(DEFINITION) if DEFINITION.is_file() else None


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return compile_to(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long waits, and none of this machine's environment."""
    monkeypatch.setattr(connection, "BACKOFF", 0.01)
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    monkeypatch.setattr(remote, "FOLLOW_INTERVAL", 0.01)
    for name in ("ENDPOINT", "UI_ENDPOINT", "NAMESPACE", "TOKEN", "SA_TOKEN_PATH", "TOKEN_COMMAND", "COOKIE"):
        monkeypatch.delenv(f"KF_PIPELINES_{name}", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    # The library reads KUBECONFIG when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nonexistent")
    monkeypatch.setattr(options, "SERVICE_ACCOUNT_TOKEN", Path("/nonexistent"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    monkeypatch.setattr(connection, "IN_POD_NAMESPACE", Path("/nonexistent"))


@pytest.fixture
def server(definition: Definition | None, quick_and_alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running fake server, whose address is in the environment; fails if any request was invalid."""
    with serve(Server(definition)) as state:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", state.host)
        yield state
    assert state.problems == []
    assert state.requests
