"""Read the files of the PASCAL VOC 2012 devkit: image lists and XML. Semantic Boundaries has the same lists."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from yolact.errors import DataError
from yolact.formats.dataset import NO_SPLIT, ReadOptions, unused_images
from yolact.formats.image_files import IMAGE_SUFFIXES, MISSING_IMAGE, read_bytes, stored_form
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.split_names import SPLIT_WORDS

SEGMENTATION_SETS = "ImageSets/Segmentation"

IMAGES = "JPEGImages"
"""Name of the folder of images."""

SPLIT_OF_LIST = SPLIT_WORDS | {"trainval": "all", "default": "all"}
"""Split by the word in a list's name; ``default`` is CVAT's name of images without a subset."""

_TWO_PATHS = re.compile(r"(?P<image>\S.*?\.(?:jpe?g|png|bmp|webp|tiff?))[\s,;|]+(?P<mask>\S.*\.png)", re.IGNORECASE)

MAX_LINE = 4096
"""Maximum length of a list's line, as of a path on Linux."""

MAX_FOLDERS = 5
"""Maximum depth of folders in the folder of images or masks."""

MAX_BOX_COORDINATE = 1_000_000
"""Pixels; an XML box with a larger coordinate is a mistake (and its area might overflow)."""


@dataclass(frozen=True)
class VocObject:
    """One ``<object>`` of an annotation XML."""

    name: str
    """The class."""
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


def image_lists(
    folder: Path, has_image: Callable[[str], bool], splits: Sequence[str] = ("train", "val", "test")
) -> dict[str, list[str]]:
    """Image ids by split, from lists named by split, or else for ``train`` from one that is not divided.

    Args:
        folder: folder of the lists; see `list_files` for their names.
        has_image: whether an id has an image.
        splits: the splits to read; those without a list are left out.

    Raises:
        DataError: there are two lists of one split, one of ``val`` but none of ``train``, or see `read_image_list`.
    """
    lists = list_files(folder, (*splits, "all"))
    if "train" in splits and "train" not in lists:
        if "val" in lists:
            lists["train"] = folder / "train.txt"  # named as missing
        elif "all" in lists:
            lists["train"] = lists["all"]
    return {split: read_image_list(lists[split], split, has_image) for split in splits if split in lists}


def with_unlisted(ids: Mapping[str, list[str]], annotated: Sequence[str], options: ReadOptions) -> dict[str, list[str]]:
    """Image ids by split, with the annotated images of no list: for training, or for the lists of ``data.split``."""
    listed = {name for names in ids.values() for name in names}
    rest = [name for name in annotated if unicodedata.normalize("NFC", name) not in listed]
    return {**ids, ("train" if "train" not in ids and "train" not in options.lists else NO_SPLIT): rest}


def list_files(folder: Path, splits: Sequence[str]) -> dict[str, Path]:
    """The lists of some splits in a folder, by split; ``all`` is an undivided one.

    Names are compared in lower case: ``train.txt`` is preferred to synonyms (CVAT's ``Validation.txt``), these to
    longer names (PaddleSeg's ``train_list.txt``).

    Raises:
        DataError: two lists of one split are equally good.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        stem, suffix = os.path.splitext(name.casefold())
        if suffix == ".txt" and not name.startswith(".") and (folder / name).is_file():
            words = [SPLIT_OF_LIST[word] for word in re.findall("[a-z]+", stem) if word in SPLIT_OF_LIST]
            if len(set(words)) == 1:
                rank = 0 if stem == words[0] else 1 if stem in SPLIT_OF_LIST else 2
                found.setdefault(words[0], []).append((rank, folder / name))
    wanted = {split: ranked for split, ranked in found.items() if split in splits}
    for split, ranked in wanted.items():
        best = [path.name for rank, path in ranked if rank == min(ranked)[0]]
        if len(best) > 1:
            setting = f"data.split.{split if split != 'all' else 'train'}"
            raise DataError(
                f"{folder}: {' and '.join(best)} are both lists of split {split!r}. Choose by the setting {setting}, "
                f"as [{best[0]}], or keep one of them."
            )
    return {split: min(ranked)[1] for split, ranked in wanted.items()}


def read_image_list(path: Path, split: str, has_image: Callable[[str], bool]) -> list[str]:
    """Read a split's image ids, one per line, in the file's order and Unicode's composed form (NFC).

    A line may also be a path of the image, or paths of image and mask, as PaddleSeg and MMSegmentation write them.

    Args:
        path: the file.
        split: name of the split, for messages.
        has_image: whether an id has an image; distinguishes a class list from ids that end in a number, and ids with
            folders from paths.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a line is repeated or names no image.
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
        try:
            image_id = line if has_image(line) else _listed_id(line, has_image)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} {error}. Write one id per line, such as 2007_000032."
            ) from None
        if image_id in first_seen:
            raise DataError(f"{path}, line {number}: {line!r} is already on line {first_seen[image_id]}. Remove one.")
        first_seen[image_id] = number
    return list(first_seen)


def _is_class_list(lines: Sequence[str], has_image: Callable[[str], bool]) -> bool:
    """Whether all lines end in a class list's column, and the text before it, not the whole line, names images."""
    if not all(re.fullmatch(r"\S.*\s(-1|0|1)", line) for line in lines):
        return False
    return any(has_image(line.rsplit(maxsplit=1)[0]) for line in lines) and not any(has_image(line) for line in lines)


def _listed_id(line: str, has_image: Callable[[str], bool]) -> str:
    """The image id of a line that is not the id itself; raises ValueError with the reason if it names none."""
    if len(line) > MAX_LINE:
        raise ValueError("is too long for a name")
    columns = _TWO_PATHS.fullmatch(line)
    path = PurePosixPath((columns["image"] if columns else line).replace("\\", "/"))
    if columns and (mask := PurePosixPath(columns["mask"].replace("\\", "/")).stem) != path.stem:
        raise ValueError(f"pairs the image {path.stem!r} with the mask {mask!r}, but both need the same name")
    parts = [part for part in path.parts if part not in ("/", ".")]
    if not parts or ".." in parts:
        raise ValueError("is a path that leaves the folder of images")
    if not line.isprintable() and not columns:
        raise ValueError("contains a tab or another control character")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        parts[-1] = path.stem
    if IMAGES in parts:
        parts = parts[parts.index(IMAGES) + 1 :] or parts
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    return next((tail for tail in tails if has_image(tail)), tails[0])


def stems(folder: Path, *suffixes: str) -> list[str]:
    """Sorted names, without suffix, of a folder's files with one of the suffixes, in any case."""
    if not folder.is_dir():
        return []
    names = (os.path.splitext(name) for name in os.listdir(folder) if not name.startswith("."))
    return sorted({stem for stem, suffix in names if suffix.lower() in suffixes})


def stems_below(folder: Path, *suffixes: str) -> list[str]:
    """As `stems`, with the files of the folders below, whose names are part of theirs: ``cam0/img_001``."""
    found = []
    for place, folders, _ in os.walk(folder, followlinks=True):
        inner = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".")] if len(inner.parts) < MAX_FOLDERS else []
        found += [(inner / stem).as_posix() for stem in stems(Path(place), *suffixes)]
    return sorted(found)


def without_annotations(folder: Path, used: Sequence[str], lacking: str) -> list[Problem]:
    """A warning about a folder's images without annotations, for data sets without image lists."""
    known = {unicodedata.normalize("NFC", name) for name in used}
    unused = [name for name in stems_below(folder, *IMAGE_SUFFIXES) if unicodedata.normalize("NFC", name) not in known]
    return unused_images(folder.name, unused, lacking, "give them empty annotations")


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
    raise ProblemError([Problem(f"{folder}/{image_id}.jpg", reason, MISSING_IMAGE)])


def read_annotation(root: Path, file: str) -> VocAnnotation | None:
    """Read an annotation XML; None if there is none.

    Raises:
        ProblemError: it is not XML, has a document type definition, or an object has no box.
    """
    if not os.path.lexists(root / file):
        return None
    data = read_bytes(root, file, "add it")
    try:
        tree = defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
    except DefusedXmlException:
        reason = "has a document type definition (<!DOCTYPE>), which can hide attacks; remove it"
        raise ProblemError([Problem(file, reason, "XML that cannot be read")]) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        reason = f"is not well-formed XML ({error}); correct or remove it"
        raise ProblemError([Problem(file, reason, "XML that cannot be read")]) from None
    if tree.tag != "annotation":
        reason = f"begins with <{tree.tag}>, not <annotation>; replace it by the VOC annotation"
        raise ProblemError([Problem(file, reason, "XML that cannot be read")])
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
    try:
        x0, y0, x1, y1 = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        limit = MAX_BOX_COORDINATE
        usable = -limit <= x0 <= x1 <= limit and -limit <= y0 <= y1 <= limit
    except ValueError:
        usable = False
    if not usable:
        reason = (
            f"object {number} ({name}): <bndbox> needs the numbers xmin <= xmax and ymin <= ymax, in pixels from 1; "
            "correct the box"
        )
        raise ProblemError([Problem(file, reason, "XML box that is none")])
    return VocObject(
        name=name,
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
