"""The step `preprocess`: VOC layout in, photos with COCO instances JSON and statistics out."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from components.common.command import run_command
from yolact.config import DataConfig, Params
from yolact.data.convert import VocImage, coco_instances, image_numbers, read_voc_image
from yolact.data.voc import SEGMENTATION_SETS, VOC_CLASSES, Problem, ProblemError, read_split, voc_root
from yolact.errors import DataError
from yolact.files import replaced_directory, write_json_atomic

log = logging.getLogger(__name__)

SPLITS = ("train", "val")

LISTED_PROBLEMS = 20
"""Photos that an error message lists; the rest is counted."""


def run(params: Params, *, raw_dir: Path, processed_dir: Path) -> None:
    """Turn ``raw_dir/VOCdevkit/VOC2012`` into ``processed_dir``, which is replaced as a whole or left as it was.

    Written: ``images/`` (the photos, byte for byte), ``train.json`` and ``val.json`` (COCO instances), and
    ``stats.json``. The same input gives the same bytes.

    Raises:
        DataError: the layout or a split file is faulty, more photos than ``data.max_problems`` are, or a split
            has no photo or no instance.
    """
    root = voc_root(raw_dir)
    ids = {split: read_split(root, split) for split in SPLITS}
    _check_disjoint(root, ids)
    everything = sorted(ids["train"] + ids["val"])
    accepted, rejected = _read_all(root, everything)
    _check_problems(root, rejected, params.data)
    images = {split: [accepted[name] for name in sorted(ids[split]) if name in accepted] for split in SPLITS}
    for split in SPLITS:
        _check_usable(root, split, images[split])

    with replaced_directory(processed_dir) as folder:
        digests = _copy_photos(root, images, folder / "images")
        numbers = image_numbers(everything)
        for split in SPLITS:
            tree = coco_instances(images[split], numbers, f"PASCAL VOC layout, split {split}")
            write_json_atomic(folder / f"{split}.json", tree)
            digests[f"{split}.json"] = hashlib.sha256((folder / f"{split}.json").read_bytes()).hexdigest()
        write_json_atomic(folder / "stats.json", _statistics(ids, images, rejected, _joint_digest(digests)))
    _log_summary(images, rejected, processed_dir)


def _check_disjoint(root: Path, ids: Mapping[str, Sequence[str]]) -> None:
    common = sorted(set(ids["train"]) & set(ids["val"]))
    if common:
        raise DataError(
            f"{root / SEGMENTATION_SETS}: photos in both train.txt and val.txt: {len(common)}, such as {common[0]!r}. "
            "A model is not to be judged on photos it has learned: take them out of one file."
        )


def _read_all(root: Path, image_ids: Sequence[str]) -> tuple[dict[str, VocImage], dict[str, tuple[Problem, ...]]]:
    """The photos that can be used, and the problems of the others; both by image id, in the order given."""
    accepted: dict[str, VocImage] = {}
    rejected: dict[str, tuple[Problem, ...]] = {}
    log.info("reading %d photos and their masks from %s", len(image_ids), root)
    for image_id in tqdm(image_ids, unit="photo", disable=None):  # None: only on a terminal
        try:
            accepted[image_id] = read_voc_image(root, image_id)
        except ProblemError as error:
            rejected[image_id] = error.problems
    return accepted, rejected


def _check_problems(root: Path, rejected: Mapping[str, Sequence[Problem]], data: DataConfig) -> None:
    """Refuse more photos with problems than ``data.max_problems`` allows; warn about the allowed ones."""
    if not rejected:
        return
    allowed = data.max_problems
    lines = [f"  {problem}" for problems in list(rejected.values())[:LISTED_PROBLEMS] for problem in problems]
    if len(rejected) > LISTED_PROBLEMS:
        lines.append(f"  and {len(rejected) - LISTED_PROBLEMS} more photos")
    listing = "\n".join(lines)
    if len(rejected) > allowed:
        raise DataError(
            f"{root}: photos with problems: {len(rejected)}, data.max_problems allows {allowed}.\n{listing}\n"
            f"Mend the files at their source (data.source: {data.source}), bring them in with "
            "`dvc repro --force --single-item ingest`, and run `dvc repro`. Or leave these photos out with "
            f"data.max_problems={len(rejected)} in params.yaml (stats.json then lists them all)."
        )
    log.warning("photos left out: %d (data.max_problems allows %d)\n%s", len(rejected), allowed, listing)


def _check_usable(root: Path, split: str, images: Sequence[VocImage]) -> None:
    if not any(image.instances for image in images):
        raise DataError(
            f"{root}: split {split!r} has {len(images)} usable photos and no instance in them. "
            "Draw objects in SegmentationObject and SegmentationClass, or choose other photos for the split."
        )


def _copy_photos(root: Path, images: Mapping[str, Sequence[VocImage]], folder: Path) -> dict[str, str]:
    """Copy the photos; SHA-256 of each by its name below the processed folder."""
    folder.mkdir()
    digests = {}
    for split in SPLITS:
        for image in images[split]:
            data = (root / image.file).read_bytes()
            name = Path(image.file).name
            (folder / name).write_bytes(data)
            digests[f"images/{name}"] = hashlib.sha256(data).hexdigest()
    return digests


def _joint_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 over names and contents, in the order of the names."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _statistics(
    ids: Mapping[str, Sequence[str]],
    images: Mapping[str, Sequence[VocImage]],
    rejected: Mapping[str, Sequence[Problem]],
    digest: str,
) -> dict[str, Any]:
    """The content of ``stats.json``; README.md says what its keys mean."""
    return {
        "digest": digest,
        "splits": {
            split: {
                "listed": len(ids[split]),
                "left_out": sum(image_id in rejected for image_id in ids[split]),
                **_split_statistics(images[split]),
            }
            for split in SPLITS
        },
        "classes": {
            name: {split: _class_statistics(images[split], index) for split in SPLITS}
            for index, name in enumerate(VOC_CLASSES, 1)
        },
        "problems": [_entry(image_id, problem) for image_id, problems in rejected.items() for problem in problems],
        "warnings": [
            _entry(image.image_id, warning) for split in SPLITS for image in images[split] for warning in image.warnings
        ],
    }


def _split_statistics(images: Sequence[VocImage]) -> dict[str, Any]:
    instances = [instance for image in images for instance in image.instances]
    per_photo = Counter(len(image.instances) for image in images)
    return {
        "images": len(images),
        "images_without_instance": per_photo[0],
        "images_without_xml": sum(not image.has_xml for image in images),
        "instances": len(instances),
        "instances_without_xml_object": sum(instance.difficult is None for instance in instances),
        "difficult": sum(instance.difficult is True for instance in instances),
        "truncated": sum(instance.truncated is True for instance in instances),
        "instances_per_image": {str(count): per_photo[count] for count in sorted(per_photo)},
        "box_width": _distribution([instance.box[2] for instance in instances]),
        "box_height": _distribution([instance.box[3] for instance in instances]),
        "mask_area": _distribution([instance.area for instance in instances]),
    }


def _class_statistics(images: Sequence[VocImage], class_index: int) -> dict[str, int]:
    counts = [sum(instance.class_index == class_index for instance in image.instances) for image in images]
    return {"images": sum(count > 0 for count in counts), "instances": sum(counts)}


def _distribution(values: Sequence[int]) -> dict[str, float]:
    low, quarter, middle, three_quarters, high = np.percentile(values, [0, 25, 50, 75, 100])
    summary = {"min": low, "p25": quarter, "median": middle, "p75": three_quarters, "max": high}
    summary["mean"] = np.mean(values)
    return {name: round(float(value), 2) for name, value in summary.items()}


def _entry(image_id: str, problem: Problem) -> dict[str, str]:
    return {"image": image_id, "file": problem.file, "reason": problem.reason}


def _log_summary(
    images: Mapping[str, Sequence[VocImage]], rejected: Mapping[str, Sequence[Problem]], processed_dir: Path
) -> None:
    parts = [
        f"{split}: {len(images[split])} photos, {sum(len(image.instances) for image in images[split])} instances"
        for split in SPLITS
    ]
    warnings = sum(len(image.warnings) for split in SPLITS for image in images[split])
    log.info(
        "%s; %d photos left out, %d warnings (see %s)",
        "; ".join(parts),
        len(rejected),
        warnings,
        processed_dir / "stats.json",
    )


if __name__ == "__main__":
    run_command(
        "preprocess",
        lambda params: run(params, raw_dir=Path("data/raw"), processed_dir=Path("data/processed")),
    )
