"""The step `preprocess`: convert annotated images in any registered format to COCO instances JSON; write a report."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from components.preprocess.findings import Finding, dropped_objects, find
from components.preprocess.orientation import Undecided, infer
from components.preprocess.outcome import Outcome
from components.preprocess.records import Records, write_coco
from components.preprocess.report import GALLERY_PHOTOS, GalleryImage, write_report
from components.preprocess.statistics import hashes, statistics
from components.preprocess.workers import map_in_order
from yolact.errors import DataError
from yolact.files import replaced_directory, write_json_atomic
from yolact.formats.classes import select_classes
from yolact.formats.dataset import Dataset, ImageSource, ReadOptions
from yolact.formats.duplicates import MAX_DISTANCE, picture_groups
from yolact.formats.preparation import (
    CATEGORY,
    ImageSummary,
    OpenImage,
    Preparation,
    RejectedImage,
    names_are_unique,
)
from yolact.formats.problems import Problem
from yolact.formats.registry import read_dataset
from yolact.formats.split import Choice, choose_validation
from yolact_ops.commands.container import usable_cpus
from yolact_ops.commands.step import run_command
from yolact_ops.reports.pages import evenly_spaced
from yolact_ops.settings.params import DataConfig, DataParams

log = logging.getLogger(__name__)

SPLITS = ("train", "val")

LISTED_PROBLEMS = 20
"""Maximum number of images in an error message; the rest is counted."""

LISTED_FINDINGS = 15
"""Maximum number of findings in the log and in an error message; the rest is counted."""


def run(
    params: DataParams, *, raw_dir: Path, processed_dir: Path, report_dir: Path, workers: int | None = None
) -> None:
    """Convert the data set below ``raw_dir`` to ``processed_dir``, which is replaced as a whole or left unchanged.

    This writes ``images/`` (byte for byte if nothing has to change), ``train.json`` and ``val.json`` (COCO
    instances), and ``stats.json``; and into ``report_dir``, even if problems then stop the step, a page that shows
    them. The same input gives the same bytes, independent of the number of workers.

    Args:
        params: settings; uses ``data``.
        raw_dir: folder of the data set, in any registered format (`yolact.formats.registry`).
        processed_dir: folder of the processed data.
        report_dir: folder of the report.
        workers: number of processes that read images; None: one per CPU core.

    Raises:
        DataError: there is no data set of a known format, a list of images is invalid, more images than
            ``data.max_problems`` or a larger share of objects than ``data.max_dropped`` cannot be used, nothing says
            on which image the masks of turned images are drawn, or a split has no image or no instance.
        SettingsError: ``data.classes`` names an unknown class.
    """
    data = params.data
    options = ReadOptions(annotations=data.annotations, crowds=data.crowds, class_names=data.class_names)
    dataset = read_dataset(raw_dir, options)
    _check_disjoint(dataset)
    categories, category_of = select_classes(dataset.classes, params.data.classes)
    with replaced_directory(processed_dir) as folder:
        (folder / "images").mkdir()
        preparation = Preparation(
            folder=folder / "images",
            max_side=params.data.max_side or None,
            category_of=category_of,
            short_names=names_are_unique([source.image_id for found in dataset.splits.values() for source in found]),
            exif=None if data.exif == "auto" else data.exif == "upright",
        )
        with Records(folder / ".records") as records:
            images, rejected, undecided = _prepare_all(dataset, preparation, records, workers or usable_cpus())
            empty = _left_out(images, folder / "images") if params.data.empty_images == "drop" else []
            outcome = _outcome(dataset, categories, images, rejected, empty, params.data)
            for split in SPLITS:
                description = f"{dataset.format} layout, split {split}"  # part of the digest: rewording changes it
                path, images_of_split = folder / f"{split}.json", outcome.images[split]
                write_coco(path, images_of_split, records, dataset.image_ids, categories, description)
            digests = _digests(folder, outcome.images)
            stats = statistics(outcome, _joint(digests["train"] | digests["val"]))
            stats["split_digests"] = {split: _joint(found) for split, found in digests.items()}
            findings = find(outcome, stats["duplicates"])
            stats["findings"] = [finding.as_json() for finding in findings]
            if undecided is None:
                refusal = "\n".join(_too_many(dataset, outcome, params.data, report_dir))
            else:
                refusal = undecided.refusal(dataset.root, report_dir)
            readings = undecided.readings(preparation, folder) if undecided else []
            gallery = {split: _gallery(folder, outcome.images[split], records) for split in SPLITS}
            write_report(
                report_dir, stats, findings, categories, gallery, params.data, stopped=bool(refusal), readings=readings
            )
        write_json_atomic(folder / "stats.json", stats)
        if refusal:
            raise DataError(refusal)
        _check_usable(dataset, outcome)
    _log_summary(outcome, findings, report_dir)


def _check_disjoint(dataset: Dataset) -> None:
    train, val = ({source.image_id for source in dataset.splits.get(split, ())} for split in SPLITS)
    common = sorted(train & val)
    if common:
        raise DataError(
            f"{dataset.root}: images in both train and val: {len(common)}, such as {common[0]!r}. A model must not be "
            "evaluated on its training images: remove them from one of the two lists."
        )


def _prepare_all(
    dataset: Dataset, preparation: Preparation, records: Records, workers: int
) -> tuple[dict[str, ImageSummary], dict[str, Sequence[Problem]], Undecided | None]:
    """Write the usable images.

    Images of which only the others can say whether their masks are drawn on the upright image are read again after
    them: a first pass over all headers would open every file of every data set twice for these few.

    Returns:
        The summaries of the usable images and the problems of the others, both in order of image id; and the images
        that the others do not decide either, if there are any.
    """
    sources = sorted((source for found in dataset.splits.values() for source in found), key=lambda s: s.image_id)
    accepted: dict[str, ImageSummary] = {}
    rejected: dict[str, Sequence[Problem]] = {}

    def prepare(sources: Sequence[ImageSource], preparation: Preparation) -> list[ImageSource]:
        """Prepare images; return those that are left open."""
        left_open = []
        results = map_in_order(preparation, sources, workers, lambda source: source.image_id)
        shown = tqdm(results, total=len(sources), unit="image", disable=None)  # None: only on a terminal
        for source, result in zip(sources, shown, strict=True):
            if isinstance(result, OpenImage):
                left_open.append(source)
            elif isinstance(result, RejectedImage):
                rejected[result.image_id] = result.problems
            else:
                accepted[result.summary.image_id] = result.summary
                records.add(result.summary.image_id, result.rows)
        return left_open

    log.info("%s: reading %d images from %s", dataset.format, len(sources), dataset.root)
    undecided = None
    if left_open := prepare(sources, preparation):
        inferred = infer(left_open, accepted.values())
        if isinstance(inferred, Undecided):
            undecided = inferred
            rejected |= undecided.problems()
        else:
            prepare(left_open, replace(preparation, inferred=inferred))
    return dict(sorted(accepted.items())), {**dataset.problems, **dict(sorted(rejected.items()))}, undecided


def _left_out(images: dict[str, ImageSummary], folder: Path) -> list[str]:
    """Remove the images whose annotation has no object, and their files; return their ids."""
    empty = [
        name
        for name, image in images.items()
        if not len(image.instances) and not image.other_classes and not image.dropped
    ]
    for name in empty:
        (folder / images.pop(name).file_name).unlink()
    return empty


def _outcome(
    dataset: Dataset,
    categories: Mapping[int, str],
    images: Mapping[str, ImageSummary],
    rejected: Mapping[str, Sequence[Problem]],
    empty: Sequence[str],
    data: DataConfig,
) -> Outcome:
    """Images by split: the source's splits, or chosen by ``data.val_fraction``."""
    split_of = {source.image_id: split for split, found in dataset.splits.items() for source in found}
    by_source = "val" in dataset.splits
    choice = Choice(set())
    if not by_source:
        choice = _choose_validation(list(images.values()), data)
        split_of |= dict.fromkeys(choice.validation, "val")
    return Outcome(
        format=dataset.format,
        split_by_source=by_source,
        classes=dataset.classes,
        categories=categories,
        source_category_ids=dataset.source_category_ids,
        images={split: [image for name, image in images.items() if split_of[name] == split] for split in SPLITS},
        rejected=rejected,
        empty=empty,
        orphans=dataset.orphans,
        left_out_split={name: split_of[name] for name in [*rejected, *empty] if name in split_of},
        source_warnings=dataset.warnings,
        divided=[[images[name].file_name for name in names] for names in choice.divided],
    )


def _choose_validation(images: Sequence[ImageSummary], data: DataConfig) -> Choice:
    """Choose the validation images; near-duplicates stay in one split unless there are too many."""
    names = [image.image_id for image in images]
    groups = {
        name: names[first] for name, first in zip(names, picture_groups(hashes(images), MAX_DISTANCE), strict=True)
    }
    classes = {image.image_id: set(image.instances[:, CATEGORY].astype(int).tolist()) for image in images}
    log.info("the source has no validation images: choosing %g of the images (data.val_fraction)", data.val_fraction)
    return choose_validation(classes, groups, data.val_fraction, data.split_seed)


def _gallery(folder: Path, images: Sequence[ImageSummary], records: Records) -> list[GalleryImage]:
    """Evenly spaced images of a split, with their objects."""
    chosen = [images[place] for place in evenly_spaced(len(images), GALLERY_PHOTOS)]
    return [
        GalleryImage(folder / "images" / image.file_name, image.width, image.height, records.objects(image.image_id))
        for image in chosen
    ]


def _too_many(dataset: Dataset, outcome: Outcome, data: DataConfig, report_dir: Path) -> list[str]:
    """Why the data set is refused: more unusable images or objects than the settings allow; empty if neither."""
    refusals = []
    count, allowed = len(outcome.rejected), data.max_problems
    if count > allowed:
        lines = [f"\n  {problem}" for found in list(outcome.rejected.values())[:LISTED_PROBLEMS] for problem in found]
        if count > LISTED_PROBLEMS:
            lines.append(f"\n  and {count - LISTED_PROBLEMS} more, see {report_dir / 'index.html'}")
        refusals.append(
            f"{dataset.root}: {count} image{'' if count == 1 else 's'} cannot be used; data.max_problems allows "
            f"{allowed}.{''.join(lines)}\n"
            f"Fix the files at their source (data.source: {data.source}) and run `dvc repro`, which fetches them. "
            f"Or leave these images out with data.max_problems={count} in params.yaml (stats.json then lists them all)."
        )
    dropped, objects = len(outcome.dropped), outcome.objects
    if dropped > data.max_dropped * objects:
        share = math.ceil(100 * dropped / objects) / 100
        listing = "\n".join(f"  {line}" for line in _listed(dropped_objects(outcome), report_dir))
        refusals.append(
            f"{dataset.root}: {dropped} of {objects} objects cannot be used; data.max_dropped allows a share of "
            f"{data.max_dropped:g}.\n{listing}\n"
            f"Fix them at their source (data.source: {data.source}) and run `dvc repro`, which fetches them."
        )
        if dropped < objects:
            refusals[-1] += (
                f" Or drop them with data.max_dropped={share:g} in params.yaml: their images are then used without "
                "them, so the model learns that nothing is there."
            )
    return refusals


def _listed(findings: Sequence[Finding], report_dir: Path) -> list[str]:
    """One line per finding, up to `LISTED_FINDINGS`."""
    lines = [str(finding) for finding in findings[:LISTED_FINDINGS]]
    more = len(findings) - LISTED_FINDINGS
    return [*lines, f"and {more} more kinds, see {report_dir / 'index.html'}"] if more > 0 else lines


def _check_usable(dataset: Dataset, outcome: Outcome) -> None:
    showing = {split: sum(len(image.instances) > 0 for image in outcome.images[split]) for split in SPLITS}
    empty = [split for split in SPLITS if not showing[split]]
    if not empty:
        return
    if outcome.split_by_source:
        advice = "Annotate objects in its images, choose other images for the split, or check data.classes."
    else:
        advice = (
            f"Only {sum(showing.values())} of all images have objects, and each split needs one that does: annotate "
            "objects in more images, or check data.classes."
        )
    count = len(outcome.images[empty[0]])
    raise DataError(f"{dataset.root}: split {empty[0]!r} has {count} usable images, without any instance. {advice}")


def _digests(folder: Path, images: Mapping[str, Sequence[ImageSummary]]) -> dict[str, dict[str, str]]:
    """SHA-256 (hex) of each split's JSON file and images, in order of their names."""
    digests = {}
    for split in SPLITS:
        digests[split] = {f"images/{image.file_name}": image.sha256.hex() for image in images[split]}
        with (folder / f"{split}.json").open("rb") as file:
            digests[split][f"{split}.json"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _joint(digests: Mapping[str, str]) -> str:
    """SHA-256 over names and contents of files, in order of their names."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _log_summary(outcome: Outcome, findings: Sequence[Finding], report_dir: Path) -> None:
    parts = [
        f"{split}: {len(images)} images, {sum(len(image.instances) for image in images)} instances"
        for split, images in outcome.images.items()
    ]
    log.info("%s", "; ".join(parts))
    if not findings:
        log.info("nothing was changed or dropped, nothing is doubtful; see %s", report_dir / "index.html")
        return
    log.info("what was dropped, is doubtful or was changed (details in %s):", report_dir / "index.html")
    for finding in findings[:LISTED_FINDINGS]:
        log.log(logging.INFO if finding.severity == "changed" else logging.WARNING, "%s: %s", finding.severity, finding)
    if len(findings) > LISTED_FINDINGS:
        log.warning("and %d more kinds", len(findings) - LISTED_FINDINGS)
    if outcome.dropped:
        log.warning("images are used without their dropped objects, so the model learns that nothing is there")


if __name__ == "__main__":
    processed = Path("data/processed")
    run_command(
        "preprocess",
        lambda params: run(params, raw_dir=Path("data/raw"), processed_dir=processed, report_dir=Path("reports/data")),
        output=processed,
    )
