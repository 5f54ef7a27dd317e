"""The predict step: run a registered model on one shard of an S3 folder."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from yolact.errors import DataError
from yolact.images import read_image
from yolact.inference.predictor import Predictor
from yolact_ops.batch_prediction.plan import ListedImage, Plan
from yolact_ops.batch_prediction.result import ShardResult
from yolact_ops.registry.packaged_model import read_detection
from yolact_ops.transfer.storage import fetch_objects, make_client

log = logging.getLogger(__name__)


def run(
    *, model_dir: Path, plan_path: Path, shard: int, result_path: Path, device: str = "auto", batch_size: int = 8
) -> ShardResult:
    """Detect the objects in a shard's images, which are turned upright first.

    An image that cannot be read is listed under ``problems`` and skipped: one bad image must not stop the others.

    Args:
        model_dir: what fetch wrote, detection settings included.
        plan_path: what split wrote.
        shard: number, from 0.
        result_path: gets the result as JSON.
        device: as ``runtime.device``.
        batch_size: images per forward pass.

    Raises:
        DataError: the plan has no such shard, or a file changed or cannot be fetched.
        WeightsError: the model is missing or damaged.
    """
    plan = Plan.read(plan_path)
    if not 0 <= shard < len(plan.shards):
        raise DataError(f"{plan_path}: has {len(plan.shards)} shards, so no shard {shard}")
    images = plan.shards[shard]
    predictor = Predictor.load(model_dir, read_detection(model_dir), device=device, batch_size=batch_size)
    result = ShardResult()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        fetch_objects(make_client(), plan.address, [image.file for image in images], folder)
        for start in range(0, len(images), batch_size):
            _predict(predictor, folder, images[start : start + batch_size], result)
    result.write(result_path)
    log.info(
        "shard %d: %d images, %d objects, %d unreadable images",
        shard,
        len(result.images),
        len(result.rows),
        len(result.problems),
    )
    return result


def _predict(predictor: Predictor, folder: Path, images: Sequence[ListedImage], result: ShardResult) -> None:
    read = []
    for image in images:
        name = str(image.file.path)
        try:
            pixels = read_image(folder / image.file.path)  # (3, H, W)
        except DataError as error:
            reason = str(error).replace(f"{folder}/", "")
            result.problems.append({"id": image.id, "file_name": name, "reason": reason})
            continue
        height, width = pixels.shape[1:]
        result.images.append({"id": image.id, "file_name": name, "width": width, "height": height})
        read.append((image.id, pixels))
    found = predictor.predict([pixels for _, pixels in read])
    for (number, _), detections in zip(read, found, strict=True):
        result.rows += detections.to_coco(number)
