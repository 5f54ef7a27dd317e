"""Equal settings give equal results: in clean clones, with 1 or 2 loader processes, rebuilt from the registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_pipeline import Project, copy_of_checkout

pytestmark = pytest.mark.slow

INSTALL = " && make install && source .venv/bin/activate"
"""What the printed commands do between `cd` and DVC; here the environment of the tests is used instead."""


def clone(origin: Project, root: Path) -> Project:
    """A clone that uses its own code, found in the current folder."""
    subprocess.run(["git", "clone", "--quiet", str(origin.root), str(root)], check=True)
    made = Project(root)
    made.environment.pop("PYTHONPATH")
    return made


def results(project: Project) -> tuple[dict, dict, bytes]:
    """Metrics of training and evaluation, and the weights; how long it took is no result."""
    trained = {name: value for name, value in project.json("metrics/train.json").items() if "second" not in name}
    return trained, project.json("metrics/eval.json"), (project.root / "models/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def origin(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_of_checkout(repository, tmp_path_factory.mktemp("origin"))


@pytest.fixture(scope="module")
def first(origin: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which a version was registered, with settings that are not committed."""
    project = clone(origin, tmp_path_factory.mktemp("first") / "project")
    project.use("train.seed=1", "runtime.workers=1")
    assert "Running stage 'register'" in project.run("dvc", "repro", timeout=900)
    return project


def test_two_clean_clones_with_1_and_2_loader_processes_have_the_same_metrics_and_weights(
    origin: Project, first: Project, tmp_path: Path
) -> None:
    second = clone(origin, tmp_path / "project")
    second.use("train.seed=1", "runtime.workers=1")
    second.run("dvc", "repro", "evaluate", timeout=900)
    assert results(second) == results(first)

    before = (second.root / "models/run.json").read_text()
    shutil.rmtree(second.root / "models/checkpoints")  # otherwise train would only write its results again
    second.use("train.seed=1", "runtime.workers=2")
    for step in ("train", "evaluate"):
        second.run("dvc", "repro", "--force", "--single-item", step, timeout=900)
    assert (second.root / "models/run.json").read_text() != before
    assert results(second) == results(first)


def test_the_commands_that_lineage_prints_rebuild_the_version_byte_for_byte(first: Project) -> None:
    yolact = ("python", "-m", "yolact_cli.main")
    report = json.loads(first.run(*yolact, "lineage", "models:/yolact-smoke/1", "--json"))
    printed = first.run(*yolact, "lineage", "models:/yolact-smoke/1")
    assert all(command in " ".join(printed.split()) for command in report["rebuild"])
    assert len(report["not_exact_because"]) == 1  # the machine's
    script = "\n".join(report["rebuild"])
    assert script.count(INSTALL) == 1
    first.run("bash", "-euxc", script.replace(INSTALL, ""), timeout=900)
    rebuilt = Project(first.root / "rebuilt")
    assert "seed: 1" in (rebuilt.root / "params.yaml").read_text()
    assert results(rebuilt) == results(first)
