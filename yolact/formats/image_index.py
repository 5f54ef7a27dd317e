"""Find the images that annotation files name: below a data set's folder, whatever the folder or machine in the name."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from yolact.formats.problems import Problem, ProblemError
from yolact.formats.split_names import split_of

OTHER_SUFFIXES = (".json", ".txt", ".xml", ".csv", ".zip", ".yaml")
"""Suffixes of files that are not images."""

MASK_FOLDERS = r"(.*[_-])?masks?|segmentation(class|object).*"
"""Names of folders whose images are masks, in lower case."""

SAMPLED_NAMES = 1000
"""Number of a file's names that decide which folder they are relative to."""

REPAIRS = {
    "prefix": "have the prefix that Label Studio adds on import; the images were found without it",
    "path": "have folders that are not here; the images were found by the last parts of their names",
    "letter case": "are written in another letter case than the images",
    "Unicode form": "have accents in another Unicode form than the images",
    "percent-encoding": "are percent-encoded; the images were found by the decoded names",
    "backslashes": "are written with backslashes, which were read as /",
    "suffix": "have another suffix than the images, or none",
    "renamed": "are not there; the images beside the files that have these files' names were taken",
}
"""What differs between a name and its image, by kind, for messages."""


@dataclass(frozen=True)
class Match:
    """The result of looking for a named image."""

    files: tuple[str, ...]
    """Relative to the index's root, with ``/``: one if it was found, several if the name is ambiguous."""
    repair: str = ""
    """The kind of `REPAIRS` that was needed."""
    shared: int = 0
    """Number of trailing parts that the name and the image share."""

    def only(self, file: str, named: str) -> str:
        """The image.

        Args:
            file: the annotation file, relative to the index's root, for the message.
            named: how it names the image, for the message.

        Raises:
            ProblemError: there is no such image, or more than one.
        """
        if len(self.files) == 1:
            return self.files[0]
        if self.files:
            reason = f"{named}, which may be {' or '.join(self.files[:3])}; write its folder too"
            raise ProblemError([Problem(file, reason, "image name that is ambiguous")])
        reason = f"{named}, but there is no such file; add it, or remove its annotations"
        raise ProblemError([Problem(file, reason, "image that is missing")])


class ImageIndex:
    """All files below a folder, by name, but for those in folders of masks; built in one walk."""

    def __init__(self, root: Path) -> None:
        self._files: set[str] = set()
        self._by_name: dict[str, list[str]] = defaultdict(list)
        seen = set()
        for place, folders, names in os.walk(root, followlinks=True):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:  # a link back
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not _is_left_out(name))
            inside = Path(place).relative_to(root).as_posix()
            for name in sorted(names):
                if not name.startswith(".") and not name.lower().endswith(OTHER_SUFFIXES):
                    path = name if inside == "." else f"{inside}/{name}"
                    self._files.add(path)
                    self._by_name[_key(name)].append(path)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        stems = defaultdict(list)
        for path in sorted(self._files):
            stems[_key(posixpath.splitext(posixpath.basename(path))[0])].append(path)
        return stems

    def find_all(self, names: Collection[str], file: str) -> dict[str, Match]:
        """Look for images; each image is found for one name only, the one that shares most with it.

        Args:
            names: as stated in an annotation file, also with folders, drives or addresses of other machines.
            file: that file, relative to the root.
        """
        names = list(dict.fromkeys(names))
        folder = self._folder(names, file)
        found = {name: self._find(name, folder, file) for name in names}
        claims = defaultdict(list)
        for name, match in found.items():
            if len(match.files) == 1:
                claims[match.files[0]].append(name)
        for rivals in claims.values():
            if len({tuple(_parts(name)) for name in rivals}) > 1:
                best = max(found[name].shared for name in rivals)
                first = [name for name in rivals if found[name].shared == best]
                others = rivals if len({tuple(_parts(name)) for name in first}) > 1 else set(rivals) - set(first)
                found |= {name: Match(()) for name in others}
        return found

    def _folder(self, names: Sequence[str], file: str) -> str | None:
        """The folder that names are relative to; None if it is unclear, or there is none.

        Of the folders that hold at least half as many of them as any, the one nearest to the file, of the file's
        split, or with a usual name.
        """
        counts: Counter[str] = Counter()
        for name in names[:: max(1, len(names) // SAMPLED_NAMES)]:
            stated = posixpath.normpath(name)
            for path in self._by_name.get(_key(posixpath.basename(stated)), ()):
                if path == stated or path.endswith(f"/{stated}"):
                    counts[path[: -len(stated)].rstrip("/")] += 1
        most = max(counts.values(), default=0)
        stem = posixpath.splitext(posixpath.basename(file))[0].removeprefix("instances_")

        def rank(folder: str) -> tuple[int, bool, bool, bool]:
            parts = folder.split("/") if folder else []
            named = split_of(f"{folder}/_") == split_of(file) is not None
            return _common(folder, posixpath.dirname(file)), named, stem in parts, "images" in parts[-1:]

        usable = [folder for folder, count in counts.items() if 2 * count >= most]
        best = max((rank(folder) for folder in usable), default=None)
        first = [folder for folder in usable if rank(folder) == best]
        return first[0] if len(first) == 1 else None

    def _find(self, name: str, folder: str | None, file: str) -> Match:
        stated = posixpath.normpath(posixpath.join(folder or "", name))
        if folder is not None and stated in self._files:
            return Match((stated,), shared=len(_parts(name)))
        for repair, text in _readings(name):
            parts = _parts(text)
            if not parts:
                continue
            shared = {path: _shared(parts, path) for path in self._by_name.get(_key(parts[-1]), ())}
            if len(parts) == 1 or max(shared.values(), default=(0, 0))[0] == 1:
                shared = {path: count for path, count in shared.items() if _is_of_split(path, file)}
            if shared:
                return self._chosen(parts, shared, repair, folder, file)
        return self._with_other_suffix(name, file)

    def _with_other_suffix(self, name: str, file: str) -> Match:
        """The only image with the name's stem, of a suffix of at most 4 letters (a name may have a dot)."""
        parts = _parts([text for _, text in _readings(name)][-1])
        stem, suffix = posixpath.splitext(parts[-1]) if parts else ("", "")
        for text in (stem, stem + suffix) if len(suffix) <= 5 else (stem + suffix,):
            found = [path for path in self._by_stem.get(_key(text), []) if text and _is_of_split(path, file)]
            if len(found) == 1:
                return Match((found[0],), "suffix")
        return Match(())

    def _chosen(
        self, parts: Sequence[str], shared: Mapping[str, tuple[int, int]], repair: str, folder: str | None, file: str
    ) -> Match:
        """The image that shares most parts with the name; of several, the one in the usual folder or nearest."""
        most = max(shared.values())
        best = [path for path, count in shared.items() if count == most]
        if len(best) > 1:
            near = [path for path in best if folder is not None and posixpath.dirname(path) == folder]
            closest = max(_common(path, posixpath.dirname(file)) for path in best)
            best = near or [path for path in best if _common(path, posixpath.dirname(file)) == closest]
        if len(best) == 1 and not repair:
            repair = _difference(parts, best[0])
        return Match(tuple(best), repair, most[0])


def _is_of_split(path: str, file: str) -> bool:
    """Whether an image's path does not name another split than the annotation file."""
    split = split_of(file)
    return split is None or split_of(path) in (split, None)


def _is_left_out(folder: str) -> bool:
    return folder.startswith((".", "__MACOSX")) or re.fullmatch(MASK_FOLDERS, folder.lower()) is not None


def _readings(name: str) -> Iterable[tuple[str, str]]:
    """Ways to read a name, with the kind of repair that each is; the most literal first."""
    text = name.strip()
    query = re.search(r"[?&]d=([^&#]+)", text)  # Label Studio's local files: /data/local-files/?d=folder/name
    address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*", text)  # a drive has one letter
    if query:
        text = query[1]
    elif address:
        text = re.split(r"[?#]", text[address.end() :])[0].lstrip("/")
    yield "", text
    plain = text
    if "\\" in text:
        plain = text.replace("\\", "/")
        yield ("path" if re.match("[A-Za-z]:|//", plain) else "backslashes"), plain
    if "%" in plain:
        plain = unquote(plain)
        yield "percent-encoding", plain.replace("\\", "/")
    folder, base = posixpath.split(plain)
    if re.match(r"[0-9a-f]{8}-.", base):  # Label Studio's upload: 8 digits of a UUID, then the name
        yield "prefix", posixpath.join(folder, base[9:])


def _parts(text: str) -> list[str]:
    return [part for part in posixpath.normpath(text).split("/") if part not in ("", ".", "..")]


def _key(name: str) -> str:
    """The same for names that differ in letter case or Unicode form only."""
    return name if name.isascii() and name.islower() else unicodedata.normalize("NFC", name).casefold()


def _shared(parts: Sequence[str], path: str) -> tuple[int, int]:
    """Number of trailing parts in common, and of those that are equal to the letter."""
    count = equal = 0
    for a, b in zip(reversed(parts), reversed(path.split("/")), strict=False):
        if _key(a) != _key(b):
            break
        count += 1
        equal += a == b
    return count, equal


def _common(a: str, b: str) -> int:
    """Number of leading parts in common."""
    count = 0
    for one, other in zip(a.split("/"), b.split("/"), strict=False):
        if one != other or not one:
            break
        count += 1
    return count


def _difference(parts: Sequence[str], path: str) -> str:
    """The kind of repair that turns a name's parts into a found path."""
    count, equal = _shared(parts, path)
    if count < len(parts):
        return "path"
    if count == equal:
        return ""
    found = path.split("/")[-count:]
    same_case = all(
        unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b) for a, b in zip(parts, found, strict=True)
    )
    return "Unicode form" if same_case else "letter case"


def repair_warnings(file: str, found: Mapping[str, Match]) -> list[Problem]:
    """One warning for each kind of repair, with the number of names and an example."""
    by_kind = defaultdict(list)
    for name, match in found.items():
        if len(match.files) == 1 and match.repair:
            by_kind[match.repair].append(name)
    return [
        Problem(
            file,
            f"{len(names)} of {len(found)} file names {REPAIRS[kind]}, such as {names[0][:120]!r} for "
            f"{found[names[0]].files[0]!r}",
            f"file names: {kind}",
            changed=True,
        )
        for kind, names in by_kind.items()
    ]
