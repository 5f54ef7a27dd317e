"""What a machine needs for the requested settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from yolact.devices import check_compiler
from yolact.errors import SettingsError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the only one on the search path for programs."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add_program(folder: Path, name: str) -> None:
    (folder / name).write_text("")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiling_without_a_compiler_is_rejected_before_training(programs: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=r"^runtime\.compile: torch\.compile needs a compiler .*set this to false$"):
        check_compiler(torch.device(device), "runtime.compile")


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux's compilers")
def test_each_device_needs_only_its_own_compiler(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    add_program(programs, "g++")
    check_compiler(torch.device("cpu"), "runtime.compile")
    with pytest.raises(SettingsError, match="gcc or clang"):
        check_compiler(torch.device("cuda"), "runtime.compile")
    add_program(programs, "mycc")
    monkeypatch.setenv("CC", "mycc")
    check_compiler(torch.device("cuda"), "runtime.compile")


def test_a_gpu_needs_triton_too(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_program(programs, "gcc")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="needs the package triton;"):
        check_compiler(torch.device("cuda"), "runtime.compile")
