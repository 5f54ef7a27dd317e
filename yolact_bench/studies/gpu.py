"""Everything that docs/benchmarks.md says about a GPU, in one run of under ten minutes.

    python -m yolact_bench.studies.gpu [--minutes 9] [--networks voc2012-r50,lite0-320] [--work gpu]

In this order: the speed of training steps (`gpu_training speed`), a short real training on the generated sample
(`gpu_training converge`), latency of each network at batch 1, and images per second at each other batch size, all in
each precision (`yolact bench inference`). Each part is a command of its own; one that fails, or for which no time is
left, is named in the table, and the others still run. Below the parts, the table has each network's batch size with the
most images per second. ``gpu.json`` in the folder has the results so far after each part.

It also runs on a CPU with small settings, as a check.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from yolact.files import write_json_atomic
from yolact_bench.studies.command import run_study

YOLACT = (sys.executable, "-m", "yolact_cli.main")
TRAINING = (sys.executable, "-m", "yolact_bench.studies.gpu_training")

BATCH_ROUNDS = 5
"""Rounds of inference with several images, at most: each has many of them, and takes longer."""


class Part(NamedTuple):
    """A measurement: a command, and the file it writes; without one, it prints JSON."""

    name: str
    command: tuple[str, ...]
    file: Path | None = None
    network: str | None = None
    """Whose inference it measures."""


def main(
    networks: Annotated[
        str, typer.Option(help="Presets or published configurations, separated by commas.")
    ] = "voc2012-r50,yolact_plus_resnet50,lite0-320,lite2-512,regnet-550",
    minutes: Annotated[float, typer.Option(help="Start no part after this time, and stop the one that runs then.")] = 9,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, cpu or mps.")] = "cuda",
    precision: Annotated[str, typer.Option(help="Precisions of inference, separated by commas.")] = "fp32,bf16,fp16",
    batches: Annotated[str, typer.Option(help="Batch sizes for images per second, separated by commas.")] = "32,128,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of inference at batch 1; others have at most 5.")] = 30,
    training: Annotated[
        list[str] | None, typer.Option(metavar="OPTION", help="Other options of gpu_training speed; repeatable.")
    ] = None,
    converge: Annotated[
        list[str] | None, typer.Option(metavar="OPTION", help="Other options of gpu_training converge; repeatable.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for data and results.")] = Path("gpu"),
) -> None:
    """Run all parts and print a table in Markdown."""
    end = time.monotonic() + 60 * minutes
    work.mkdir(parents=True, exist_ok=True)
    steps, trained = work / "steps", work / "trained"
    speed = (*TRAINING, *f"speed --device {device} --batches 8,32 --steps 10".split(), "--work", str(steps))
    real = (*TRAINING, *f"converge --preset lite0-320 --epochs 10 -S runtime.device={device}".split())
    real = (*real, "-S", "train.validate_every=10", "--work", str(trained))
    parts = [
        Part("training steps", (*speed, *(training or ())), steps / "speed.json"),
        Part("short training", (*real, *(converge or ())), trained / "converge.json"),
        *inference_parts(networks.split(","), device, precision, [int(size) for size in batches.split(",")], rounds),
    ]
    results: dict[str, Any] = {}
    for part in parts:
        print(part.name, file=sys.stderr, flush=True)
        began = time.monotonic()
        found = measured(part, end - began)
        seconds = round(time.monotonic() - began, 1)
        results[part.name] = {"network": part.network, "seconds": seconds, "result": found}
        write_json_atomic(work / "gpu.json", results)
    print("\n".join(table(results)))
    if any(isinstance(row["result"], str) for row in results.values()):
        raise typer.Exit(1)


def inference_parts(
    networks: Sequence[str], device: str, precision: str, batches: Sequence[int], rounds: int
) -> Iterator[Part]:
    """All networks at batch 1, then all at the first of the batch sizes, and so on."""
    command = (*YOLACT, "bench", "inference", "--json", "--device", device, "--precision", precision)
    for size in dict.fromkeys((1, *batches)):
        # Memory is measured at batch 1 alone: that starts a process more for each precision.
        options = f"--rounds {rounds}" if size == 1 else f"--rounds {min(rounds, BATCH_ROUNDS)} --no-memory"
        for network in networks:
            chosen = f"--model {network} --batch {size} {options}".split()
            yield Part(f"{network}, batch {size}", (*command, *chosen), network=network)


def measured(part: Part, seconds: float) -> dict[str, Any] | str:
    """What the part measured, or why it did not."""
    if seconds <= 0:
        return "not measured: no time left"
    # In a session of its own, so that it can be ended with the processes that it starts.
    with subprocess.Popen(part.command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not measured: not done after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        return f"not measured: exit code {process.returncode}, see its messages above"
    found: dict[str, Any] = json.loads(part.file.read_text(encoding="utf-8") if part.file else output)
    return found


def table(results: dict[str, Any]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ["| part | measured | s |", "| --- | --- | ---: |"]
    for name, row in results.items():
        found = row["result"]
        text = found if isinstance(found, str) else "; ".join(summary(found))
        lines.append(f"| {name} | {text} | {row['seconds']:.0f} |")
    for network, most in most_images_per_second(results).items():
        text = "; ".join(f"{name}: {speed:.0f} images/s at batch {batch}" for name, (speed, batch) in most.items())
        lines.append(f"| {network}, best batch size | {text} | |")
    return lines


def most_images_per_second(results: dict[str, Any]) -> dict[str, dict[str, tuple[float, int]]]:
    """By network and backend: the most images per second of all batch sizes, and that batch size."""
    most: dict[str, dict[str, tuple[float, int]]] = {}
    for row in results.values():
        if row["network"] is None or isinstance(row["result"], str):
            continue
        inference = row["result"]["inference"]
        best = most.setdefault(row["network"], {})
        for backend in inference["backends"]:
            speed = (backend["images_per_second"], inference["settings"]["batch"])
            best[backend["name"]] = max(speed, best.get(backend["name"], speed))
    return most


def summary(found: dict[str, Any]) -> Sequence[str]:
    """The main numbers of one part."""
    if inference := found.get("inference"):
        return [
            f"{one['name']}: {one['milliseconds']['total']:.1f} ms, {one['images_per_second']:.0f} images/s"
            for one in inference["backends"]
        ]
    if batches := found.get("batches"):
        return [
            f"batch {row['batch']}: {row.get('error') or '{:.0f} images/s'.format(row['images_per_second'])}"
            for row in batches
        ]
    mask = found["evaluation"]["mask"]
    seconds = ", ".join(f"{step} {value:.0f} s" for step, value in found["seconds"].items())
    return [
        f"mask AP {mask['AP']:.3f}, AP50 {mask['AP50']:.3f}",
        f"{found['training_images_per_second']:.0f} images/s",
        seconds,
    ]


if __name__ == "__main__":
    run_study(main)
