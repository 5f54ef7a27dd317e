"""List the images of annotation tools' exports: found by name below the data set's root, split by words in paths."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from yolact.errors import DataError
from yolact.formats import coco
from yolact.formats.dataset import AnnotatedImage, Dataset, ImageSource
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.formats.outlines import Size, number
from yolact.formats.problems import Problem, ProblemError, writable
from yolact.images import exif_orientation

SHOWN = 3
"""Maximum number of paths that a message lists."""


def data_root(folders: Sequence[Path]) -> Path:
    """The folder that paths in a data set's messages and image ids are relative to."""
    (files,) = coco.files((), folders)
    return files.origin


class ImageNames:
    """The image files below a data set's root, by name."""

    def __init__(self, root: Path, folders: Sequence[Path]) -> None:
        """List the images of the folders that are in ``root``."""
        self.files: list[str] = []
        """Relative to the root, with ``/``, sorted."""
        self._by_name: dict[str, list[str]] = {}
        for folder in folders:
            if folder.is_relative_to(root):
                names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES)]
                self.files += [
                    (folder / name).relative_to(root).as_posix() for name in names if not name.startswith(".")
                ]
        self.files.sort()
        for file in self.files:
            self._by_name.setdefault(_folded(PurePosixPath(file).name), []).append(file)

    def find(self, name: Any, near: str, file: str) -> str:
        """The image that an annotation file names, relative to the root.

        The path may be relative to any folder, absolute, of Windows or a URL: of the images with its last part, in any
        letter case, the one that is closest to ``near`` counts, and among these the one with most of the path's parts.

        Args:
            name: the name as written.
            near: the annotation file's folder, relative to the root.
            file: the annotation file, for messages.

        Raises:
            ProblemError: there is no such image, or more than one.
        """
        parts = path_parts(name)
        candidates = self._by_name.get(_folded(parts[-1]), []) if parts else []
        if not candidates:
            reason = f"names the image {str(name)[:80]!r}, which is not in this folder or below; add the image"
            raise ProblemError([Problem(file, reason, "image not found")])
        base = PurePosixPath(near)
        for above in (base, *base.parents):
            inside = [found for found in candidates if PurePosixPath(found).is_relative_to(above)]
            if inside:
                break
        best = max(_agreement(found, parts) for found in inside)
        chosen = [found for found in inside if _agreement(found, parts) == best]
        if len(chosen) > 1:
            shown = ", ".join(chosen[:SHOWN])
            reason = f"names the image {str(name)[:80]!r}, but there are {len(chosen)}: {shown}; write its folder too"
            raise ProblemError([Problem(file, reason, "image name in several folders")])
        return chosen[0]

    def unused(self, used: Collection[str], lacking: str) -> list[Problem]:
        """A warning about images without annotations, if there are any."""
        unused = [file for file in self.files if file not in used]
        if not unused:
            return []
        reason = (
            f"images without {lacking} are not used: {len(unused)}, such as {unused[0]!r}; an image without objects is "
            "useful for training too: save its annotations in the tool"
        )
        return [Problem(PurePosixPath(unused[0]).parent.as_posix(), reason, "images without annotations")]


def path_parts(name: Any) -> tuple[str, ...]:
    """Parts of a path as any tool writes it, without drive, host, ``.`` and ``..``; empty if it is no path."""
    if not isinstance(name, str):
        return ()
    if re.match("[A-Za-z][A-Za-z0-9+.-]+://", name):
        try:
            name = unquote(urlsplit(name).path)
        except ValueError:
            return ()
    parts = name.replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _agreement(file: str, parts: Sequence[str]) -> tuple[int, bool]:
    """How many of the last parts agree, and whether they do so letter by letter."""
    same = exact = 0
    for own, wanted in zip(reversed(PurePosixPath(file).parts), reversed(parts), strict=False):
        if _folded(own) != _folded(wanted):
            break
        same += 1
        exact += own == wanted
    return same, exact == same


def split_of(folder: str) -> str | None:
    """The split that a folder's path names, by its innermost part with exactly one such word."""
    for part in reversed(PurePosixPath(folder).parts):
        found = {coco.SPLIT_WORDS[word] for word in re.findall("[a-z]+", part.lower()) if word in coco.SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def listed(
    name: str,
    root: Path,
    classes: Sequence[str],
    images: Iterable[tuple[ImageSource, str | None]],
    *,
    problems: Mapping[str, Sequence[Problem]] | None = None,
    orphans: Sequence[Problem] = (),
    warnings: Sequence[Problem] = (),
) -> Dataset:
    """A data set of images with the splits that their paths name; all are for training if none or one is named.

    Args:
        name: the format's name.
        root: the data set's folder.
        classes: names; their ids are 1, 2, ...
        images: the images, each with its split, if it names one.
        problems: see `Dataset`.
        orphans: see `Dataset`.
        warnings: see `Dataset`.

    Raises:
        DataError: there are no classes, or only some of the images are in a split.
    """
    for label in classes:
        if not label.strip() or writable(label) != label:
            raise DataError(f"{root}: a class has the name {writable(label)!r}. Give it a name.")
    if not classes:
        raise DataError(f"{root}: {name} without a single object, so it has no classes. Annotate objects.")
    by_split: dict[str | None, list[ImageSource]] = {}
    for image, split in images:
        by_split.setdefault(split, []).append(image)
    numbers = {
        image_id: place
        for place, image_id in enumerate(sorted(image.image_id for found in by_split.values() for image in found), 1)
    }
    said = list(warnings)
    if len(by_split) <= 1:
        for split in by_split:
            if split in ("val", "test"):
                reason = f"all images are in folders named {split}: they are split into training and validation images"
                said.append(Problem(".", reason, f"only {split} images"))
        by_split = {"train": [image for found in by_split.values() for image in found]}
    elif None in by_split or "train" not in by_split:
        named = ", ".join(sorted(split for split in by_split if split))
        odd = by_split.get(None) or next(iter(by_split.values()))
        raise DataError(
            f"{root}: it is not clear which images are for training: some are in folders named {named}, but "
            f"{odd[0].image_id} is in none named train. Name the folders train, val and test, or put all images into "
            "one."
        )
    splits = {str(split): found for split, found in by_split.items() if split in ("train", "val")}
    ids = {image.image_id: numbers[image.image_id] for found in splits.values() for image in found}
    return Dataset(name, str(root), dict(enumerate(classes, 1)), splits, problems or {}, ids, orphans, said)


def frame_size(root: Path, image_id: str, width: Any = None, height: Any = None) -> Size | None:
    """The stated size of the image that was annotated, or else its size when upright; None if it cannot be read."""
    if all(1 <= number(side) <= coco.MAX_COORDINATE and side == side // 1 for side in (width, height)):
        return int(width), int(height)
    try:
        with Image.open(root / image_id) as image:
            wide, high = image.size
            return (high, wide) if exif_orientation(image) >= 5 else (wide, high)
    except Exception:  # decoders raise many types on damaged input; reading the image reports it
        return None


def without(image: AnnotatedImage, dropped: Sequence[Problem]) -> AnnotatedImage:
    """The image with objects that were dropped before its rows were read."""
    return replace(image, dropped=(*dropped, *image.dropped))


def load_json(root: Path, file: str) -> Any:
    """Read a JSON file.

    Raises:
        ProblemError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads((root / file).read_bytes())
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the file"
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON ({error}); replace the file"
    raise ProblemError([Problem(file, reason, "not JSON")])


def starts_with_keys(path: Path, *alternatives: tuple[bytes, ...]) -> bool:
    """Whether all keys of one of the alternatives are in a file's first `HEAD` bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return any(all(b'"' + key + b'"' in head for key in keys) for keys in alternatives)


HEAD = 1 << 16
"""Bytes of a JSON file that are searched for the keys of a format."""
