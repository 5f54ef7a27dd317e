"""What `make release` checks before anything is published; it builds and tries the packages itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def release(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", repository / ".ci" / "release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return [name for name in listed if (repository / name).is_file() and name]


@pytest.fixture(scope="module")
def wheel(repository: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Paths in the wheel that setuptools makes of the checkout, and its metadata."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((repository / name).read_bytes())
    program = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, "out"], cwd=folder, capture_output=True, check=True)
    [path] = (folder / "out").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        return names, archive.read(metadata).decode()


def test_the_wheel_has_all_packages_with_templates_pages_and_presets_and_nothing_else(
    release: ModuleType, wheel: tuple[list[str], str], tracked: list[str]
) -> None:
    names, _ = wheel
    release.check_wheel(names, tracked)
    wanted = {
        "yolact/py.typed",
        "yolact_ops/settings/conf/base.yaml",
        "yolact_ops/settings/conf/smoke.yaml",
        "components/evaluate/report.html.j2",
        "serving/page/index.html",
        "pipelines/cluster.yaml",
    }
    assert wanted <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "data/", "conf/", "docs/"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names - {"serving/page/index.html"}, "lacks: serving/page/index.html"),
        (lambda names: names - {"yolact_ops/settings/conf/smoke.yaml"}, "lacks: yolact_ops/settings/conf/smoke.yaml"),
        (lambda names: names | {"tests/conftest.py"}, "do not belong there: tests/conftest.py"),
        (lambda names: names | {"yolact/left_over.py"}, "do not belong there: yolact/left_over.py"),
    ],
)
def test_a_wheel_with_a_file_too_few_or_too_many_is_refused(
    release: ModuleType, wheel: tuple[list[str], str], tracked: list[str], change: Any, message: str
) -> None:
    with pytest.raises(release.ReleaseError, match=message):
        release.check_wheel(change(set(wheel[0])), tracked)


def test_the_source_archive_must_have_what_a_build_needs_and_neither_tests_nor_data(
    release: ModuleType, tracked: list[str]
) -> None:
    good = {name for name in tracked if not name.startswith(tuple(f"{folder}/" for folder in release.PRIVATE))}
    release.check_sdist(good | {"PKG-INFO", "yolact_pipeline.egg-info/SOURCES.txt"}, tracked)
    for bad in (good - {"conf/base.yaml"}, good | {"tests/conftest.py"}, good | {"secret.env"}):
        with pytest.raises(release.ReleaseError):
            release.check_sdist(bad, tracked)


def test_metadata_is_that_of_pyproject(release: ModuleType, wheel: tuple[list[str], str], repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    release.check_metadata(wheel[1], project)
    for wrong in (
        wheel[1].replace("Requires-Dist: tqdm", "Requires-Dist: mlflow"),
        wheel[1].replace(f"Version: {project['version']}", "Version: 9.9"),
        wheel[1].replace("Requires-Python: >=3.11", "Requires-Python: three"),
    ):
        with pytest.raises(release.ReleaseError):
            release.check_metadata(wrong, project)


@pytest.mark.parametrize(
    ("tags", "cited", "changelog", "outcome"),
    [
        ([], "1.2.0", "## [Unreleased]", "git tag -a v1.2.0"),
        ([], "1.2.0", "## [1.2.0] - 2026-12-01", "git tag -a v1.2.0"),
        (["data-v1", "v1.2.0"], "1.2.0", "## [1.2.0] - 2026-12-01", ""),
        (["v1.3.0"], "1.2.0", "## [1.2.0]", ValueError),
        (["v1.2.0"], "1.2.0", "## [Unreleased]", ValueError),
        ([], "1.1.0", "## [1.2.0]", ValueError),
    ],
)
def test_tag_citation_and_changelog_must_agree_with_the_version(
    release: ModuleType, tags: list[str], cited: str, changelog: str, outcome: str | type[Exception]
) -> None:
    arguments = ("1.2.0", tags, f"version: {cited}\n", f"# Changelog\n\n{changelog}\n")
    if isinstance(outcome, str):
        said = release.check_versions(*arguments)
        assert outcome in said
        assert bool(said) is bool(outcome)
        assert ("rename [Unreleased]" in said) is ("Unreleased" in changelog)
    else:
        with pytest.raises(release.ReleaseError):
            release.check_versions(*arguments)


def test_the_committed_citation_names_this_version(release: ModuleType, repository: Path) -> None:
    version = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    texts = [(repository / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md")]
    release.check_versions(version, [], *texts)
