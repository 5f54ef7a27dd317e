"""What does the server cost, and what does it gain?

    python -m yolact_bench.studies.serving [MODEL] [--preset sample-cpu] [--starts 3] [--rounds 200] [--clients 16]
        [--seconds 10]

Starts `yolact serve` on the loopback interface and measures, each part left out by 0: the time until it is ready, of
``--starts`` servers one after the other; ``--rounds`` requests of one client in turn with the bare predictor, which
decodes the same JPEG, detects and encodes the masks; and the throughput of several clients at once for ``--seconds``,
in turn with batches of up to 8 images and without batches. `yolact_bench.studies.soak` is a long load. On a busy
machine the least times, and the CPU time of all threads for an image, say more than the medians. Without MODEL the
network is that of a preset with random weights that find about ten objects (`yolact_bench.speed.calibration`). Clients
and servers share the machine's cores.

    python -m yolact_bench.studies.serving --preset voc2012-r50 --starts 0 --rounds 0 --seconds 60  # batches
    python -m yolact_bench.studies.serving models:/yolact@champion --rounds 0 --seconds 0           # starts
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
from yolact.errors import YolactError
from yolact.inference.predictor import Predictor
from yolact.models.weights import save_model
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.speed.images import read_images
from yolact_bench.studies.command import run_study
from yolact_ops.settings.presets import choose

OBJECTS = 10
WARM_UP = 5
"""Requests before those that count."""
READY_WITHIN = 120
"""Seconds after which a server that is not ready counts as failed."""
TURNS = 3
"""Times that the throughput is measured with and without batches, in turn."""

NO_ANSWER = 0
"""Status of a request whose connection broke."""


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    start_seconds: float
    """From the start of the process until it was ready."""
    start_cpu: float = 0.0
    """CPU time until then, s."""

    def cpu_seconds(self) -> float:
        """CPU time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime and stime


@contextmanager
def serving(model: str, batch_size: int) -> Iterator[Server]:
    """`yolact serve` in a process of its own, ready.

    Raises:
        YolactError: it ends, or is not ready in time.
    """
    command = [sys.executable, "-m", "yolact_cli.main", "serve", model, "--port", "0", "--device", "cpu"]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--batch-size", str(batch_size)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                code = process.wait()
                log.seek(0)
                raise YolactError(f"yolact serve {model} ended with exit code {code}: {log.read()[-1000:].strip()}")
            port = int(line.rsplit(":", 1)[1].split(";")[0])
            while (answer := ask(port, "GET", "/readyz"))[0] != 200:
                if time.perf_counter() - start > READY_WITHIN:
                    raise YolactError(f"{model}: not ready after {READY_WITHIN} s: {answer[1].decode()}")
                time.sleep(0.01)
            server = Server(process, port, time.perf_counter() - start)
            server.start_cpu = server.cpu_seconds()
            yield server
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
    """Number of answers by status; `NO_ANSWER` counts broken connections."""
    seconds: list[float] = field(default_factory=list)
    duration: float = 0.0
    cpu: float = 0.0
    """CPU time of the server, s."""

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.statuses[200] / self.duration

    @property
    def cpu_milliseconds(self) -> float:
        """CPU time of the server for an answer, ms."""
        return self.cpu / max(1, self.statuses.total()) * 1e3

    def percentiles(self) -> list[float]:
        """Times in ms that 50, 95 and 99 % of the answers needed at most."""
        return [float(value) for value in np.percentile(np.array(self.seconds) * 1e3, [50, 95, 99])]

    def describe(self) -> str:
        """Answers by status, throughput and times in words."""
        middle, most, nearly_all = self.percentiles()
        times = f"p50 {middle:.0f} ms, p95 {most:.0f}, p99 {nearly_all:.0f}"
        return f"{dict(self.statuses)}, {self.rate:.1f} images/s, {times}"


def load(server: Server, image: bytes, clients: int, seconds: float) -> Load:
    """Clients that each send one request after the other."""
    result = Load()
    start, cpu = time.perf_counter(), server.cpu_seconds()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while (before := time.perf_counter()) < start + seconds:
            try:
                status, _ = send(connection, "POST", "/predict", image)
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens it again
                status = NO_ANSWER
            result.seconds.append(time.perf_counter() - before)
            result.statuses[status] += 1
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.duration, result.cpu = time.perf_counter() - start, server.cpu_seconds() - cpu
    return result


@dataclass
class Overhead:
    """The bare predictor and the server with one client, in turn."""

    bare: list[float] = field(default_factory=list)
    """Times, s."""
    served: list[float] = field(default_factory=list)
    bare_cpu: float = 0.0
    """CPU time for an image, s."""
    served_cpu: float = 0.0

    def describe(self) -> str:
        """The result in a line, ms."""
        bare, served = np.array(self.bare) * 1e3, np.array(self.served) * 1e3
        return (
            f"bare predictor {np.median(bare):.1f} ms, request {np.median(served):.1f} ms (medians of {len(bare)}); "
            f"median of the difference {np.median(served - bare):.1f} ms; least {bare.min():.1f} and "
            f"{served.min():.1f} ms; CPU time {self.bare_cpu * 1e3:.1f} and {self.served_cpu * 1e3:.1f} ms"
        )


def overhead(server: Server, predictor: Predictor, image: bytes, rounds: int) -> Overhead:
    """Requests in turn with the bare predictor, after a warm-up."""
    result = Overhead()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    served_cpu = 0.0
    for number in range(-WARM_UP, rounds):
        if number == 0:
            served_cpu = server.cpu_seconds()
        before, cpu = time.perf_counter(), time.process_time()
        predictor.predict(image).rles()
        between, own_cpu = time.perf_counter(), time.process_time() - cpu
        send(connection, "POST", "/predict", image)
        if number >= 0:
            result.bare.append(between - before)
            result.served.append(time.perf_counter() - between)
            result.bare_cpu += own_cpu / rounds
    result.served_cpu = (server.cpu_seconds() - served_cpu) / rounds
    connection.close()
    return result


def main(
    model: Annotated[str | None, typer.Argument(help="What `yolact serve` takes; for --rounds a folder.")] = None,
    preset: Annotated[str, typer.Option(help="Whose network is measured without MODEL.")] = "sample-cpu",
    starts: Annotated[int, typer.Option(help="Servers to start one after the other.")] = 3,
    clients: int = 16,
    seconds: Annotated[float, typer.Option(help="Duration of each throughput measurement.")] = 10,
    rounds: Annotated[int, typer.Option(help="Requests in turn with the bare predictor.")] = 200,
) -> None:
    """Print the measurements."""
    image, pixels = sample_image()
    print(f"{pixels.shape[1]}x{pixels.shape[0]}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        model = model or random_model(Path(folder), preset, pixels)
        for _ in range(starts):
            with serving(model, 8) as server:
                print(f"ready after {server.start_seconds:.1f} s ({server.start_cpu:.1f} s of CPU time)", flush=True)
        if not (rounds or seconds):
            return
        with serving(model, 8) as batched:
            if rounds:
                print(overhead(batched, Predictor.load(model, device="cpu"), image, rounds).describe(), flush=True)
            if seconds:
                with serving(model, 1) as single:
                    _throughput(batched, single, image, clients, seconds)


def _throughput(batched: Server, single: Server, image: bytes, clients: int, seconds: float) -> None:
    """Load in turn with and without batches."""
    loads: dict[str, list[Load]] = {"with batches": [], "one by one": []}
    for _ in range(TURNS):
        for name, server in zip(loads, (batched, single), strict=True):
            loads[name].append(load(server, image, clients, seconds))
    for name, done in loads.items():
        rates, cpu = [each.rate for each in done], [each.cpu_milliseconds for each in done]
        print(
            f"{clients} clients, {name}: {', '.join(f'{rate:.1f}' for rate in rates)} images/s; "
            f"{np.median(cpu):.1f} ms of CPU time each"
        )
    first, second = (np.median([each.rate for each in done]) for done in loads.values())
    print(f"gain of batches: {first / second:.2f}", flush=True)


def sample_image() -> tuple[bytes, np.ndarray]:
    """A JPEG of the generated sample, and its pixels, (H, W, 3) uint8."""
    pixels = read_images([])[0]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue(), pixels


def random_model(folder: Path, preset: str, image: np.ndarray) -> str:
    """Write a preset's network with random weights that find about `OBJECTS` objects in the image; its folder."""
    network = calibrated_network(choose(preset).model, len(VOC_CLASSES), image, OBJECTS)
    save_model(network, list(VOC_CLASSES), folder / "model")
    return str(folder / "model")


if __name__ == "__main__":
    run_study(main)
