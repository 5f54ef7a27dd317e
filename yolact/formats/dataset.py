"""The annotated data set that every format is read into: images with their objects, splits and classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from yolact.errors import DataError
from yolact.formats.image_files import ImageFile
from yolact.formats.instances import Instance
from yolact.formats.problems import Problem

Split = Literal["train", "val", "test"]

Annotations = Sequence[str] | Mapping[Split, Sequence[str]] | None
"""The setting ``data.annotations``, see `ReadOptions`."""

NO_SPLIT = ""
"""Key in `Dataset.splits` of images that are in no list of the source, which `ReadOptions.lists` may name."""

JUNK = ("__MACOSX", "Thumbs.db")
"""Names of files and folders that operating systems add."""

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


@dataclass(frozen=True)
class ReadOptions:
    """Settings for what the files of a data set do not decide; the defaults detect it."""

    annotations: Annotations = None
    """Annotation files to read: paths or patterns (``*``) below the source, in all or by split; None: detect them."""
    crowds: Literal["auto", "objects", "regions"] = "auto"
    """What COCO's ``iscrowd`` means: ``objects`` reads such rows as objects, ``regions`` as crowd regions."""
    splits: Sequence[Split] = ("train", "val", "test")
    """Splits to read; files of others are left out."""
    lists: Mapping[Split, Sequence[str]] = field(default_factory=dict)
    """Lists of images by split, which replace the source's: paths below the data set's folder."""
    class_names: Sequence[str] | str | None = None
    """Classes of mask images by index, ``voc`` for VOC's own, or None to take them from the files."""

    @property
    def own_splits(self) -> Sequence[Split]:
        """The splits that are not divided by `lists`."""
        return [split for split in self.splits if split not in self.lists]


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its objects, in the coordinate frame of their masks."""

    image_id: str
    image: ImageFile
    width: int
    """Pixels of the masks' frame: the image as stored, or turned upright."""
    height: int
    instances: tuple[Instance, ...]
    warnings: tuple[Problem, ...]
    """Irregularities that do not prevent the image from being used."""
    dropped: tuple[Problem, ...] = ()
    """Objects that cannot be used, one problem each; the image is used without them."""
    has_xml: bool | None = None
    """Whether there is an annotation XML; None in formats without XML."""
    upright: bool | None = None
    """Whether the tool draws masks on the upright image (True) or on the image as stored; None if it is unknown."""
    as_upright: AnnotatedImage | None = None
    """The objects if they are drawn on the upright image, whose size differs, where no size says which it is."""

    @property
    def upright_by_size(self) -> bool | None:
        """Whether the masks' frame is the upright image, as its size says; None if the size leaves it open."""
        if self.as_upright is not None or self.image.stored_size == self.image.upright_size:
            return None
        return (self.width, self.height) == self.image.upright_size


class ImageSource(Protocol):
    """Location of one annotated image; small enough to send to another process."""

    @property
    def image_id(self) -> str:
        """Unique in the data set."""

    def read(self) -> AnnotatedImage:
        """Read the image and its objects; raises `ProblemError` with all problems of their files."""


@dataclass(frozen=True)
class Dataset:
    """An annotated data set; its images are listed, not read."""

    format: str
    """Name of the format, such as ``PASCAL VOC``."""
    root: str
    """Folder that the files named in problems are relative to."""
    classes: Mapping[int, str]
    """Name by category id, in the order of the ids; instances count them from 1 in that order."""
    splits: Mapping[str, Sequence[ImageSource]]
    """``train``, and ``val`` and ``test`` if the source has them."""
    problems: Mapping[str, Sequence[Problem]]
    """Problems of images that cannot even be listed, by a substitute id."""
    image_ids: Mapping[str, int]
    """COCO's integer id of each image, by image id."""
    orphans: Sequence[Problem] = ()
    """Orphan annotations: they belong to no image, so it is unknown which image lacks them."""
    warnings: Sequence[Problem] = ()
    """Irregularities of the data set as a whole."""
    source_category_ids: Mapping[int, Any] = field(default_factory=dict)
    """The source's own category ids, by category id; empty if they are the same."""


@dataclass(frozen=True)
class Files:
    """Files of a data set that keep their relative paths when copied."""

    origin: Path
    target: Path
    """Relative to the target folder."""
    names: tuple[str, ...]
    """Files and folders in ``origin``; missing ones are skipped."""


def data_root(folders: Sequence[Path]) -> Path:
    """The folder that a data set's files are relative to: the outermost searched one with more than another folder."""
    root = folders[0]
    while len(inside := _visible(root)) == 1 and (root / inside[0]).is_dir():
        root = root / inside[0]
    return root


def all_files(folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones, for formats whose files name images by path; see `Format.files`."""
    root = data_root(folders)
    return [Files(root, Path(), tuple(_visible(root)))]


def _visible(folder: Path) -> list[str]:
    return [name for name in sorted(os.listdir(folder)) if not name.startswith(".") and name not in JUNK]


def archives(folder: Path) -> list[str]:
    """Names of a folder's archives."""
    return [name for name in _visible(folder) if name.lower().endswith(ARCHIVE_SUFFIXES)]


def with_text_files(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Folders in ``root``, and the text files that are in none of them: lists of images or classes."""
    found = []
    for place, inner, names in os.walk(root):
        inside = Path(place).relative_to(root)
        inner[:] = [name for name in inner if not name.startswith(".") and name not in JUNK]
        inner[:] = [name for name in inner if (inside / name).as_posix() not in folders]
        found += [(inside / name).as_posix() for name in names if name.lower().endswith(".txt")]
    return (*folders, *sorted(found))


def unused_images(folder: str, unused: Sequence[str], lacking: str, remedy: str) -> list[Problem]:
    """A warning about images that have no annotations, if there are any.

    Args:
        folder: where they are, relative to the data set's folder.
        unused: their names.
        lacking: what they lack.
        remedy: how an image without objects is annotated.
    """
    if not unused:
        return []
    reason = (
        f"images without {lacking} are not used: {len(unused)}, such as {unused[0]!r}; images without objects are "
        f"useful for training too: {remedy}"
    )
    return [Problem(folder, reason, "images without annotations")]


def image_numbers(image_ids: Iterable[str]) -> dict[str, int]:
    """COCO's integer image ids, by image id.

    VOC's own names (``2007_000032``) give their digits (2007000032), independent of the other images. If any name has
    another form, all are numbered from 1 in sorted order.
    """
    names = sorted(image_ids)
    if all(re.fullmatch(r"[0-9]{4}_[0-9]{6}", name) for name in names):
        return {name: int(name.replace("_", "")) for name in names}
    return {name: number for number, name in enumerate(names, 1)}


def only_one(found: Sequence[Path]) -> Path:
    """The single root of a data set.

    Raises:
        DataError: there are several.
    """
    if len(found) > 1:
        raise several_data_sets(found)
    return found[0]


def several_data_sets(found: Sequence[Path]) -> DataError:
    """The error for a folder with more than one data set; lists what was found of each."""
    listing = "\n".join(f"  {path}" for path in found)
    ways = []
    apart = [path for path in found if not any(other.is_relative_to(path) for other in found if other != path)]
    if folder := next((path for path in reversed(apart) if not path.is_file()), None):
        ways.append(f"name the folder of one, such as data.source={folder} (unpack an archive first).")
    if file := next((path for path in found if path.suffix.lower() in (".json", ".xml") and path.is_file()), None):
        ways.append(f"choose one by its annotation file, as data.annotations=[{file.name}].")
    advice = " Or ".join([*ways, "move the others elsewhere."])
    return DataError(f"data.source has more than one data set:\n{listing}\n{advice[0].upper()}{advice[1:]}")
