"""Predict inputs and write the results: reading, network, masks and writing work at the same time."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from yolact.engine.interrupts import Interrupts
from yolact.errors import DataError, SettingsError, YolactError
from yolact.files import replaced_directory, write_json_atomic
from yolact.images import read_image
from yolact.inference.detections import Detections
from yolact.inference.pipeline import ahead, predict_stream
from yolact.inference.predictor import ImagePredictor
from yolact.results.image import ResultClasses, ResultImage, ResultWriter
from yolact.results.registry import find_writers
from yolact.video import Frame, VideoFileError, VideoReader, VideoWriter
from yolact.visualize import draw_detections
from yolact_ops.lineage.hashing import hash_files
from yolact_ops.prediction.inputs import Input, Names

T = TypeVar("T")

SUMMARY_FILE = "predict.json"
"""What was predicted, with which model and settings, and what could not be read."""

CONTENT = "content"
"""Key of the summary: digest of all other files, by which later changes are seen."""

PICTURES = "pictures"
"""Format of `yolact.results.registry.WRITERS` that becomes a video for a video."""

DRAWN_AHEAD = 4
"""Number of frames drawn and not yet encoded."""


class SkippedInputsError(DataError):
    """Some inputs could not be read; the results of the others are written."""

    exit_code = 4


class StoppedError(YolactError):
    """A signal ended the prediction early; the results so far are written."""

    exit_code = 130
    """Of a command that Ctrl-C ended, by the convention of shells."""


@dataclass
class Summary:
    """What a prediction did."""

    images: int = 0
    """Images and frames predicted."""
    objects: int = 0
    per_class: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """From the first image to the last result."""
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """Each input: ``source``, ``file_name``, ``name`` of its results; of videos also ``frames``, ``fps`` (predicted per
    second), ``video_fps`` (its own) and, of cameras, ``dropped``: how many of the frames up to the last predicted one
    were not predicted."""
    problems: list[dict[str, str]] = field(default_factory=list)
    """``source`` and ``reason`` of what could not be read."""
    stopped: bool = False
    """Whether a signal ended it early; the results so far are complete."""


def predict_inputs(
    predictor: ImagePredictor,
    inputs: Iterable[Input],
    output: Path,
    formats: Collection[str],
    *,
    classes: Collection[str] = (),
    facts: dict[str, Any],
) -> Summary:
    """Predict all inputs and write the results to a folder, which appears complete or not at all.

    Ctrl-C and SIGTERM end it early, with complete results of what was predicted.

    Args:
        predictor: with masks as large as the images.
        inputs: each is an image, a video or a camera; a camera ends by Ctrl-C.
        output: folder to write; replaces earlier results.
        formats: names of `yolact.results.registry.WRITERS`.
        classes: names of the classes to keep; none for all.
        facts: of the model and the settings, for the summary.

    Raises:
        DataError: the folder holds something else than results.
        SettingsError: a format or a class is unknown.
    """
    check_output(output)
    with replaced_directory(output) as folder:
        job = _Job(predictor, folder, formats, classes)
        job.run(inputs)
        write_json_atomic(folder / SUMMARY_FILE, facts | asdict(job.summary) | {CONTENT: _content(folder)})
    return job.summary


def check_output(output: Path) -> None:
    """Refuse a folder whose content `predict_inputs` would replace although it did not write it.

    Raises:
        DataError: it holds something else than results, or results that were changed since.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file; name a folder by -o")
    if Path.cwd().is_relative_to(output.resolve()):
        raise DataError(f"{output}: is the folder you are in, or one above it; name another one by -o")
    if not output.is_dir() or not any(output.iterdir()):
        return
    summary = output / SUMMARY_FILE
    if not summary.is_file():
        raise DataError(
            f"{output}: holds files that yolact predict did not write (there is no {SUMMARY_FILE}); they would be "
            "replaced. Name another folder by -o."
        )
    try:
        written = json.loads(summary.read_text(encoding="utf-8")).get(CONTENT)
    except (ValueError, AttributeError):
        written = None
    if written != _content(output):
        raise DataError(
            f"{output}: files were added, changed or removed since yolact predict wrote it; they would be replaced. "
            "Move the folder away, or name another one by -o."
        )


def _content(folder: Path) -> str:
    """SHA-256 (hex) of the names and contents of all files below a folder but the summary."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / SUMMARY_FILE:
            digest.update(f"{path.relative_to(folder).as_posix()}:{hash_files(path)};".encode())
    return digest.hexdigest()


def drawn_frame(frame: Frame, found: Detections, class_names: Sequence[str]) -> np.ndarray:
    """A frame with its objects, (H, W, 3) uint8; an object's colour is that of its class."""
    pixels = frame.pixels.permute(1, 2, 0).numpy()
    return draw_detections(pixels, found, class_names, color_by="class", enlarge=False)


class _Job:
    """One run over all inputs."""

    def __init__(
        self, predictor: ImagePredictor, folder: Path, formats: Collection[str], classes: Collection[str]
    ) -> None:
        self.summary = Summary()
        self._predictor, self._folder = predictor, folder
        names = tuple(predictor.classes)
        self._classes = ResultClasses(names, tuple(predictor.category_ids))
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise SettingsError(f"--classes: the model has no class {unknown[0]!r}; it has {', '.join(names)}")
        self._kept = torch.tensor([names.index(name) for name in classes])
        self._has_pictures = PICTURES in formats
        self._writers = {name: writer(folder, self._classes) for name, writer in find_writers(list(formats)).items()}
        self._frame_writers = [writer for name, writer in self._writers.items() if name != PICTURES]
        self._interrupts = Interrupts()
        self._names = Names()
        self._ids = itertools.count(1)

    def run(self, inputs: Iterable[Input]) -> None:
        begin = time.perf_counter()
        with self._interrupts.watched():
            for is_image, group in itertools.groupby(self._until_stopped(inputs), lambda item: item.kind == "image"):
                if is_image:
                    self._predict_images(list(group))
                else:
                    for item in self._until_stopped(group):
                        self._predict_video(item)
            for writer in self._writers.values():
                writer.close()
        self.summary.seconds = time.perf_counter() - begin
        self.summary.stopped = self._is_stopped()

    def _until_stopped(self, values: Iterable[T]) -> Iterator[T]:
        return itertools.takewhile(lambda value: not self._is_stopped(), values)

    def _is_stopped(self) -> bool:
        return self._interrupts.requested is not None

    # Images

    def _predict_images(self, inputs: list[Input]) -> None:
        with (
            tqdm(total=len(inputs), unit="image", disable=None) as bar,
            closing(predict_stream(self._predictor, self._read(inputs, bar), lambda image: image.pixels)) as stream,
        ):
            for image, found in stream:
                self._write(image, self._chosen(found), self._writers.values())
                bar.update()

    def _read(self, inputs: Iterable[Input], bar: tqdm[Any]) -> Iterator[ResultImage]:
        for item in self._until_stopped(inputs):
            try:
                pixels = read_image(item.content)
            except DataError as error:
                self._skip(item, str(error))
                bar.update()
                continue
            yield ResultImage(next(self._ids), self._begun(item)["name"], item.file_name, pixels)

    # Videos

    def _predict_video(self, item: Input) -> None:
        try:
            reader = VideoReader(
                Path(str(item.content)), live=item.kind == "camera", on_problem=lambda text: self._skip(item, text)
            )
        except VideoFileError as error:
            self._skip(item, str(error))
            return
        entry = self._begun(item) | {"frames": 0}
        self.summary.inputs[-1] = entry
        begin, last = time.perf_counter(), 0
        try:
            with (
                closing(VideoWriter(self._folder / "videos" / f"{entry['name']}.mp4", reader)) as video,
                tqdm(desc=entry["name"], total=reader.frame_count, unit="frame", disable=None) as bar,
                closing(ahead(self._drawn(reader), DRAWN_AHEAD)) as stream,
            ):
                for frame, found, picture in stream:
                    if picture is not None:
                        video.add(picture, frame.pts)
                    self._write(self._frame_image(frame, item, entry["name"]), found, self._frame_writers)
                    entry["frames"], last = entry["frames"] + 1, frame.number
                    bar.update()
        except VideoFileError as error:
            self._skip(item, str(error))
            return
        entry["fps"] = round(entry["frames"] / (time.perf_counter() - begin), 2)
        entry["video_fps"] = round(float(reader.rate), 3)
        if reader.live:
            entry["dropped"] = last - entry["frames"]
        elif not entry["frames"] and not self._is_stopped():
            self._skip(item, "has no frame that can be decoded")

    def _drawn(self, reader: VideoReader) -> Iterator[tuple[Frame, Detections, np.ndarray | None]]:
        """Frames with detections and drawings."""
        stream = predict_stream(
            self._predictor,
            self._until_stopped(reader),
            lambda frame: frame.pixels,
            live=reader.live,
            stopped=self._is_stopped,
        )
        with closing(stream):
            for frame, found in stream:
                chosen = self._chosen(found)
                picture = drawn_frame(frame, chosen, self._classes.names) if self._has_pictures else None
                yield frame, chosen, picture

    def _frame_image(self, frame: Frame, item: Input, name: str) -> ResultImage:
        file_name = f"{item.file_name}#{frame.number}"
        return ResultImage(next(self._ids), self._names.unique(f"{name}_{frame.number:06d}"), file_name, frame.pixels)

    # Results

    def _begun(self, item: Input) -> dict[str, Any]:
        """The summary's entry of an input that could be opened."""
        entry = {"source": item.address, "file_name": item.file_name, "name": self._names.unique(item.file_name)}
        self.summary.inputs.append(entry)
        return entry

    def _skip(self, item: Input, reason: str) -> None:
        reason = reason.replace(str(item.content), item.address) if isinstance(item.content, Path) else reason
        self.summary.problems.append({"source": item.address, "reason": reason})
        tqdm.write(f"skipped: {item.address[:300]}: {reason.removeprefix(f'{item.address}: ')[:300]}", file=sys.stderr)

    def _chosen(self, found: Detections) -> Detections:
        return found[torch.isin(found.labels, self._kept)] if len(self._kept) else found

    def _write(self, image: ResultImage, found: Detections, writers: Iterable[ResultWriter]) -> None:
        for writer in writers:
            writer.add(image, found)
        self.summary.images += 1
        self.summary.objects += len(found)
        for label in found.labels.tolist():
            name = self._classes.names[label]
            self.summary.per_class[name] = self.summary.per_class.get(name, 0) + 1
