"""The merge step: combine the results of all shards in COCO format and, if asked, upload them to S3."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from yolact.errors import DataError
from yolact.files import replaced_directory, write_json_atomic
from yolact.models.file_names import DESCRIPTION_FILE, category_ids_of
from yolact.results.coco_tree import IMAGES_FILE, RESULTS_FILE, coco_tree
from yolact_ops.batch_prediction.plan import Plan
from yolact_ops.batch_prediction.result import ShardResult
from yolact_ops.transfer.storage import S3Address, download_error, make_client

log = logging.getLogger(__name__)

FILES = (RESULTS_FILE, IMAGES_FILE, "problems.json")


@dataclass(frozen=True)
class Totals:
    """Counts over all shards."""

    images: int
    objects: int
    problems: int
    per_class: dict[str, int]
    """Objects by class, the most frequent first."""


def run(
    *, model_dir: Path, plan_path: Path, results: Sequence[Path], output_dir: Path, destination: str = ""
) -> Totals:
    """Combine the results of all shards.

    Args:
        model_dir: what fetch wrote; has the class names.
        plan_path: what split wrote.
        results: what the predict tasks wrote, one per shard, in any order.
        output_dir: gets ``detections.json`` (COCO results), ``images.json`` (COCO instances without annotations:
            which image has which id) and ``problems.json`` (unreadable images); replaces previous content.
        destination: ``s3://bucket/folder`` to upload these files to; empty: no upload.

    Raises:
        DataError: a result is missing, damaged or of another plan, or the upload fails.
    """
    plan = Plan.read(plan_path)
    joined = _join(results)
    images, rows, problems = joined.images, joined.rows, joined.problems
    _check_complete(plan, [entry["id"] for entry in images + problems], plan_path)
    description = json.loads((model_dir / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    name_of = dict(zip(category_ids_of(description), description["classes"], strict=True))
    with replaced_directory(output_dir) as folder:
        write_json_atomic(folder / RESULTS_FILE, rows)
        about = f"images of {plan.address}; file names are relative to it"
        write_json_atomic(folder / IMAGES_FILE, coco_tree(images, name_of, name_of.values(), about))
        write_json_atomic(folder / "problems.json", problems)
    if destination:
        _upload(output_dir, S3Address.parse(destination))
    counts = Counter(name_of[row["category_id"]] for row in rows)
    log.info("%d images, %d objects in %s; %d unreadable images", len(images), len(rows), output_dir, len(problems))
    return Totals(len(images), len(rows), len(problems), dict(counts.most_common()))


def _join(paths: Sequence[Path]) -> ShardResult:
    """All results as one: images and problems by id, rows by image, best first, in whatever order the shards come."""
    joined = ShardResult()
    for path in paths:
        part = ShardResult.read(path)
        joined.images += part.images
        joined.rows += part.rows
        joined.problems += part.problems
    joined.images.sort(key=lambda entry: int(entry["id"]))
    joined.problems.sort(key=lambda entry: int(entry["id"]))
    joined.rows.sort(key=lambda row: int(row["image_id"]))
    return joined


def _check_complete(plan: Plan, ids: Sequence[int], plan_path: Path) -> None:
    wanted = [image.id for shard in plan.shards for image in shard]
    if sorted(ids) != sorted(wanted):
        missing, extra = len(set(wanted) - set(ids)), len(ids) - len(set(ids) & set(wanted))
        raise DataError(
            f"the results do not match {plan_path}: of {len(wanted)} images {missing} have no result, and {extra} "
            "results are duplicates or of other images. Run the pipeline again."
        )


def _upload(folder: Path, address: S3Address) -> None:
    client = make_client()
    try:
        for name in FILES:
            client.upload_file(str(folder / name), address.bucket, "/".join(filter(None, (address.key, name))))
    except (Boto3Error, ClientError, BotoCoreError, OSError) as error:
        raise download_error(error, address, client) from None
    log.info("uploaded to %s", address)
