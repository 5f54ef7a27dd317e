"""`yolact predict`: detect objects in images and videos, and write the results."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from yolact.inference.predictor import ImagePredictor
from yolact.results.registry import find_writers
from yolact.video import require_pyav
from yolact_cli.output import facts_table
from yolact_ops.prediction.inputs import Input, find_inputs
from yolact_ops.prediction.model import load_predictor
from yolact_ops.prediction.run import SkippedInputsError, StoppedError, Summary, check_output, predict_inputs


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    sources: Sequence[str]
    output: Path
    model: str
    save: str
    """Names of formats, separated by commas."""
    classes: str | None
    """Names of classes, separated by commas."""
    device: str
    precision: str
    batch_size: int
    detection: dict[str, Any]
    """Changes of the model's detection settings."""


def run(options: Options, console: Console | None = None) -> None:
    """Predict all sources, write the results and print a summary.

    Raises:
        SkippedInputsError: inputs could not be read; the results of the others are written.
        StoppedError: a signal ended it early; the results so far are written.
        DataError: a source does not exist, or the output folder holds something else.
        SettingsError: an option has a wrong value.
    """
    console = console or Console(highlight=False)
    formats = list(find_writers(_words(options.save)))
    check_output(options.output)
    with tempfile.TemporaryDirectory(prefix="yolact-predict-") as fetched:
        inputs = find_inputs(options.sources, Path(fetched), options.output)
        if any(item.kind != "image" for item in inputs):
            require_pyav()
        predictor, address = load_predictor(
            options.model,
            device=options.device,
            precision=options.precision,  # type: ignore[arg-type]  # checked there
            batch_size=options.batch_size,
            **options.detection,
        )
        classes = _words(options.classes or "")
        summary = predict_inputs(
            predictor, inputs, options.output, formats, classes=classes, facts=_facts(predictor, address, options)
        )
    _print_summary(summary, options.output, console)
    if summary.stopped and not _ended_by_camera(inputs, summary):
        raise StoppedError(f"stopped after {summary.images} images; their results are complete")
    if summary.problems:
        count = len(summary.problems)
        noun = "problem" if count == 1 else "problems"
        raise SkippedInputsError(f"{count} {noun}, named above and in {options.output / 'predict.json'}")


def _ended_by_camera(inputs: Sequence[Input], summary: Summary) -> bool:
    """Whether all other inputs were predicted before the last one, a camera, which only a signal ends."""
    last = inputs[-1]
    return last.kind == "camera" and [entry["source"] for entry in summary.inputs[-1:]] == [last.address]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _facts(predictor: ImagePredictor, address: str, options: Options) -> dict[str, Any]:
    return {
        "model": address,
        "classes": predictor.classes,
        "kept_classes": _words(options.classes or "") or predictor.classes,
        "detect": predictor.config.model_dump(),
        "device": options.device,
        "precision": options.precision,
    }


def _print_summary(summary: Summary, output: Path, console: Console) -> None:
    rate = summary.images / summary.seconds if summary.seconds else 0.0
    facts = {
        "images": f"{summary.images}, at {rate:.1f} images/s",
        "objects": f"{summary.objects}",
    }
    if summary.per_class:
        counts = sorted(summary.per_class.items(), key=lambda item: -item[1])
        facts["objects"] += f": {', '.join(f'{count} {name}' for name, count in counts)}"
    for entry in summary.inputs:
        if "fps" in entry:
            dropped = f", {entry['dropped']} dropped" if "dropped" in entry else ""
            facts[f"video {entry['name']}"] = (
                f"{entry['frames']} frames{dropped} at {entry['fps']:.1f} fps; it has {entry['video_fps']:.4g}"
            )
    facts["written to"] = str(output)
    console.print(facts_table(facts))
