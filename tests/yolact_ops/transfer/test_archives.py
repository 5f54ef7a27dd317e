"""Archives: normal ones are unpacked byte for byte, hostile and damaged ones are refused and write nothing outside."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolact.errors import DataError
from yolact_ops.transfer import archives, disk
from yolact_ops.transfer.archives import archive_kind, safe_name, unpack
from yolact_ops.transfer.compressed import least_unpacked_size

FILES = {"set/image.jpg": b"p" * 5000, "set/sub/ünï code.txt": b"text", "set/empty": b"", "other.json": b"{}" * 300}
TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def tar_bytes(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, content


def zip_bytes(files: dict[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
        if link:
            info = zipfile.ZipInfo("link")
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, link)
    return buffer.getvalue()


def ordinary(suffix: str) -> bytes:
    if suffix == ".zip":
        return zip_bytes(FILES)
    return tar_bytes(*(tar_entry(name, content) for name, content in FILES.items()), mode=TAR_MODES[suffix])


def test_a_tar_whose_last_member_is_a_zip_is_a_tar(tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(tar_bytes(tar_entry("a", b"a"), tar_entry("b.zip", zip_bytes(FILES))))
    assert archive_kind(tmp_path / "set") == "tar"
    unpack(tmp_path / "set", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b.zip"]


@pytest.mark.parametrize("files", [FILES, {}])
def test_a_zip_with_and_without_files_is_a_zip(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "set").write_bytes(zip_bytes(files))
    assert archive_kind(tmp_path / "set") == "zip"


@dataclass
class DiskUsage:
    """The used part of `shutil.disk_usage`'s result."""

    free: int
    """Bytes."""


class FreeDisk:
    """A disk with the given number of bytes free, and no reserve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.bytes = free
        monkeypatch.setattr(disk, "SPARE", 0)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(self.bytes))


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[bytes], dict[str, bytes]]:
    def call(data: bytes, name: str = "archive") -> dict[str, bytes]:
        (tmp_path / name).write_bytes(data)
        unpack(tmp_path / name, tmp_path / "out")
        return contents(tmp_path / "out")

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", [*TAR_MODES, ".zip"])
def test_files_are_unpacked_unchanged_with_any_name_of_the_archive(unpacked: Callable, suffix: str) -> None:
    assert unpacked(ordinary(suffix), "data.bin") == FILES


def test_permissions_owners_and_file_managers_junk_are_ignored(unpacked: Callable, tmp_path: Path) -> None:
    info, content = tar_entry("image.jpg", b"p")
    info.mode, info.uid = 0o6777, 12345
    junk = [tar_entry(name, b"x") for name in ("__MACOSX/image.jpg", "._image.jpg", "sub/.DS_Store")]
    assert unpacked(tar_bytes((info, content), *junk)) == {"image.jpg": b"p"}
    mode = (tmp_path / "out" / "image.jpg").stat().st_mode
    assert not mode & 0o6111
    assert (tmp_path / "out" / "image.jpg").stat().st_uid == tmp_path.stat().st_uid


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../up", "a/..", "C:/x", "a\\..\\..\\b", "a\nb", "..", "//x"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_outside_the_folder_are_refused(unpacked: Callable, tmp_path: Path, name: str, kind: str) -> None:
    data = zip_bytes({"fine": b"x", name: b"x"}) if kind == "zip" else tar_bytes(tar_entry(name, b"x"))
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(
        DataError, match=r"refused: nothing of it is used\. Make it again from inside.*unpack it yourself"
    ):
        unpacked(data)
    outside = set(tmp_path.parent.rglob("*")) - before - {tmp_path / "archive", tmp_path / "out"}
    assert {path for path in outside if not path.is_relative_to(tmp_path / "out")} == set()


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../etc/passwd"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "../x"),
        (tarfile.SYMTYPE, ".."),
        (tarfile.SYMTYPE, "link"),
        (tarfile.SYMTYPE, "nowhere"),
        (tarfile.SYMTYPE, "."),
    ],
)
def test_links_out_of_the_folder_in_circles_or_to_no_file_are_refused(
    unpacked: Callable, kind: bytes, link: str
) -> None:
    with pytest.raises(DataError, match="the link 'sub/link' leads"):
        unpacked(tar_bytes(tar_entry("sub/file", b"x"), tar_entry("sub/link", kind=kind, link=link)))


def test_a_file_behind_a_link_is_not_written(unpacked: Callable, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    link = tar_entry("dir", kind=tarfile.SYMTYPE, link=str(tmp_path / "victim"))
    with pytest.raises(DataError):
        unpacked(tar_bytes(link, tar_entry("dir/file", b"x")))
    assert list((tmp_path / "victim").iterdir()) == []


def test_links_to_files_of_the_archive_become_files(unpacked: Callable) -> None:
    links = [
        tar_entry("sub/a", kind=tarfile.SYMTYPE, link="../b"),  # before what it leads to
        tar_entry("b", kind=tarfile.LNKTYPE, link="file"),
        tar_entry("file", b"content"),
    ]
    assert unpacked(tar_bytes(*links)) == dict.fromkeys(["sub/a", "b", "file"], b"content")


def test_zip_links_follow_the_same_rules(unpacked: Callable, tmp_path: Path) -> None:
    assert unpacked(zip_bytes({"file": b"content"}, link="file")) == dict.fromkeys(["file", "link"], b"content")
    (tmp_path / "bad").write_bytes(zip_bytes({"file": b"x"}, link="../x"))
    with pytest.raises(DataError, match=r"leads out of the folder.*tar --dereference.*unpack it yourself"):
        unpack(tmp_path / "bad", tmp_path / "out2")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(unpacked: Callable, kind: bytes) -> None:
    with pytest.raises(DataError, match=r"'dev' is not a file, folder or link.*Make it again without it"):
        unpacked(tar_bytes(tar_entry("dev", kind=kind)))


def test_one_name_twice_and_a_file_that_is_a_folder_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate((["a", "a"], ["a", "a/b"], ["a/b", "a"])):
        (tmp_path / "tar").write_bytes(tar_bytes(*(tar_entry(name, b"x") for name in names)))
        with pytest.raises(DataError, match=r"twice|both a file and a folder"):
            unpack(tmp_path / "tar", tmp_path / f"out{number}")


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "header", "links"])
def test_bombs_are_refused_before_they_fill_memory_or_disk(
    unpacked: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 1 << 20)
    zeros = bytes(30 << 20)
    if kind == "tar.gz":
        data = tar_bytes(tar_entry("zeros", zeros), mode="w:gz")
    elif kind == "zip":
        data = zip_bytes({"zeros": zeros})
    elif kind == "header":  # an extended header of 30 MiB, which would be read into memory at once
        info = tarfile.TarInfo("pax")
        info.type = tarfile.XHDTYPE
        data = gzip.compress(tar_bytes((info, zeros), tar_entry("x", b"x")))
    else:
        links = [tar_entry(f"link{number}", kind=tarfile.LNKTYPE, link="file") for number in range(300)]
        data = tar_bytes(tar_entry("file", zeros[: 1 << 20]), *links, mode="w:gz")
    with pytest.raises(DataError, match="attack"):
        unpacked(data)
    out = tmp_path / "out"
    assert sum(map(len, contents(out).values())) <= max(1 << 20, archives.MAX_RATIO * len(data))


def test_a_zip_that_will_not_fit_is_refused(unpacked: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SPARE", 1 << 60)
    with pytest.raises(DataError, match=r"unpacking archive needs 5,604 bytes"):
        unpacked(zip_bytes(FILES))


@pytest.mark.parametrize("suffix", TAR_MODES)
def test_a_tar_that_will_not_fit_is_refused_before_a_file_is_written(
    unpacked: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    data = tar_bytes(tar_entry("image.jpg", bytes(1 << 20)), mode=TAR_MODES[suffix])
    room = (1 << 20) + 512 if suffix in (".tar", ".tar.gz", ".tgz", ".tar.xz") else len(data)
    free = FreeDisk(monkeypatch, room - 1)
    with pytest.raises(DataError, match=rf"unpacking archive needs [\d,]+ bytes, but the disk has {room - 1:,} free"):
        unpacked(data)
    assert not (tmp_path / "out").exists()
    free.bytes = 1 << 30
    assert unpacked(data).keys() == {"image.jpg"}


@pytest.mark.parametrize("suffix", [*TAR_MODES, ".zip"])
def test_a_disk_that_fills_while_files_are_written_is_detected_before_it_is_full(
    unpacked: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    free = FreeDisk(monkeypatch, 1 << 30)
    files = {f"image{number}.jpg": bytes(1000 + number) for number in range(5)}
    entries = [tar_entry(name, content) for name, content in files.items()]
    data = zip_bytes(files) if suffix == ".zip" else tar_bytes(*entries, mode=TAR_MODES[suffix])

    def shrinking(path: Path) -> DiskUsage:
        written = sum(map(len, contents(tmp_path / "out").values()))
        return DiskUsage(free.bytes if not written else 3000 - written)

    monkeypatch.setattr(shutil, "disk_usage", shrinking)
    with pytest.raises(DataError, match=r"unpacking 'image2\.jpg' of archive needs 1,002 bytes, but the disk has 999"):
        unpacked(data)
    assert contents(tmp_path / "out").keys() == {"image0.jpg", "image1.jpg"}


def test_links_count_as_the_files_that_they_become(unpacked: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar_bytes(
        tar_entry("file", bytes(200_000)), *(tar_entry(f"link{n}", kind=tarfile.LNKTYPE, link="file") for n in "ab")
    )
    asked = []
    monkeypatch.setattr(archives, "require_free_disk", lambda folder, size, what: asked.append((size, what)))
    unpacked(data)
    assert asked[1:] == [(200_000, f"unpacking {name!r} of archive") for name in ("file", "linka", "linkb")]


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=3000), repeats=st.integers(0, 50), check=st.sampled_from(["gzip", "xz", "plain"]))
def test_the_declared_size_of_a_compressed_file_is_its_unpacked_size(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, repeats: int, check: str
) -> None:
    whole = content * repeats
    path = tmp_path_factory.mktemp("size") / "file"
    data = {"gzip": gzip.compress, "xz": lzma.compress, "plain": b".".__add__}[check](whole)
    path.write_bytes(data)
    assert least_unpacked_size(path) == max(len(whole), len(data))


def test_a_file_of_several_streams_declares_at_least_the_last_and_never_too_much(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for pack in (gzip.compress, lzma.compress):
        path.write_bytes(pack(bytes(50_000)) + pack(bytes(9_000)))
        assert least_unpacked_size(path) == 9_000


@given(data=st.binary(max_size=80), start=st.sampled_from([b"", b"\x1f\x8b", b"\xfd7zXZ\0"]), end=st.booleans())
def test_a_false_declared_size_of_a_compressed_file_is_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes, end: bool
) -> None:
    path = tmp_path_factory.mktemp("end") / "file"
    path.write_bytes(start + data + (b"\1\0\0\0\0\0YZ" if end else b""))
    assert least_unpacked_size(path) >= path.stat().st_size


def test_an_encrypted_zip_is_named(unpacked: Callable) -> None:
    data = bytearray(zip_bytes({"a": b"content"}))
    data[6] |= 1  # flag bit 0 of the local and of the central header (APPNOTE 4.4.4)
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="'a' is encrypted"):
        unpacked(bytes(data))


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (97, "method 97")])
def test_a_zip_with_an_unsupported_method_is_not_called_damaged(unpacked: Callable, method: int, name: str) -> None:
    data = bytearray(zip_bytes({"a": b"content"}))
    data[8] = method  # in the local and in the central header (APPNOTE 4.3.7, 4.3.12)
    data[data.index(b"PK\x01\x02") + 10] = method
    with pytest.raises(DataError, match=rf"'a' is packed with {name}, which is not supported\. Use Deflate"):
        unpacked(bytes(data))


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"7z\xbc\xaf\x27\x1c\0\4", "7z"), (b"Rar!\x1a\x07\1\0", "RAR"), (b"\x28\xb5\x2f\xfd\4", "Zstandard")],
)
def test_an_archive_of_an_unsupported_format_is_reported_with_it(unpacked: Callable, start: bytes, name: str) -> None:
    with pytest.raises(DataError, match=rf"is packed as {name}, which is not supported\. Make a \.zip or \.tar\.gz"):
        unpacked(start + b"content")


def test_a_file_that_is_not_an_archive_is_named_with_its_first_bytes(unpacked: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a tar .* nor a zip .*<!DOCTYPE html"):
        unpacked(b"<!DOCTYPE html><title>Sign in</title>")
    assert archive_kind(tmp_path / "archive") is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [*TAR_MODES, ".zip"])
def test_a_truncated_archive_is_detected_wherever_it_is_cut(tmp_path: Path, suffix: str) -> None:
    data = ordinary(suffix)
    # A plain tar may lose some of the zeros after its end.
    end = len(data.rstrip(b"\0")) if suffix == ".tar" else len(data) - 1
    for number, cut in enumerate(sorted({*range(0, end, max(end // 40, 1)), *range(0, end, 512), end})):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(DataError):
            unpack(tmp_path / "cut", tmp_path / f"out{number}")


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_each_byte_of_a_zip_may_be_damaged(tmp_path: Path, change: int) -> None:
    whole = ordinary(".zip")
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= change
        (tmp_path / "archive").write_bytes(damaged)
        out = tmp_path / f"out{position}"
        with suppress(DataError):  # nothing else may come out
            unpack(tmp_path / "archive", out)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([*TAR_MODES, ".zip"]))
def test_flipped_bytes_end_in_a_clear_error_or_in_files_inside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    damaged = bytearray(ordinary(suffix))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    tmp_path = tmp_path_factory.mktemp("fuzz")
    (tmp_path / "archive").write_bytes(damaged)
    with suppress(DataError):  # nothing else may come out
        unpack(tmp_path / "archive", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "out"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


NAME = st.text(st.sampled_from("ab./\\:\n\0é"), max_size=12)


@settings(max_examples=500, deadline=None)
@given(NAME)
def test_a_safe_name_never_leaves_the_folder(name: str) -> None:
    try:
        path = safe_name(name)
    except ValueError:
        return
    inside = Path("/root/folder")
    resolved = Path(os.path.normpath(inside / (path or "")))
    assert resolved.is_relative_to(inside)
    assert path is None or not path.is_absolute()


@given(st.lists(st.text(st.sampled_from("ab é."), min_size=1, max_size=5), min_size=1, max_size=4))
def test_an_ordinary_name_is_unchanged(parts: list[str]) -> None:
    wanted = [part for part in parts if part not in (".", "..")]
    if wanted:
        assert safe_name("/".join(wanted)) == PurePosixPath(*wanted)
