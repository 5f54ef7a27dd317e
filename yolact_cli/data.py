"""`yolact data`: what a folder of annotated images holds, before a pipeline run; nothing but a page is written."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from components.preprocess.findings import LISTED_FINDINGS, Finding, find
from components.preprocess.limits import check_disjoint, check_usable, refusal_of
from components.preprocess.orientation import Undecided
from components.preprocess.outcome import Outcome, outcome_of
from components.preprocess.preparing import prepare_all
from components.preprocess.report import GalleryImage, class_rows, page
from components.preprocess.statistics import statistics
from yolact.errors import DataError, SettingsError
from yolact.files import write_text_atomic
from yolact.formats.classes import select_classes
from yolact.formats.dataset import Dataset
from yolact.formats.preparation import ImageSummary, Preparation, PreparedImage, parsed_rows
from yolact.formats.registry import read_dataset
from yolact.limits import usable_cpus
from yolact_cli.output import print_json
from yolact_ops.reports.pages import evenly_spaced
from yolact_ops.scanning.options import options_of, preparation_of
from yolact_ops.settings.params import DataConfig
from yolact_ops.settings.presets import choose

T = TypeVar("T")

SHOWN_IMAGES = 4
"""Maximum number of images drawn on the page."""

SHOWN_CLASSES = 30
"""Maximum number of classes in the table; the rest is counted."""

NAMED_SOURCES = ("sample", "voc2012", "sbd")
"""Values of ``data.source`` that a folder of the same name must not be taken for."""


@dataclass(frozen=True)
class Options:
    """The command's arguments."""

    folder: str
    overrides: Sequence[str]
    """``KEY=VALUE`` each."""
    images: int
    """Maximum number of images that are read."""
    report: Path | None
    """Page to write."""
    as_json: bool
    preset: str
    """Preset that `yolact train` takes."""
    caller: Path
    """Folder in which the command was started, which may be below the project's."""


@dataclass(frozen=True)
class Look:
    """What was found in a folder."""

    dataset: Dataset
    """Every image listed."""
    preparation: Preparation
    outcome: Outcome
    """Of the images read."""
    categories: Mapping[int, str]
    stats: Mapping[str, Any]
    """As in ``stats.json``, of the images read."""
    findings: Sequence[Finding]
    read: int
    """Number of images read."""
    undecided: Undecided | None
    """Images of which nothing says how their masks are turned."""

    @property
    def listed(self) -> int:
        """Number of images of the data set."""
        return sum(map(len, self.dataset.splits.values())) + len(self.dataset.problems)

    @property
    def sampled(self) -> bool:
        """Whether some images were not read."""
        return self.read < self.listed

    @property
    def note(self) -> str:
        """How many images were read."""
        if not self.sampled:
            return f"All {self.listed} images were read."
        return (
            f"{self.read} of {self.listed} images were read, evenly spaced: counts and findings are those of these "
            "images, estimates for the others."
        )


def run(options: Options, console: Console | None = None) -> None:
    """Print what a folder holds: format, classes, splits, findings, and how to train on it.

    Raises:
        DataError: the folder is missing or holds no data set that can be read; or, after all is printed, `preprocess`
            would refuse it.
        SettingsError: see `choose`; or a setting names an unknown class.
    """
    folder = _folder(options.folder)
    if options.report is not None:
        _check_report(options.report)
    if any(override.partition("=")[0].strip() == "data.source" for override in options.overrides):
        raise SettingsError(f"-S data.source: the folder is {options.folder}; leave the setting out")
    data = choose(None, overrides=options.overrides).data.model_copy(update={"source": _source(options.folder)})
    look = _look(folder, data, options.images)
    shown = _shown_images(look)
    listing = str(options.report) if options.report else "the page of --report FILE.html"
    refusal = refusal_of(str(folder), look.outcome, look.undecided, data, listing)
    if options.report is not None:
        write_text_atomic(options.report, _page(look, shown, data, stopped=bool(refusal)))
    command = _command(options, data)
    if options.as_json:
        print_json(_as_json(look, shown, command))
    else:
        _print(look, shown, options, console or Console(highlight=False))
    if refusal:
        raise DataError(f"{refusal}\n{look.note}" if look.sampled else refusal)
    if not look.sampled:
        check_usable(str(folder), look.outcome)
    if not options.as_json:
        print("\nTrain on it:\n  " + (command or _no_command(options.folder)))


def _folder(text: str) -> Path:
    """The folder; other sources are refused with the way on."""
    path = Path(text)
    if path.is_dir():
        return path
    if path.is_file():
        raise DataError(
            f"{text}: is a file, and this command reads folders. Unpack the archive and name its folder; or go on "
            "without a look: `dvc repro preprocess` reads it where data.source names it."
        )
    if "://" in text or text.startswith("dvc:"):
        raise DataError(
            f"{text}: is an address, and this command reads folders. `dvc repro preprocess` fetches what data.source "
            "names and reports on it; or fetch it yourself and name its folder."
        )
    raise DataError(f"{text}: no such folder (looked for {path.absolute()}).")


def _check_report(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(f"--report {path}: the page is an HTML file, so its name must end in .html")
    if path.is_dir() or not path.parent.is_dir():
        raise SettingsError(f"--report {path}: must be a file in an existing folder")


def _look(folder: Path, data: DataConfig, limit: int) -> Look:
    """Read up to ``limit`` images of a folder, as `preprocess` does."""
    dataset = read_dataset(folder, options_of(data))
    check_disjoint(dataset)
    categories, category_of = select_classes(dataset.classes, data.classes)
    preparation = preparation_of(dataset, data, category_of, None)
    chosen = _sample(dataset, limit)
    read = sum(map(len, chosen.splits.values())) + len(dataset.problems)
    images, rejected, undecided = prepare_all(chosen, preparation, None, usable_cpus())
    outcome = outcome_of(chosen, categories, images, rejected, data)
    stats = statistics(outcome, digest="")
    findings = find(outcome, stats["duplicates"])
    return Look(dataset, preparation, outcome, categories, stats, findings, read, undecided)


def _sample(dataset: Dataset, limit: int) -> Dataset:
    """Evenly spaced images of each split, and orphan annotations in the same proportion."""
    total = sum(map(len, dataset.splits.values()))
    if total <= limit:
        return dataset

    def part(found: Sequence[T]) -> list[T]:
        return [found[place] for place in evenly_spaced(len(found), math.ceil(limit * len(found) / total))]

    splits = {split: part(found) for split, found in dataset.splits.items()}
    return replace(dataset, splits=splits, orphans=part(dataset.orphans))


def _shown_images(look: Look) -> Mapping[str, Sequence[ImageSummary]]:
    """Images to draw, by split: those with objects, if there are any."""
    every = [(split, image) for split, images in look.outcome.images.items() for image in images]
    candidates = [(split, image) for split, image in every if len(image.instances)] or every
    chosen = [candidates[place] for place in evenly_spaced(len(candidates), SHOWN_IMAGES)]
    return {split: [image for own, image in chosen if own == split] for split in look.outcome.images}


def _page(look: Look, shown: Mapping[str, Sequence[ImageSummary]], data: DataConfig, *, stopped: bool) -> str:
    sources = {source.image_id: source for found in look.dataset.splits.values() for source in found}
    with tempfile.TemporaryDirectory() as folder:
        preparation = replace(look.preparation, folder=Path(folder))
        gallery = {
            split: [
                _gallery_image(result, Path(folder))
                for image in images
                if isinstance(result := preparation(sources[image.image_id]), PreparedImage)
            ]
            for split, images in shown.items()
        }
        readings = look.undecided.readings(Path(folder)) if look.undecided else []
        return page(
            look.stats,
            look.findings,
            look.categories,
            gallery,
            data,
            stopped=stopped,
            readings=readings,
            note=look.note,
        )


def _gallery_image(prepared: PreparedImage, folder: Path) -> GalleryImage:
    summary = prepared.summary
    return GalleryImage(folder / summary.file_name, summary.width, summary.height, parsed_rows(prepared.rows))


def _as_json(look: Look, shown: Mapping[str, Sequence[ImageSummary]], command: str | None) -> dict[str, Any]:
    return {
        "images": look.listed,
        "images_read": look.read,
        **{key: look.stats[key] for key in ("format", "split_by", "splits", "classes", "other_classes")},
        "findings": [finding.as_json() for finding in look.findings],
        "shown": [image.image_id for images in shown.values() for image in images],
        "command": command,
    }


def _print(look: Look, shown: Mapping[str, Sequence[ImageSummary]], options: Options, console: Console) -> None:
    stats = look.stats
    _say(console, f"{stats['format']}: {options.folder}. {look.note}")
    console.print(_split_table(look))
    for split in look.outcome.chosen:
        _say(console, f"The source names no {split} images: a share is chosen by class (data.split.{split}).")
    console.print(_class_table(stats))
    hidden = len(stats["classes"]) - SHOWN_CLASSES
    if hidden > 0:
        _say(console, f"and {hidden} more classes with fewer objects")
    if look.findings:
        table = Table(Column("finding", no_wrap=True), Column("what was dropped, is doubtful or was changed", ratio=1))
        for finding in look.findings[:LISTED_FINDINGS]:
            table.add_row(finding.severity, _printable(str(finding)))
        console.print(table)
        if len(look.findings) > LISTED_FINDINGS:
            _say(console, f"and {len(look.findings) - LISTED_FINDINGS} more kinds")
    else:
        _say(console, "Nothing has to be changed or dropped, nothing is doubtful.")
    names = ", ".join(image.image_id for images in shown.values() for image in images)
    where = f"drawn in {options.report}" if options.report else "--report FILE.html draws them"
    _say(console, f"Images to look at ({where}): {names or 'none'}")


def _split_table(look: Look) -> Table:
    """One row per split."""
    listed = {split: len(look.dataset.splits.get(split, ())) for split in look.stats["splits"]}
    names = ["images used", "left out", "without objects", "objects"]
    extra = ["images in all"] if look.sampled and not look.outcome.chosen else []
    table = Table("split", *(Column(name, justify="right") for name in (*extra, *names)))
    for split, part in look.stats["splits"].items():
        counts = [part["images"], part["left_out"], part["images_without_instance"], part["instances"]]
        table.add_row(split, *map(str, [*([listed[split]] if extra else []), *counts]))
    return table


def _class_table(stats: Mapping[str, Any]) -> Table:
    """One row per class, the most frequent first."""
    heads = [f"{split} {what}" for split in stats["splits"] for what in ("objects", "images")]
    table = Table(Column("class", overflow="fold"), *(Column(head, justify="right") for head in heads))
    for name, counts, _ in class_rows(stats)[:SHOWN_CLASSES]:
        cells = [str(part[key]) for part in counts.values() for key in ("instances", "images")]
        table.add_row(_printable(name), *cells)
    return table


def _say(console: Console, text: str) -> None:
    console.print(_printable(text), soft_wrap=True)


def _printable(text: str) -> Text:
    """Text without markup, whose control characters, which a terminal would obey, are escaped."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text))


# The command that trains on the folder


def named_source(text: str) -> str:
    """The value of ``data.source`` for what a user names: a folder or an archive, an address, or a published data set.

    Raises:
        DataError: there is no such folder or file.
    """
    path = Path(text)
    if path.is_dir():
        return _source(text)
    if not path.is_file() and text not in NAMED_SOURCES and "://" not in text and not text.startswith("dvc:"):
        raise DataError(f"{text}: no such folder or archive (looked for {path.absolute()}).")
    return text


def _source(folder: str) -> str:
    """The value of ``data.source`` that names a folder, and nothing else of that name."""
    special = folder in NAMED_SOURCES or "://" in folder or re.match(r"dvc:|~|-", folder)
    return f"./{folder}" if special else folder


def _command(options: Options, data: DataConfig) -> str | None:
    """The command that trains on the folder as it was read; None if a terminal cannot show it.

    `yolact train` takes the settings of its preset, so those of ``data`` that differ from them are named.
    """
    folder = options.folder if Path(options.folder).is_absolute() else os.path.relpath(options.folder, options.caller)
    without = {"source", "mirrors", "sample"}
    ours, presets = (each.model_dump(mode="json", exclude=without) for each in (data, choose(options.preset).data))
    words = ["yolact", "train", _source(folder)]
    for key, value in ours.items():
        if value != presets[key]:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words += ["-S", f"data.{key}={text}"]
    return shlex.join(words) if all(map(str.isprintable, words)) else None


def _no_command(folder: str) -> str:
    return (
        "no command to copy: the folder's name or a setting has characters that cannot be printed "
        f"({_printable(folder)}). If it is the name, rename it."
    )
