"""Where tensors live, and how much memory a process takes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch

from yolact.errors import SettingsError


def choose_device(name: str) -> torch.device:
    """Turn the setting ``device`` into a device; ``auto`` takes a GPU where there is one.

    Raises:
        SettingsError: there is no such device, or not on this machine.
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
    """Set PyTorch's switches for training on a GPU; nothing is to be set for other devices.

    float32 convolutions and products use TF32 tensor cores (10 bits of mantissa), which training does not notice.
    cuDNN tries out its algorithms for each input size and takes the fastest, unless ``deterministic``: then sums are
    taken in a fixed order where PyTorch has an operation that does so, and a warning names the operations that have
    none.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's documented way to fixed sums
        torch.use_deterministic_algorithms(True, warn_only=True)


def check_compiler(device: torch.device, setting: str) -> None:
    """Refuse ``torch.compile`` where it would fail in the first step, with a message of its own insides.

    On GPUs it makes kernels with Triton, which calls a C compiler; on other devices with a C++ compiler. The container
    image has none of these.

    Args:
        device: to compile for.
        setting: what asked for it, for the message.

    Raises:
        SettingsError: what it needs is not installed.
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
    """The most memory, bytes, that this process had in use since its start or a later count's."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:  # not Linux. There the next one counts the parent's memory at the start too
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
