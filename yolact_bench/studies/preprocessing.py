"""How many images per second does the step `preprocess` handle, and how does its memory grow with the data?

    python -m yolact_bench.studies.preprocessing VOC [--copies 1,8] [--workers 2] [--long-side 0]
        [--limit 0] [--work FOLDER]

``VOC`` is a folder in PASCAL VOC's format, with `VOCdevkit/VOC2012` in it. Its images are repeated ``--copies`` times
under new names, with one measurement for each number. With ``--long-side 4000`` they are first enlarged to that many
pixels (4000 is 12 megapixels at 4:3). Each measurement is a new process over images in the disk cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from yolact.formats import voc as voc_format
from yolact.palette import voc_palette
from yolact_bench.studies.command import run_study

MEASURED = """
import json, resource, sys, time
from pathlib import Path
from components.preprocess.step import run
from yolact_ops.settings.params import load_params
params, work, workers = load_params(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
before, begin = time.process_time(), time.perf_counter()
run(params, raw_dir=work / "raw", processed_dir=work / "processed", report_dir=work / "report", workers=workers)
seconds = time.perf_counter() - begin
main, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = sum(used.ru_utime + used.ru_stime for used in (main, children)) - before
print(json.dumps({"seconds": seconds, "cpu": cpu, "main": main.ru_maxrss / 1024, "worker": children.ru_maxrss / 1024}))
"""


def main(
    voc: Path,
    copies: str = "1,8",
    workers: int = 2,
    long_side: Annotated[int, typer.Option(help="Longer side to enlarge images to, pixels; 0: unchanged.")] = 0,
    limit: Annotated[int, typer.Option(help="Images to use from each split; 0: all.")] = 0,
    work: Annotated[Path | None, typer.Option(help="A new folder for the data; default: a temporary one.")] = None,
) -> None:
    """Measure once for each number of copies; one line each."""
    settings = Path(__file__).resolve().parents[2] / "conf" / "base.yaml"
    with tempfile.TemporaryDirectory() as temporary:
        for count in map(int, copies.split(",")):
            folder = (work or Path(temporary)) / f"copies-{count}"
            images = make_set(voc / voc_format.TARGET, folder / "raw" / voc_format.TARGET, count, long_side, limit)
            command = [sys.executable, "-c", MEASURED, str(settings), str(folder), str(workers)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            speed = images / found["seconds"]
            print(
                f"{images} images, {workers} workers: {found['seconds']:.1f} s, {speed:.0f} images/s; "
                f"{1000 * found['cpu'] / images:.1f} ms of CPU time per image; peak memory {found['main']:.0f} MiB "
                f"(main process), {found['worker']:.0f} MiB (largest worker)"
            )


def make_set(source: Path, target: Path, copies: int, long_side: int, limit: int) -> int:
    """Write a VOC folder with each image ``copies`` times; returns its number of images."""
    kinds = {"JPEGImages": ".jpg", "SegmentationObject": ".png", "SegmentationClass": ".png", "Annotations": ".xml"}
    lists = target / "ImageSets" / "Segmentation"
    for folder in (*(target / kind for kind in kinds), lists):
        folder.mkdir(parents=True)
    images = 0
    for split in ("train", "val"):
        names = (source / "ImageSets/Segmentation" / f"{split}.txt").read_text(encoding="utf-8").split()
        names = names[: limit or None]
        for kind, suffix in kinds.items():
            for name in names:
                path = source / kind / f"{name}{suffix}"
                if path.is_file() and not (long_side and suffix == ".xml"):
                    data = path
                    if long_side:
                        data = target.parents[2] / "enlarged" / kind / path.name
                        enlarge(path, data, long_side)
                    for copy in range(copies):
                        (target / kind / f"{name}_{copy}{suffix}").symlink_to(data.resolve())
        lines = [f"{name}_{copy}\n" for name in names for copy in range(copies)]
        (lists / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        images += len(lines)
    return images


def enlarge(path: Path, target: Path, long_side: int) -> None:
    """Write an image (JPEG) or a mask (palette PNG) at another size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as image:
        scale = long_side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        if path.suffix == ".jpg":
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
        else:
            larger = image.resize(size, Image.Resampling.NEAREST)
            larger.putpalette(voc_palette().tobytes())
            larger.save(target)


if __name__ == "__main__":
    run_study(main)
