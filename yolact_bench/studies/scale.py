"""What do the steps before and after training cost, as the number of images grows?

    python -m yolact_bench.studies.scale [--images 1000,10000,100000] [--shard-size 1000] [--workers 2] [--work FOLDER]

Small images (those of the generated sample, 96 to 128 px; repeated beyond 2,000, each with a corner of its own) go
through ingest from a folder, preprocess to shards, one pass of the training loader, and the detection and metrics of
evaluate with a small untrained network on the validation images, a tenth. Each step is a new process; its imports are
not measured. A line for each: seconds, CPU time, memory of the main process and of the largest other one, most open
files of the main process, bytes read and written, and CPU time an image as a ratio to that of the smallest set.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from yolact.class_names import VOC_CLASSES
from yolact.formats.sample.writer import generate_sample
from yolact.formats.voc import TARGET
from yolact.models.weights import save_model
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.studies.command import run_study
from yolact_ops.settings.presets import choose

DISTINCT = 2_000
"""Images of the sample; more are copies with another corner."""

CORNER = 8
"""Side of the corner that tells copies apart, pixels: one block of JPEG."""

OBJECTS = 5

STEPS = {
    "ingest": (
        "from components.ingest import step",
        """step.run(params, raw_dir=work / "data/raw", downloads_dir=work / "data/downloads")""",
    ),
    "preprocess": (
        "from components.preprocess import step",
        """step.run(params, raw_dir=work / "data/raw", processed_dir=work / "data/processed",
                 report_dir=work / "report", workers=workers)""",
    ),
    "loader": (
        """
from yolact.data.coco import CocoInstances
from yolact.data.loader import training_loader
""",
        """
data = CocoInstances.load(work / "data/processed/train/train.json")
loader, sampler = training_loader(data, params.train, params.model.image_size, workers=workers, pin=False)
print("opened", time.perf_counter() - begin, file=sys.stderr)
for _ in loader:
    pass
del loader
""",
    ),
    "evaluate": (
        """
from yolact.data.coco import CocoInstances
from yolact.evaluation.evaluator import evaluate_coco, load_ground_truth, predict_dataset
from yolact.inference.predictor import Predictor
""",
        """
annotations = work / "data/processed/eval/val.json"
predictor = Predictor.load(work / "models", params.evaluate.detect, device="cpu")
found = predict_dataset(predictor, CocoInstances.load(annotations))
truth = load_ground_truth(annotations)
for kind in ("box", "mask"):
    evaluate_coco(truth, found.rows, kind)
""",
    ),
}
"""For each step its imports, which are not measured, and what is."""

MEASURED = """
import json, os, resource, sys, threading, time
from pathlib import Path
import psutil
from yolact_ops.settings.params import load_params
{imports}
work, workers = Path(sys.argv[1]), int(sys.argv[2])
params = load_params(work / "params.yaml")
process, largest, opened, ended = psutil.Process(), [0, 0], [0], threading.Event()
def watch():
    while not ended.wait(0.2):
        opened[0] = max(opened[0], process.num_fds())
        for child in process.children():
            try:
                largest[1] = max(largest[1], child.memory_info().rss)
            except psutil.NoSuchProcess:
                pass
        largest[0] = max(largest[0], process.memory_info().rss)
def used():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
def moved():
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["wchar"])
watcher = threading.Thread(target=watch)
watcher.start()
cpu, (read, written), begin = used(), moved(), time.perf_counter()
{call}
seconds = time.perf_counter() - begin
ended.set()
watcher.join()
print(json.dumps({{
    "seconds": seconds,
    "cpu": used() - cpu,
    "main": largest[0] / 2**20,
    "worker": largest[1] / 2**20,
    "files": opened[0],
    "read": moved()[0] - read,
    "written": moved()[1] - written,
}}))
"""


def main(
    images: str = "1000,10000,100000",
    shard_size: int = 1000,
    workers: int = 2,
    work: Annotated[Path | None, typer.Option(help="A new folder for the data; default: a temporary one.")] = None,
) -> None:
    """Measure each step for each number of images."""
    counts = sorted(map(int, images.split(",")))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = work or Path(temporary)
        make_sample(root / "sample", min(counts[-1], DISTINCT))
        for count in counts:
            folder = root / str(count)
            make_source(root / "sample", folder / "source", count)
            prepare(folder, shard_size)
            for name in STEPS:
                found = measure(name, folder, workers)
                rows.append({"images": count, "step": name} | found)
                print(json.dumps(rows[-1]), flush=True)
            shutil.rmtree(folder)
    show(rows)


def make_sample(folder: Path, count: int) -> None:
    """Write the distinct images."""
    sample = choose("sample-cpu").data.sample
    changed = {"train_images": count - count // 10, "val_images": count // 10, "min_size": 96, "max_size": 128}
    generate_sample(folder, sample.model_copy(update=changed))


def make_source(sample: Path, target: Path, count: int) -> None:
    """Write a VOC folder of ``count`` images, of which a tenth is for validation; no two have the same pixels."""
    kinds = {"JPEGImages": ".jpg", "SegmentationObject": ".png", "SegmentationClass": ".png", "Annotations": ".xml"}
    for kind in (*kinds, "ImageSets/Segmentation"):
        (target / TARGET / kind).mkdir(parents=True)
    for split, wanted in (("train", count - count // 10), ("val", count // 10)):
        names = (sample / TARGET / "ImageSets/Segmentation" / f"{split}.txt").read_text(encoding="utf-8").split()
        written = []
        for number, name in numbered(names, wanted):
            written.append(f"{name}_{number}")
            for kind, suffix in kinds.items():
                source, copy = (
                    folder / TARGET / kind / f"{stem}{suffix}"
                    for folder, stem in ((sample, name), (target, written[-1]))
                )
                if kind == "JPEGImages":
                    write_copy(source, copy, number)
                else:
                    copy.symlink_to(source.resolve())
        lines = "".join(f"{name}\n" for name in written)
        (target / TARGET / "ImageSets/Segmentation" / f"{split}.txt").write_text(lines, encoding="utf-8")


def numbered(names: list[str], wanted: int) -> Iterator[tuple[int, str]]:
    """``wanted`` pairs of a copy's number and a name."""
    for position in range(wanted):
        yield position // len(names), names[position % len(names)]


def write_copy(source: Path, target: Path, number: int) -> None:
    """Write an image with a corner that only copies of this number have."""
    with Image.open(source) as image:
        pixels = np.array(image)
    pixels[:CORNER, :CORNER] = (number * 37 % 256, number * 101 % 256, number // 256 * 37 % 256)
    Image.fromarray(pixels).save(target, quality=90)


def prepare(folder: Path, shard_size: int) -> None:
    """Write the settings, and a network that finds some objects."""
    overrides = [f"data.source={folder / 'source'}", f"data.shard_size={shard_size}", "evaluate.gallery_images=4"]
    params = choose("sample-cpu", overrides=overrides)
    (folder / "params.yaml").write_text(json.dumps(params.model_dump(mode="json", by_alias=True)), encoding="utf-8")
    image = next(iter(sorted((folder / "source" / TARGET / "JPEGImages").iterdir())))
    with Image.open(image) as opened:
        network = calibrated_network(params.model, len(VOC_CLASSES), np.array(opened), OBJECTS)
    save_model(network, list(VOC_CLASSES), folder / "models")


def measure(name: str, folder: Path, workers: int) -> dict[str, Any]:
    """Run one step in a process of its own."""
    imports, call = STEPS[name]
    program = MEASURED.format(imports=imports, call=call)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(workers)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    columns = (
        "images",
        "step",
        "s",
        "CPU s",
        "MiB main",
        "MiB worker",
        "files",
        "MB read",
        "MB written",
        "CPU per image, ratio",
    )
    table = Table(*columns)
    first = {row["step"]: row["cpu"] / row["images"] for row in reversed(rows)}
    for row in rows:
        ratio = row["cpu"] / row["images"] / first[row["step"]]
        table.add_row(
            f"{row['images']:,}",
            row["step"],
            *(f"{row[key]:.1f}" for key in ("seconds", "cpu")),
            *(f"{row[key]:.0f}" for key in ("main", "worker", "files")),
            *(f"{row[key] / 1e6:.0f}" for key in ("read", "written")),
            f"{ratio:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    run_study(main)
