"""The step `preprocess`: convert annotated images in any registered format to COCO instances JSON; write a report."""

from __future__ import annotations

import hashlib
import logging
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.preprocess.findings import LISTED_FINDINGS, Finding, find
from components.preprocess.limits import check_disjoint, check_usable, refusal_of
from components.preprocess.outcome import Outcome, outcome_of
from components.preprocess.preparing import Prepared, merge_scans, prepare_all
from components.preprocess.records import Records, write_coco
from components.preprocess.report import GALLERY_PHOTOS, GalleryImage, write_report
from components.preprocess.sharding import Sharding, move_images, write_shards
from components.preprocess.statistics import statistics
from yolact.data.processed import EVAL, PROCESSED, TRAIN, annotations_of
from yolact.errors import DataError
from yolact.files import replaced_directory, write_json_atomic
from yolact.formats.classes import select_classes
from yolact.formats.dataset import Dataset
from yolact.formats.preparation import ImageSummary
from yolact.formats.registry import read_dataset
from yolact.limits import usable_cpus
from yolact_ops.commands.step import run_command
from yolact_ops.reports.pages import evenly_spaced
from yolact_ops.scanning.options import options_of, preparation_of, sources_of
from yolact_ops.scanning.scan import open_scans
from yolact_ops.settings.params import DataConfig, DataParams

log = logging.getLogger(__name__)


Prepare = Callable[[Mapping[int, int], Path, Records], Prepared]
"""Prepares all images: gets the category id by class index, a folder for the images, and the records."""


def run(
    params: DataParams,
    *,
    processed_dir: Path,
    report_dir: Path,
    raw_dir: Path | None = None,
    scans: Sequence[Path] = (),
    shards: str = "local",
    workers: int | None = None,
) -> None:
    """Convert a data set to ``processed_dir``, which is replaced as a whole or left unchanged.

    Its folder ``train`` gets ``train.json`` (COCO instances), and its folder ``eval`` gets ``val.json``, ``test.json``
    if images are held out, and ``stats.json``. In each is ``images/`` with the images of these splits (byte for byte if
    nothing has to change); with ``data.shard_size``, they are in ``shards/`` instead or on S3, and each split has an
    index, as ``train.arrow``. Into ``report_dir``, even if problems then stop the step, it writes a page that shows
    them. The same data set gives the same bytes, independent of the number of workers, and of scans.

    Args:
        params: settings; uses ``data``.
        processed_dir: folder of the processed data.
        report_dir: folder of the report.
        raw_dir: folder of the data set, in any registered format (`yolact.formats.registry`); None: merge ``scans``.
        scans: without ``raw_dir``, what the tasks of the step scan wrote with the same settings, in any order.
        shards: ``runtime.shards``: where shards go, to S3 before anything is in ``processed_dir``.
        workers: number of processes that read images and write shards; None: one per CPU core.

    Raises:
        DataError: there is no data set of a known format, a list of images is invalid, more images than
            ``data.max_problems`` or a larger share of objects than ``data.max_dropped`` cannot be used, nothing says
            on which image the masks of turned images are drawn, or a split has no image or no instance; or a scan is
            missing, damaged or of another data set; or the shards cannot be uploaded.
        SettingsError: ``data.classes`` names an unknown class.
    """
    count = workers or usable_cpus()
    dataset, prepare = _merged(scans) if raw_dir is None else _read(raw_dir, params.data, count)
    _convert(params.data, dataset, prepare, processed_dir, report_dir, Sharding(params.data.shard_size, count, shards))


def _read(raw_dir: Path, data: DataConfig, workers: int) -> tuple[Dataset, Prepare]:
    """A data set as listed, and how its images are prepared here."""
    dataset = read_dataset(raw_dir, options_of(data))
    log.info("%s: reading %d images from %s", dataset.format, len(sources_of(dataset)), dataset.root)

    def prepare(category_of: Mapping[int, int], images: Path, records: Records) -> Prepared:
        return prepare_all(dataset, preparation_of(dataset, data, category_of, images), records, workers)

    return dataset, prepare


def _merged(scans: Sequence[Path]) -> tuple[Dataset, Prepare]:
    """A data set as scans list it, and how the images that they have prepared are merged."""
    dataset, parts = open_scans(scans)
    log.info("%s: merging %d images of %d scans", dataset.format, len(sources_of(dataset)), len(parts))

    def prepare(_: Mapping[int, int], images: Path, records: Records) -> Prepared:
        return merge_scans(parts, dataset, images, records)

    return dataset, prepare


def _convert(
    data: DataConfig,
    dataset: Dataset,
    prepare: Prepare,
    processed_dir: Path,
    report_dir: Path,
    sharding: Sharding,
) -> None:
    """Write the processed data and the report.

    Args:
        data: settings.
        dataset: the data set as listed.
        prepare: prepares the images.
        processed_dir, report_dir: see `run`.
        sharding: how images go into shards; not at all if its size is 0.
    """
    page = report_dir / "index.html"
    check_disjoint(dataset)
    categories, category_of = select_classes(dataset.classes, data.classes)
    with replaced_directory(processed_dir) as folder:
        for name in ("images", TRAIN, EVAL):
            (folder / name).mkdir()
        with Records(folder / ".records") as records:
            images, rejected, undecided = prepare(category_of, folder / "images", records)
            outcome = outcome_of(dataset, categories, images, rejected, data)
            for image in outcome.unused:
                (folder / "images" / image.file_name).unlink()
            stats, findings = _written(folder, dataset, outcome, records)
            refusal = refusal_of(dataset.root, outcome, undecided, data, str(page))
            readings = undecided.readings(folder) if undecided else []
            gallery = {split: _gallery(folder, found, records) for split, found in outcome.images.items()}
            write_report(
                report_dir, stats, findings, categories, gallery, data, stopped=bool(refusal), readings=readings
            )
            write_json_atomic(folder / EVAL / "stats.json", stats)
            if refusal:
                raise DataError(refusal)
            check_usable(dataset.root, outcome)
            if sharding.size:
                write_shards(folder, outcome, records, dataset.image_ids, sharding)
            else:
                move_images(folder, outcome)
    _log_summary(outcome, findings, page)


def _written(
    folder: Path, dataset: Dataset, outcome: Outcome, records: Records
) -> tuple[dict[str, Any], list[Finding]]:
    """Write the JSON files of the splits; returns the content of ``stats.json``, and the findings in it."""
    for split, images in outcome.images.items():
        description = f"{dataset.format} layout, split {split}"  # part of the digest: rewording changes it
        path = annotations_of(folder, split)
        write_coco(path, images, records, dataset.image_ids, outcome.categories, description)
    digests = _digests(folder, outcome.images)
    stats = statistics(outcome, _joint(dict(ChainMap(*digests.values()))))
    stats["split_digests"] = {split: _joint(found) for split, found in digests.items()}
    findings = find(outcome, stats["duplicates"])
    stats["findings"] = [finding.as_json() for finding in findings]
    return stats, findings


def _gallery(folder: Path, images: Sequence[ImageSummary], records: Records) -> list[GalleryImage]:
    """Evenly spaced images of a split, with their objects."""
    chosen = [images[place] for place in evenly_spaced(len(images), GALLERY_PHOTOS)]
    return [
        GalleryImage(folder / "images" / image.file_name, image.width, image.height, records.objects(image.image_id))
        for image in chosen
    ]


def _digests(folder: Path, images: Mapping[str, Sequence[ImageSummary]]) -> dict[str, dict[str, str]]:
    """SHA-256 (hex) of each split's JSON file and images, in order of their names."""
    digests = {}
    for split, found in images.items():
        digests[split] = {f"images/{image.file_name}": image.sha256.hex() for image in found}
        with annotations_of(folder, split).open("rb") as file:
            digests[split][f"{split}.json"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _joint(digests: Mapping[str, str]) -> str:
    """SHA-256 over names and contents of files, in order of their names."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _log_summary(outcome: Outcome, findings: Sequence[Finding], page: Path) -> None:
    parts = [
        f"{split}: {len(images)} images, {sum(len(image.instances) for image in images)} instances"
        for split, images in outcome.images.items()
    ]
    log.info("%s", "; ".join(parts))
    if not findings:
        log.info("nothing was changed or dropped, nothing is doubtful; see %s", page)
        return
    log.info("what was dropped, is doubtful or was changed (details in %s):", page)
    for finding in findings[:LISTED_FINDINGS]:
        log.log(logging.INFO if finding.severity == "changed" else logging.WARNING, "%s: %s", finding.severity, finding)
    if len(findings) > LISTED_FINDINGS:
        log.warning("and %d more kinds", len(findings) - LISTED_FINDINGS)
    if outcome.dropped:
        log.warning("images are used without their dropped objects, so the model learns that nothing is there")


if __name__ == "__main__":
    run_command(
        "preprocess",
        lambda params: run(
            params,
            raw_dir=Path("data/raw"),
            processed_dir=PROCESSED,
            report_dir=Path("reports/data"),
            shards=params.runtime.shards,
        ),
        outputs=[PROCESSED / TRAIN, PROCESSED / EVAL],
    )
