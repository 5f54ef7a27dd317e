"""Where tensors live."""

from __future__ import annotations

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
