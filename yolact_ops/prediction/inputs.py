"""Find what to predict: images, videos and cameras in files, folders, globs, lists, on S3 and standard input."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolact.errors import DataError
from yolact.files import fitting_name
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.video import VIDEO_SUFFIXES

STANDARD_INPUT = "-"

CAMERA = re.compile(r"(?:camera:|/dev/video)(?P<number>\d+)")
"""``camera:0``, or Linux's name of the device."""

NAME_ENDINGS = "_000000_000.png"
"""Longest that results add to the name of an input: a frame's number, an object's, the suffix."""


@dataclass(frozen=True)
class Input:
    """Something to predict."""

    kind: Literal["image", "video", "camera"]
    address: str
    """What messages call it: the path as it was found, or the address on S3."""
    content: Path | bytes
    """The file or device, or the encoded image of standard input."""
    file_name: str
    """Path below the folder that was named."""


class Names:
    """Names of results: the stem of a file, with a number from 2 if another file has the same, in any letter case."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}
        """Last number of a stem, by the stem without letter case."""

    def unique(self, file_name: str) -> str:
        """A name that was not given before."""
        stem = fitting_name(Path(file_name).stem or "image", NAME_ENDINGS).removesuffix(NAME_ENDINGS)
        name, key = stem, stem.casefold()
        while name.casefold() in self._taken:
            self._last[key] = self._last.get(key, 1) + 1
            name = f"{stem}-{self._last[key]}"
        self._taken.add(name.casefold())
        return name


def find_inputs(sources: Sequence[str], fetched: Path, exclude: Path | None = None) -> list[Input]:
    """What the sources name, in their order, files of a folder by path.

    Args:
        sources: paths of images, videos, folders, text files of paths, globs, ``camera:N``, ``s3://`` prefixes, ``-``.
        fetched: empty folder for files from S3.
        exclude: a folder to leave out: that of earlier results.

    Raises:
        DataError: a source does not exist or holds nothing to predict.
        DownloadError: it cannot be fetched.
    """
    found: list[Input] = []
    for number, source in enumerate(sources):
        if source.startswith("s3://"):
            found += _from_bucket(source, fetched / str(number))
        else:
            found += _local(source, exclude)
    return found


def _local(source: str, exclude: Path | None, *, listed: bool = False) -> list[Input]:
    if source == STANDARD_INPUT and not listed:
        return [Input("image", "standard input", sys.stdin.buffer.read(), "stdin.jpg")]
    if camera := CAMERA.fullmatch(source):
        number = camera["number"]
        return [Input("camera", f"camera:{number}", Path(f"/dev/video{number}"), f"camera{number}.mp4")]
    path = Path(source)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # such as a name that is too long
        if listed:
            return [_file(path, path.name)]
        raise DataError(f"{source[:200]}: {error.strerror}") from error
    if is_folder:
        files = [file for file in _files_below(path, exclude) if _kind(file)]
        if not files and listed:
            return [_file(path, path.name)]
        if not files:
            suffixes = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
            raise DataError(f"{path}: no image or video is in this folder or below it ({suffixes})")
        return [_file(file, file.relative_to(path).as_posix()) for file in files]
    if path.suffix.lower() == ".txt" and not listed and path.is_file():
        return _from_list(path, exclude)
    if path.is_file() or listed:  # a listed file that is missing costs itself, not the others
        return [_file(path, path.name)]
    if glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        files = [path for match in matches if (path := Path(match)).is_file() and _kind(path)]
        if exclude is not None:
            files = [path for path in files if not path.resolve().is_relative_to(exclude.resolve())]
        if not files:
            raise DataError(f"{source}: no image or video matches")
        return [_file(file, file.name) for file in files]
    raise DataError(f"{source}: no such file or folder")


def _from_list(path: Path, exclude: Path | None) -> list[Input]:
    """The paths in a text file, one per line, relative to its folder."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file of paths, one per line ({error})") from error
    found = [item for line in lines if line for item in _local(str(path.parent / line), exclude, listed=True)]
    if not found:
        raise DataError(f"{path}: has no path; write one image or video per line")
    return found


def _from_bucket(address: str, folder: Path) -> list[Input]:
    """The images and videos below a prefix, fetched into a folder."""
    from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client  # loads boto3

    prefix, client = S3Address.parse(address), make_client()
    objects = [item for item in list_objects(client, prefix) if _kind(Path(item.path))]
    if not objects:
        raise DataError(f"{prefix}: has files, but no image or video")
    fetch_objects(client, prefix, objects, folder)
    return [
        _file(folder / item.path, str(item.path), f"s3://{prefix.bucket}/{item.key}")
        for item in sorted(objects, key=lambda item: item.key)
    ]


def _files_below(folder: Path, exclude: Path | None) -> Iterator[Path]:
    """All files of a folder by name, then those of its sub-folders, without hidden ones and links to folders."""
    skipped = None if exclude is None else exclude.resolve()
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and (Path(place) / name).resolve() != skipped
        )
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _kind(path: Path) -> Literal["image", "video"] | None:
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _file(path: Path, file_name: str, address: str = "") -> Input:
    """An input of a file that was named itself is an image if its suffix says nothing."""
    return Input(_kind(path) or "image", address or str(path), path, file_name)
