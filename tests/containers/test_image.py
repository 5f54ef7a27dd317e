"""The container image: its user, what that user may write, what is in it and what is not."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.image import LABEL
from tests.containers.conftest import Docker
from yolact_ops.lineage.code import code_versions, versions_from_text

LOCKED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""Options of a hardened cluster."""

SETTINGS = {
    "DO_NOT_TRACK",
    "DVC_NO_ANALYTICS",
    "DVC_SITE_CACHE_DIR",
    "HOME",
    "MLFLOW_DISABLE_TELEMETRY",
    "NVIDIA_DRIVER_CAPABILITIES",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
    "YOLACT_COMMIT",
}
"""Environment variables of the image."""


@pytest.fixture(scope="module")
def facts(docker: Docker, image: str) -> dict[str, Any]:
    """The configuration from ``docker image inspect``."""
    return json.loads(docker("image", "inspect", image))[0]["Config"]


def test_labels_have_version_and_commit(facts: dict[str, Any], repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()
    labels = {name.rpartition(".")[2]: text for name, text in facts["Labels"].items()}
    assert labels["title"] == project["name"]
    assert labels["version"] == project["version"]
    assert labels["revision"].removesuffix("-dirty") == commit


def test_image_records_the_versions_of_the_checkouts_code(
    facts: dict[str, Any], docker: Docker, image: str, repository: Path
) -> None:
    versions = code_versions(repository)
    assert versions_from_text(facts["Labels"][LABEL]) == versions
    program = "from yolact_ops.lineage.code import *; print((ROOT / RECORD).read_text())"
    assert json.loads(docker("run", "--rm", "--network", "none", image, "python", "-c", program)) == versions


def test_environment_has_only_the_intended_variables(facts: dict[str, Any], docker: Docker) -> None:
    base = {"LANG", "GPG_KEY", "PYTHON_VERSION", "PYTHON_SHA256", "SSL_CERT_FILE", "PIP_CERT"}  # of the base image
    names = {variable.partition("=")[0] for variable in facts["Env"]}
    assert names >= SETTINGS
    assert names - base == SETTINGS


def test_runs_as_a_numeric_user_without_privileges(docker: Docker, image: str) -> None:
    status = docker("run", "--rm", "--network", "none", image, "sh", "-c", "id -u; id -g; cat /proc/1/status")
    user, group, *lines = status.splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    assert (user, group) == ("10001", "10001")
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0


def test_user_can_write_to_temporary_and_working_folders_only(docker: Docker, image: str) -> None:
    find = r"find / -xdev \( -type f -o -type d \) -writable -not -path '/proc/*' 2>/dev/null; true"
    found = docker("run", "--rm", "--network", "none", image, "sh", "-c", find).split()
    assert sorted(found) == ["/run/lock", "/tmp", "/var/tmp", "/workspace"]
    locked = docker("run", "--rm", "--network", "none", *LOCKED, image, "sh", "-c", find).split()
    assert locked == ["/tmp"]  # a file system of its own there


def test_no_program_has_a_setuid_or_setgid_bit(docker: Docker, image: str) -> None:
    find = "find / -xdev -type f -perm /6000 2>/dev/null; true"
    assert docker("run", "--rm", "--network", "none", image, "sh", "-c", find) == ""


def test_installers_and_compilers_are_not_in_the_image(docker: Docker, image: str) -> None:
    program = (
        "import importlib.util as u, json, shutil\n"
        "print(json.dumps({'tools': [t for t in ('pip', 'pip3', 'uv', 'gcc', 'cc', 'g++', 'make') if shutil.which(t)],"
        "'modules': [m for m in ('pip', 'uv', 'pytest', 'ruff', 'mypy', 'triton') if u.find_spec(m)],"
        "'git': shutil.which('git')}))"
    )
    answer = docker("run", "--rm", "--network", "none", image, "python", "-c", program)
    assert json.loads(answer) == {"tools": [], "modules": [], "git": "/usr/bin/git"}


def test_libraries_are_those_of_the_lock_file_and_all_that_the_pipeline_needs(
    docker: Docker, image: str, repository: Path
) -> None:
    program = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({d.name.lower().replace('_', '-').replace('.', '-'): [d.version, d.requires or []]"
        " for d in m.distributions()}))"
    )
    there = json.loads(docker("run", "--rm", "--network", "none", image, "python", "-c", program))
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    there.pop(canonicalize_name(project["name"]))
    lines = (repository / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {(canonicalize_name(pin.name), str(pin.specifier)) for pin in map(requirement_of, lines) if pin}
    assert {(canonicalize_name(name), f"=={version}") for name, (version, _) in there.items()} <= pins
    needed = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["pipeline"])]
    assert {canonicalize_name(one.name) for one in needed} <= {canonicalize_name(name) for name in there}


def requirement_of(line: str) -> Requirement | None:
    """What a line of the lock file pins."""
    return Requirement(line.rstrip(" \\")) if line[:1].isalnum() else None


def test_every_package_and_what_kubeflow_starts_can_be_imported(docker: Docker, image: str) -> None:
    program = (
        "import importlib, importlib.metadata as m, pkgutil, torch\n"
        "rooms = [r for r in "
        "('yolact', 'yolact_bench', 'yolact_cli', 'yolact_ops', 'components', 'pipelines') "
        "if importlib.util.find_spec(r)]\n"
        "for room in rooms:\n"
        "    package = importlib.import_module(room)\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{room}.'):\n"
        "        if not module.name.endswith('__main__') and not module.name.startswith('yolact.onnx'):\n"
        "            importlib.import_module(module.name)\n"
        "import kfp.dsl.executor_main, psycopg2\n"
        "print(m.version('yolact-pipeline'), torch.version.cuda is not None, *rooms)"
    )
    answer = docker("run", "--rm", "--network", "none", *LOCKED, image, "python3", "-c", program).splitlines()[-1]
    version, cuda, *rooms = answer.split()
    assert cuda == "True"
    assert {"yolact", "yolact_bench", "yolact_cli", "yolact_ops", "components", "pipelines"} <= set(rooms)
    assert version


def test_register_finds_what_it_compares_settings_with(docker: Docker, image: str, repository: Path) -> None:
    program = "from components.register.candidate import BASE; print(BASE.read_text(encoding='utf-8'), end='')"
    found = docker("run", "--rm", "--network", "none", *LOCKED, image, "python", "-c", program)
    assert found == (repository / "conf" / "base.yaml").read_text(encoding="utf-8")


def test_any_user_id_works(docker: Docker, image: str) -> None:
    command = ("sh", "-c", "touch /workspace/file && yolact --help")
    assert "Usage" in docker("run", "--rm", "--network", "none", "--user", "4321:4321", image, *command)
