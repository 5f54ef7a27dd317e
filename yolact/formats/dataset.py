"""An annotated data set as every format is read: its images with their objects, its splits and its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yolact.errors import DataError
from yolact.formats.image_files import ImageFile
from yolact.formats.instances import Instance
from yolact.formats.problems import Problem


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its objects, in the frame that their masks were drawn in."""

    image_id: str
    image: ImageFile
    width: int
    """Pixels of the masks' frame: the image as stored, or turned upright."""
    height: int
    instances: tuple[Instance, ...]
    warnings: tuple[Problem, ...]
    """Oddities that do not keep the image from being used."""
    has_xml: bool | None = None
    """Whether there was an annotation XML; None in formats that have none."""

    @property
    def drawn_upright(self) -> bool:
        """Whether the masks' frame is the upright image. Where the sizes do not tell, it is the image as stored."""
        return (self.width, self.height) != self.image.stored_size


class ImageSource(Protocol):
    """Where one annotated image is; small enough to send to another process."""

    @property
    def image_id(self) -> str:
        """Its name, unique in the data set."""

    def read(self) -> AnnotatedImage:
        """Read the image and its objects; raises `ProblemError` with all that is wrong with their files."""


@dataclass(frozen=True)
class Dataset:
    """An annotated data set; its images are listed, not read."""

    format: str
    """Name of its format, such as ``PASCAL VOC``."""
    root: str
    """Folder that problems' files are relative to."""
    classes: Mapping[int, str]
    """Name by category id, in the order of the ids; instances count them from 1 in that order."""
    splits: Mapping[str, Sequence[ImageSource]]
    """``train`` and ``val``; only ``train`` where the source does not say which images to validate on."""
    problems: Mapping[str, Sequence[Problem]]
    """Problems that leave no image to read, by an id that stands for it."""
    image_ids: Mapping[str, int]
    """The number of each image in COCO files, by image id."""
    orphans: Sequence[Problem] = ()
    """Annotations that belong to no image, so that nobody can say which image lacks them."""
    warnings: Sequence[Problem] = ()
    """Oddities of no single image."""


@dataclass(frozen=True)
class Files:
    """Files of a data set that keep their places relative to each other when they are brought elsewhere."""

    origin: Path
    target: Path
    """Relative to the folder that they are brought to."""
    names: tuple[str, ...]
    """Files and folders of ``origin``; those that are not there are left out."""


def only_one(found: Sequence[Path]) -> Path:
    """The single root of a data set.

    Raises:
        DataError: there are several.
    """
    if len(found) > 1:
        raise several_data_sets(found)
    return found[0]


def several_data_sets(found: Sequence[Path]) -> DataError:
    """The error of a folder with more than one data set, which lists what was found of each."""
    listing = "\n".join(f"  {path}" for path in found)
    return DataError(
        f"data.source names more than one data set:\n{listing}\nName the folder of one, or move the others elsewhere."
    )
