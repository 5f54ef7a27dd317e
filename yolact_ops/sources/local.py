"""A folder or an archive on this machine, and walking folders with symbolic links."""

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
        """State from each file's path, size and modification time."""
        paths = sorted(files_below(self.path))
        stats = [path.stat() for path in paths]
        names = [path.relative_to(self.path).as_posix() for path in paths]
        lines = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
        return State(content_hash(lines), len(paths), sum(stat.st_size for stat in stats))


def files_below(path: Path) -> Iterator[Path]:
    """All files in a folder, also behind links to folders, as they are copied; for a file, only itself.

    Links to a parent folder or to a folder on the path to it are not followed; broken links are skipped.
    """
    if path.is_file():
        yield path
    elif path.is_dir():
        for place, names in walk(path):
            yield from (place / name for name in names if (place / name).is_file())


def walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """All folders in a folder, itself first, with the names in each that are not folders; see `files_below` for links.

    Raises:
        OSError: a folder cannot be read.
    """
    for root, folders, names in os.walk(path, followlinks=True, onerror=_raise):
        place = Path(root)
        folders[:] = [name for name in sorted(folders) if not _leads_back(place / name, path)]
        yield place, names


def _leads_back(path: Path, root: Path) -> bool:
    """Whether it is a link to a folder on the path from ``root``, or to a parent of one."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    passed = (folder for folder in path.parents if folder.is_relative_to(root))
    return any(folder.resolve().is_relative_to(target) for folder in passed)


def _raise(error: OSError) -> None:
    raise error
