"""The registered data formats, and which one a folder has. To add one, register a module that implements `Format`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from yolact.errors import DataError
from yolact.formats import (
    coco,
    cvat,
    labelme,
    numbered_masks,
    object_masks,
    sbd,
    supervisely,
    via,
    voc,
    yolo,
)
from yolact.formats.dataset import (
    Annotations,
    Dataset,
    Files,
    ReadOptions,
    Split,
    archives,
    data_root,
    several_data_sets,
)
from yolact.formats.mask_folders import class_masks
from yolact.formats.problems import Problem, writable
from yolact.formats.split_lists import divided
from yolact.formats.unread import looks_like
from yolact.plugins import load_plugins

PLUGINS = "yolact.formats"
"""Entry point group: each entry names a module that calls `register_format` when it is imported."""

MAX_DEPTH = 5
"""Maximum depth of folders in which a data set is looked for."""

SHOWN_PATHS = 3
"""Maximum number of paths per format that a message lists."""

SHOWN_NAMES = 10
"""Maximum number of names in a folder that a message lists."""


ONLY_ALONE = (numbered_masks.NAME, object_masks.NAME)
"""Formats that are used if there is no other: exports often add folders of masks to annotations that say more."""


class Format(Protocol):
    """Interface of a data format's module."""

    NAME: str
    """Human-readable name, for pages and ``stats.json``."""
    FOUND_BY: str
    """What a folder of this format contains, for messages and docs."""
    INCLUDES: tuple[str, ...]
    """Names of formats whose folders are part of this one's data set if both are found."""
    READS: tuple[str, ...]
    """Those of `ReadOptions`' ``annotations``, ``crowds`` and ``class_names`` that `read` uses."""

    def find(self, folders: Sequence[Path]) -> list[Path]:
        """Find data sets of this format: their root folders, or characteristic files; empty if there are none.

        Args:
            folders: the folder to search and all below it, sorted, parents first.
        """

    def files(self, found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
        """The files that `read` needs, and their paths relative to a new folder; ``found`` is the result of `find`.

        Raises:
            DataError: there is more than one data set, or a part of it is missing.
        """

    def read(self, found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
        """Read the data set: its classes, and its images by split, which are only listed.

        Args:
            found: the result of `find`.
            folders: see `find`.
            options: settings that decide what the files do not; a format may ignore those that do not concern it.

        Raises:
            DataError: see `files`; or a list of images or classes is invalid.
        """


_formats: dict[str, Format] = {}


def register_format(format: Format) -> None:
    """Register a data format for ingest, preprocess, their messages and the data report.

    Raises:
        ValueError: the name is already registered.
    """
    if format.NAME in _formats:
        raise ValueError(f"a data format {format.NAME!r} is already registered")
    _formats[format.NAME] = format


for _format in (voc, sbd, coco, yolo, labelme, via, cvat, supervisely, numbered_masks, object_masks):
    register_format(_format)


def formats() -> list[Format]:
    """All registered formats, including those of installed plugins."""
    load_plugins(PLUGINS)
    return list(_formats.values())


def dataset_files(folder: Path, annotations: Annotations = None) -> list[Files]:
    """The files of the data set in ``folder`` or below it.

    Args:
        folder: the folder.
        annotations: see `ReadOptions`; of several data sets, the one with such a file is taken.

    Raises:
        DataError: there is none or more than one, or a part of it is missing.
    """
    format, found, folders = _find(folder, annotations)
    return format.files(found, folders)


def read_dataset(folder: Path, options: ReadOptions | None = None) -> Dataset:
    """Find the annotated data set in ``folder`` and list its images, without reading them.

    Raises:
        DataError: there is none or more than one, a part of it is missing, or its lists of images are invalid.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Run the step `ingest` first: it puts the raw data there.")
    options = options or ReadOptions()
    format, found, folders = _find(folder, options.annotations)
    dataset = _with_writable_names(format.read(found, folders, options))
    doubts = [*_without_effect(format, options), *_spelled_alike(dataset)]
    dataset = replace(dataset, warnings=[*dataset.warnings, *doubts])
    return divided(dataset, folders, options.lists) if options.lists else dataset


def _without_effect(format: Format, options: ReadOptions) -> list[Problem]:
    """A warning about each option that was set, but that the format does not use."""
    default, kind = ReadOptions(), "setting without effect"
    return [
        Problem(".", f"data.{name} is set, but it has no effect on the format {format.NAME}", kind)
        for name in ("annotations", "crowds", "class_names")
        if name not in format.READS and getattr(options, name) != getattr(default, name)
    ]


def _spelled_alike(dataset: Dataset) -> list[Problem]:
    """A warning about each group of classes that are probably one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in dataset.classes.values():
        alike[name.casefold().strip()].append(name)
    reason = "the classes {} differ in letter case or spaces only; data.classes merges them"
    return [
        Problem(".", reason.format(", ".join(map(repr, names))), "classes that are spelled alike")
        for names in alike.values()
        if len(names) > 1
    ]


def _find(folder: Path, annotations: Annotations) -> tuple[Format, list[Path], list[Path]]:
    """The format of the data set in a folder, what its `Format.find` returned, and the folders that were searched."""
    load_plugins(PLUGINS)
    folders = _folders(folder)
    found = {name: places for name, format in _formats.items() if (places := format.find(folders))}
    included = {name for owner in found for name in _formats[owner].INCLUDES}
    found = {name: places for name, places in found.items() if name not in included}
    found = {name: places for name, places in found.items() if name not in ONLY_ALONE} or found
    if not found:
        raise DataError(_nothing_found(folder, folders))
    if len(found) > 1 and annotations is not None:
        found = _with_files(found, data_root(folders), annotations)
    if len(found) > 1:
        raise several_data_sets([path for places in found.values() for path in places[:SHOWN_PATHS]])
    [(name, places)] = found.items()
    return _formats[name], places, folders


def _with_files(
    found: dict[str, list[Path]], root: Path, annotations: Sequence[str] | Mapping[Split, Sequence[str]]
) -> dict[str, list[Path]]:
    """Those formats that have a file that ``data.annotations`` names; all if none has."""
    files = [path for places in found.values() for path in places if path.is_file()]
    try:
        chosen = {path for paths in coco.choose_files(root, files, annotations)[0].values() for path in paths}
    except DataError:
        return found
    return {name: places for name, places in found.items() if chosen & set(places)}


def _nothing_found(folder: Path, folders: Sequence[Path]) -> str:
    if semantic := class_masks(folders):
        return (
            f"{semantic}: this looks like Roboflow's export of semantic segmentation masks (_classes.csv and "
            "*_mask.png). Such masks do not say where one object ends and the next begins: export COCO segmentation."
        )
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    more = ", …" if len(names) > SHOWN_NAMES else ""
    known = "\n".join(f"  {format.NAME}: {format.FOUND_BY}" for format in _formats.values())
    if packed := archives(folder):
        advice = f"Unpack {' and '.join(packed[:SHOWN_PATHS])} in that folder."
    else:
        advice = looks_like(folder, folders) or "Check data.source."
    return (
        f"{folder}: has no annotated images in a known format. It has: "
        f"{', '.join(names[:SHOWN_NAMES]) or 'nothing'}{more}\n"
        f"Searched up to {MAX_DEPTH} folders deep for:\n{known}\n{advice}"
    )


def _folders(folder: Path) -> list[Path]:
    """``folder`` and all below it, sorted; each once, even if links point to it."""
    found, seen = [], set()
    for path, names, _ in os.walk(folder, followlinks=True):
        place = Path(path)
        resolved = place.resolve()
        if resolved in seen:
            names.clear()
            continue
        seen.add(resolved)
        found.append(place)
        deep = len(place.relative_to(folder).parts) >= MAX_DEPTH
        names[:] = [] if deep else sorted(name for name in names if not name.startswith((".", "__MACOSX")))
    return sorted(found)


def _with_writable_names(dataset: Dataset) -> Dataset:
    """Turn images whose names cannot be written to JSON and pages into problems."""
    names = [source.image_id for sources in dataset.splits.values() for source in sources]
    unwritable = {name for name in names if writable(name) != name}
    reason = "has a name that is not UTF-8; rename it and its annotations, as with `convmv -f latin1 -t utf8`"
    kind = "name that is not UTF-8"
    return replace(
        dataset,
        splits={
            split: [source for source in sources if source.image_id not in unwritable]
            for split, sources in dataset.splits.items()
        },
        problems={**dataset.problems, **{writable(name): [Problem(name, reason, kind)] for name in sorted(unwritable)}},
    )
