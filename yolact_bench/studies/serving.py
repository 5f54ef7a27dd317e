"""What does the server cost, and what does it gain?

    python -m yolact_bench.studies.serving [MODEL_DIR] [--clients 16] [--seconds 10] [--load 120] [--rounds 200]

Starts `yolact serve` on the loopback interface, with batches of up to 8 images and without batches, and measures: the
time until it is ready; one client's requests in turn with the bare predictor, which decodes the same JPEG, detects and
encodes the masks; the throughput of several clients at once, in turn with and without batches; and a longer load with
the server's memory, threads and open files. On a busy machine the least times say more than the medians. Without
MODEL_DIR the network is that of ``conf/sample-cpu.yaml`` with random weights that find about ten objects
(`yolact_bench.speed.calibration`). Clients and servers share the machine's cores.
"""

from __future__ import annotations

import http.client
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from yolact.class_names import VOC_CLASSES
from yolact.inference.predictor import Predictor
from yolact.models.weights import save_model
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.speed.images import read_images
from yolact_ops.settings.presets import choose

OBJECTS = 10
TURNS = 3
"""Times that the throughput is measured with and without batches, in turn."""


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    start_seconds: float
    """From the start of the process until it was ready."""

    def status(self) -> dict[str, int]:
        """Resident memory (KiB), threads and open files of the process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return {"memory": int(values["VmRSS"].split()[0]), "threads": int(values["Threads"]), "files": files}


@contextmanager
def serving(model: Path, batch_size: int) -> Iterator[Server]:
    """`yolact serve` in a process of its own, ready."""
    command = [sys.executable, "-m", "yolact_cli.main", "serve", str(model), "--port", "0", "--device", "cpu"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--batch-size", str(batch_size)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.rsplit(":", 1)[1].split(";")[0])
        while ask(port, "GET", "/readyz")[0] != 200:
            time.sleep(0.01)
        yield Server(process, port, time.perf_counter() - start)
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request on a connection of its own: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        return send(connection, method, path, body)
    finally:
        connection.close()


def send(connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """A request on a connection that stays open: status and body."""
    connection.request(method, path, body, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    return answer.status, answer.read()


@dataclass
class Load:
    """What clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    duration: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.statuses[200] / self.duration

    def percentiles(self) -> list[float]:
        """Times in ms that 50, 95 and 99 % of the answers needed at most."""
        return [float(value) for value in np.percentile(np.array(self.seconds) * 1e3, [50, 95, 99])]


def load(server: Server, image: bytes, clients: int, seconds: float) -> Load:
    """Clients that each send one request after the other."""
    result = Load()
    start = time.perf_counter()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while (before := time.perf_counter()) < start + seconds:
            status, _ = send(connection, "POST", "/predict", image)
            result.seconds.append(time.perf_counter() - before)
            result.statuses[status] += 1
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.duration = time.perf_counter() - start
    return result


def overhead(server: Server, predictor: Predictor, image: bytes, rounds: int) -> tuple[list[float], list[float]]:
    """Times (s) of the bare predictor and of requests, taken in turn after a warm-up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    bare, served = [], []
    for number in range(rounds + 5):
        times = [time.perf_counter()]
        predictor.predict(image).rles()
        times.append(time.perf_counter())
        send(connection, "POST", "/predict", image)
        times.append(time.perf_counter())
        if number >= 5:
            bare.append(times[1] - times[0])
            served.append(times[2] - times[1])
    connection.close()
    return bare, served


def main(
    model_dir: Annotated[Path | None, typer.Argument(help="Folder with a trained model.")] = None,
    clients: int = 16,
    seconds: Annotated[float, typer.Option(help="Duration of each throughput measurement.")] = 10,
    duration: Annotated[float, typer.Option("--load", help="Duration of the longer load, s; 0 for none.")] = 120,
    rounds: Annotated[int, typer.Option(help="Requests in turn with the bare predictor.")] = 200,
) -> None:
    """Print the measurements."""
    pixels = read_images([])[0]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    image = stream.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        model = model_dir or _sample_model(Path(folder), pixels)
        with serving(model, 8) as batched, serving(model, 1) as single:
            print(f"{pixels.shape[1]}x{pixels.shape[0]}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
            print(f"ready after {batched.start_seconds:.1f} s")
            bare, served = overhead(batched, Predictor.load(model, device="cpu"), image, rounds)
            difference = np.median(np.array(served) - np.array(bare))
            print(
                f"bare predictor {np.median(bare) * 1e3:.1f} ms, request {np.median(served) * 1e3:.1f} ms (medians of "
                f"{rounds}); median of the difference {difference * 1e3:.1f} ms; least {min(bare) * 1e3:.1f} and "
                f"{min(served) * 1e3:.1f} ms"
            )
            rates: dict[str, list[float]] = {"with batches": [], "one by one": []}
            for _ in range(TURNS):
                for name, server in zip(rates, (batched, single), strict=True):
                    rates[name].append(load(server, image, clients, seconds).rate)
            for name, values in rates.items():
                print(f"{clients} clients, {name}: {', '.join(f'{value:.1f}' for value in values)} images/s")
            gain = np.median(rates["with batches"]) / np.median(rates["one by one"])
            print(f"gain of batches: {gain:.2f}")
            if duration:
                _long_load(batched, image, clients, duration)


def _long_load(server: Server, image: bytes, clients: int, duration: float) -> None:
    """Load in ten parts, with the state of the server after each."""
    for part in range(1, 11):
        result = load(server, image, clients, duration / 10)
        middle, most, nearly_all = result.percentiles()
        state = server.status()
        print(
            f"{part * duration / 10:.0f} s: {dict(result.statuses)}, {result.rate:.1f} images/s, p50 {middle:.0f} ms, "
            f"p95 {most:.0f}, p99 {nearly_all:.0f}; {state['memory'] / 1024:.0f} MiB, {state['threads']} threads, "
            f"{state['files']} files"
        )


def _sample_model(folder: Path, image: np.ndarray) -> Path:
    network = calibrated_network(choose("sample-cpu").model, len(VOC_CLASSES), image, OBJECTS)
    save_model(network, list(VOC_CLASSES), folder / "model")
    return folder / "model"


if __name__ == "__main__":
    typer.run(main)
