"""The classes of mask images: which class an index or a colour is, from the class lists that annotation tools write.

A list has one name per line (labelme's ``class_names.txt``), or names with colours (CVAT's ``labelmap.txt``).
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError, SettingsError
from yolact.formats.problems import writable

CLASS_LISTS = ("class_names.txt", "labelmap.txt", "labels.txt", "classes.txt")
"""Names of files that list classes, in any letter case."""

MAX_CLASSES = 254
"""An 8-bit mask has the indices 1 to 254; 0 is background, 255 void."""

MAX_LINE = 1000
"""Maximum length of a line; a longer one is no name."""

MAX_LIST = 1_000_000
"""Maximum size of a list, bytes."""

IGNORED = "__ignore__"
"""labelme2voc's name of regions that it draws as void; its ``labels.txt`` begins with it."""

BACKGROUND_NAMES = ("background", "bg", "unlabeled", "unlabelled", "none", "void")
"""Names of index 0, compared in lower case without underscores, when they stand first in a list."""

SIMILAR = 0.8
"""Similarity (`difflib`) of a misspelled name of the background. Our choice."""

_COLOURED = re.compile(r"(?P<name>.+?)\s*:\s*(?:(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?\s*(?::[^:]*){0,2}")
"""A line of ``labelmap.txt``: name, colour (optional), parts and actions (not used)."""

_NUMBERED = re.compile(r"(\d{1,3})(?:\s*[:=,.)]\s*|\s+)(\S.*)")


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a data set's class masks."""

    names: tuple[str, ...]
    """In the order of the class indices, which count from 1."""
    indices: tuple[int, ...]
    """The index of each class in the masks."""
    colours: Mapping[int, int] = field(default_factory=dict)
    """Index in the masks by colour (0xRRGGBB), 0 for the background; empty: VOC's palette."""
    coloured_in: str = "labelmap.txt"
    """Name of the list that has or may have the colours, for messages."""
    origin: str = "VOC's 20"
    """Where the classes come from, for messages: a file's name, or the setting."""
    void_is_class: bool = False
    """Whether 255 marks the only class, and not void."""
    has_background: bool = True
    """Whether the list names the background; otherwise its first name is taken as index 1."""

    def name(self, index: int) -> str:
        """Name of an index in the masks."""
        if index == 0:
            return "background"
        return self.names[self.indices.index(index)] if index in self.indices else f"index {index}"

    def class_index(self, index: int) -> int:
        """Class index, from 1, of an index in the masks."""
        return self.indices.index(index) + 1


def numbered_classes(names: Sequence[str], origin: str) -> MaskClasses:
    """Classes whose indices in the masks are 1, 2, …"""
    return MaskClasses(tuple(names), tuple(range(1, len(names) + 1)), origin=origin)


VOC_MASKS = numbered_classes(VOC_CLASSES, "VOC's 20")


def class_lists(root: Path) -> list[str]:
    """Names of the class lists in a folder."""
    return sorted(name for name in os.listdir(root) if name.casefold() in CLASS_LISTS and (root / name).is_file())


def read_class_lists(root: Path) -> MaskClasses | None:
    """The classes that the class lists in a folder name; None without lists.

    Raises:
        DataError: a list is not a list of names, or two lists contradict each other.
    """
    found = [read_class_list(root / name) for name in class_lists(root)]
    if not found:
        return None
    chosen = next((classes for classes in found if classes.colours), found[0])
    for other in found:
        if other.names != chosen.names:
            raise DataError(
                f"{root}: {chosen.origin} lists the classes {', '.join(chosen.names)}, but {other.origin} "
                f"{', '.join(other.names)}. Remove the list that the masks were not drawn by."
            )
    return replace(chosen, has_background=any(classes.has_background for classes in found))


def read_class_list(path: Path) -> MaskClasses:
    """Read one list of classes, with or without colours.

    Raises:
        DataError: it is no text, empty, or a line or a name is not usable.
    """
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    lines = [(number, line.strip()) for number, line in lines if not line.lstrip().startswith("#")]
    for number, line in lines:
        if len(line) > MAX_LINE:
            raise DataError(f"{path}, line {number}: {line[:80]!r}… is no class name. Write one name per line.")
    if not lines:
        raise DataError(f"{path}: names no class. Write one name per line, in the order of the masks' indices.")
    matches = [_COLOURED.fullmatch(line) for _, line in lines]
    coloured = [match for match in matches if match is not None and match[2] is not None]
    if coloured or all(matches):
        for (number, line), match in zip(lines, matches, strict=True):
            if match is None:
                raise DataError(
                    f"{path}, line {number}: {line[:80]!r} has no colour, but other lines do. Write a name and its "
                    "colour, such as bolt:250,50,83::"
                )
        return _with_colours(
            path, [(number, match) for (number, _), match in zip(lines, matches, strict=True) if match]
        )
    return _without_colours(path, lines)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_LIST:
        raise DataError(f"{path}: has more than {MAX_LIST} bytes, so it is no list of classes. Remove or rename it.")
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error.reason}). Save it as UTF-8.") from None


def _without_colours(path: Path, lines: list[tuple[int, str]]) -> MaskClasses:
    lines = [(number, line) for number, line in lines if line != IGNORED]
    numbered = [_NUMBERED.fullmatch(line) for _, line in lines]
    numbers = [int(match[1]) for match in numbered if match]
    if lines and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        lines = [(number, match[2].strip()) for (number, _), match in zip(lines, numbered, strict=True) if match]
    else:
        numbers = []
    has_background = bool(lines) and (numbers[:1] == [0] or _is_background(lines[0][1]))
    if has_background:
        lines = lines[1:]
    names = _checked_names(path, lines)
    found = numbered_classes(names, path.name)
    return replace(found, has_background=has_background or numbers[:1] == [1])


def _with_colours(path: Path, lines: list[tuple[int, re.Match[str]]]) -> MaskClasses:
    colour_of: dict[int, int] = {}
    owner: dict[int, str] = {}
    for number, match in lines:
        if match[2] is None:
            continue
        red, green, blue = (int(match[part]) for part in (2, 3, 4))
        if max(red, green, blue) > 255:
            raise DataError(f"{path}, line {number}: a colour has three values from 0 to 255. Correct it.")
        colour_of[number] = red << 16 | green << 8 | blue
        if colour_of[number] in owner:
            raise DataError(
                f"{path}, line {number}: {match['name']!r} has the colour {red},{green},{blue} of "
                f"{owner[colour_of[number]]!r}. Give each class a colour of its own."
            )
        owner[colour_of[number]] = match["name"]
    # The background may stand anywhere; without such a name it is the black one, whatever its name.
    background = next((number for number, match in lines if _is_background(match["name"], BACKGROUND_NAMES[:2])), None)
    if background is None:
        background = next((number for number, colour in colour_of.items() if colour == 0), None)
    classes = [(number, match["name"].strip()) for number, match in lines if number != background]
    found = numbered_classes(_checked_names(path, classes), path.name)
    if not colour_of:
        return replace(found, has_background=background is not None)
    colours = {colour_of[number]: index for index, (number, _) in enumerate(classes, 1) if number in colour_of}
    colours.setdefault(0, 0)
    if background in colour_of:
        colours[colour_of[background]] = 0
    return replace(found, colours=colours, coloured_in=path.name)


def _is_background(name: str, known: Sequence[str] = BACKGROUND_NAMES) -> bool:
    plain = name.strip().strip("_").casefold()
    return plain in known or bool(difflib.get_close_matches(plain, BACKGROUND_NAMES[:1], cutoff=SIMILAR))


def _checked_names(path: Path, lines: list[tuple[int, str]]) -> list[str]:
    first: dict[str, int] = {}
    for number, name in lines:
        if not name.isprintable() or writable(name) != name:
            raise DataError(f"{path}, line {number}: {name[:80]!r} is not a class name. Write one name per line.")
        if name in first:
            raise DataError(f"{path}, line {number}: the class {name!r} is already on line {first[name]}. Remove one.")
        first[name] = number
    if not first:
        raise DataError(f"{path}: names only the background. Add the classes, one per line.")
    if len(first) > MAX_CLASSES:
        raise DataError(f"{path}: names {len(first)} classes, but masks have only the indices 1 to {MAX_CLASSES}.")
    return list(first)


def chosen_classes(setting: Sequence[str] | str, listed: MaskClasses | None) -> MaskClasses:
    """The classes of the setting ``data.class_names``; colours stay those of the data set's list.

    Raises:
        SettingsError: the list of colours has another number of classes.
    """
    if isinstance(setting, str):
        return replace(VOC_MASKS, origin="data.class_names")
    names = numbered_classes(setting, "data.class_names")
    if listed is None or not listed.colours:
        return names
    if len(listed.names) != len(names.names):
        raise SettingsError(
            f"data.class_names has {len(names.names)} names, but {listed.origin} has colours of {len(listed.names)} "
            f"classes: {', '.join(listed.names)}. Name each of them, in this order."
        )
    return replace(names, colours=listed.colours, coloured_in=listed.coloured_in)
