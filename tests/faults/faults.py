"""Real faults for tests: small and read-only disks, missing permissions, little memory, another time, kills."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

WARM = [
    "components.ingest.step",
    "components.preprocess.step",
    "components.train.training",
    "components.evaluate.step",
    "components.register.step",
    "components.promote.step",
    "yolact_cli.main",
    "yolact_cli.predict",
    "yolact_cli.export",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "onnxruntime",
]
"""What commands import, which takes most of their time: once for all of them."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; -N after signal N."""
    output: str


@dataclass(frozen=True)
class Command:
    """A command as its users start it, in a process of its own that is forked from one with all imports."""

    module: str
    arguments: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    before: Callable[[], None] | None = None
    """What the process does first: a function of a module, or a `functools.partial` of one."""

    def run(self, timeout: float = 600) -> Outcome:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(WARM)
        with tempfile.NamedTemporaryFile() as said:
            process = context.Process(target=_work, args=(self, said.name))
            process.start()
            process.join(timeout)
            output = Path(said.name).read_text(errors="replace")
            if process.exitcode is None:
                process.kill()
                pytest.fail(f"{self.module} hangs:\n{output}")
        return Outcome(process.exitcode, output)


def _work(command: Command, said: str) -> None:
    """Run the command in this process; what it prints goes to the file ``said``."""
    handle = os.open(said, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(command.folder)
    os.environ.clear()
    os.environ.update(command.environment)
    sys.argv = [command.module, *command.arguments]
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # the module is imported already
    if command.before is not None:
        command.before()
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except Exception:
        traceback.print_exc()
        os._exit(70)


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """It ended with a message for its user, without a traceback, that has all parts."""
    assert outcome.code == 1, f"exit code {outcome.code}:\n{outcome.output}"
    assert "Traceback" not in outcome.output, outcome.output
    for part in parts:
        assert part in outcome.output, f"no {part!r} in:\n{outcome.output}"


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here (only root can): {done.stderr.strip()}")


@contextmanager
def small_disk(folder: Path, size: int = 1 << 30) -> Iterator[Path]:
    """A disk of so many bytes at ``folder``; skips where nothing can be mounted."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk: Path, free: int) -> Iterator[None]:
    """Leave so many bytes free on a disk while the block runs."""
    filler, state = disk / ".filler", os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - free)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder a read-only disk while the block runs; skips where nothing can be mounted."""
    with ExitStack() as stack:
        _mount("--bind", str(folder), str(folder))
        stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        _mount("-o", "remount,bind,ro", str(folder))
        yield


_CAPABILITIES_V3 = 0x20080522
_IGNORE_MODES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of Linux."""


def obey_permissions() -> None:
    """Let file modes bind this process, also as root: it gives up the rights to ignore them."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of capabilities 0 to 31 and of the others
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~_IGNORE_MODES
    sets[1] &= ~_IGNORE_MODES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


@contextmanager
def without_permission(path: Path, mode: int = 0o555) -> Iterator[None]:
    """Take permissions from a file, or from a folder with all in it, while the block runs."""
    modes = {each: each.stat().st_mode for each in (path, *path.rglob("*")) if not each.is_symlink()}
    for each in reversed(modes):
        each.chmod(mode)
    try:
        yield
    finally:
        for each in modes:
            each.chmod(modes[each])


def limit_memory(extra: int) -> None:
    """Allow this process so many bytes of address space beyond those that it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def kill_at_replacement(count: int, suffix: str = "", number: int = signal.SIGKILL) -> None:
    """Have this process killed just before it gives a file or folder its final name for the ``count``-th time.

    Only names with the suffix count. Another signal than SIGKILL: SIGSTOP holds the process there.
    """
    replace, calls = os.replace, itertools.count(1)

    def deadly(source: Any, target: Any, **options: Any) -> None:
        if str(target).endswith(suffix) and next(calls) == count:
            os.kill(os.getpid(), number)
        replace(source, target, **options)

    os.replace = deadly


def clock(offset: str | Path) -> dict[str, str]:
    """Environment in which the time is another one, as ``+1h``; skips without libfaketime.

    A path is that of a file with the offset, which may change while the process runs; it is read every second.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("no libfaketime: apt-get install libfaketime")
    at = {"FAKETIME": offset}
    if isinstance(offset, Path):
        at = {"FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_CACHE_DURATION": "1"}  # seconds
    return {"LD_PRELOAD": str(found[0]), **at, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def files_of(folder: Path) -> dict[str, bytes]:
    """Path and content of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def leftovers(folder: Path) -> list[str]:
    """Files and folders with temporary names, and locks."""
    return [path.relative_to(folder).as_posix() for kind in ("part", "lock") for path in folder.rglob(f".*.{kind}")]
