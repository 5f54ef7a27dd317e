"""Device selection and settings, and the memory use of a process."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from yolact.errors import SettingsError

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3), from glibc's malloc.h."""

_computing_process: int | None = None
"""Id of the process that last predicted; a forked child inherits its parent's."""


def choose_device(name: str) -> torch.device:
    """Turn the setting ``device`` into a device; ``auto`` selects a GPU if there is one.

    Raises:
        SettingsError: the device is unknown or not available on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA GPUs; use cpu, or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("device 'mps': this machine has no Apple GPU; use cpu, or auto")
    return device


def prepare_device(device: torch.device, *, deterministic: bool) -> None:
    """Configure PyTorch for training on a GPU; does nothing on other devices.

    float32 convolutions and matrix products use TF32 tensor cores (10 bits of mantissa), which does not affect training
    results noticeably. cuDNN benchmarks its algorithms for each input size, unless ``deterministic``: then PyTorch uses
    deterministic algorithms, and warns about operations that have none.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS for deterministic results
        torch.use_deterministic_algorithms(True, warn_only=True)


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the kernel; does nothing with other C libraries. For a
    process that only trains, on a CPU.

    The kernel clears returned pages, and each training step needs them again, which took up to 8 % of a step. In
    exchange the peak of memory is 5 % higher (docs/benchmarks.md, "A training step on a CPU"). Child processes inherit
    this.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def computing_threads(threads: int | Literal["auto"]) -> Iterator[None]:
    """Compute with a number of CPU threads in the block; ``auto`` leaves it as it is.

    The order of sums, and so the last digits of results on a CPU, depend on that number, but not on the number of
    cores. ``OMP_NUM_THREADS`` does not fix it: MKL takes no more threads than there are cores.
    """
    before = torch.get_num_threads()
    if threads != "auto":
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def adapt_to_fork() -> None:
    """Compute with one CPU thread in a child that was forked after its parent began to predict.

    PyTorch's other threads stay in the parent, and the child would wait for them forever (PyTorch issue 49555). Called
    before each prediction.
    """
    global _computing_process
    process = os.getpid()
    if _computing_process not in (None, process) and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        log.warning(
            "process %d was forked after its parent loaded a model: it computes with one CPU thread, because PyTorch's "
            "threads do not survive a fork; to use more, start processes with spawn, or load models in them only",
            process,
        )
    _computing_process = process


def check_compiler(device: torch.device, setting: str) -> None:
    """Check what ``torch.compile`` needs; otherwise it would fail in the first step with an internal error.

    On GPUs it generates kernels with Triton, which calls a C compiler; on other devices it calls a C++ compiler. The
    container image includes neither.

    Args:
        device: the device to compile for.
        setting: the key that enabled compilation, for the message.

    Raises:
        SettingsError: a compiler or Triton is not installed.
    """
    on_gpu = device.type == "cuda"
    variable, names = (
        ("CC", ["gcc", "clang"]) if on_gpu else ("CXX", ["clang++" if sys.platform == "darwin" else "g++"])
    )
    given = os.environ.get(variable)
    missing = [] if any(map(shutil.which, [given] if given else names)) else [f"a compiler ({' or '.join(names)})"]
    if on_gpu and importlib.util.find_spec("triton") is None:
        missing.append("the package triton")
    if missing:
        raise SettingsError(f"{setting}: torch.compile needs {' and '.join(missing)}; install it, or set this to false")


def peak_resident() -> int:
    """Peak resident memory of this process, bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:  # not Linux; this also counts the parent's memory at the fork
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
