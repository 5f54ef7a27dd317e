"""Unpack untrusted archives: anything but a regular file inside the folder is refused.

An archive is recognized by its content, not its name: tar (plain or compressed with gzip, bzip2 or xz) and zip. Owners,
permissions and times in an archive are ignored. Links become copies of their targets.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from tqdm import tqdm

from yolact.errors import DataError
from yolact_ops.transfer.compressed import GZIP_START, XZ_START, least_unpacked_size
from yolact_ops.transfer.disk import BLOCK, require_free_disk

MAX_RATIO = 200
"""Maximum ratio of unpacked to packed size. Images and masks are already compressed (about 1), annotation JSON shrinks
to a tenth; archives made to fill disks reach thousands (deflate's limit is 1,032)."""

ALWAYS_ALLOWED = 64 << 20
"""Unpacked size that is always allowed, bytes, for small archives of highly compressible text."""

MAX_MEMBERS = 5_000_000
"""Maximum number of files in an archive; COCO has 164,000."""

MAX_HEADER = 16 << 20
"""Maximum size of a read into memory, bytes: a tar's extended header that claims more is an attack."""

JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")
"""Files that file managers add to archives; not unpacked, like names starting with ``._``."""

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of a zip: of its first file or, without files, of its end of directory (APPNOTE 4.3.7, 4.3.16)."""

OTHER_STARTS = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "Zstandard"}
"""First bytes of unsupported formats (7-Zip's 7zFormat.txt; RAR 5.0 archive format; RFC 8878, 3.1.1)."""

ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
"""Supported compression methods of zip entries; Windows uses Deflate64 from 2 GiB (APPNOTE 4.4.5)."""

BY_YOURSELF = "or unpack it yourself and name the folder"

Kind = Literal["tar", "zip"]


@dataclass(frozen=True)
class _Member:
    """An entry of an archive, of either format."""

    name: str
    """Name in the archive."""
    kind: Literal["file", "folder", "link", "other"]
    size: int
    """Declared size, bytes."""
    open: Callable[[], IO[bytes]]
    link: str
    """Name of a link's target, relative to the archive's root."""


def archive_kind(path: Path) -> Kind | None:
    """The archive format of a file, by its content; None if `unpack` cannot read it.

    Raises:
        DataError: its first header is already an attack.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start in ZIP_STARTS and zipfile.is_zipfile(path):  # is_zipfile checks the end, which may be a tar's last member
        return "zip"
    try:
        with _open_tar(path, ALWAYS_ALLOWED):
            return "tar"
    except DataError:  # a tar that is an attack
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack ``archive`` into the new folder ``folder``; after an error the folder is incomplete.

    Raises:
        DataError: the file is not an archive, is damaged, truncated or encrypted, unpacks to an absurd size or to more
            than the disk has room for, or has a name outside the folder, a link that leads out of it or to no file, a
            device, or a duplicate name.
        OSError: the folder cannot be written.
    """
    kind = archive_kind(archive)
    if kind is None:
        with archive.open("rb") as file:
            start = file.read(16)
        for magic, name in OTHER_STARTS.items():
            if start.startswith(magic):
                raise DataError(
                    f"{archive}: is packed as {name}, which is not supported. Make a .zip or .tar.gz, {BY_YOURSELF}."
                )
        raise DataError(
            f"{archive}: is neither a tar (plain, gzip, bzip2, xz) nor a zip archive; it begins with {start!r}. "
            "Was it downloaded completely, and is it the archive itself, not a web page about it?"
        )
    limit = max(ALWAYS_ALLOWED, MAX_RATIO * archive.stat().st_size)
    try:
        if kind == "tar":
            require_free_disk(folder.parent, least_unpacked_size(archive), f"unpacking {archive.name}")
        members = _tar_members(archive, limit) if kind == "tar" else _zip_members(archive, limit, folder)
        _write(archive, members, folder, limit)
    except (DataError, OSError) as error:
        # gzip and bz2 report damage without an errno; a damaged zip may give zipfile an invalid offset.
        if isinstance(error, OSError) and error.errno in (None, errno.EINVAL):
            raise _damaged(archive, error) from None
        raise
    except Exception as error:  # decoders raise many types on damaged input
        raise _damaged(archive, error) from None


def safe_name(name: str) -> PurePosixPath | None:
    """Convert a name from an archive or a bucket to a path inside a folder; None if it names the folder itself.

    Raises:
        ValueError: it is absolute, has ``..``, a backslash, a drive letter or a control character; the text says which.
    """
    if "\\" in name:
        raise ValueError("has a backslash")
    if any(ord(character) < 32 for character in name):
        raise ValueError("has a control character")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        raise ValueError("is an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("leaves the folder by '..'")
    return PurePosixPath(*parts) if parts else None


def is_junk(path: PurePosixPath) -> bool:
    """Whether a file manager added it; see `JUNK`."""
    return any(part in JUNK or part.startswith("._") for part in path.parts)


def _write(archive: Path, members: Iterator[_Member], folder: Path, limit: int) -> None:
    """Write files in order, and links once their targets exist."""
    folder.mkdir(parents=True)
    files: dict[PurePosixPath, int] = {}  # bytes by path
    links: dict[PurePosixPath, str] = {}
    total = 0
    bar = tqdm(desc=f"unpack {archive.name}", unit="B", unit_scale=True, unit_divisor=1024, disable=None)
    with bar:
        for count, member in enumerate(members, 1):
            if count > MAX_MEMBERS:
                raise DataError(f"{archive}: has more than {MAX_MEMBERS:,} entries; it is refused as an attack.")
            path = _checked_path(archive, member)
            if path is None or is_junk(path):
                continue
            if member.kind == "folder":
                _make_folder(archive, folder, path, member.name)
                continue
            if path in files or path in links:
                raise DataError(f"{archive}: has {member.name!r} twice. Make the archive again.")
            _make_folder(archive, folder, path.parent, member.name)
            if member.kind == "link":
                links[path] = member.link
                continue
            _require_room(archive, folder, member.name, member.size)
            with member.open() as source:
                files[path] = _copy(archive, source, folder / path, limit - total, bar)
            total += files[path]
        for path in links:
            origin = _link_target(archive, path, links, files)
            _require_room(archive, folder, str(path), files[origin])
            with (folder / origin).open("rb") as source:
                total += _copy(archive, source, folder / path, limit - total, bar)


def _require_room(archive: Path, folder: Path, name: str, size: int) -> None:
    """Check before each file that it still fits: the size of a compressed archive is known only at its end."""
    require_free_disk(folder, size, f"unpacking {name!r} of {archive.name}")


def _checked_path(archive: Path, member: _Member) -> PurePosixPath | None:
    try:
        path = safe_name(member.name)
    except ValueError as error:
        raise DataError(
            f"{archive}: the entry {member.name!r} {error}. The archive is refused: nothing of it is used. Make it "
            f"again from inside its folder, with relative names and '/', {BY_YOURSELF}."
        ) from None
    if member.kind == "other":
        raise DataError(
            f"{archive}: the entry {member.name!r} is not a file, folder or link (a device, a pipe or a sparse "
            f"file). The archive is refused: nothing of it is used. Make it again without it, {BY_YOURSELF}."
        )
    return path


def _make_folder(archive: Path, folder: Path, path: PurePosixPath, name: str) -> None:
    try:
        (folder / path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(f"{archive}: {name!r} is both a file and a folder. Make the archive again.") from None


def _copy(archive: Path, source: IO[bytes], target: Path, limit: int, bar: tqdm) -> int:
    """Copy a stream into a new file, and return the number of bytes."""
    written = 0
    try:
        with target.open("xb") as file:
            while block := source.read(BLOCK):
                written += len(block)
                if written > limit:
                    raise _too_large(archive)
                file.write(block)
                bar.update(len(block))
    except (FileExistsError, IsADirectoryError):
        raise DataError(f"{archive}: {target.name!r} is both a file and a folder. Make the archive again.") from None
    return written


def _link_target(
    archive: Path, path: PurePosixPath, links: dict[PurePosixPath, str], files: dict[PurePosixPath, int]
) -> PurePosixPath:
    """Final target of a chain of links."""
    seen = {path}
    at = path
    while at in links:
        target = posixpath.normpath(links[at])
        if target.startswith(("/", "..")) or "\\" in target:
            raise DataError(
                f"{archive}: the link {str(at)!r} leads out of the folder. The archive is refused. Make it again with "
                f"the files themselves (tar --dereference), {BY_YOURSELF}."
            )
        at = PurePosixPath(target)
        if at in seen:
            raise DataError(
                f"{archive}: the link {str(path)!r} leads to itself. The archive is refused. Make it again without it."
            )
        seen.add(at)
    if at not in files:
        raise DataError(
            f"{archive}: the link {str(path)!r} leads to {str(at)!r}, which is not a file of the archive. Make the "
            "archive again with the files themselves (tar --dereference)."
        )
    return at


def _too_large(archive: Path) -> DataError:
    return DataError(
        f"{archive}: unpacks to more than {MAX_RATIO} times its own size, which no image data set does; it is refused "
        "as an attack. If you trust it, unpack it yourself and name the folder."
    )


def _damaged(archive: Path, error: BaseException) -> DataError:
    return DataError(f"{archive}: is damaged or truncated ({type(error).__name__}: {error}). Get it again.")


# tar


class _Bounded(io.RawIOBase):
    """A stream that refuses to read beyond a position or too much at once, which a tar's headers could demand."""

    def __init__(self, stream: IO[bytes], archive: Path, limit: int) -> None:
        self._stream, self._archive, self._limit = stream, archive, limit

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_HEADER:
            raise DataError(f"{self._archive}: a header claims {size:,} bytes. The archive is refused as an attack.")
        data = self._stream.read(size)
        self._check()
        return data

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and position > self._limit:
            raise _too_large(self._archive)
        self._stream.seek(position, whence)
        return self._check()

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self) -> int:
        position = self._stream.tell()
        if position > self._limit:
            raise _too_large(self._archive)
        return position


@contextmanager
def _open_tar(archive: Path, limit: int) -> Iterator[tarfile.TarFile]:
    """Open a tar whose unpacked stream, with headers, may exceed the archive's own size by ``limit`` bytes."""
    with archive.open("rb") as file:
        start = file.read(len(XZ_START))
    by_start: dict[bytes, Callable[..., Any]] = {
        GZIP_START: gzip.open,
        b"BZh": bz2.open,
        XZ_START: lzma.open,
    }
    opener = next((found for magic, found in by_start.items() if start.startswith(magic)), open)
    with (
        opener(archive, "rb") as stream,
        _Bounded(stream, archive, limit + archive.stat().st_size) as bounded,
        tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as tar,
    ):
        yield tar


def _tar_members(archive: Path, limit: int) -> Iterator[_Member]:
    with _open_tar(archive, limit) as tar:
        while (info := tar.next()) is not None:
            yield _tar_member(tar, info)
            tar.members = []  # type: ignore[attr-defined]  # the library would keep all of them in memory
        # The library treats any invalid header as the end, but the end is a block of zeros (POSIX ustar).
        stream = cast("IO[bytes]", tar.fileobj)
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end of archive at byte {tar.offset:,}")
        while stream.read(BLOCK):  # to the end of the compressed stream, where its checksum is
            pass


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    link = info.linkname
    if info.isdir():
        kind: Literal["file", "folder", "link", "other"] = "folder"
    elif info.issym():
        kind = "link"
        link = link if link.startswith("/") else posixpath.join(posixpath.dirname(info.name), link)
    elif info.islnk():
        kind = "link"
    elif info.isreg() and not info.issparse():
        kind = "file"
    else:
        kind = "other"
    return _Member(info.name, kind, info.size, lambda: cast("IO[bytes]", tar.extractfile(info)), link)


# zip


def _zip_members(archive: Path, limit: int, folder: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        entries = file.infolist()
        claimed = sum(entry.file_size for entry in entries)
        if claimed > limit:
            raise _too_large(archive)
        require_free_disk(folder.parent, claimed, f"unpacking {archive.name}")
        for entry in entries:
            yield _zip_member(archive, file, entry)


def _zip_member(archive: Path, file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    if entry.flag_bits & 1:
        raise DataError(f"{archive}: the entry {entry.filename!r} is encrypted. Unpack it yourself, name the folder.")
    if entry.compress_type not in ZIP_METHODS:
        method = "Deflate64" if entry.compress_type == 9 else f"method {entry.compress_type}"
        raise DataError(
            f"{archive}: the entry {entry.filename!r} is packed with {method}, which is not supported. Use Deflate "
            f"(`zip -r`), or as .tar.gz, {BY_YOURSELF}."
        )
    mode = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == 3 else 0  # 3: Unix (APPNOTE 4.4.2)
    link = ""
    if entry.is_dir():
        kind: Literal["file", "folder", "link", "other"] = "folder"
    elif mode == stat.S_IFLNK:
        kind = "link"
        target = file.read(entry).decode() if entry.file_size <= 4096 else "/"
        link = target if target.startswith("/") else posixpath.join(posixpath.dirname(entry.filename), target)
    elif mode in (0, stat.S_IFREG):
        kind = "file"
    else:
        kind = "other"
    return _Member(entry.filename, kind, entry.file_size, lambda: file.open(entry), link)
