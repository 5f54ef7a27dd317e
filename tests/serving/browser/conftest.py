"""A browser, and servers for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.server import Server
from tests.serving.conftest import CLASSES, picture, running, wait
from tests.small_networks import tiny_config
from yolact.models.weights import save_model
from yolact_bench.speed.calibration import calibrated_network

PROGRAM = os.environ.get("YOLACT_TEST_CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if PROGRAM is None:
        pytest.skip("there is no chromium here; install it or name it by YOLACT_TEST_CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def candidate_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    network = calibrated_network(tiny_config(), len(CLASSES), np.array(picture()), objects=3)
    folder = tmp_path_factory.mktemp("candidate") / "model"
    save_model(network, CLASSES, folder)
    return folder


@pytest.fixture(scope="session")
def feedback_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="session")
def full_server(model_dir: Path, candidate_dir: Path, feedback_dir: Path) -> Iterator[Server]:
    """With a candidate and feedback, and the default limits."""
    with running(model=str(model_dir), candidate=str(candidate_dir), feedback=feedback_dir) as server:
        candidate = server.service.candidate
        assert candidate is not None
        wait(lambda: candidate.model is not None)
        yield server


@pytest.fixture
def page(chromium: Any, full_server: Server) -> Iterator[Any]:
    """The page, freshly loaded; requests for `POST /predict` are counted in ``page.predictions``.

    The test fails if the page has an error, breaks its Content-Security-Policy, or asks another server.
    """
    with opened(chromium, full_server, viewport={"width": 1200, "height": 900}) as made:
        yield made


@pytest.fixture
def phone_page(chromium: Any, full_server: Server) -> Iterator[Any]:
    """The same on a phone: a narrow screen that is touched, without a pointer that stays."""
    viewport = {"width": 390, "height": 844}
    with opened(chromium, full_server, viewport=viewport, has_touch=True, is_mobile=True) as made:
        yield made


@contextmanager
def opened(chromium: Any, server: Server, **device: Any) -> Iterator[Any]:
    """The server's page on a device."""
    context = chromium.new_context(accept_downloads=True, **device)
    made = context.new_page()
    made.set_default_timeout(15_000)
    problems: list[str] = []
    made.predictions = []
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda line: problems.append(line.text) if "Content Security" in line.text else None)

    def seen(request: Any) -> None:
        if "/predict?" in request.url:
            made.predictions.append(request.url)
        if not request.url.startswith(("http://127.0.0.1:", "blob:")):
            problems.append(f"asked {request.url}")

    made.on("request", seen)
    made.goto(server.address)
    yield made
    context.close()
    assert problems == []
