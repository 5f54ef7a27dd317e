"""Divide a data set by the lists of images that ``data.split`` names."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from yolact.errors import DataError
from yolact.formats.dataset import NO_SPLIT, Dataset, ImageSource, Split
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.formats.problems import Problem
from yolact.formats.voc_files import read_image_list

SHOWN_LISTS = 10
"""Maximum number of text files that a message lists."""


def divided(dataset: Dataset, folders: Sequence[Path], lists: Mapping[Split, Sequence[str]]) -> Dataset:
    """The data set with the images of the lists as its splits.

    A split without a list keeps the images of the source that are in no list, and ``train`` also those that the source
    has in a split with a list. With a list for ``train``, these are left out.

    Args:
        dataset: the data set as its source divides it.
        folders: its folder and all below it, where the lists are.
        lists: paths of lists by split.

    Raises:
        DataError: a list is missing, ambiguous or invalid, or names no image of the data set; or none is left for
            training.
    """
    sources = {source.image_id: source for found in dataset.splits.values() for source in found}
    ids_of = _ids_by_name(sources)
    warnings: list[Problem] = []
    splits: dict[str, list[ImageSource]] = {}
    for split, paths in lists.items():
        ids = dict.fromkeys(found for path in paths for found in _listed(split, path, folders, ids_of, warnings))
        splits[split] = [sources[image_id] for image_id in ids]
    used = {source.image_id for found in splits.values() for source in found}
    left_out = 0
    for name, found in dataset.splits.items():
        rest = [source for source in found if source.image_id not in used]
        target = "train" if name in lists else name
        if target == NO_SPLIT or target in lists:
            left_out += len(rest) if name != NO_SPLIT else 0
        else:
            splits.setdefault(target, []).extend(rest)
    if left_out:
        reason = f"images in no list of data.split are not used: {left_out}"
        warnings.append(Problem(".", reason, "images in no list of data.split"))
    if not splits.get("train"):
        raise DataError(f"{dataset.root}: the lists of data.split leave no image for training. Correct them.")
    ordered = {split: splits[split] for split in ("train", "val", "test") if splits.get(split)}
    return replace(dataset, splits=ordered, warnings=[*dataset.warnings, *warnings])


def _listed(
    split: Split, path: str, folders: Sequence[Path], ids_of: Mapping[str, Collection[str]], warnings: list[Problem]
) -> list[str]:
    """Ids of the images in a list; lines that name none are added to the warnings."""
    file = _find_list(split, path, folders)
    names = read_image_list(file, split, lambda name: unicodedata.normalize("NFC", name) in ids_of)
    unclear = next((name for name in names if len(ids_of.get(name, ())) > 1), None)
    if unclear is not None:
        raise DataError(f"{file}: {unclear!r} may be {' or '.join(sorted(ids_of[unclear])[:3])}. Write its folder too.")
    unknown = [name for name in names if name not in ids_of]
    if len(unknown) == len(names):
        raise DataError(f"{file}: none of its {len(names)} lines names an image of the data set, as {names[0]!r}.")
    if unknown:
        reason = f"{len(unknown)} of {len(names)} lines name no annotated image, such as {unknown[0]!r}"
        warnings.append(Problem(path, reason, "lines of a list that name no annotated image"))
    return [image_id for name in names for image_id in ids_of.get(name, ())]


def _ids_by_name(image_ids: Iterable[str]) -> dict[str, set[str]]:
    """Image ids by everything that may name them: their path, with and without suffix, and its last parts."""
    found: dict[str, set[str]] = defaultdict(set)
    for image_id in image_ids:
        path = PurePosixPath(unicodedata.normalize("NFC", image_id))
        forms = [path, path.with_suffix("")] if path.suffix.lower() in IMAGE_SUFFIXES else [path]
        for form in forms:
            for start in range(len(form.parts)):
                found["/".join(form.parts[start:])].add(image_id)
    return found


def _find_list(split: Split, path: str, folders: Sequence[Path]) -> Path:
    """The file that a path means, which may also begin above the data set's folder or be only the end of a path."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        tail = Path(*parts[start:])
        found = {file.resolve(): file for folder in folders if (file := folder / tail).is_file()}
        if len(found) > 1:
            raise DataError(
                f"data.split.{split}: {path!r} may be {' or '.join(map(str, list(found.values())[:3]))}. Write its "
                "folder too."
            )
        if found:
            return next(iter(found.values()))
    there = [str(file) for folder in folders for file in sorted(folder.glob("*.txt"))]
    more = ", …" if len(there) > SHOWN_LISTS else ""
    raise DataError(
        f"data.split.{split}: there is no list {path!r} below {folders[0]}. Its text files: "
        f"{', '.join(there[:SHOWN_LISTS]) or 'none'}{more}. Lists must be in the data set's own folder."
    )
