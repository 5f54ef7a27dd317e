"""What a machine needs for the requested settings."""

from __future__ import annotations

import os
import platform
import subprocess
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


DIGITS = """
import hashlib, os, sys
if sys.argv[1] != "all":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import torch
from yolact.devices import computing_threads

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 24, 3))
images = torch.randn(5, 3, 65, 65)
for threads in (1, 2, 3):
    with computing_threads(threads):
        used = torch.get_num_threads()
        network.zero_grad()
        network(images).square().mean().backward()
    gradients = b"".join(weights.grad.numpy().tobytes() for weights in network.parameters())
    print(used, hashlib.sha256(gradients).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_digits_depend_on_the_threads_and_not_on_the_cores(repository: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    outputs = []
    for cores, given in (("one", {}), ("all", {}), ("all", {"OMP_NUM_THREADS": "1"})):
        environment = kept | {"PYTHONPATH": str(repository)} | given
        command = [sys.executable, "-c", DIGITS, cores]
        outputs.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1] == outputs[2]
    rows = [line.split() for line in outputs[0].splitlines()]
    assert [used for used, _ in rows] == ["1", "2", "3"]
    assert len({digest for _, digest in rows}) == 3  # otherwise this shows nothing


FAULTS = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: else one fault may be for a huge page
import torch
from yolact.devices import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for size in (80 << 20, 64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the limits are glibc's")
@pytest.mark.parametrize(("how", "again"), [("kept", False), ("as it is", True)])
def test_kept_memory_is_used_again_without_page_faults(repository: Path, how: str, again: bool) -> None:
    command = [sys.executable, "-c", FAULTS, how]
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first > 1000
    assert (second > first / 2) is again
