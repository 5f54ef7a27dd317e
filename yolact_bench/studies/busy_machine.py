"""How fast is training beside other work on the same cores, and what does the waiting of its threads cost?

    python -m yolact_bench.studies.busy_machine [--waits default,passive,1000] [--rounds 5] [--steps 25] [--threads 2]

Trains the network of the preset sample-cpu on its generated sample, on the CPU: alone, beside one and two processes
that keep a core busy each, and beside a second training of the same kind (then the images of both count). PyTorch's
threads wait for each other many times a step. In GNU OpenMP, which PyTorch's Linux wheels contain, a thread that waits
first spins: the kind of waiting is its count of turns (``GOMP_SPINCOUNT``), or ``default``, or ``passive``
(``OMP_WAIT_POLICY``). All trainings stay in memory and run in turn, so that each round measures all of them. Prints
images per second: median over the rounds, least and most. A measurement that other programs disturbed is repeated.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from yolact.data.coco import CocoInstances
from yolact.data.processed import annotations_of
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.trainer import Metrics, SilentListener, Trainer
from yolact.files import write_json_atomic
from yolact.inference.machine import describe_machine
from yolact.models.yolact import Yolact
from yolact_bench.studies.command import run_study
from yolact_bench.studies.data import prepare_data
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import choose

WORKER = "--train"
BESIDE = {"alone": (0, 1), "beside 1 process": (1, 1), "beside 2 processes": (2, 1), "two trainings": (0, 2)}
"""Each situation's numbers of busy processes and of trainings."""
DISTURBED = 0.1
"""Cores that other programs use during a measurement from which on it is repeated."""
TRIES = 4


def settings() -> Params:
    """The settings of the trainings, which are longer than any measurement."""
    overrides = (
        "runtime.device=cpu",
        "train.epochs=1000",
        "train.validate_every=1000",
        "runtime.checkpoint_every=1000",
    )
    return choose("sample-cpu", overrides=overrides)


def train(processed: Path) -> None:
    """Train; after each line read, which is a number of steps, answer with their images per second. Ends with the
    input."""
    params = settings()
    data = CocoInstances.load(annotations_of(processed, "train"))
    torch.manual_seed(params.train.seed)
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "checkpoints", 1, fingerprint="busy")
        network = Yolact(params.model, len(data.class_names))
        listener = _OnDemand(params.train.batch_size)
        Trainer(network, data, params, Path(folder), store, _no_validation, listener, extra={}).fit()


class _OnDemand(SilentListener):
    """Holds the training until steps are asked for."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._asked, self._left, self._began = 0, 1, 0.0

    def on_alive(self) -> None:
        self._left -= 1
        if self._left > 0:
            return
        now = time.perf_counter()
        print(self._asked * self._batch_size / (now - self._began), flush=True)
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self._asked = self._left = int(line)
        self._began = time.perf_counter()


def _no_validation(model: Yolact) -> Metrics:
    return {"mask_AP": 0.0}


class Training:
    """A process that trains when it is asked to, and else sleeps."""

    def __init__(self, wait: str, threads: int, processed: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "yolact_bench.studies.busy_machine", WORKER, str(processed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=kept | {"OMP_NUM_THREADS": str(threads)} | variables(wait),
        )
        self.speed()  # of no step

    def ask(self, steps: int) -> None:
        """Begin to train."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()

    def speed(self) -> float:
        """Images per second of the steps asked for, once they are done."""
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def variables(wait: str) -> dict[str, str]:
    """Environment variables for a kind of waiting."""
    if wait == "default":
        return {}
    return {"OMP_WAIT_POLICY": "passive"} if wait == "passive" else {"GOMP_SPINCOUNT": wait}


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that keep a core busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(trainings: list[Training], count_busy: int, steps: int) -> tuple[float, float]:
    """Images per second of all trainings together, and how many cores other programs used meanwhile."""
    with busy(count_busy) as others:
        ids = [training.process.pid for training in trainings] + [process.pid for process in others]
        known = [psutil.Process(number) for number in ids]
        began, cpu = time.perf_counter(), _machine_seconds() - sum(map(_process_seconds, known))
        for training in trainings:
            training.ask(steps)
        speed = sum(training.speed() for training in trainings)
        foreign = _machine_seconds() - sum(map(_process_seconds, known)) - cpu
        return speed, max(foreign, 0) / (time.perf_counter() - began)


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0))


def _process_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main(
    waits: Annotated[str, typer.Option(help="Kinds of waiting, separated by commas.")] = "default,passive,1000,10000",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the warm-up.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a measurement.")] = 25,
    threads: Annotated[int, typer.Option(min=1, help="Computing threads of a training.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder for data and results.")] = Path("busy_machine"),
) -> None:
    """Measure all kinds of waiting in all situations."""
    prepare_data(settings(), work)
    kinds = waits.split(",")
    results: dict[str, dict[str, list[tuple[float, float]]]] = {kind: {name: [] for name in BESIDE} for kind in kinds}
    machine = asdict(describe_machine(torch.device("cpu"))) | {"threads": threads}
    with ExitStack() as stack:
        trainings: dict[str, list[Training]] = {}
        for kind in kinds:
            trainings[kind] = [Training(kind, threads, work / "processed") for _ in range(2)]
            for training in trainings[kind]:
                stack.callback(training.close)
                training.ask(steps)
                training.speed()
        for _ in range(rounds):
            for name, (count_busy, count) in BESIDE.items():
                for kind in kinds:
                    tries: list[tuple[float, float]] = []
                    while len(tries) < TRIES and (not tries or tries[-1][1] >= DISTURBED):
                        tries.append(measure(trainings[kind][:count], count_busy, steps))
                    results[kind][name].append(min(tries, key=lambda found: found[1]))
            write_json_atomic(work / "busy_machine.json", {"machine": machine, "steps": steps, "results": results})
    _show(results)


def _show(results: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    table = Table("waiting", *BESIDE, "cores of others, most", title="images/s: median (least, most)")
    for kind, situations in results.items():
        cells = []
        for found in situations.values():
            speeds = [speed for speed, _ in found]
            cells.append(f"{statistics.median(speeds):.1f} ({min(speeds):.1f}, {max(speeds):.1f})")
        most = max(foreign for found in situations.values() for _, foreign in found)
        table.add_row(kind, *cells, f"{most:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    train(Path(arguments[1])) if arguments[:1] == [WORKER] else run_study(main)
