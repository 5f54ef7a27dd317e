"""Read the files of the PASCAL VOC 2012 devkit: image lists, masks and XML. Semantic Boundaries has the same lists."""

from __future__ import annotations

import difflib
import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException
from PIL import Image

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.formats.image_files import IMAGE_SUFFIXES, load_image, open_image, read_bytes, stored_form
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.palette import voc_palette

VOID = 255
"""Index of the border around objects in SegmentationClass and SegmentationObject, which belongs to no class."""

log = logging.getLogger(__name__)

SEGMENTATION_SETS = "ImageSets/Segmentation"

MAX_COORDINATE = 1_000_000
"""Pixels; an XML box with a larger coordinate is a mistake (and its area might overflow)."""


@dataclass(frozen=True)
class VocObject:
    """One ``<object>`` of an annotation XML."""

    class_index: int
    """1 to 20."""
    box: tuple[float, float, float, float]
    """xyxy, pixels from 0, right and lower edge exclusive."""
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class VocAnnotation:
    """The used parts of an annotation XML."""

    size: tuple[int, int] | None
    """Width and height stated in the XML, if any."""
    objects: tuple[VocObject, ...]


def image_lists(folder: Path, has_image: Callable[[str], bool]) -> dict[str, list[str]]:
    """Image ids by split, from ``train.txt`` and ``val.txt``, or else ``trainval.txt``; empty without lists.

    Args:
        folder: folder of the lists.
        has_image: whether an id has an image.

    Raises:
        DataError: see `read_image_list`.
    """
    if (folder / "val.txt").is_file() or (folder / "train.txt").is_file():
        names = [name for name in ("train", "val") if name == "train" or (folder / "val.txt").is_file()]
        return {name: read_image_list(folder / f"{name}.txt", name, has_image) for name in names}
    if (folder / "trainval.txt").is_file():
        return {"train": read_image_list(folder / "trainval.txt", "train", has_image)}
    return {}


def read_image_list(path: Path, split: str, has_image: Callable[[str], bool]) -> list[str]:
    """Read a split's image ids, one per line, in the file's order and Unicode's composed form (NFC).

    Args:
        path: the file.
        split: name of the split, for messages.
        has_image: whether an id has an image; distinguishes a class list from ids that end in a number.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a line is repeated or not an id.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. It lists the images of split {split!r}, one id per line.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error.reason}). Save it as UTF-8.") from None
    text = unicodedata.normalize("NFC", text)  # one form, so no image is listed twice
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    if not lines:
        raise DataError(f"{path}: empty. It must list the images of split {split!r}, one id per line.")
    if _is_class_list(list(lines.values()), has_image):
        example = next(iter(lines.values()))
        raise DataError(
            f"{path}: every line ends in a column of -1, 0 or 1, such as {example!r}: this is a class list of "
            "ImageSets/Main. Keep only the first column: one id per line."
        )
    first_seen: dict[str, int] = {}
    for number, line in lines.items():
        fault = _id_fault(line)
        if fault:
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} {fault}. Write one id per line, such as 2007_000032."
            )
        if line in first_seen:
            raise DataError(f"{path}, line {number}: {line!r} is already on line {first_seen[line]}. Remove one.")
        first_seen[line] = number
    return list(first_seen)


def _is_class_list(lines: Sequence[str], has_image: Callable[[str], bool]) -> bool:
    """Whether all lines end in a class list's column, and the text before it, not the whole line, names images."""
    if not all(re.fullmatch(r"\S.*\s(-1|0|1)", line) for line in lines):
        return False
    return any(has_image(line.rsplit(maxsplit=1)[0]) for line in lines) and not any(has_image(line) for line in lines)


def _id_fault(line: str) -> str | None:
    """Why a line of a split file is not an image id; None if it is one."""
    if "/" in line or "\\" in line or line in (".", ".."):
        return "is a path, not an id"
    if line.lower().endswith(IMAGE_SUFFIXES):
        return "has a file suffix, but an id has none"
    if not line.isprintable():
        return "contains a tab or another control character"
    return None


def stems(folder: Path, *suffixes: str) -> list[str]:
    """Sorted names, without suffix, of a folder's files with one of the suffixes, in any case."""
    if not folder.is_dir():
        return []
    names = (os.path.splitext(name) for name in os.listdir(folder) if not name.startswith("."))
    return sorted({stem for stem, suffix in names if suffix.lower() in suffixes})


def unused_images(folder: Path, used: Sequence[str], lacking: str) -> list[Problem]:
    """A warning about a folder's images without annotations, for data sets without image lists."""
    known = {unicodedata.normalize("NFC", name) for name in used}
    unused = [name for name in stems(folder, *IMAGE_SUFFIXES) if unicodedata.normalize("NFC", name) not in known]
    if not unused:
        return []
    reason = (
        f"images without {lacking} are not used: {len(unused)}, such as {unused[0]!r}; images without objects are "
        "useful for training too: give them empty annotations"
    )
    log.warning("%s: %s", folder, reason)
    return [Problem(folder.name, reason)]


def has_image(root: Path, folder: str, image_id: str) -> bool:
    """Whether `find_image` finds one."""
    return find_file(root, folder, image_id, IMAGE_SUFFIXES) is not None


def find_file(root: Path, folder: str, stem: str, suffixes: Sequence[str]) -> str | None:
    """Find a file in ``root/folder`` by its name without suffix; return its path relative to ``root``, or None.

    The name may be in another Unicode form, see `stored_form`.

    Args:
        root: the data set's folder.
        folder: the folder in it.
        stem: name without suffix.
        suffixes: with dot, in lower case; the first that exists, in any case, is used.
    """
    for suffix in suffixes:
        for letters in itertools.product(*((letter, letter.upper()) for letter in suffix[1:])):
            name = stored_form(root / folder, f"{stem}.{''.join(letters)}")
            if name is not None:
                return f"{folder}/{name}"
    return None


def find_part(root: Path, folder: str, image_id: str, suffix: str) -> str:
    """Path of an id's mask or XML in ``root/folder``, with the suffix in any case; the usual path if it is missing."""
    return find_file(root, folder, image_id, (suffix,)) or f"{folder}/{image_id}{suffix}"


def find_image(root: Path, folder: str, image_id: str) -> str:
    """Path of an id's image in ``root/folder``, relative to ``root``: the first of `IMAGE_SUFFIXES`, in any case.

    Raises:
        ProblemError: there is none.
    """
    file = find_file(root, folder, image_id, IMAGE_SUFFIXES)
    if file is not None:
        return file
    reason = f"no such image (nor {', '.join(IMAGE_SUFFIXES[1:])}); add it, or remove the id from the split file"
    raise ProblemError([Problem(f"{folder}/{image_id}.jpg", reason)])


def read_mask(root: Path, file: str) -> np.ndarray:
    """Read a mask PNG of 8-bit indices, with a palette or in grey.

    Returns:
        (H, W) uint8 indices.

    Raises:
        ProblemError: the file is missing or damaged, or has colours or renumbered indices.
    """
    data = read_bytes(root, file, "each image needs its mask; draw it, or remove the id from the split file")
    image = open_image(data, file, ("PNG",))
    # Bit depth and colour type from the PNG's header chunk IHDR (PNG specification, section 11.2.2):
    # Pillow scales grey of fewer bits to 0 to 255 and reports it as 8-bit.
    depth, colour_type = data[24], data[25]
    if not (colour_type == 3 or (colour_type == 0 and depth == 8)):
        kind = f"{depth}-bit grey" if colour_type == 0 else f"a colour image or has transparency ({image.mode})"
        reason = (
            f"is {kind}, but a mask has one 8-bit index per pixel; convert each colour to its index and save "
            "the PNG as 8-bit palette (Pillow mode P) or 8-bit grey (mode L)"
        )
        raise ProblemError([Problem(file, reason)])
    load_image(image, file)
    mask = np.asarray(image)
    if image.mode == "P" and _is_renumbered(image, mask):
        reason = (
            "has VOC's colours under other indices, as an editor does that rebuilds the palette; "
            "save it with VOC's own palette of 256 colours, which restores the indices"
        )
        raise ProblemError([Problem(file, reason)])
    return mask


def _is_renumbered(image: Image.Image, mask: np.ndarray) -> bool:
    """Whether all used colours of a palette image are VOC's, but not all at VOC's indices."""
    palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)  # (up to 256, 3)
    official = voc_palette()
    if np.array_equal(palette, official[: len(palette)]):
        return False
    used = np.flatnonzero(np.bincount(mask.ravel()))
    if used[-1] >= len(palette) or np.array_equal(palette[used], official[used]):
        return False
    known = {tuple(colour) for colour in official.tolist()}
    return all(tuple(colour) in known for colour in palette[used].tolist())


def read_annotation(root: Path, file: str) -> VocAnnotation | None:
    """Read an annotation XML; None if there is none.

    Raises:
        ProblemError: it is not XML, has a document type definition, or an object has no known class or no box.
    """
    if not os.path.lexists(root / file):
        return None
    data = read_bytes(root, file, "add it")
    try:
        tree = defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
    except DefusedXmlException:
        reason = "has a document type definition (<!DOCTYPE>), which can hide attacks; remove it"
        raise ProblemError([Problem(file, reason)]) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ProblemError([Problem(file, f"is not well-formed XML ({error}); correct or remove it")]) from None
    if tree.tag != "annotation":
        raise ProblemError(
            [Problem(file, f"begins with <{tree.tag}>, not <annotation>; replace it by the VOC annotation")]
        )
    problems: list[Problem] = []
    objects = []
    # Only direct children: parts of a person (head, hand, foot) have names and boxes too.
    for number, element in enumerate(tree.findall("object"), 1):
        found = keep_problems(problems, partial(_read_object, element, number, file))
        if found is not None:
            objects.append(found)
    if problems:
        raise ProblemError(problems)
    return VocAnnotation(_stated_size(tree), tuple(objects))


def _read_object(element: ElementTree.Element, number: int, file: str) -> VocObject:
    name = _text(element, "name")
    if name not in VOC_CLASSES:
        close = difflib.get_close_matches(name.lower(), VOC_CLASSES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the classes are: {', '.join(VOC_CLASSES)}."
        reason = f"unknown class name {name!r}; {hint} Classes of your own need the COCO format"
        raise ProblemError([Problem(file, f"object {number}: {reason}")])
    try:
        x0, y0, x1, y1 = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        usable = -MAX_COORDINATE <= x0 <= x1 <= MAX_COORDINATE and -MAX_COORDINATE <= y0 <= y1 <= MAX_COORDINATE
    except ValueError:
        usable = False
    if not usable:
        reason = (
            f"object {number} ({name}): <bndbox> needs the numbers xmin <= xmax and ymin <= ymax, in pixels from 1; "
            "correct the box"
        )
        raise ProblemError([Problem(file, reason)])
    return VocObject(
        class_index=VOC_CLASSES.index(name) + 1,
        box=(x0 - 1, y0 - 1, x1, y1),  # the devkit counts from 1 and includes both ends
        difficult=_text(element, "difficult") == "1",
        truncated=_text(element, "truncated") == "1",
    )


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _stated_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        return int(_text(tree, "size/width")), int(_text(tree, "size/height"))
    except ValueError:
        return None
