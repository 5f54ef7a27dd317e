"""Find folders of images next to folders of masks, and which masks belong to which image.

Layouts: ``images/NAME.jpg`` with ``masks/NAME.png``, ``masks/NAME_mask.png``, ``masks/NAME_0.png`` or
``masks/NAME/*.png``; the same below ``train`` and ``val``; or a folder for each image, ``ID/images/ID.png`` with
``ID/masks/*.png``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from yolact.errors import DataError, SettingsError
from yolact.formats.dataset import Files, ReadOptions, unused_images, with_text_files
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.formats.mask_classes import MaskClasses, numbered_classes, read_class_lists
from yolact.formats.problems import Problem
from yolact.formats.split_names import folder_split
from yolact.formats.voc_files import find_file, stems, stems_below

IMAGE_FOLDERS = ("pngimages", "jpegimages", "images", "image", "imgs", "img")
"""Names of folders of images, in any letter case."""

PEDESTRIANS = "pedmasks"
"""Penn-Fudan's folder of masks, which number the objects."""

MASK_FOLDERS = (PEDESTRIANS, "masks", "mask", "instance_masks", "object_masks")
"""Names of folders of masks, in any letter case."""

TARGET = Path("masked-images")
"""Path of the files below ``data/raw``; not a name of a folder of masks."""

ONLY_CLASS = "object"
"""Name of the only class, if nothing names it."""


@dataclass(frozen=True)
class MaskedImages:
    """A folder of images and one of masks next to each other."""

    root: Path
    images: str
    """Name of the folder of images in ``root``."""
    masks: str
    masks_of: dict[str, tuple[str, ...]]
    """Masks by image, both relative to their folder and without suffix; an image without masks is left out."""
    lone_masks: tuple[str, ...]
    """Masks whose names fit no image."""
    for_each_object: bool
    """Whether each object has a mask of its own."""

    @property
    def marks_objects(self) -> bool:
        """Whether the folder's name says that the masks number objects."""
        return self.masks.casefold() == PEDESTRIANS


def masked_images(folders: Sequence[Path]) -> list[MaskedImages]:
    """All pairs of folders; masks for each object in one pair mean the same in all others."""
    pairs = []
    for folder in folders:
        names = {name.casefold(): name for name in sorted(os.listdir(folder))}
        images = next((names[name] for name in IMAGE_FOLDERS if name in names), None)
        masks = next((names[name] for name in MASK_FOLDERS if name in names), None)
        if images and masks and (pair := _pair(folder, images, masks)):
            pairs.append(pair)
    return [replace(pair, for_each_object=any(pair.for_each_object for pair in pairs)) for pair in pairs]


def _pair(folder: Path, images: str, masks: str) -> MaskedImages | None:
    known = set(stems_below(folder / images, *IMAGE_SUFFIXES))
    drawn = stems_below(folder / masks, ".png")
    if not known or not drawn:
        return None
    owners = {mask: _owner(mask, known) for mask in drawn}
    masks_of: dict[str, list[str]] = {}
    if len(known) == 1 and not all(owners.values()):
        masks_of = {next(iter(known)): drawn}  # a folder for each image
    else:
        for mask, owner in owners.items():
            if owner is not None:
                masks_of.setdefault(owner, []).append(mask)
    lone = [mask for mask, owner in owners.items() if owner is None] if len(known) > 1 else []
    in_folders = any(mask.startswith(f"{owner}/") for mask, owner in owners.items())
    single = len(known) == 1 and not all(owners.values())
    several = any(len(found) > 1 for found in masks_of.values())
    ordered = {name: tuple(found) for name, found in masks_of.items()}
    return MaskedImages(folder, images, masks, ordered, tuple(lone), several or in_folders or single)


def _owner(mask: str, images: set[str]) -> str | None:
    """The image whose name a mask's name begins with, up to a separator; the longest such name."""
    ends = [len(mask), *sorted((match.start() for match in re.finditer(r"[/_. -]", mask)), reverse=True)]
    return next((mask[:end] for end in ends if mask[:end] in images), None)


def class_masks(folders: Sequence[Path]) -> Path | None:
    """A folder with Roboflow's export "Semantic Segmentation Masks", which has no objects, if there is one."""
    for folder in folders:
        if (folder / "_classes.csv").is_file() and any(name.endswith("_mask") for name in stems(folder, ".png")):
            return folder
    return None


def common_root(pairs: Sequence[MaskedImages]) -> Path:
    """The innermost folder with all pairs."""
    return Path(os.path.commonpath([pair.root for pair in pairs]))


def mask_dataset_files(pairs: Sequence[MaskedImages]) -> list[Files]:
    """The folders of all pairs, and text files: lists of images or classes."""
    root = common_root(pairs)
    names = [(pair.root.relative_to(root) / name).as_posix() for pair in pairs for name in (pair.images, pair.masks)]
    return [Files(root, TARGET, with_text_files(root, names))]


def split_of_pair(pair: MaskedImages, root: Path) -> str:
    """Split by the folders between ``root`` and the pair; ``train`` if none indicates one."""
    return folder_split(f"{pair.root.relative_to(root).as_posix()}/_") or "train"


def image_name(pair: MaskedImages, root: Path, image: str) -> str:
    """An image's id in the data set: its path without the folder of images, and without repeating its own name."""
    inner = PurePosixPath(pair.root.relative_to(root).as_posix())
    return (inner if inner.name == image else inner / image).as_posix()


def image_file(pair: MaskedImages, root: Path, image: str) -> str:
    """Path of an image, relative to ``root``."""
    folder = (pair.root.relative_to(root) / pair.images).as_posix()
    return find_file(root, folder, image, IMAGE_SUFFIXES) or f"{folder}/{image}"


def mask_file(pair: MaskedImages, root: Path, mask: str) -> str:
    """Path of a mask, relative to ``root``."""
    folder = (pair.root.relative_to(root) / pair.masks).as_posix()
    return find_file(root, folder, mask, (".png",)) or f"{folder}/{mask}.png"


def unpaired(pairs: Sequence[MaskedImages], root: Path) -> tuple[dict[str, list[Problem]], list[Problem]]:
    """Problems of masks without an image, and warnings about images without masks."""
    problems: dict[str, list[Problem]] = {}
    warnings: list[Problem] = []
    for pair in pairs:
        for mask in pair.lone_masks:
            file = mask_file(pair, root, mask)
            reason = f"fits no image in {pair.images}: a mask's name begins with its image's; rename or remove it"
            problems[file] = [Problem(file, reason, "mask without an image")]
        names = stems_below(pair.root / pair.images, *IMAGE_SUFFIXES)
        unused = [name for name in names if name not in pair.masks_of]
        folder = (pair.root.relative_to(root) / pair.images).as_posix()
        warnings += unused_images(folder, unused, "masks", "give them black masks")
    return problems, warnings


def named_classes(root: Path, options: ReadOptions) -> MaskClasses | None:
    """The classes of the setting ``data.class_names`` or of a class list in ``root``, if any."""
    if options.class_names == "voc":
        raise SettingsError("data.class_names: voc is for class masks; these masks show objects. Name their classes.")
    if options.class_names is not None:
        return numbered_classes(options.class_names, "data.class_names")
    return read_class_lists(root)


def unnamed_class(root: Path) -> Problem:
    """The warning that the only class has no name."""
    reason = f"nothing names the class of the objects: it is called {ONLY_CLASS!r}; data.class_names=[NAME] names it"
    return Problem(root.name, reason, "class without a name")


def several_classes(root: Path, classes: MaskClasses) -> DataError:
    """The error for several classes of masks that number objects."""
    return DataError(
        f"{root}: {classes.origin} names {len(classes.names)} classes, but masks that number objects do not say which "
        "class an object has. Name one class, or export PASCAL VOC or COCO."
    )
