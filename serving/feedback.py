"""Images whose detections a user calls wrong, stored as a COCO data set that `ingest` reads.

Each report is an image, ``images/ID.png``, and its instances file, ``instances_ID.json``, which is written last: a file
that names an image never lacks it. ``ID`` begins with the time (UTC), by which old reports are deleted.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from serving.errors import ApiError
from serving.images import reduced, reduced_size
from serving.schemas import Feedback, FeedbackDetection, Rle
from serving.settings import ServerSettings
from yolact.files import write_bytes_atomic
from yolact.formats.coco_rows import decompressed_runs

log = logging.getLogger(__name__)

_TIME = "%Y%m%d-%H%M%S"
_TIME_LENGTH = len("20261130-120000")

CLEANING = 3600.0
"""Seconds between two searches for reports that are too old."""


class FeedbackStore:
    """A folder of reports. Its methods are safe between threads; several servers may share the folder.

    Args:
        folder: where reports are stored; made with the first one.
        settings: retention, size and the masks' resolution.
    """

    def __init__(self, folder: Path, settings: ServerSettings) -> None:
        self.folder = folder
        self.days = settings.feedback_days
        self._limit = settings.feedback_mb * 10**6
        self._side = settings.mask_side
        self._lock = Lock()

    async def run(self) -> None:
        """Delete what is too old, at the start and every hour."""
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(None, self.delete_old)
            except OSError as error:
                log.warning("old feedback cannot be deleted: %s", error)
            await asyncio.sleep(CLEANING)

    def delete_old(self, now: datetime | None = None) -> int:
        """Delete reports older than ``days``; returns how many files that were."""
        oldest = (now or datetime.now(UTC)) - timedelta(days=self.days)
        old = [path for path in self._files() if _time_of(path) < oldest]
        for path in sorted(old, key=lambda path: path.suffix != ".json"):  # no file names an image that is gone
            path.unlink(missing_ok=True)
        if old:
            log.info("feedback: deleted %d files older than %d days", len(old), self.days)
        return len(old)

    def add(self, image: Tensor, report: Feedback) -> str:
        """Store a report.

        Args:
            image: (3, H, W) uint8 RGB; stored as PNG, reduced as the masks are, without metadata.
            report: what was found in it, and what of it is wrong.

        Returns:
            The report's id.

        Raises:
            ApiError: the detections do not fit the image, or there is no space left.
        """
        height, width = image.shape[1:]
        size = reduced_size(height, width, self._side)
        for number, found in enumerate(report.detections):
            _check(number, found, size, (height, width))
        stream = io.BytesIO()
        Image.fromarray(reduced(image, self._side).permute(1, 2, 0).numpy()).save(stream, "PNG")
        now = datetime.now(UTC)
        name = f"{now.strftime(_TIME)}-{secrets.token_hex(4)}"
        tree = _instances(name, now, report, size, size[1] / width)
        text = json.dumps(tree, ensure_ascii=False, indent=1, allow_nan=False).encode()
        image_path = self.folder / "images" / f"{name}.png"
        with self._lock:
            try:
                used = sum(_size_of(path) for path in self._files())
                if used + stream.tell() + len(text) > self._limit:
                    raise ApiError(507, "the space for feedback is full; nothing was stored")
                write_bytes_atomic(image_path, stream.getvalue())
                write_bytes_atomic(self.folder / f"instances_{name}.json", text)
            except OSError as error:
                with suppress(OSError):
                    image_path.unlink(missing_ok=True)  # no image without its report
                log.error("feedback cannot be stored: %s", error)
                raise ApiError(507, "the feedback cannot be stored; the server's log says why") from error
        return name

    def _files(self) -> Iterator[Path]:
        """The files of all reports, also half-written ones; others in the folder are left alone."""
        for pattern in ("instances_*.json", "images/*.png", ".instances_*.part", "images/.*.part"):
            for path in self.folder.glob(pattern):
                if _time_of(path) is not _NEVER:
                    yield path


_NEVER = datetime.max.replace(tzinfo=UTC)


def _size_of(path: Path) -> int:
    """Bytes; 0 if another server has deleted the file meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _time_of(path: Path) -> datetime:
    """When a report was stored; `_NEVER` if the file is none of a report."""
    text = path.name.removeprefix(".").removeprefix("instances_")[:_TIME_LENGTH]
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return _NEVER


def _check(number: int, found: FeedbackDetection, size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Refuse a detection that cannot be of the image.

    Raises:
        ApiError: 422.
    """
    left, top, right, bottom = found.box
    height, width = image_size
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        raise ApiError(422, f"detections.{number}.box: not within the image of {width}x{height} pixels")
    runs = decompressed_runs(found.mask.counts)
    pixels = size[0] * size[1]
    if tuple(found.mask.size) != size or runs is None or min(runs, default=0) < 0 or sum(runs) != pixels:
        raise ApiError(422, f"detections.{number}.mask: not run lengths of {size[1]}x{size[0]} pixels")


def _instances(name: str, now: datetime, report: Feedback, size: tuple[int, int], scale: float) -> dict[str, Any]:
    """COCO instances JSON of one image; ``rejected`` holds the detections called wrong, in the form of annotations."""
    wrong = set(range(len(report.detections)) if report.wrong is None else report.wrong)
    rows = [_annotation(number, found, scale) for number, found in enumerate(report.detections)]
    names = {found.category_id: found.class_name for found in report.detections}
    height, width = size
    model = report.model
    return {
        "info": {
            "description": "feedback: detections of a model, not checked by a person",
            "date_created": now.isoformat(timespec="seconds"),
            "model": f"{model.name} {model.version}",
            "wrong": "image" if report.wrong is None else "detections",
        },
        "images": [{"id": 1, "file_name": f"images/{name}.png", "width": width, "height": height}],
        "categories": [{"id": number, "name": names[number]} for number in sorted(names)],
        "annotations": [row for number, row in enumerate(rows) if number not in wrong],
        "rejected": [row for number, row in enumerate(rows) if number in wrong],
    }


def _annotation(number: int, found: FeedbackDetection, scale: float) -> dict[str, Any]:
    left, top, right, bottom = (round(side * scale, 2) for side in found.box)
    return {
        "id": number + 1,
        "image_id": 1,
        "category_id": found.category_id,
        "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
        "area": _area(found.mask),
        "iscrowd": 0,
        "segmentation": found.mask.model_dump(),
        "score": found.score,
    }


def _area(mask: Rle) -> int:
    runs: Sequence[int] = decompressed_runs(mask.counts) or []
    return int(np.sum(runs[1::2]))
