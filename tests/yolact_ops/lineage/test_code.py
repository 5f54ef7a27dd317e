"""Code versions: which files a step runs, and what changes its version."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from yolact_ops.lineage import code

CODE = ("yolact", "yolact_ops", "components")


@pytest.fixture(scope="module")
def original(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's packages and lock file."""
    root = tmp_path_factory.mktemp("original")
    for name in CODE:
        shutil.copytree(repository / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / code.LOCK, root)
    return root


@pytest.fixture
def checkout(original: Path, tmp_path: Path) -> Path:
    """Such a copy, which a test may change."""
    return Path(shutil.copytree(original, tmp_path / "checkout"))


@pytest.fixture(scope="module")
def before(original: Path) -> dict[str, str]:
    return code.code_versions(original)


def changed(checkout: Path, before: dict[str, str]) -> set[str]:
    """Steps whose version has changed."""
    after = code.code_versions(checkout)
    assert after.keys() == before.keys()
    return {step for step, version in after.items() if version != before[step]}


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_every_step_has_its_own_version(before: dict[str, str], repository: Path) -> None:
    folders = {path.parent.name for path in (repository / "components").glob("*/component.py")}
    assert before.keys() == folders
    assert len(set(before.values())) == len(folders)
    assert all(len(version) == code.LENGTH and int(version, 16) >= 0 for version in before.values())


def test_documentation_and_code_that_a_step_does_not_import_do_not_change_its_version(
    checkout: Path, before: dict[str, str]
) -> None:
    for path in ("README.md", "docs/guide.md", "components/train/README.md", "components/train/component.yaml"):
        (checkout / path).parent.mkdir(exist_ok=True)
        (checkout / path).write_text("changed")
    write_tree(checkout, {"yolact/new.py": "", "pipelines/new.py": "", "components/train/OWNERS": "changed"})
    assert changed(checkout, before) == set()


def test_a_change_of_the_losses_changes_train_and_no_data_step(checkout: Path, before: dict[str, str]) -> None:
    append(checkout / "yolact/losses/matcher.py", "# changed\n")
    steps = changed(checkout, before)
    assert "train" in steps
    assert steps.isdisjoint({"source", "ingest", "preprocess"})


def test_a_change_of_a_steps_own_code_or_template_changes_only_that_step(
    checkout: Path, before: dict[str, str]
) -> None:
    append(checkout / "components/merge/display.py", "# changed\n")
    assert changed(checkout, before) == {"merge"}
    append(checkout / "components/preprocess/report.html.j2", "changed")
    assert changed(checkout, before) == {"merge", "preprocess"}


def test_a_change_of_the_lock_file_changes_every_step(checkout: Path, before: dict[str, str]) -> None:
    append(checkout / code.LOCK, "# changed\n")
    assert changed(checkout, before) == before.keys()


def test_a_version_does_not_depend_on_the_folder_or_on_line_endings(checkout: Path, before: dict[str, str]) -> None:
    for path in [*checkout.rglob("*.py"), *checkout.rglob("*.j2"), checkout / code.LOCK]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert changed(checkout, before) == set()


def test_files_are_those_that_imports_reach_from_anywhere_in_a_module(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "yolact/__init__.py": "from yolact.always import x",
            "yolact/always.py": "x = 1",
            "yolact/one.py": "from . import two\nfrom .inner import three",
            "yolact/two.py": "import importlib\nimportlib.import_module('yolact.named')",
            "yolact/named.py": "import yolact.one",
            "yolact/inner/__init__.py": "",
            "yolact/inner/three.py": "",
            "yolact/inner/page.html.j2": "",
            "yolact/inner/unused.py": "",
            "yolact/inner/README.md": "",
            "yolact/typed.py": "",
            "yolact/otherwise.py": "",
            "yolact/other/page.html.j2": "",
            "start.py": "from typing import TYPE_CHECKING\nimport numpy\n"
            "if TYPE_CHECKING:\n    from yolact import typed\nelse:\n    import yolact.otherwise\n"
            "def later():\n    import yolact.one as one, kfp\n",
        },
    )
    expected = [
        "__init__",
        "always",
        "inner/__init__",
        "inner/page.html.j2",
        "inner/three",
        "named",
        "one",
        "otherwise",
    ]
    names = [name if name.endswith("j2") else f"{name}.py" for name in [*expected, "two"]]
    assert code.code_files(tmp_path, "start.py") == ["start.py", *(f"yolact/{name}" for name in names)]


def test_a_backbone_that_only_its_name_reaches_is_code_of_the_steps_that_build_networks(repository: Path) -> None:
    backbone = "yolact/models/backbones/efficientnet_lite.py"
    steps = {
        step
        for step in code.find_steps(repository)
        if backbone in code.code_files(repository, f"components/{step}/component.py")
    }
    assert steps >= {"train", "evaluate"}
    assert steps.isdisjoint({"source", "ingest", "preprocess"})


def test_the_component_of_each_step_runs_its_step_module(repository: Path) -> None:
    for step in code.find_steps(repository):
        assert f"components/{step}/step.py" in code.code_files(repository, f"components/{step}/component.py")


def test_every_kind_of_data_file_in_the_packages_is_part_of_a_version(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    data = settings["tool"]["setuptools"]["package-data"]
    kinds = {Path(pattern).name for package in CODE for pattern in data[package]}
    assert kinds == {code.TEMPLATE, "py.typed"}


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The module as a program, in a Python without third-party packages."""
    command = [sys.executable, "-S", "-m", "yolact_ops.lineage.code", *arguments]
    return subprocess.run(command, cwd=root, env={}, capture_output=True, text=True, check=False)


def test_the_program_prints_records_and_compares_versions(checkout: Path, before: dict[str, str]) -> None:
    lock = checkout / "elsewhere.lock"
    (checkout / code.LOCK).rename(lock)
    printed = run(checkout, "--lock", str(lock))
    assert code.versions_from_text(printed.stdout) == before
    done = run(checkout, "--lock", str(lock), "--record", "--expect", printed.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert json.loads((checkout / code.RECORD).read_text()) == before
    (checkout / code.RECORD).unlink()
    append(checkout / "components/merge/step.py", "# changed\n")
    refused = run(checkout, "--lock", str(lock), "--record", "--expect", printed.stdout.strip())
    assert refused.returncode == 1
    assert "are not those of its files" in refused.stderr
    assert not (checkout / code.RECORD).exists()


def test_a_container_image_has_the_versions_that_it_recorded(checkout: Path, before: dict[str, str]) -> None:
    assert code.installed_versions(checkout) == before
    assert code.installed_version("train", checkout) == before["train"]
    (checkout / code.RECORD).write_text('{"train": "abc"}')
    (checkout / code.LOCK).unlink()
    assert code.installed_versions(checkout) == {"train": "abc"}
    assert code.installed_version("train", checkout) == "abc"
    assert code.installed_version("merge", checkout) == "none"


def test_versions_survive_a_round_trip_through_a_label() -> None:
    versions = {"train": "0123456789abcdef", "ingest": "fedcba9876543210"}
    assert code.versions_to_text(versions) == "ingest=fedcba9876543210 train=0123456789abcdef"
    assert code.versions_from_text(code.versions_to_text(versions)) == versions
