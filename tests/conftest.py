"""Fixtures shared by the tests of all packages."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.faults.page import named_tests
from tests.servers.mlflow_servers import mlflow_server, on_server, postgres, s3
from tests.servers.model_registry import model_registry, real_model_registry
from yolact_ops.settings.params import Params, load_params

__all__ = ["mlflow_server", "model_registry", "on_server", "postgres", "real_model_registry", "s3"]

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# `make test` tries the same examples each time, so that a failure is about the change at hand.
# `pytest --hypothesis-profile search` looks for new ones.
settings.register_profile("stable", derandomize=True)
settings.register_profile("search", print_blob=True)
settings.load_profile("stable")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that docs/reliability.md names with `fault`."""
    named = named_tests()
    for item in items:
        file, _, name = item.nodeid.partition("::")
        if (file, name.partition("[")[0]) in named:
            item.add_marker("fault")


@pytest.fixture(autouse=True)
def leaves_output_alone() -> Iterator[None]:
    """A test that changes how the process logs or prints would make an unrelated later one fail."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], (own_handlers(root), root.level, builtins.print)
    yield
    after = own_handlers(root), root.level, builtins.print
    root.handlers[:], builtins.print = handlers, before[2]
    root.setLevel(before[1])
    assert after == before, "the test left other log handlers, another log level or another print behind"


def own_handlers(logger: logging.Logger) -> list[logging.Handler]:
    """All but pytest's, which come and go around each phase of a test."""
    return [handler for handler in logger.handlers if not type(handler).__module__.startswith("_pytest")]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def params(repository: Path) -> Params:
    """The published settings."""
    return load_params(repository / "conf" / "base.yaml")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, to copy: MLflow takes seconds to make one."""
    from mlflow import MlflowClient  # takes seconds too

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def voc_mini() -> Path:
    """A small set of real images in VOC layout, kept beside the checkout on some machines."""
    folder = SHARED / "voc-mini"
    if not folder.is_dir():
        pytest.skip("real images are not here: no folder ../shared/voc-mini beside the checkout")
    return folder


@pytest.fixture(scope="session")
def reference_fixtures() -> Path:
    """Numbers computed by the published YOLACT, kept beside the checkout on some machines."""
    folder = SHARED / "reference" / "fixtures"
    if not folder.is_dir():
        pytest.skip("reference numbers are not here: no folder ../shared/reference/fixtures beside the checkout")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread: sums are always in the same order, and small networks are faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
