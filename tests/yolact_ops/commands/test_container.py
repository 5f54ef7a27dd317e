"""Limits of a container, as the kernel's control groups show them, and how commands and tasks keep to them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_ops.commands import container

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /sys/fs/cgroup; its file ``own`` stands for /proc/self/cgroup."""
    monkeypatch.setattr(container, "_ROOT", tmp_path)
    monkeypatch.setattr(container, "_OWN", tmp_path / "own")
    monkeypatch.delenv(container.POD_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


VERSION_2 = {
    "own": "0::/\n",
    "cpu.max": "250000 100000\n",
    "memory.max": "2147483648\n",
    "memory.events": "low 0\nhigh 0\nmax 531\noom 7\noom_kill 3\noom_group_kill 0\n",
}
"""The files that Linux documents (admin-guide/cgroup-v2), in a container, which sees its own group as the root."""
VERSION_1 = {
    "own": "12:cpu,cpuacct:/kubepods/pod1/abc\n4:memory:/kubepods/pod1/abc\n0::/\n",
    "cpu/cpu.cfs_quota_us": "250000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.limit_in_bytes": "2147483648\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
}
"""In a container without a namespace of control groups: the path is the node's, the files are at the root."""
ON_THE_NODE = {
    name if name == "own" else name.replace("/", "/kubepods/pod1/abc/"): text for name, text in VERSION_1.items()
}


@pytest.mark.parametrize("files", [VERSION_2, VERSION_1, ON_THE_NODE])
def test_limits_and_kills_are_read(groups: Path, files: dict[str, str]) -> None:
    write(groups, files)
    assert container.usable_cpus() == 2
    assert container.memory_limit() == 2 * GIB
    assert container.oom_kills() == 3


@pytest.mark.parametrize(
    "files",
    [
        VERSION_2 | {"cpu.max": "max 100000\n", "memory.max": "max\n"},
        VERSION_1 | {"cpu/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
        {},
    ],
)
def test_without_limits_all_cores_of_the_machine_may_be_used(groups: Path, files: dict[str, str]) -> None:
    write(groups, files)
    assert container.usable_cpus() == 64
    assert container.memory_limit() is None


def test_the_cores_that_the_pipeline_requested_go_before_the_limit(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(groups, VERSION_2)
    monkeypatch.setenv("PYTHON_CPU_COUNT", "8")
    assert container.usable_cpus() == 2  # a local run ignores the cluster's resources
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert container.usable_cpus() == 8
    monkeypatch.setenv("PYTHON_CPU_COUNT", "128")
    assert container.usable_cpus() == 64


def test_without_control_groups_nothing_is_known(groups: Path) -> None:
    assert container.oom_kills() is None


def in_a_process(program: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TASK = """
import os
from pathlib import Path
from yolact.files import write_text_atomic
from yolact_ops.commands import task
from yolact_ops.lineage.code import installed_version

os.umask(0)
with task.task("split", installed_version("split")):
    write_text_atomic(Path("atomic"), "x")
    Path("plain").write_text("x")
    Path("folder").mkdir()
"""
STEP = """
import os, sys
from pathlib import Path
from yolact_ops.commands.step import run_command

os.umask(0)
sys.argv[1:] = ["--params", sys.argv.pop()]
run_command("train", lambda params: (Path("atomic").touch(), Path("plain").touch(), Path("folder").mkdir()))
"""


@pytest.mark.parametrize("program", [TASK, STEP])
def test_a_pods_files_are_closed_to_others(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    program = program.replace("sys.argv.pop()", repr(str(repository / "params.yaml")))
    in_a_process(program, PYTHONPATH=str(repository), KUBERNETES_SERVICE_HOST="10.0.0.1")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"atomic": 0o640, "plain": 0o640, "folder": 0o750}


THREADS = """
import os
from yolact_ops.commands.container import keep_to_container
{before}
keep_to_container()
import torch
print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads())
"""


def test_pytorch_takes_the_threads_that_the_pipeline_requested(repository: Path) -> None:
    """Also where it is imported first, as by ``python -m components.evaluate.step``."""
    given = {"PYTHONPATH": str(repository), "KUBERNETES_SERVICE_HOST": "10.0.0.1", "PYTHON_CPU_COUNT": "1"}
    assert in_a_process(THREADS.format(before=""), **given) == "1 1\n"
    assert in_a_process(THREADS.format(before="import torch"), **given) == "1 1\n"
    kept = THREADS.format(before="").replace("import torch\n", "").replace(", torch.get_num_threads()", "")
    assert in_a_process(kept, OMP_NUM_THREADS="2", **given) == "2\n"


@pytest.mark.parametrize(
    ("cores", "processes", "given", "threads"),
    [(8, 2, "", "4"), (8, 2, "8", "4"), (8, 2, "1", "1"), (8, 3, "", "2"), (2, 4, "", "1"), (8, 2, "all", "4")],
)
def test_processes_share_the_cores(
    cores: int, processes: int, given: str, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "usable_cpus", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    container.share_threads(processes)
    assert os.environ["OMP_NUM_THREADS"] == threads
