"""The CI scripts, `.ci/run` and `.ci/containers`, with fakes for the machine's tools: no Docker is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS: tuple[str, ...] = (
    "awk",
    "bash",
    "cat",
    "chmod",
    "comm",
    "cp",
    "df",
    "dirname",
    "find",
    "grep",
    "head",
    "mkdir",
    "mktemp",
    "nproc",
)
TOOLS += ("rm", "sed", "sleep", "sort", "tail", "tar", "timeout", "touch", "umount", "xargs")
"""Programs that every Debian has, which the scripts may use."""


@dataclass
class Machine:
    """A folder with the scripts and programs; all programs except `TOOLS` are fakes that record their calls."""

    root: Path

    @property
    def calls(self) -> list[str]:
        """Calls of the fakes, in order."""
        notes = self.root / "calls"
        return notes.read_text().splitlines() if notes.exists() else []

    def add(self, name: str, script: str = "") -> None:
        """Add a fake to the path; it records its call and then runs ``script``."""
        program = self.root / "bin" / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.root}/calls\n{script}\n')
        program.chmod(0o755)

    def start(self, script: str) -> subprocess.Popen[str]:
        environment = {"PATH": str(self.root / "bin"), "TMPDIR": str(self.root / "tmp"), "HOME": str(self.root)}
        command = ["bash", str(self.root / ".ci" / script)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        with self.start(script) as process:
            output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def running(self) -> list[str]:
        """Command lines of processes that name its folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it ended meanwhile
                found.append(path.read_text(encoding="utf-8", errors="replace").replace("\0", " "))
        return [command for command in found if str(self.root) in command]


@pytest.fixture
def machine(tmp_path: Path, repository: Path) -> Machine:
    """A machine with git, make and Python, and without PostgreSQL, libfaketime, apt-get, sudo and Docker."""
    for folder in ("bin", "tmp", ".ci"):
        (tmp_path / folder).mkdir()
    for name in ("run", "containers"):
        text = (repository / ".ci" / name).read_text(encoding="utf-8")
        for path in ("/usr/lib/postgresql", "/usr/lib/*/faketime", "/usr/bin/docker"):
            text = text.replace(path, f"{tmp_path}/none")
        (tmp_path / ".ci" / name).write_text(text)
    made = Machine(tmp_path)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (tmp_path / "bin" / tool).symlink_to(found)
    for name in ("git", "make", "python3", "pytest"):
        made.add(name)
    return made


# .ci/run -----------------------------------------------------------------------------------------------------------


CHECKS = ["make lint", "make test"]


def test_without_apt_get_the_checks_run_without_optional_packages(machine: Machine) -> None:
    done = machine.run("run")
    assert done.returncode == 0, done.stderr
    assert machine.calls[-2:] == CHECKS
    assert "could not be installed: postgresql libfaketime: the tests that need them skip" in done.stdout


def test_a_failing_apt_get_does_not_end_the_checks(machine: Machine) -> None:
    machine.add("apt-get", "exit 100")
    machine.add("sudo", '[ "$1" = -n ] && shift; "$@"')
    done = machine.run("run")
    assert done.returncode == 0, done.stderr
    assert "apt-get update --quiet" in machine.calls
    assert machine.calls[-2:] == CHECKS


@pytest.mark.skipif(os.geteuid() == 0, reason="root needs no sudo")
def test_no_password_is_requested_for_optional_packages(machine: Machine) -> None:
    machine.add("apt-get")
    machine.add("sudo", "exit 1")
    done = machine.run("run")
    assert done.returncode == 0, done.stderr
    assert "sudo -n true" in machine.calls
    assert not [call for call in machine.calls if call.startswith("apt-get")]


def test_optional_packages_are_installed_if_possible(machine: Machine) -> None:
    machine.add("apt-get")
    machine.add("sudo", '[ "$1" = -n ] && shift; "$@"')
    done = machine.run("run")
    assert done.returncode == 0, done.stderr
    assert "apt-get install --quiet --yes --no-install-recommends postgresql libfaketime" in machine.calls
    assert "could not be installed" not in done.stdout


def test_a_missing_tool_that_cannot_be_installed_is_named(machine: Machine) -> None:
    (machine.root / "bin" / "git").unlink()
    done = machine.run("run")
    assert done.returncode == 1
    assert "missing, and could not be installed: git" in done.stderr
    assert "make lint" not in machine.calls


# .ci/containers ----------------------------------------------------------------------------------------------------

DOCKER = """
case "$*" in
  info) printf ' Storage Driver: overlay2\\n Docker Root Dir: %s\\n' "$ROOT";;
  "image inspect python"* | "pull "*) exit "$REGISTRY";;
  "image ls "*) cat "$ROOT/dangling";;
  "ps --all "*) echo c0ffee;;
  "build --help") exit 1;;
esac
"""
"""A Docker without BuildKit, whose folder is ROOT; REGISTRY is the exit status of fetching the base image."""


def with_docker(machine: Machine, registry: int, free_gb: int = 30) -> None:
    """Give the machine a Docker with this much free space."""
    folder = machine.root / "docker"
    folder.mkdir()
    (folder / "dangling").write_text("aaaaaaaaaaaa\n")
    machine.add("docker", f"ROOT={folder} REGISTRY={registry}{DOCKER}")
    (machine.root / "bin" / "df").unlink()
    space = f'[ "${{@: -1}}" = {folder} ] && free={free_gb} || free=1'
    machine.add("df", f"{space}; echo Avail; echo $((free * 1024 * 1024 + 1))")


def test_cleanup_removes_what_the_build_created_and_nothing_else(machine: Machine) -> None:
    with_docker(machine, registry=0)
    dangling = machine.root / "docker" / "dangling"
    made = f"printf 'aaaaaaaaaaaa\\nbbbbbbbbbbbb\\ncccccccccccc\\n' > {dangling}"  # c: of someone else, just now
    machine.add("make", f"{made}; echo ' ---> aaaaaaaaaaaa'; echo ' ---> bbbbbbbbbbbb'; echo 'i: 5 GB; by layer:'")
    done = machine.run("containers")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "i: 5 GB; by layer:" in done.stdout
    assert "pytest tests/containers" in machine.calls
    after = machine.calls[machine.calls.index("pytest tests/containers") :]
    removed = [call for call in after if " rm " in call]
    assert removed[0] == "docker rm --force c0ffee"
    assert removed[1].startswith("docker image rm --force yolact-pipeline:ci-")
    assert removed[2:] == ["docker image rm bbbbbbbbbbbb"]
    assert list((machine.root / "tmp").iterdir()) == []


def test_failed_tests_fail_after_the_cleanup(machine: Machine) -> None:
    with_docker(machine, registry=0)
    machine.add("pytest", "exit 1")
    done = machine.run("containers")
    assert done.returncode == 1
    assert "docker rm --force c0ffee" in machine.calls


def test_a_signal_stops_the_processes_and_cleans_up(machine: Machine) -> None:
    with_docker(machine, registry=0)
    machine.add("pytest", "sleep 1000; true")
    with machine.start("containers") as process:
        while "pytest tests/containers" not in machine.calls:
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert "docker rm --force c0ffee" in machine.calls
    assert machine.running() == []
    assert list((machine.root / "tmp").iterdir()) == []


def test_a_failed_build_shows_the_end_of_its_log(machine: Machine) -> None:
    with_docker(machine, registry=0)
    machine.add("make", "echo no space; exit 2")
    done = machine.run("containers")
    assert done.returncode == 1
    assert "no space" in done.stderr


def test_free_space_is_checked_on_dockers_disk(machine: Machine) -> None:
    with_docker(machine, registry=0, free_gb=3)
    done = machine.run("containers")
    assert done.returncode == 0
    assert (
        f"not tested here: building the image takes 20 GB of disk, but {machine.root}/docker has only 3 GB"
        in done.stdout
    )
    assert not [call for call in machine.calls if call.startswith("make")]


def test_without_a_registry_and_without_debootstrap_the_tests_skip(machine: Machine) -> None:
    with_docker(machine, registry=1)
    done = machine.run("containers")
    assert done.returncode == 0
    assert "not tested here: python:3.11-slim-bookworm cannot be fetched" in done.stdout
    assert not [call for call in machine.calls if call.startswith("make")]


def may_mount() -> bool:
    """Whether this is root with CAP_SYS_ADMIN."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [rights] = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")]
    return os.geteuid() == 0 and bool(int(rights, 16) >> 21 & 1)


def roomy(machine: Machine) -> None:
    """Give the machine much space everywhere."""
    (machine.root / "bin" / "df").unlink()
    machine.add("df", "echo Avail; echo 99999999")


mounting = pytest.mark.skipif(not may_mount(), reason="only root that may mount file systems gets so far")


@mounting
def test_without_a_registry_a_running_docker_gets_a_stand_in_for_the_base(machine: Machine) -> None:
    with_docker(machine, registry=1)
    machine.add("debootstrap", 'mkdir -p "${@: -1}/etc/ssl/certs"')
    done = machine.run("containers")
    assert done.returncode == 0, done.stdout + done.stderr
    [made] = [call for call in machine.calls if call.startswith("make image")]
    [brought] = [call for call in machine.calls if call.startswith("docker import")]
    name = brought.split()[-1]
    assert f"BASE_IMAGE={name} " in made
    assert any(call.startswith("docker image rm") and call.endswith(name) for call in machine.calls)


@mounting
def test_our_own_docker_leaves_no_process_behind(machine: Machine) -> None:
    """A dockerd that exits without its shims, as if killed."""
    roomy(machine)
    shim = f"bash -c 'echo $$ > {machine.root}/shim; while :; do sleep 0.1; done' shim"
    machine.add("dockerd", f'{shim} "${{@: -1}}" &\nexec sleep 1000')
    machine.add("docker", f'[ "$1" = info ] && {{ [ -e {machine.root}/shim ]; exit; }}; exit 0')
    done = machine.run("containers")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pytest tests/containers" in machine.calls
    assert (machine.root / "shim").exists()
    assert machine.running() == []
    assert list((machine.root / "tmp").iterdir()) == []


@mounting
def test_a_dockerd_that_does_not_start_skips_with_the_reason(machine: Machine) -> None:
    roomy(machine)
    machine.add("docker", "exit 1")
    machine.add("dockerd", "echo no cgroups >&2; exit 1")
    done = machine.run("containers")
    assert done.returncode == 0
    assert "no cgroups" in done.stdout
    assert "not tested here: dockerd does not start" in done.stdout
