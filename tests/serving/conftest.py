"""A tiny model, and real servers on the loopback interface."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image, ImageDraw

from serving.server import Server
from serving.settings import read_settings
from tests.small_networks import tiny_config
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION
from yolact_bench.speed.calibration import calibrated_network

CLASSES = ["disc", "box", "bar"]
CATEGORY_IDS = dict(zip(CLASSES, (1, 17, 90), strict=True))
"""By class; like COCO's own, they skip some numbers."""
REPOSITORY = Path(__file__).parents[2]
SIZE = (96, 64)
"""Width and height of the image."""


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    image = Image.new("RGB", size, "navy")
    pen = ImageDraw.Draw(image)
    pen.ellipse((size[0] // 8, size[1] // 8, size[0] // 2, size[1] // 1.5), fill="orange")
    pen.rectangle((size[0] // 1.8, size[1] // 3, size[0] // 1.1, size[1] // 1.1), fill="green")
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def network() -> Yolact:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = calibrated_network(tiny_config(), len(CLASSES), np.array(picture()), objects=6)
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, network: Yolact) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(network, CLASSES, folder, list(CATEGORY_IDS.values()))
    return folder


@pytest.fixture(scope="session")
def png() -> bytes:
    return encoded(picture())


@contextmanager
def running(**settings: Any) -> Iterator[Server]:
    """A server in a thread, ready; ends after its requests."""
    server = Server(read_settings(**{"host": "127.0.0.1", "port": 0, "device": "cpu"} | settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait(lambda: server.started or not thread.is_alive())
        if server.settings.model != "models:/yolact@champion":
            wait(lambda: server.service.is_ready or not thread.is_alive())
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def command(model: Path, *options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`yolact serve` as a process, ready, and its address; killed if it still runs at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "yolact_cli.main", "serve", str(model), "--port", "0", "--device", "cpu", *options],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].split(";")[0]
        wait(lambda: requests.get(f"{url}/readyz", timeout=10).status_code == 200, 60)
        yield process, url
    finally:
        process.kill()
        process.wait()


def wait(until: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def server(model_dir: Path) -> Iterator[Server]:
    """One server for all tests that leave it as it is."""
    with running(model=str(model_dir), max_megapixels=2, max_body_mb=2, body_timeout=1, max_images=8) as made:
        yield made


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    return server.address


def post(address: str, data: bytes, kind: str = "image/png", **options: Any) -> requests.Response:
    return requests.post(address, data=data, headers={"Content-Type": kind}, timeout=30, **options)


def error_of(answer: requests.Response) -> str:
    tree = answer.json()
    assert set(tree) == {"error"}
    return str(tree["error"])


def metric(address: str, line: str) -> float:
    """Value of a metric, by its name and labels as they are written."""
    text = requests.get(f"{address}/metrics", timeout=10).text
    [value] = [each.split()[-1] for each in text.splitlines() if each.rsplit(" ", 1)[0] == line]
    return float(value)


def detection_settings() -> str:
    return json.dumps(DEFAULT_DETECTION.model_dump(mode="json"))
