"""Shards at scale: how long a training takes to open many images, its memory, and the loader's speed.

    python -m yolact_bench.studies.shards rows [--images 1000000] [--work FOLDER]
    python -m yolact_bench.studies.shards start SHARDED [--images 1000000] [--workers 4] [--batches 20]
    python -m yolact_bench.studies.shards speed LOOSE SHARDED [--latency 20 | --s3 s3://bucket/prefix] [--workers 0,4]

``rows`` writes instances of that many images (which do not exist) with two objects each on average, as JSON and as
index, and opens both, each in a new process: CPU time, and memory that no other process shares, of the process and of a
forked one that has read objects at random (dirty pages: those of a mapped file are the system's cache). ``start`` opens
the train split of an output of preprocess, and one whose index repeats its rows to that many, each in a new process,
and loads batches: seconds until the first one, and the same memory after the last, of the process and of the largest
loader process. ``speed`` loads batches of the same data set in turn from loose files, from shards, and from S3 with an
empty cache (the first epoch of a training) and with a full one (the later epochs); the folders are outputs of
preprocess. S3 is a bucket, with the keys of the environment, or rclone's server on this machine behind a network with
latency. As if they were on another machine, that server and network get the last core for themselves, and all loaders
share the others.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import psutil
import typer
from torch.utils.data import DataLoader

from yolact.data.arrow_file import Facts, index_path, write_index
from yolact.data.coco import CocoInstances
from yolact.data.columns import CocoImage, CocoObject
from yolact.data.loader import Batch, EpochSampler, training_loader
from yolact.data.processed import annotations_of, folder_of
from yolact.data.shards import FOLDER, Place, ShardReader
from yolact.settings import PUBLISHED_AUGMENTATION
from yolact_bench.studies.command import run_study
from yolact_bench.studies.s3_server import KEY, NETWORK, SECRET, delayed, s3_server
from yolact_ops.settings.params import load_params
from yolact_ops.transfer.shard_reader import S3Shards

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)

HEIGHT, WIDTH = 375, 500
CATEGORIES = [(number, f"class {number}") for number in range(1, 21)]
RUN_LENGTHS = 60
"""Bytes of a mask's run lengths."""

PRIVATE = """
def private(process="self"):
    rows = (line.split() for line in open(f"/proc/{process}/smaps_rollup"))
    return next(int(row[1]) for row in rows if row[0] == "Private_Dirty:") / 1024
"""
"""The memory of a process that no other one shares, MiB."""

OPENED = f"""
import json, os, sys, time
from pathlib import Path
import numpy as np
from yolact.data.coco import CocoInstances
from yolact.data.loader import EpochSampler
{PRIVATE}

def peak():
    rows = (line.split() for line in open("/proc/self/status"))
    return next(int(row[1]) for row in rows if row[0] == "VmHWM:") / 1024

before, begin, began = private(), time.process_time(), time.perf_counter()
data = CocoInstances.load(Path(sys.argv[1]), None if sys.argv[2] == "index" else Path("images"))
next(iter(EpochSampler(np.ones(len(data.images)), 8, [550], 0, rank=0, world_size=1)))
found = {{"cpu": time.process_time() - begin, "seconds": time.perf_counter() - began, "private": private() - before}}
found["peak"] = peak()
sys.stdout.flush()
out, into = os.pipe()
if os.fork() == 0:
    first = private()
    for number in np.random.default_rng(0).integers(0, len(data.images), 20_000).tolist():
        data.objects[data.images[number].id]
    os.write(into, json.dumps(private() - first).encode())
    os._exit(0)
os.wait()
print(json.dumps(found | {{"worker": json.loads(os.read(out, 100))}}))
"""

STARTED = f"""
import json, multiprocessing, sys, time
from pathlib import Path
from yolact.data.coco import CocoInstances
from yolact.data.loader import training_loader
from yolact.settings import PUBLISHED_AUGMENTATION
from yolact_ops.settings.params import load_params
{PRIVATE}
workers, batches = map(int, sys.argv[2:])
config = load_params("conf/base.yaml").train.model_copy(update={{"augment": PUBLISHED_AUGMENTATION}})
begin = time.perf_counter()
data = CocoInstances.load(Path(sys.argv[1]))
loader, _ = training_loader(data, config, 550, workers=workers, pin=False)
loaded = iter(loader)
next(loaded)
found = {{"images": len(data.images), "first": time.perf_counter() - begin}}
batches = min(batches, len(loader))
for _ in range(batches - 1):
    next(loaded)
largest = max((private(child.pid) for child in multiprocessing.active_children()), default=0.0)
print(json.dumps(found | {{"batches": batches, "main": private(), "worker": largest}}))
del loaded, loader  # ends its processes
"""


@app.command()
def rows(
    images: Annotated[int, typer.Option(min=1)] = 1_000_000,
    work: Annotated[Path | None, typer.Option(help="A folder for the files; default: a temporary one.")] = None,
) -> None:
    """Open many rows as JSON and as index."""
    with tempfile.TemporaryDirectory() as temporary:
        path = (work or Path(temporary)) / f"rows-{images}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_json(path, images)
            write_index(
                index_path(path), Facts(CATEGORIES, path.stat().st_size, shards_digest=""), _rows(images), images
            )
            os.sync()  # pages that are not on the disk yet would count as private to the process that reads them
        for form in ("index", "json"):
            command = [sys.executable, "-c", OPENED, str(path), form]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(
                f"{images:,} images as {form}: opened in {found['cpu']:.2f} s of CPU time ({found['seconds']:.1f} s); "
                f"private memory {found['private']:.0f} MiB (peak of the process {found['peak']:.0f}), "
                f"a forked process {found['worker']:.0f} MiB"
            )


def _rows(images: int) -> Iterator[tuple[CocoImage, list[CocoObject]]]:
    for number in range(images):
        place = Place(number // 1000, number % 1000 * 100_000, 99_000, number)
        counts = [chr(48 + (number * 7 + k * 13) % 40) for k in range(RUN_LENGTHS)]
        segmentation = {"size": [HEIGHT, WIDTH], "counts": "".join(counts)}
        objects = [
            CocoObject((number + k) % len(CATEGORIES), (10.0 + k, 20.0, 110.5, 100.25), False, segmentation)
            for k in range(1 + number % 3)
        ]
        yield CocoImage(number + 1, f"image_{number:07d}.jpg", WIDTH, HEIGHT, place), objects


def _write_json(path: Path, images: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        categories = [{"id": number, "name": name} for number, name in CATEGORIES]
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        for place, (image, _) in enumerate(_rows(images)):
            row = {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
            file.write(f"{',' if place else ''}\n{json.dumps(row)}")
        file.write('\n],\n"annotations": [')
        count = 0
        for image, objects in _rows(images):
            for item in objects:
                left, top, right, bottom = item.box
                row = {"id": count + 1, "image_id": image.id, "category_id": CATEGORIES[item.label][0], "iscrowd": 0}
                row |= {"bbox": [left, top, right - left, bottom - top], "segmentation": item.segmentation}
                file.write(f"{',' if count else ''}\n{json.dumps(row)}")
                count += 1
        file.write("\n]}\n")


@app.command()
def start(
    sharded: Path,
    images: Annotated[int, typer.Option(min=1)] = 1_000_000,
    workers: Annotated[int, typer.Option(min=0)] = 4,
    batches: Annotated[int, typer.Option(min=1, help="After these, memory is measured.")] = 20,
) -> None:
    """Load the first batches of a data set, and of one with its rows repeated."""
    annotations = annotations_of(sharded, "train")
    data = CocoInstances.load(annotations)
    with tempfile.TemporaryDirectory() as temporary:
        repeated = Path(temporary) / "train.json"
        shutil.copy(annotations, repeated)
        (repeated.parent / FOLDER).symlink_to((annotations.parent / FOLDER).resolve())
        categories = list(zip(data.category_ids, data.class_names, strict=True))
        facts = Facts(categories, repeated.stat().st_size, shards_digest="")
        write_index(index_path(repeated), facts, _repeated(data, images), images)
        os.sync()
        for path in (annotations, repeated):
            command = [sys.executable, "-c", STARTED, str(path), str(workers), str(batches)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(
                f"{found['images']:,} images, {workers} workers: first batch after {found['first']:.1f} s; "
                f"private memory after {found['batches']} batches {found['main']:.0f} MiB, of the largest worker "
                f"{found['worker']:.0f}"
            )


def _repeated(data: CocoInstances, count: int) -> Iterator[tuple[CocoImage, list[CocoObject]]]:
    """``count`` rows: the images in turn, with their places and objects, under numbers of their own."""
    for number in range(count):
        image = data.images[number % len(data.images)]
        yield replace(image, id=number + 1), list(data.objects[image.id])


@app.command()
def speed(
    loose: Path,
    sharded: Path,
    latency: Annotated[float | None, typer.Option(min=0, help="Serve the shards, this many milliseconds away.")] = None,
    s3: Annotated[str | None, typer.Option(help="Address of a copy of the shards.")] = None,
    workers: Annotated[str, typer.Option(help="Numbers of loader processes, separated by commas.")] = "0,4",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Load an epoch from each, in turn, and print medians.

    The speed is that after the first batch of each process. CPU time is that of this process and the loader's.
    """
    if latency is not None and s3 is not None:
        raise typer.BadParameter("--latency serves the shards itself: leave out --s3")
    config = load_params("conf/base.yaml").train.model_copy(update={"augment": PUBLISHED_AUGMENTATION})
    with ExitStack() as stack:
        if latency is not None:
            s3 = stack.enter_context(_distant_copy(sharded, latency / 1000))
        for count in map(int, workers.split(",")):
            caches = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sources = {"loose": CocoInstances.load(annotations_of(loose, "train")), "shards": _sharded(sharded)}
            if s3 is not None:
                sources |= {name: _sharded(sharded, S3Shards(s3, caches / name, NO_LIMIT)) for name in (COLD, WARM)}
            epochs = {
                name: _Epochs(*training_loader(data, config, 550, workers=count, pin=False))
                for name, data in sources.items()
            }
            for _ in range(rounds + 1):  # the first one starts the processes, and fills the cache
                for each in epochs.values():
                    each.run(max(count, 1))
                    _remove_files(caches / COLD)
            for name, each in epochs.items():
                _report(f"{count} workers, {name}", each, epochs["loose"])


NO_LIMIT = 1 << 62
COLD, WARM = "s3 with an empty cache", "s3 with a full cache"


def _sharded(folder: Path, shards: ShardReader | None = None) -> CocoInstances:
    annotations = annotations_of(folder, "train")
    return CocoInstances.load(annotations, shards=None if shards is None else lambda _: shards)


@contextmanager
def _distant_copy(processed: Path, seconds: float) -> Iterator[str]:
    """The address of a folder's shards on a server with latency; this process leaves the last core to that server."""
    *own, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [last])
    with s3_server(folder_of(processed, "train")) as server, delayed(server, seconds) as address:
        os.sched_setaffinity(0, own or [last])
        login = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(login | {"AWS_ENDPOINT_URL": address})
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            os.environ.pop(name, None)
        yield f"s3://{FOLDER}"


class _Epochs:
    """Epochs of a loader, and what they took."""

    def __init__(self, loader: DataLoader[Batch], sampler: EpochSampler) -> None:
        self._loader, self._sampler = loader, sampler
        self.rates: list[float] = []
        """Images a second."""
        self.first: list[float] = []
        """Seconds to the first batch."""
        self.cpu: list[float] = []
        """CPU seconds an image."""

    def run(self, skipped: int) -> None:
        """Load an epoch; the speed leaves out that many batches."""
        self._sampler.epoch = len(self.rates)
        before, times, images = _cpu_seconds(), [time.perf_counter()], [0]
        for batch in self._loader:
            times.append(time.perf_counter())
            images.append(len(batch.image_ids))
        self.rates.append(sum(images[1 + skipped :]) / (times[-1] - times[skipped]))
        self.first.append(times[1] - times[0])
        self.cpu.append((_cpu_seconds() - before) / sum(images))


def _cpu_seconds() -> float:
    """CPU time of this process and the loaders' so far."""
    loaders = [psutil.Process(each.pid) for each in multiprocessing.active_children() if each.name != NETWORK]
    return sum(sum(process.cpu_times()[:2]) for process in [psutil.Process(), *loaders])


def _remove_files(cache: Path) -> None:
    """Empty a cache but for its 256 folders, which only the first images of a large data set have to make."""
    for path in cache.rglob("*"):
        if path.is_file():
            path.unlink()


def _report(name: str, found: _Epochs, base: _Epochs) -> None:
    ratios = [rate / other for rate, other in zip(found.rates[1:], base.rates[1:], strict=True)]
    print(
        f"{name}: {statistics.median(found.rates[1:]):.1f} images/s, {statistics.median(ratios):.3f} of loose files "
        f"({min(ratios):.3f} to {max(ratios):.3f}); {1000 * statistics.median(found.cpu[1:]):.2f} ms of CPU time an "
        f"image; first batch after {1000 * statistics.median(found.first[1:]):.0f} ms",
        flush=True,
    )


if __name__ == "__main__":
    run_study(app)
