"""How fast does `yolact predict` turn a video into one with its objects, beside the bare predictor?

    python -m yolact_bench.studies.video [MODEL_DIR] [--preset sample-cpu] [--frames 64] [--rounds 3]

Writes a video of 640 x 480 pixels at 25 frames/s, a window that moves over an enlarged image of the sample. In each
round, all its frames go through one stage after the other (decode, network, masks, draw, encode, and the COCO results),
and then the video through `yolact predict`, whose stages overlap. The bare predictor is network and masks, in batches,
on frames that are in memory. Times are milliseconds per frame, elapsed and of the CPU (all threads): on a busy machine
only the latter says something. Without MODEL_DIR the network is that of a preset with random weights that find about
ten objects (`yolact_bench.speed.calibration`).

    python -m yolact_bench.studies.video models                # the demo's model
    python -m yolact_bench.studies.video --preset voc2012-r50  # R50-550, random weights
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from yolact.class_names import VOC_CLASSES
from yolact.inference.predictor import Predictor
from yolact.results.coco import CocoResults
from yolact.results.image import ResultClasses, ResultImage
from yolact.video import VideoReader, VideoWriter, require_pyav
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.speed.images import read_images
from yolact_bench.studies.command import run_study
from yolact_ops.prediction.inputs import Input
from yolact_ops.prediction.run import drawn_frame, predict_inputs
from yolact_ops.settings.presets import choose

WIDTH, HEIGHT, RATE = 640, 480, 25
MARGIN = 64
"""Pixels by which the window moves, each way."""
OBJECTS = 10
THRESHOLD = 0.3
"""Of the score: what `yolact predict` takes by default."""

BARE = ("network", "masks")
"""Stages of the bare predictor."""
WHOLE = "yolact predict"


def main(
    model_dir: Annotated[Path | None, typer.Argument(help="Folder with a trained model.")] = None,
    preset: Annotated[str, typer.Option(help="Whose network is measured without MODEL_DIR.")] = "sample-cpu",
    frames: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Print the medians of the rounds as a table in Markdown."""
    pictures = make_frames(frames)
    predictor = _predictor(model_dir, preset, pictures[0])
    meter = Meter(frames)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        write_video(video, pictures)
        objects = [len(found) for found in predictor.predict(pictures)]  # also a warm-up
        for number in range(rounds):
            for name, work in (("stages", run_stages), (WHOLE, run_predict)):
                work(predictor, video, Path(folder) / f"{name}-{number}", meter)
    print(
        f"{frames} frames of {WIDTH}x{HEIGHT} with {np.mean(objects):.1f} objects each, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    print("\n| stage | ms per frame | CPU time, ms |\n| --- | ---: | ---: |")
    for name in meter.elapsed:
        print(f"| {name} | {median(meter.elapsed[name]):.1f} | {median(meter.cpu[name]):.1f} |")
    print(f"| bare predictor | {median(meter.bare(meter.elapsed)):.1f} | {median(meter.bare(meter.cpu)):.1f} |")
    shares = [bare / own for bare, own in zip(meter.bare(meter.elapsed), meter.elapsed[WHOLE], strict=True)]
    print(f"\n{WHOLE} has {median(shares):.2f} of the bare predictor's rate ({min(shares):.2f} to {max(shares):.2f})")


class Meter:
    """Times of each stage, ms per frame, round by round."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self.elapsed: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        """CPU time of all threads of the process."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        start, cpu = time.perf_counter(), time.process_time()
        yield
        for times, seconds in ((self.elapsed, time.perf_counter() - start), (self.cpu, time.process_time() - cpu)):
            times.setdefault(name, []).append(seconds / self._frames * 1e3)

    @staticmethod
    def bare(times: dict[str, list[float]]) -> list[float]:
        """The bare predictor's times: network and masks."""
        return [sum(stages) for stages in zip(*(times[name] for name in BARE), strict=True)]


def make_frames(count: int) -> list[np.ndarray]:
    """Frames (480, 640, 3) uint8 RGB: a window that circles over a still image."""
    still = Image.fromarray(read_images([])[0]).resize((WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN))
    angles = np.arange(count) * 2 * np.pi / (4 * RATE)  # 4 s for a turn
    tops, lefts = (np.round(MARGIN * (1 + wave(angles))).astype(int) for wave in (np.sin, np.cos))
    whole = np.asarray(still)
    return [whole[top : top + HEIGHT, left : left + WIDTH] for top, left in zip(tops, lefts, strict=True)]


def write_video(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Write an MP4 file."""
    av = require_pyav()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"qscale": "3"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))


def _predictor(model_dir: Path | None, preset: str, image: np.ndarray) -> Predictor:
    if model_dir is not None:
        return Predictor.load(model_dir, score_threshold=THRESHOLD)
    return Predictor(calibrated_network(choose(preset).model, len(VOC_CLASSES), image, OBJECTS), VOC_CLASSES)


def run_stages(predictor: Predictor, video: Path, folder: Path, meter: Meter) -> None:
    """Take all frames of a video through one stage after the other, as `yolact predict` does frame by frame."""
    folder.mkdir()
    classes = ResultClasses(tuple(predictor.classes), tuple(range(1, len(predictor.classes) + 1)))
    reader = VideoReader(video)
    with meter.stage("decode"):
        frames = list(reader)
    size = predictor.batch_size
    batches = [frames[start : start + size] for start in range(0, len(frames), size)]
    with meter.stage("network"):
        outputs = [predictor.forward([frame.pixels for frame in batch]) for batch in batches]
    with meter.stage("masks"):
        sizes = [[(HEIGHT, WIDTH)] * len(batch) for batch in batches]
        found = list(chain.from_iterable(map(predictor.postprocess, outputs, sizes)))
    with meter.stage("draw"):
        drawn = [drawn_frame(frame, each, classes.names) for frame, each in zip(frames, found, strict=True)]
    with meter.stage("encode"), closing(VideoWriter(folder / "video.mp4", reader)) as writer:
        for frame, picture in zip(frames, drawn, strict=True):
            writer.add(picture, frame.pts)
    with meter.stage("results"), closing(CocoResults(folder, classes)) as results:
        for frame, each in zip(frames, found, strict=True):
            results.add(ResultImage(frame.number, f"{frame.number:06d}", video.name, frame.pixels), each)


def run_predict(predictor: Predictor, video: Path, folder: Path, meter: Meter) -> None:
    """What `yolact predict` does, without loading the model."""
    with meter.stage(WHOLE):
        predict_inputs(
            predictor, [Input("video", str(video), video, video.name)], folder, ("pictures", "coco"), facts={}
        )


if __name__ == "__main__":
    run_study(main)
