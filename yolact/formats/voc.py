"""The PASCAL VOC format: folders of images, masks and optional XML, and their conversion to instances."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.formats.dataset import (
    AnnotatedImage,
    Dataset,
    Files,
    ImageSource,
    ReadOptions,
    image_numbers,
    only_one,
    with_text_files,
)
from yolact.formats.image_files import IMAGE_SUFFIXES, image_warnings, read_image_file, size_problems
from yolact.formats.instances import Instance, instances_from_index_mask
from yolact.formats.mask_classes import (
    CLASS_LISTS,
    VOC_MASKS,
    MaskClasses,
    chosen_classes,
    read_class_lists,
)
from yolact.formats.mask_files import VOID, read_mask
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.split_names import split_of
from yolact.formats.voc_files import (
    IMAGES,
    SEGMENTATION_SETS,
    VocAnnotation,
    VocObject,
    find_image,
    find_part,
    image_lists,
    read_annotation,
    stems,
    stems_below,
    with_unlisted,
    without_annotations,
)
from yolact.limits import usable_cpus

NAME = "PASCAL VOC"

MASK_FOLDERS = ("SegmentationClass", "SegmentationObject")
NEEDED = (IMAGES, *MASK_FOLDERS)

OLD_MASK_FOLDERS = ("SegmentationClassPNG", "SegmentationObjectPNG")
"""Folders of masks that labelme2voc wrote until 2023; ``SegmentationClass`` then has NumPy files."""

FOUND_BY = f"the folders {', '.join(NEEDED)}"

INCLUDES: tuple[str, ...] = ()
READS = ("class_names",)

TARGET = Path("VOCdevkit") / "VOC2012"
"""Path of the files in VOC's own archive."""

LIST_FOLDERS = (SEGMENTATION_SETS, "ImageSets", "")
"""Folders that may have image lists; the first that has some is used."""

OWN_IMAGE_NAME = r"20(0[5-9]|1[0-2])_[0-9]{6}"
"""Names of VOC's own images: the year of the challenge, and a number."""

COMPARED_IMAGES = 60
"""Number of images whose XML and masks are compared to find out which class an index is. Our choice."""

SHOWN_INDICES = 8
"""Maximum number of indices that a message lists."""

AGREEING_SHARE = 0.5
"""Fraction of an index's objects that must have one name in the XML, and more, for the index to be that class; boxes of
objects that overlap may be taken for each other."""

MAX_FOREIGN_SHARE = 0.05
"""Maximum fraction of an object's pixels with another class than the majority; our choice: tolerates a slip at the
border, not a second object."""

BOX_MATCH_IOU = 0.5
"""Minimum IoU of an XML box and an instance to match (the devkit's threshold of a correct box)."""

BOX_CONFLICT_IOU = 0.8
"""IoU at which an XML box and an instance of different classes must be the same object; our choice."""

VOID_BAND = 5
"""Pixels by which an XML box may extend beyond the mask on each side: boxes enclose the void border, about five pixels
wide (Everingham et al., IJCV 2010), masks do not."""

log = logging.getLogger(__name__)


# The format


def find(folders: Sequence[Path]) -> list[Path]:
    """Find folders with VOC's masks, even if another part is missing; `files` and `read` report which."""
    names = (*MASK_FOLDERS, *OLD_MASK_FOLDERS)
    return [folder for folder in folders if any((folder / name).is_dir() for name in names)]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """The folders that `read` needs, and ``Annotations``, image lists and class lists if present."""
    targets = {Path(TARGET.parent, split): root for split, root in _folders_of_splits(found).items()}
    return [
        Files(root, target, with_text_files(root, (IMAGES, *_mask_folders(root), "Annotations", "ImageSets")))
        for target, root in (targets or {TARGET: _root(found)}).items()
    ]


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """Read the images of ``ImageSets/Segmentation/*.txt``; without lists, all with a mask of objects.

    Several folders are read if each has the name of a split, as of labelme2voc that was run for each.
    """
    if roots := _folders_of_splits(found):
        return _read_folders_of_splits(roots, options)
    root = _root(found)
    class_folder, object_folder = _mask_folders(root)
    known = {unicodedata.normalize("NFC", name) for name in stems_below(root / IMAGES, *IMAGE_SUFFIXES)}
    ids: dict[str, list[str]] = {}
    for place in LIST_FOLDERS:
        ids = ids or image_lists(
            root / place, lambda image_id: unicodedata.normalize("NFC", image_id) in known, options.own_splits
        )
    warnings: list[Problem] = []
    if "train" not in ids or options.lists:
        masked = stems_below(root / object_folder, ".png")
        if not masked:
            raise DataError(_no_masks(root, object_folder))
        if not ids and not options.lists:
            warnings += _unknown_lists(root)
            warnings += without_annotations(root / IMAGES, masked, f"a mask in {object_folder}")
        ids = with_unlisted(ids, masked, options)
    folder = VocFolder(root, class_folder, object_folder)
    classes, doubts = _classes(folder, [image_id for names in ids.values() for image_id in names], options)
    splits = {split: [VocImage(folder, classes, name) for name in names] for split, names in ids.items()}
    return voc_dataset(NAME, root, splits, [*warnings, *doubts], classes.names)


def _folders_of_splits(found: Sequence[Path]) -> dict[str, Path]:
    """Several folders by the splits that their names say; empty if there is one, or they name not each another."""
    if len(found) < 2:
        return {}
    above = os.path.commonpath(found)
    named = {split_of(f"{path.relative_to(above).as_posix()}/_"): path for path in found}
    if len(named) < len(found) or None in named or "train" not in named:
        return {}
    return {str(split): _root([root]) for split, root in named.items()}


def _read_folders_of_splits(roots: Mapping[str, Path], options: ReadOptions) -> Dataset:
    """Read a folder for each split, with all images that have a mask of objects.

    Raises:
        DataError: the folders have other classes, or an image of the same name.
    """
    above = Path(os.path.commonpath(list(roots.values())))
    splits: dict[str, list[VocImage]] = {}
    warnings: list[Problem] = []
    first: MaskClasses | None = None
    owners: dict[str, Path] = {}
    for split in (split for split in options.splits if split in roots):
        root = roots[split]
        class_folder, object_folder = _mask_folders(root)
        masked = stems_below(root / object_folder, ".png")
        if not masked:
            raise DataError(_no_masks(root, object_folder))
        warnings += without_annotations(root / IMAGES, masked, f"a mask in {object_folder}")
        classes, doubts = _classes(VocFolder(root, class_folder, object_folder), masked, options)
        warnings += doubts
        first = first or classes
        if classes.names != first.names:
            raise DataError(
                f"{root}: has the classes {', '.join(classes.names)}, but {roots['train']} {', '.join(first.names)}. "
                "Write the masks of all splits by one list of classes, or name them by data.class_names."
            )
        for name in masked:
            if owners.setdefault(name, root) != root:
                raise DataError(f"{root}: has an image {name!r}, as {owners[name]} has. Rename one and its masks.")
        folder = VocFolder(above, class_folder, object_folder, f"{root.relative_to(above).as_posix()}/")
        splits[split] = [VocImage(folder, classes, name) for name in masked]
    return voc_dataset(NAME, above, splits, warnings, first.names if first is not None else ())


def _root(found: Sequence[Path]) -> Path:
    root = only_one(found)
    if not (root / IMAGES).is_dir():
        raise DataError(f"{root} has no folder {IMAGES}, which PASCAL VOC needs for the images. Check data.source.")
    class_folder, object_folder = _mask_folders(root)
    if not (root / object_folder).is_dir():
        raise DataError(
            f"{root} has no folder {object_folder}, which PASCAL VOC needs: {class_folder} alone does not say where "
            "one object ends and the next begins. Export instance segmentation, or COCO."
        )
    if not (root / class_folder).is_dir():
        raise DataError(
            f"{root} has no folder {class_folder}, which PASCAL VOC needs: {object_folder} does not say which class "
            "an object has. Check data.source."
        )
    return root


def _mask_folders(root: Path) -> tuple[str, str]:
    """Names of the folders of class masks and object masks: VOC's, or those of older versions of labelme2voc."""
    class_folder, object_folder = (
        old if (root / old).is_dir() and not stems_below(root / new, ".png") else new
        for new, old in zip(MASK_FOLDERS, OLD_MASK_FOLDERS, strict=True)
    )
    return class_folder, object_folder


def _no_masks(root: Path, folder: str) -> str:
    if stems(root / folder, ".npy"):
        return (
            f"{root / folder}: has *.npy, but no *.png. These arrays are labelme2voc's second form of the masks; copy "
            f"its PNG files too ({folder} or {folder}PNG), or run it again."
        )
    return f"{root / folder}: has no *.png. Each image needs a mask there and one in SegmentationClass."


def _unknown_lists(root: Path) -> list[Problem]:
    """A warning about image lists whose names indicate no split."""
    lists = sorted(name for name in os.listdir(root / SEGMENTATION_SETS)) if (root / SEGMENTATION_SETS).is_dir() else []
    lists = [name for name in lists if name.casefold().endswith(".txt") and not name.startswith(".")]
    if not lists:
        return []
    reason = f"its lists ({', '.join(lists[:3])}) are not used; name them train.txt and val.txt to choose the split"
    return [Problem(SEGMENTATION_SETS, reason, "unused image lists")]


def voc_dataset(
    name: str,
    root: Path,
    splits: Mapping[str, Sequence[ImageSource]],
    warnings: Sequence[Problem],
    classes: Sequence[str] = VOC_CLASSES,
) -> Dataset:
    """A data set with classes numbered from 1, by default VOC's, and VOC's image numbers."""
    ids = {source.image_id for sources in splits.values() for source in sources}
    return Dataset(name, str(root), dict(enumerate(classes, 1)), splits, {}, image_numbers(ids), warnings=warnings)


# Classes


@dataclass(frozen=True)
class VocFolder:
    """A VOC folder."""

    root: Path
    class_folder: str = MASK_FOLDERS[0]
    object_folder: str = MASK_FOLDERS[1]
    part: str = ""
    """Where its folders are below ``root``, with ``/`` at the end."""

    def image_file(self, image_id: str) -> str:
        """Path of an image, relative to ``root``; raises `ProblemError` if there is none."""
        return find_image(self.root, self.part + IMAGES, image_id)

    def class_file(self, image_id: str) -> str:
        """Path of an image's class mask, relative to ``root``."""
        return find_part(self.root, self.part + self.class_folder, image_id, ".png")

    def object_file(self, image_id: str) -> str:
        """Path of an image's mask of objects, relative to ``root``."""
        return find_part(self.root, self.part + self.object_folder, image_id, ".png")

    def xml_file(self, image_id: str) -> str:
        """Path of an image's XML, relative to ``root``."""
        return find_part(self.root, f"{self.part}Annotations", image_id, ".xml")


def _classes(folder: VocFolder, image_ids: Sequence[str], options: ReadOptions) -> tuple[MaskClasses, list[Problem]]:
    """The classes of the masks' indices, and warnings about what is not certain of them.

    They come from ``data.class_names``, a class list, the names in the XML, or VOC's own image names, in this order.

    Raises:
        DataError: none of these says which classes the indices are.
    """
    listed = read_class_lists(folder.root)
    if options.class_names is not None:
        return _with_usage(folder, image_ids, chosen_classes(options.class_names, listed))
    if listed is not None:
        return _with_usage(folder, image_ids, listed)
    votes = _votes(folder, _some(folder, image_ids))
    as_voc = sum(names[VOC_MASKS.name(index)] for index, names in votes.items())
    if as_voc > AGREEING_SHARE * sum(names.total() for names in votes.values()):
        return VOC_MASKS, []
    if votes:
        return _classes_by_xml(folder, _votes(folder, image_ids))
    used = {} if all(re.fullmatch(OWN_IMAGE_NAME, name) for name in image_ids) else _used(folder, image_ids)
    if used:
        raise DataError(_no_names(folder, used))
    return VOC_MASKS, []


def _with_usage(folder: VocFolder, image_ids: Sequence[str], classes: MaskClasses) -> tuple[MaskClasses, list[Problem]]:
    """Classes from a list, corrected by the indices that the masks use where the list alone is not certain."""
    log.info("%s: classes by %s: %s", folder.root, classes.origin, ", ".join(classes.names))
    number = len(classes.names)
    own_order = set(classes.names) <= set(VOC_CLASSES) and classes.names != VOC_CLASSES[:number]
    if classes.has_background and not own_order and number > 1:
        return classes, []
    used = _used(folder, image_ids, classes)
    highest = max((index for index in used if index != VOID), default=0)
    reason = kind = ""
    if own_order and highest > number:
        indices = tuple(VOC_CLASSES.index(name) + 1 for name in classes.names)
        if used.keys() - {VOID} <= set(indices):
            classes = replace(classes, indices=indices)
            reason = (
                f"names classes of VOC, and the masks use VOC's indices of them ({_listed(indices)}): these are taken"
            )
            kind = "VOC's indices with a list of classes"
    elif number == 1 and used and not highest:
        classes = replace(classes, void_is_class=True)
        reason = f"names one class, and the class masks have only 0 and {VOID}: {VOID} is taken as {classes.names[0]!r}"
        kind = "255 taken as the only class"
    elif not classes.has_background and highest and not classes.colours:
        reason = (
            f"does not begin with the background, so its names are the indices 1 to {number}: 1 is {classes.names[0]!r}"
        )
        if highest < number:
            reason += (
                f". But no mask has the index {number} ({classes.names[-1]!r}): if {classes.names[0]!r} is the "
                f"background, set data.class_names to the other names: [{', '.join(classes.names[1:])}]"
            )
        kind = "class list without background"
    if not reason:
        return classes, []
    return classes, [Problem(classes.origin, reason, kind)]


def _used(folder: VocFolder, image_ids: Sequence[str], classes: MaskClasses = VOC_MASKS) -> Counter[int]:
    """Number of images by index in the class masks, without 0; masks that cannot be read are skipped."""

    def indices(image_id: str) -> list[int]:
        try:
            mask = read_mask(folder.root, folder.class_file(image_id), classes.colours, classes.coloured_in)
        except ProblemError:
            return []  # reported when the image is read
        return np.flatnonzero(np.bincount(mask.ravel(), minlength=1)[1:]).tolist()

    counts: Counter[int] = Counter()
    with ThreadPoolExecutor(usable_cpus()) as threads:  # decoders release Python's lock
        for found in threads.map(indices, image_ids):
            counts.update(number + 1 for number in found)
    return counts


def _no_names(folder: VocFolder, used: Mapping[int, int]) -> str:
    """The error for class masks whose indices have no names."""
    root, lists = folder.root, "class_names.txt"
    indices = sorted(index for index in used if index != VOID)
    if not indices:
        return (
            f"{root}: the masks in {folder.class_folder} have only 0 and {VOID}, and {VOID} is void in PASCAL VOC: a "
            f"border that belongs to no class. If {VOID} is your only class, write its name into {lists} next to "
            f"{folder.class_folder}, or set data.class_names=[NAME]; and number the objects in "
            f"{folder.object_folder} 1, 2, … in each image, since objects of one value cannot be told apart."
        )
    shown = _listed(indices[:SHOWN_INDICES]) + (", …" if len(indices) > SHOWN_INDICES else "")
    names = ", ".join(f"NAME{index}" for index in range(1, min(max(indices), 3) + 1))
    more = ", …" if max(indices) > 3 else ""
    return (
        f"{root}: the masks in {folder.class_folder} have the indices {shown}, but nothing says which classes these "
        f"are: there is none of {', '.join(CLASS_LISTS)}, and no XML in Annotations that fits the masks. Either write "
        f"the names into {lists} next to {folder.class_folder}, one per line: _background_, then those of the indices "
        f"1, 2, …; or set data.class_names=[{names}{more}] in params.yaml; or data.class_names=voc if the indices are "
        f"those of VOC's 20 classes ({VOC_CLASSES[0]}, {VOC_CLASSES[1]}, …)."
    )


def _some(folder: VocFolder, image_ids: Sequence[str]) -> list[str]:
    """Up to `COMPARED_IMAGES` evenly spaced images that have an XML."""
    if not (folder.root / "Annotations").is_dir():
        return []
    names = {unicodedata.normalize("NFC", name) for name in stems_below(folder.root / "Annotations", ".xml")}
    with_xml = [name for name in image_ids if unicodedata.normalize("NFC", name) in names]
    places = np.linspace(0, len(with_xml) - 1, min(len(with_xml), COMPARED_IMAGES)).round().astype(int)
    return [with_xml[place] for place in places]


def _votes(folder: VocFolder, image_ids: Sequence[str]) -> dict[int, Counter[str]]:
    """For each index in the class masks, the names of the XML objects whose boxes match its objects."""

    def pairs(image_id: str) -> list[tuple[int, str]]:
        try:
            annotation = read_annotation(folder.root, folder.xml_file(image_id))
            if annotation is None or not annotation.objects:
                return []
            object_mask = read_mask(folder.root, folder.object_file(image_id))
            class_mask = read_mask(folder.root, folder.class_file(image_id))
        except ProblemError:
            return []  # reported when the image is read
        if object_mask.shape != class_mask.shape:
            return []
        owners = object_classes(joint_histogram(object_mask, class_mask), range(1, VOID))
        instances = instances_from_index_mask(object_mask, owners)
        matched = _greedy_pairs(_box_overlaps(instances, annotation.objects), BOX_MATCH_IOU)
        return [(instances[row].class_index, annotation.objects[column].name) for row, column in matched.items()]

    votes: dict[int, Counter[str]] = {}
    with ThreadPoolExecutor(usable_cpus()) as threads:
        for found in threads.map(pairs, image_ids):
            for index, name in found:
                votes.setdefault(index, Counter())[name] += 1
    return dict(sorted(votes.items()))


def _winner(names: Counter[str]) -> str | None:
    """The name of most of an index's objects, if there is one."""
    name, count = names.most_common(1)[0]
    return name if count > AGREEING_SHARE * names.total() else None


def _classes_by_xml(folder: VocFolder, votes: Mapping[int, Counter[str]]) -> tuple[MaskClasses, list[Problem]]:
    """Classes whose indices follow from the XML.

    Raises:
        DataError: the XML gives an index several names, or several indices one name.
    """
    winners = {index: _winner(names) for index, names in votes.items()}
    names = list(winners.values())
    if None in names or len(set(names)) < len(names):
        shown = "; ".join(
            f"index {index}: {', '.join(f'{name} ({count})' for name, count in found.most_common(3))}"
            for index, found in list(votes.items())[:SHOWN_INDICES]
        )
        raise DataError(
            f"{folder.root}: the XML in Annotations and the indices in {folder.class_folder} contradict each other: "
            f"{shown}. Correct them, or name the classes by their indices: data.class_names=[NAME1, NAME2, …], or "
            "data.class_names=voc for VOC's own."
        )
    classes = MaskClasses(tuple(str(name) for name in names), tuple(winners), origin="Annotations")
    listing = ", ".join(f"{index} is {name}" for index, name in zip(classes.indices, classes.names, strict=True))
    reason = f"the classes of the masks' indices follow from the names in the XML: {listing}"
    return classes, [Problem("Annotations", reason, "classes by the names in the XML")]


# Images


@dataclass(frozen=True)
class VocImage:
    """An image of a VOC folder; an `ImageSource`."""

    folder: VocFolder
    classes: MaskClasses
    image_id: str

    def read(self) -> AnnotatedImage:
        """See `read_voc_image`."""
        return read_voc_image(self.folder, self.image_id, self.classes)


def read_voc_image(folder: VocFolder, image_id: str, classes: MaskClasses = VOC_MASKS) -> AnnotatedImage:
    """Read one image's size, masks and XML and turn them into instances.

    The image is decoded in full, which detects damage. Instances come from SegmentationObject, classes from
    SegmentationClass; the XML is optional: it provides flags and is checked against the masks. An object whose class
    is not clear is dropped.

    Raises:
        ProblemError: with all problems of the image's files.
    """
    root, problems = folder.root, list[Problem]()
    image = keep_problems(problems, lambda: read_image_file(root, folder.image_file(image_id)))
    object_file, class_file, xml_file = (
        find(image_id) for find in (folder.object_file, folder.class_file, folder.xml_file)
    )
    object_mask = keep_problems(problems, lambda: read_mask(root, object_file, named_in=""))
    class_mask = keep_problems(problems, lambda: read_mask(root, class_file, classes.colours, classes.coloured_in))
    annotation = keep_problems(problems, lambda: read_annotation(root, xml_file))
    if image is not None:
        masks = {object_file: object_mask, class_file: class_mask}
        problems += size_problems(image, {file: mask for file, mask in masks.items() if mask is not None})
    if image is None or object_mask is None or class_mask is None or problems:
        raise ProblemError(problems)

    if classes.void_is_class:
        class_mask = np.where(class_mask == VOID, classes.indices[0], 0).astype(np.uint8)
    joint = joint_histogram(object_mask, class_mask)
    problems += mask_problems(joint, object_file, class_file, classes)
    if problems:
        raise ProblemError(problems)
    owners = object_classes(joint, classes.indices)
    dropped = [*object_problems(joint, owners, object_file, classes), *_orphan_problems(joint, class_file, classes)]
    unclear = _unclear(joint, owners)
    kept = {number: classes.class_index(index) for number, index in owners.items() if number not in unclear}
    instances = instances_from_index_mask(object_mask, kept)
    height, width = object_mask.shape
    warnings = [
        *image_warnings(image),
        *_unowned_warnings(joint, class_file, classes),
    ]
    if annotation is not None:
        instances, differences, conflicts = match_objects(instances, annotation, xml_file, classes)
        warnings += _size_warning(annotation, (width, height), xml_file) + differences
        dropped += conflicts
    has_xml = annotation is not None
    return AnnotatedImage(
        image_id,
        image,
        width,
        height,
        tuple(instances),
        tuple(warnings),
        tuple(dropped),
        has_xml=has_xml,
        upright=False if re.fullmatch(OWN_IMAGE_NAME, image_id) else None,  # VOC's tools show images as stored
    )


def joint_histogram(object_mask: np.ndarray, class_mask: np.ndarray) -> np.ndarray:
    """Pixels by object index and class index.

    Args:
        object_mask: (H, W) uint8.
        class_mask: (H, W) uint8.

    Returns:
        (256, 256) int64; row: object index, column: class index.
    """
    pairs = ((object_mask.astype(np.uint16) << 8) | class_mask).ravel()
    # Count runs of equal pixels: there are a hundred times fewer of them.
    starts = np.concatenate(([0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1))
    lengths = np.diff(starts, append=pairs.size)
    counts = np.bincount(pairs[starts], weights=lengths, minlength=1 << 16)
    return counts.astype(np.int64).reshape(256, 256)


def object_classes(joint: np.ndarray, indices: Iterable[int]) -> dict[int, int]:
    """Class index in the masks of each object that has pixels of one: the most frequent; ties go to the lowest.

    Args:
        joint: the result of `joint_histogram`.
        indices: the classes' indices in the masks.
    """
    columns = np.array(sorted(indices))
    by_class = joint[1:VOID, columns]  # (254, C)
    present = np.flatnonzero(by_class.any(axis=1))
    return {int(row) + 1: int(columns[by_class[row].argmax()]) for row in present}


def mask_problems(joint: np.ndarray, object_file: str, class_file: str, classes: MaskClasses) -> list[Problem]:
    """Problems of an image's two masks as a whole; ``joint`` is the result of `joint_histogram`."""
    used = np.flatnonzero(joint.any(axis=0))
    foreign = [index for index in used.tolist() if index not in (0, VOID, *classes.indices)]
    if foreign:
        last = f"1 to {len(classes.names)}" if max(classes.indices) == len(classes.names) else _listed(classes.indices)
        reason = (
            f"has class index {_listed(foreign)}, but there are only 0 (background), {last} and {VOID} (void) "
            f"by {classes.origin}; correct these pixels, or name all classes in class_names.txt or data.class_names"
        )
        return [Problem(class_file, reason, "class index without a name")]
    numbers = np.flatnonzero(joint.any(axis=1)).tolist()
    if set(numbers) == {0, VOID} and not classes.void_is_class and set(used.tolist()) == {0, VOID}:
        reason = (
            f"marks {int(joint[VOID].sum())} pixels as {VOID}, which is void in PASCAL VOC, and no object; number the "
            "objects 1, 2, … there, and write the index of their class into SegmentationClass"
        )
        return [Problem(object_file, reason, "masks of 0 and 255 only")]
    if classes.void_is_class and VOID in numbers and not set(numbers) - {0, VOID}:
        reason = f"has only 0 and {VOID}, so objects cannot be told apart; number them 1, 2, … in each image"
        return [Problem(object_file, reason, "masks of 0 and 255 only")]
    return []


def object_problems(
    joint: np.ndarray, owners: Mapping[int, int], object_file: str, classes: MaskClasses
) -> list[Problem]:
    """Problems of objects whose class is not clear.

    Args:
        joint: the result of `joint_histogram`.
        owners: the result of `object_classes`.
        object_file: the mask of objects.
        classes: the classes of the class mask.
    """
    problems = []
    for index in (int(row) for row in np.flatnonzero(joint.any(axis=1)) if 0 < row < VOID):
        if index not in owners:
            reason = (
                f"object {index} ({int(joint[index].sum())} pixels) has no class: SegmentationClass has only 0 "
                f"(background) or {VOID} (void) there; draw its class there, or set the object's pixels to 0 or {VOID}"
            )
            problems.append(Problem(object_file, reason, "object without class"))
    for index, share in _unclear(joint, owners).items():
        others = [c for c in np.flatnonzero(joint[index]).tolist() if c not in (owners[index], VOID)]
        reason = (
            f"object {index} is mostly {classes.name(owners[index])}, but {share:.0%} of it is "
            f"{', '.join(classes.name(c) for c in others)} in SegmentationClass; give each object one class, "
            "or split it into several objects"
        )
        problems.append(Problem(object_file, reason, "object with several classes"))
    return problems


def _unclear(joint: np.ndarray, owners: Mapping[int, int]) -> dict[int, float]:
    """Fraction of pixels with another class than the object's own, of objects where it is too large."""
    shares = {}
    for index, own in owners.items():
        decided = int(joint[index].sum() - joint[index, VOID])
        share = 1 - int(joint[index, own]) / decided
        if share > MAX_FOREIGN_SHARE:
            shares[index] = share
    return shares


def _orphan_problems(joint: np.ndarray, class_file: str, classes: MaskClasses) -> list[Problem]:
    """Problems of classes with pixels but without an object in the image: their objects are lost."""
    drawn = set(np.flatnonzero(joint.any(axis=0)).tolist()) - {0, VOID}
    owned = set(np.flatnonzero(joint[1:VOID].any(axis=0)).tolist())
    return [
        Problem(
            class_file,
            f"shows {classes.name(index)} on {joint[:, index].sum()} pixels, but SegmentationObject has no object "
            f"there; draw the object, or set these pixels to 0 (background) or {VOID} (void)",
            "class without an object",
        )
        for index in sorted(drawn - owned)
    ]


def _unowned_warnings(joint: np.ndarray, class_file: str, classes: MaskClasses) -> list[Problem]:
    """Warnings about classes with a significant part outside all objects, but not all of it."""
    warnings = []
    for index in classes.indices:
        total, outside = int(joint[:, index].sum()), int(joint[0, index] + joint[VOID, index])
        if total > outside and outside / total > MAX_FOREIGN_SHARE:
            reason = f"{outside} of {total} pixels of {classes.name(index)} belong to no object and are ignored"
            warnings.append(Problem(class_file, reason, "class pixels outside objects"))
    return warnings


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(int(value)) for value in values)


def match_objects(
    instances: Sequence[Instance], annotation: VocAnnotation, file: str, classes: MaskClasses
) -> tuple[list[Instance], list[Problem], list[Problem]]:
    """Give each instance the flags of its XML object: the same class, highest IoU first, at least `BOX_MATCH_IOU`.

    Returns:
        The instances without those to which masks and XML give two classes (`BOX_CONFLICT_IOU`); a warning for each
        unmatched instance or XML object; and a problem for each instance left out.
    """
    objects = annotation.objects
    iou = _box_overlaps(instances, objects)
    names = [classes.names[instance.class_index - 1] for instance in instances]
    same_class = np.array([[name == item.name for item in objects] for name in names], dtype=bool).reshape(iou.shape)
    pairs = _greedy_pairs(np.where(same_class, iou, 0.0), BOX_MATCH_IOU)
    matched = list(instances)
    for row, column in pairs.items():
        item = objects[column]
        matched[row] = replace(instances[row], difficult=item.difficult, truncated=item.truncated)
    lone_rows = [row for row in range(len(instances)) if row not in pairs]
    lone_columns = [column for column in range(len(objects)) if column not in pairs.values()]
    conflicts = {row: column for row in lone_rows for column in lone_columns if iou[row, column] >= BOX_CONFLICT_IOU}
    problems = [
        Problem(
            file,
            f"object {column + 1} is {objects[column].name}, but the masks show {names[row]} there "
            f"(object index {instances[row].number}); correct the XML or SegmentationClass",
            "object with another class in the XML",
        )
        for row, column in conflicts.items()
    ]
    warnings = []
    for row in lone_rows:
        if row not in conflicts:
            reason = f"no box matches the mask of object index {instances[row].number} ({names[row]})"
            reason += "; the instance is kept, without the flags difficult and truncated"
            warnings.append(Problem(file, reason, "mask without a box in the XML"))
    for column in lone_columns:
        if column not in conflicts.values():
            reason = f"object {column + 1} ({_stated_class(objects[column], classes)}) matches no mask and is ignored"
            warnings.append(Problem(file, reason, "box in the XML without a mask"))
    return [item for row, item in enumerate(matched) if row not in conflicts], warnings, problems


def _stated_class(item: VocObject, classes: MaskClasses) -> str:
    return item.name if item.name in classes.names else f"{item.name!r}, which is no class of {classes.origin}"


def _box_overlaps(instances: Sequence[Instance], objects: Sequence[VocObject]) -> np.ndarray:
    """(I, J) IoU of instances and XML boxes, see `_void_tolerant_iou`."""
    return _void_tolerant_iou(
        np.array([instance.box for instance in instances], dtype=np.float64).reshape(-1, 4),
        np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
    )


def _void_tolerant_iou(mask_boxes: np.ndarray, xml_boxes: np.ndarray) -> np.ndarray:
    """IoU after growing each mask box towards the XML box, by up to `VOID_BAND` pixels per side.

    Args:
        mask_boxes: (I, 4) xywh, pixels.
        xml_boxes: (J, 4) xyxy, pixels.

    Returns:
        (I, J) float64, 0 to 1.
    """
    low = mask_boxes[:, None, :2]  # (I, 1, 2)
    high = low + mask_boxes[:, None, 2:]
    xml_low, xml_high = xml_boxes[None, :, :2], xml_boxes[None, :, 2:]  # (1, J, 2)
    low = low - np.clip(low - xml_low, 0, VOID_BAND)  # (I, J, 2)
    high = high + np.clip(xml_high - high, 0, VOID_BAND)
    overlap = np.clip(np.minimum(high, xml_high) - np.maximum(low, xml_low), 0, None).prod(axis=2)
    union = (high - low).prod(axis=2) + (xml_high - xml_low).prod(axis=2) - overlap
    return np.asarray(overlap / union)


def _greedy_pairs(iou: np.ndarray, least: float) -> dict[int, int]:
    """Greedy matching, column by row: highest IoU first, at least ``least``; ties go to the lower index."""
    pairs: dict[int, int] = {}
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(flat), iou.shape[1])
        if iou[row, column] < least:
            break
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    return pairs


def _size_warning(annotation: VocAnnotation, size: tuple[int, int], file: str) -> list[Problem]:
    if annotation.size is None or annotation.size == size:
        return []
    width, height = annotation.size
    reason = f"states the size {width} x {height}, but the image is {size[0]} x {size[1]}; its boxes may not fit"
    return [Problem(file, reason, "XML of another image size")]
