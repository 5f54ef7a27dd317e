"""What CI runs, `.ci/run` and `.ci/containers`, among stand-ins for the machine's tools: no Docker is started here."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = ("awk", "bash", "cat", "cp", "cut", "df", "dirname", "env", "find", "grep", "head", "mkdir", "mktemp", "nproc")
TOOLS += ("readlink", "rm", "sed", "sleep", "sort", "tail", "tar", "timeout", "touch", "umount", "wc", "xargs")
"""Programs that are on every Debian, which the scripts may use as they are."""


@dataclass
class Machine:
    """A folder with the scripts, and programs of which all but `TOOLS` are stand-ins that note how they are called."""

    root: Path

    @property
    def calls(self) -> list[str]:
        """Commands that were given to stand-ins, in order."""
        notes = self.root / "calls"
        return notes.read_text().splitlines() if notes.exists() else []

    def add(self, name: str, script: str = "") -> None:
        """Put a stand-in into the path; it notes its call and then does what ``script`` says."""
        program = self.root / "bin" / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.root}/calls\n{script}\n')
        program.chmod(0o755)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.root / "bin"), "TMPDIR": str(self.root / "tmp"), "HOME": str(self.root)}
        command = ["bash", self.root / ".ci" / script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def machine(tmp_path: Path, repository: Path) -> Machine:
    """A machine with git, make and Python, and without PostgreSQL, apt-get, sudo and Docker."""
    for folder in ("bin", "tmp", ".ci"):
        (tmp_path / folder).mkdir()
    for name in ("run", "containers"):
        text = (repository / ".ci" / name).read_text(encoding="utf-8")
        for folder in ("/usr/lib/postgresql", "/usr/bin/docker"):
            text = text.replace(folder, f"{tmp_path}/none")
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


@pytest.fixture
def checks(machine: Machine) -> Machine:
    """The machine, with only a note instead of the tests in containers."""
    (machine.root / ".ci" / "containers").write_text(f"echo containers >> {machine.root}/calls\n")
    return machine


CHECKS = ["make lint", "make test", "containers"]


def test_without_apt_get_checks_go_on_without_postgresql(checks: Machine) -> None:
    done = checks.run("run")
    assert done.returncode == 0, done.stderr
    assert checks.calls[-3:] == CHECKS
    assert "no PostgreSQL here" in done.stdout


def test_an_apt_get_that_reaches_nothing_does_not_end_the_checks(checks: Machine) -> None:
    checks.add("apt-get", "exit 100")
    checks.add("sudo", '[ "$1" = -n ] && shift; "$@"')
    done = checks.run("run")
    assert done.returncode == 0, done.stderr
    assert "apt-get update --quiet" in checks.calls
    assert checks.calls[-3:] == CHECKS


@pytest.mark.skipif(os.geteuid() == 0, reason="root needs no sudo")
def test_nobody_is_asked_for_a_password_for_what_tests_can_do_without(checks: Machine) -> None:
    checks.add("apt-get")
    checks.add("sudo", "exit 1")
    done = checks.run("run")
    assert done.returncode == 0, done.stderr
    assert "sudo -n true" in checks.calls
    assert not [call for call in checks.calls if call.startswith("apt-get")]


def test_postgresql_is_installed_where_that_is_possible(checks: Machine) -> None:
    checks.add("apt-get")
    checks.add("sudo", '[ "$1" = -n ] && shift; "$@"')
    done = checks.run("run")
    assert done.returncode == 0, done.stderr
    assert "apt-get install --quiet --yes --no-install-recommends postgresql" in checks.calls
    assert "no PostgreSQL here" not in done.stdout


def test_a_missing_tool_that_cannot_be_installed_is_named(checks: Machine) -> None:
    (checks.root / "bin" / "git").unlink()
    done = checks.run("run")
    assert done.returncode == 1
    assert "missing, and not to be installed from here: git" in done.stderr
    assert "make lint" not in checks.calls
