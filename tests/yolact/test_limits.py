"""What a process may use, as its affinity and the kernel's control groups (real and written here) say."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact import limits

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /sys/fs/cgroup; its file ``own`` stands for /proc/self/cgroup."""
    monkeypatch.setattr(limits, "_ROOT", tmp_path)
    monkeypatch.setattr(limits, "_OWN", tmp_path / "own")
    monkeypatch.delenv(limits.POD_VARIABLE, raising=False)
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
    assert limits.usable_cpus() == 3  # two and a half
    assert limits.memory_limit() == 2 * GIB
    assert limits.oom_kills() == 3


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
    assert limits.usable_cpus() == 64
    assert limits.memory_limit() is None


def test_the_cores_that_the_pipeline_requested_go_before_the_limit(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(groups, VERSION_2)
    monkeypatch.setenv("PYTHON_CPU_COUNT", "8")
    assert limits.usable_cpus() == 3  # a local run ignores the cluster's resources
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert limits.usable_cpus() == 8
    monkeypatch.setenv("PYTHON_CPU_COUNT", "128")
    assert limits.usable_cpus() == 64


def test_without_control_groups_nothing_is_known(groups: Path) -> None:
    assert limits.oom_kills() is None


QUOTAS = st.none() | st.tuples(st.integers(1_000, 10_000_000), st.sampled_from([1_000, 50_000, 100_000, 1_000_000]))
"""Microseconds of CPU time and of the period, which the kernel takes from 1 ms to 1 s; None for no limit."""


@given(quotas=st.lists(QUOTAS, min_size=1, max_size=4), version=st.sampled_from([1, 2]), cores=st.integers(1, 64))
def test_the_smallest_limit_of_the_groups_above_counts_rounded_up(
    quotas: list[tuple[int, int] | None], version: int, cores: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first quota is that of the root, which has files of its own in a container; the last is the process's."""
    root = tmp_path_factory.mktemp("cgroup")
    path = "".join(f"/g{level}" for level in range(1, len(quotas)))
    write(root, {"own": f"5:cpu,cpuacct:{path or '/'}\n0::/\n" if version == 1 else f"0::{path or '/'}\n"})
    for level, given_quota in enumerate(quotas):
        group = "".join(f"g{number}/" for number in range(1, level + 1))
        quota, period = given_quota or (-1 if version == 1 else "max", 100_000)
        if version == 1:
            write(root, {f"cpu/{group}cpu.cfs_quota_us": f"{quota}\n", f"cpu/{group}cpu.cfs_period_us": f"{period}\n"})
        else:
            write(root, {f"{group}cpu.max": f"{quota} {period}\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_ROOT", root)
        patch.setattr(limits, "_OWN", root / "own")
        patch.delenv(limits.POD_VARIABLE, raising=False)
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        found = limits.usable_cpus()
    shares = [Fraction(*quota) for quota in quotas if quota is not None]
    assert found == min([cores, *(max(math.ceil(share), 1) for share in shares)])


@pytest.mark.parametrize(
    "files",
    [
        {"own": "0::/\n", "cpu.max": ""},
        {"own": "0::/\n", "cpu.max": "100000\n"},
        {"own": "0::/\n", "cpu.max": "many few\n"},
        {"own": "0::/../outside\n"},
        {"own": "3:cpu:/\n", "cpu/cpu.cfs_quota_us": "100000\n"},
    ],
)
def test_files_that_say_nothing_are_no_limit(groups: Path, files: dict[str, str]) -> None:
    write(groups, files)
    assert limits.usable_cpus() == 64


def counted(*command: str, repository: Path) -> int:
    """Cores that a process started with ``command`` before it may use."""
    environment = {name: value for name, value in os.environ.items() if name != limits.POD_VARIABLE}
    done = subprocess.run(
        [*command, sys.executable, "-c", "from yolact.limits import usable_cpus; print(usable_cpus())"],
        env=environment | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_a_process_bound_to_one_core_may_use_one(repository: Path) -> None:
    core = min(os.sched_getaffinity(0))
    assert counted("taskset", "--cpu-list", str(core), repository=repository) == 1


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group of half a core, in the version that this machine has."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.is_file() else []
    roots = [Path("/sys/fs/cgroup/cpu") for line in lines if "cpu" in line.split(":")[1].split(",")]
    group = (roots or [Path("/sys/fs/cgroup")])[0] / f"limits-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if roots:
            (group / "cpu.cfs_quota_us").write_text("50000")
        else:
            (group / "cpu.max").write_text("50000 100000")
        yield group
    except OSError as error:
        pytest.skip(f"the controller of CPU time is not available here: {error}")
    finally:
        group.rmdir()


def test_a_process_in_a_real_group_of_half_a_core_may_use_one(half_a_core: Path, repository: Path) -> None:
    enter = f'echo $$ > {half_a_core}/cgroup.procs && exec "$@"'
    assert counted("sh", "-c", enter, "sh", repository=repository) == 1
