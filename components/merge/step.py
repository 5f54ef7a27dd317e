"""The step `merge`: the shards' results as one, in COCO's formats, and if asked for in S3."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from components.split.step import Plan
from yolact.errors import DataError
from yolact.files import replaced_directory, write_json_atomic
from yolact.models.weights import DESCRIPTION_FILE
from yolact_ops.transfer.download import DownloadError
from yolact_ops.transfer.storage import S3Address, explain, make_client

log = logging.getLogger(__name__)

FILES = ("detections.json", "images.json", "problems.json")


@dataclass(frozen=True)
class Totals:
    """What was found in all."""

    images: int
    objects: int
    problems: int
    per_class: dict[str, int]
    """Objects by class, the most frequent first."""


def run(
    *, model_dir: Path, plan_path: Path, results: Sequence[Path], output_dir: Path, destination: str = ""
) -> Totals:
    """Put the shards' results together.

    Args:
        model_dir: what fetch wrote; names the classes.
        plan_path: what split wrote.
        results: what the predict steps wrote, one for each shard, in any order.
        output_dir: gets ``detections.json`` (COCO results), ``images.json`` (COCO instances without annotations: what
            the ids stand for) and ``problems.json`` (images that cannot be read); what was there is replaced.
        destination: ``s3://bucket/folder`` that gets these files too; empty: none.

    Raises:
        DataError: a result is missing, faulty or of another plan; or the bucket cannot be written.
    """
    plan = Plan.read(plan_path)
    images, rows, problems = _join(results)
    _check_complete(plan, [entry["id"] for entry in images + problems], plan_path)
    classes = json.loads((model_dir / DESCRIPTION_FILE).read_text(encoding="utf-8"))["classes"]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    with replaced_directory(output_dir) as folder:
        write_json_atomic(folder / "detections.json", rows)
        description = f"images of {plan.address}; file names are below it"
        tree = {"info": {"description": description}, "images": images, "annotations": [], "categories": categories}
        write_json_atomic(folder / "images.json", tree)
        write_json_atomic(folder / "problems.json", problems)
    if destination:
        _upload(output_dir, S3Address.parse(destination))
    counts = Counter(classes[row["category_id"] - 1] for row in rows)
    log.info("%d images, %d objects in %s; %d images not readable", len(images), len(rows), output_dir, len(problems))
    return Totals(len(images), len(rows), len(problems), dict(counts.most_common()))


def _join(results: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Images and problems by id, and rows by image, best first, whatever the order of the shards."""
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    for path in results:
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            images += tree["images"]
            rows += tree["rows"]
            problems += tree["problems"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not what the predict step writes ({error!r}). Run it again.") from error
    for entries in (images, problems):
        entries.sort(key=lambda entry: int(entry["id"]))
    rows.sort(key=lambda row: int(row["image_id"]))
    return images, rows, problems


def _check_complete(plan: Plan, ids: Sequence[int], plan_path: Path) -> None:
    wanted = [image.id for shard in plan.shards for image in shard]
    if sorted(ids) != sorted(wanted):
        missing, extra = len(set(wanted) - set(ids)), len(ids) - len(set(ids) & set(wanted))
        raise DataError(
            f"the results do not fit {plan_path}: of {len(wanted)} images {missing} have none, and {extra} results are "
            "of no image there or come twice. Run the pipeline again."
        )


def _upload(folder: Path, address: S3Address) -> None:
    client = make_client()
    try:
        for name in FILES:
            client.upload_file(str(folder / name), address.bucket, "/".join(filter(None, (address.key, name))))
    except (ClientError, BotoCoreError, OSError) as error:
        raise DownloadError(explain(error, address, client)) from None
    log.info("uploaded to %s", address)
