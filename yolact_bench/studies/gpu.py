"""Everything that docs/benchmarks.md says about a GPU, in one run of under ten minutes.

    python -m yolact_bench.studies.gpu [--minutes 9] [--networks voc2012-r50,lite0-320] [--work gpu]

For each network: latency at batch 1 and images per second at batch 32, in each precision (`yolact bench inference`).
Then the speed of training steps (`gpu_training speed`) and a short real training on the generated sample
(`gpu_training converge`). Each part is a command of its own; one that fails, or for which no time is left, is named in
the table, and the others still run. ``gpu.json`` in the folder has the results so far after each part.

It also runs on a CPU with small settings, as a check.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from yolact.files import write_json_atomic
from yolact_bench.studies.command import run_study

YOLACT = (sys.executable, "-m", "yolact_cli.main")
TRAINING = (sys.executable, "-m", "yolact_bench.studies.gpu_training")


class Part(NamedTuple):
    """A measurement: a command, and the file it writes; without one, it prints JSON."""

    name: str
    command: tuple[str, ...]
    file: Path | None = None


def main(
    networks: Annotated[
        str, typer.Option(help="Presets or published configurations, separated by commas.")
    ] = "voc2012-r50,yolact_plus_resnet50,lite0-320,lite2-512,regnet-550",
    minutes: Annotated[float, typer.Option(help="Start no part after this time, and stop the one that runs then.")] = 9,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, cpu or mps.")] = "cuda",
    precision: Annotated[str, typer.Option(help="Precisions of inference, separated by commas.")] = "fp32,bf16,fp16",
    batch: Annotated[int, typer.Option(min=2, help="Batch size for images per second.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of inference.")] = 30,
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
    inference = (*YOLACT, "bench", "inference", "--json", "--device", device, "--precision", precision)
    parts = [
        Part(f"{network}, batch {size}", (*inference, *f"--model {network} --batch {size} --rounds {rounds}".split()))
        for network in networks.split(",")
        for size in (1, batch)
    ]
    steps, trained = work / "steps", work / "trained"
    speed = (*TRAINING, *f"speed --device {device} --batches 8,32 --steps 10".split(), "--work", str(steps))
    real = (*TRAINING, *f"converge --preset lite0-320 --epochs 10 -S runtime.device={device}".split())
    real = (*real, "-S", "train.validate_every=10", "--work", str(trained))
    parts.append(Part("training steps", (*speed, *(training or ())), steps / "speed.json"))
    parts.append(Part("short training", (*real, *(converge or ())), trained / "converge.json"))
    results: dict[str, Any] = {}
    for part in parts:
        print(part.name, file=sys.stderr, flush=True)
        began = time.monotonic()
        found = measured(part, end - began)
        results[part.name] = {"seconds": round(time.monotonic() - began, 1), "result": found}
        write_json_atomic(work / "gpu.json", results)
    print("\n".join(table(results)))
    if any(isinstance(row["result"], str) for row in results.values()):
        raise typer.Exit(1)


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
    return lines


def summary(found: dict[str, Any]) -> Sequence[str]:
    """The main numbers of one part."""
    if inference := found.get("inference"):
        batch = inference["settings"]["batch"]
        times = {backend["name"]: backend["milliseconds"]["total"] for backend in inference["backends"]}
        return [f"{name}: {ms:.1f} ms, {1000 * batch / ms:.0f} images/s" for name, ms in times.items()]
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
