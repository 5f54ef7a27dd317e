"""Atomic writing: a reader sees the old or the new content, never a part, and no leftovers remain."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from yolact.files import (
    UNLOCKABLE,
    BusyError,
    fitting_name,
    replaced_directory,
    replaced_file,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)


class InterruptionError(Exception):
    pass


@pytest.fixture
def umask_027() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_content_is_written_and_parent_folders_are_created(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "a" / "b" / "x.bin", b"\x00\xff")
    write_text_atomic(tmp_path / "x.txt", "Ä × 2\n")
    write_json_atomic(tmp_path / "x.json", {"b": [1, 2.5], "a": None})
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "x.txt").read_bytes() == "Ä × 2\n".encode()
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"b": [1, 2.5], "a": None}


def test_a_file_keeps_its_old_content_until_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with replaced_file(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_the_file_unchanged_and_nothing_next_to_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(InterruptionError), replaced_file(path) as temporary:
        temporary.write_text("half")
        raise InterruptionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_invalid_json_values_are_rejected_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x.json"
    write_json_atomic(path, 1)
    with pytest.raises((ValueError, TypeError)):
        write_json_atomic(path, {"value": value})
    assert json.loads(path.read_text()) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("umask_027")
def test_permissions_are_those_of_any_newly_made_file_or_folder(tmp_path: Path) -> None:
    plain_file, plain_folder = tmp_path / "plain", tmp_path / "plain_folder"
    plain_file.touch()
    plain_folder.mkdir()
    write_text_atomic(tmp_path / "file", "x")
    with replaced_directory(tmp_path / "folder"):
        pass
    assert mode(tmp_path / "file") == mode(plain_file) == 0o640
    assert mode(tmp_path / "folder") == mode(plain_folder) == 0o750


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "out"
    for name in ("first", "second"):
        with replaced_directory(folder) as temporary:
            assert list(temporary.iterdir()) == []
            assert temporary.parent == folder.parent
            (temporary / name).write_text(name)
            assert not (folder / name).exists()
        assert [path.name for path in folder.iterdir()] == [name]
    assert list(folder.parent.iterdir()) == [folder]


def test_an_exception_leaves_the_folder_unchanged_and_nothing_next_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(InterruptionError), replaced_directory(folder) as temporary:
        (temporary / "half").write_text("half")
        raise InterruptionError
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_exception_before_the_first_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InterruptionError), replaced_directory(tmp_path / "out"):
        raise InterruptionError
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed_and_other_folders_are_not(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from yolact.files import replaced_directory\n"
        "with replaced_directory(sys.argv[1]) as temporary:\n"
        "    (temporary / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("old")
    (tmp_path / ".outer.1.part").mkdir()
    killed = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob(".out.*.part"))) == 1, "the killed run left its half-made folder"
    assert (folder / "old").read_text() == "old"

    with replaced_directory(folder) as temporary:
        (temporary / "new").write_text("new")

    assert {path.name for path in tmp_path.iterdir()} == {"out", ".outer.1.part"}
    assert [path.name for path in folder.iterdir()] == ["new"]


HOLDER = """
import sys
from yolact.files import replaced_directory
with replaced_directory(sys.argv[1]) as temporary:
    (temporary / "first").touch()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_built_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(BusyError, match=rf"out: process {other.pid} on \S+ is writing there"),
            replaced_directory(folder),
        ):
            pytest.fail("two processes build the folder")
        other.communicate()
    assert other.returncode == 0
    assert [path.name for path in folder.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [folder]


WRITER = """
import sys
from yolact.files import BusyError, replaced_file
try:
    with replaced_file(sys.argv[1]) as temporary:
        temporary.write_text("first")
        print("written", flush=True)
        sys.stdin.read()
except BusyError as error:
    print(error)
"""


def test_of_two_processes_that_write_a_file_at_once_the_later_one_succeeds(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    command = [sys.executable, "-c", WRITER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "written\n"
        write_text_atomic(file, "second")
        said, _ = other.communicate()
    assert said.startswith(f"{file}: another process began to write it meanwhile")
    assert file.read_text() == "second"
    assert list(tmp_path.iterdir()) == [file]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.kill()
    assert (tmp_path / ".out.lock").is_file()
    with replaced_directory(folder) as temporary:
        (temporary / "second").touch()
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("number", sorted(UNLOCKABLE))
def test_a_file_system_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with replaced_directory(tmp_path / "out") as temporary:
        (temporary / "new").touch()
    assert (tmp_path / "out" / "new").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_write_to_an_impossible_place_raises_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write_text_atomic(tmp_path / "file" / "below", "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
@pytest.mark.parametrize("replaced", [replaced_file, replaced_directory])
def test_the_error_of_a_full_disk_names_what_is_written(tmp_path: Path, replaced: Callable[[Path], Any]) -> None:
    """A write that fails names no file by itself."""
    with (
        pytest.raises(OSError, match="No space left") as raised,
        replaced(tmp_path / "results"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert raised.value.filename == str(tmp_path / "results")
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_another_full_disk_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised, replaced_file(tmp_path / "results"):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/elsewhere")
    assert raised.value.filename == "/tmp/elsewhere"


def test_a_kill_while_a_directory_is_swapped_loses_nothing(tmp_path):
    path, aside = tmp_path / "out", tmp_path / ".out.old.part"
    aside.mkdir()
    (aside / "old.txt").write_text("old")  # killed after the old folder was moved aside

    with pytest.raises(RuntimeError), replaced_directory(path):
        raise RuntimeError

    assert (path / "old.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_partial_files_of_a_kill_are_removed_by_the_next_write(tmp_path):
    (tmp_path / ".model[1].json.abc.part").write_text("half")
    (tmp_path / ".other.json.abc.part").write_text("another file's")
    write_text_atomic(tmp_path / "model[1].json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.json.abc.part", "model[1].json"]


@pytest.mark.parametrize("name", ["x" * 241, "真" * 80, "é" * 125 + ".json"])
def test_names_of_any_length_that_a_file_may_have_are_written(tmp_path: Path, name: str) -> None:
    write_bytes_atomic(tmp_path / name, b"first")
    with pytest.raises(InterruptionError), replaced_file(tmp_path / name) as temporary:
        temporary.write_bytes(b"sec")
        raise InterruptionError
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"first"


@pytest.mark.parametrize("stem", ["short", "x" * 300, "真" * 100, "a" + "é" * 150])
def test_a_fitting_name_keeps_its_suffix_and_whole_letters(tmp_path: Path, stem: str) -> None:
    name = fitting_name(stem, ".jpg")
    (tmp_path / name).touch()
    assert name.endswith(".jpg")
    assert stem.startswith(name.removesuffix(".jpg"))
    assert len(name.encode()) > 250 or name == f"{stem}.jpg"
