"""A folder or an archive on this machine, and walking through folders with links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yolact_ops.sources.state import State, content_hash


@dataclass(frozen=True)
class Local:
    """A folder or an archive on this machine."""

    path: Path

    def fetch(self, downloads: Path) -> Path:
        """The folder or archive itself."""
        return self.path

    def state(self) -> State:
        """By each file's path, size and time of change."""
        paths = sorted(files_below(self.path))
        stats = [path.stat() for path in paths]
        names = [path.relative_to(self.path).as_posix() for path in paths]
        lines = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
        return State(content_hash(lines), len(paths), sum(stat.st_size for stat in stats))


def files_below(path: Path) -> Iterator[Path]:
    """The files of a folder, also behind links to folders, as copying takes them; a file is its own only one.

    A link to a folder around it is not followed, nor one back on the way; one to nowhere is left out.
    """
    if path.is_file():
        yield path
    elif path.is_dir():
        for place, names in walk(path):
            yield from (place / name for name in names if (place / name).is_file())


def walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder in a folder, itself first, with the names in it that are no folders; see `files_below` for links.

    Raises:
        OSError: a folder cannot be read.
    """
    for root, folders, names in os.walk(path, followlinks=True, onerror=_raise):
        place = Path(root)
        folders[:] = [name for name in sorted(folders) if not _leads_back(place / name, path)]
        yield place, names


def _leads_back(path: Path, root: Path) -> bool:
    """Whether it is a link to a folder that was passed on the way from ``root``, or to one around such."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    passed = (folder for folder in path.parents if folder.is_relative_to(root))
    return any(folder.resolve().is_relative_to(target) for folder in passed)


def _raise(error: OSError) -> None:
    raise error
