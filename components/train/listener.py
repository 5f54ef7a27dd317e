"""Report training to MLflow while it runs: metrics, and drawings of the validations' detections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from yolact.engine.trainer import Metrics
from yolact.evaluation.evaluator import Validation
from yolact.inference.detections import Detections
from yolact.visualize import draw_detections
from yolact_ops.tracking.tracker import Tracker

PICTURE_SCORE = 0.3
"""Score below which validation pictures do not show a detection."""


@dataclass
class TrackingListener:
    """Sends the run's progress to MLflow, with drawings of the validations' detections."""

    tracker: Tracker
    validation: Validation
    pictures: int
    """The first images of the validation split, drawn in each validation."""
    on_alive: Callable[[], None]
    """See `yolact.engine.trainer.Listener`."""

    def on_step(self, step: int, row: Metrics) -> None:
        self.tracker.log_metrics({f"train/{name}": value for name, value in row.items()}, step)

    def on_speed(self, step: int, row: Metrics) -> None:
        self.tracker.log_metrics({f"speed/{name}": value for name, value in row.items()}, step)

    def on_epoch(self, step: int, row: Metrics) -> None:
        measured = {name: value for name, value in row.items() if name != "step" and not math.isnan(value)}
        self.tracker.log_metrics({f"val/{name}": value for name, value in measured.items()}, step)
        if self.pictures:
            with TemporaryDirectory() as folder:
                draw_validation(Path(folder), self.validation, self.pictures)
                self.tracker.log_artifacts(Path(folder), f"validation/epoch_{int(row['epoch']):04d}")


def draw_validation(folder: Path, validation: Validation, count: int) -> None:
    """Write ``ID.jpg`` for the first ``count`` validation images, with the latest detections."""
    data = validation.data
    for image in data.images[:count]:
        rows = [row for row in validation.rows if row["image_id"] == image.id]
        found = Detections.from_coco(rows, data.category_ids, image.height, image.width).above(PICTURE_SCORE)
        picture = draw_detections(data.read_image(image), found, data.class_names)
        Image.fromarray(picture).save(folder / f"{image.id}.jpg", quality=90)
