"""Commands started in a sub-folder of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from yolact_cli.main import app as yolact
from yolact_ops.commands.project import ProjectTyper, project_above

app = ProjectTyper()


@app.command()
def show(
    file: Annotated[Path, typer.Argument()],
    params: Annotated[Path, typer.Option()] = Path("params.yaml"),
    name: Annotated[str, typer.Option()] = "",
) -> None:
    print(file, params, name, Path.cwd())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project within another one; the working folder is two folders below it, and is restored after the test."""
    project = tmp_path / "outer" / "project"
    (project / "a" / "b").mkdir(parents=True)
    for folder in (project, project.parent):
        (folder / "dvc.yaml").write_text("stages: {}\n")
        (folder / "params.yaml").write_text("data: {}\n")
    monkeypatch.chdir(project / "a" / "b")
    return project


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_the_nearest_project_is_used_and_named_once(project: Path) -> None:
    result = call("x")
    assert result.stdout == f"a/b/x params.yaml  {project}\n"
    assert result.stderr == f"working in {project}, the nearest folder with dvc.yaml and params.yaml\n"


def test_given_paths_are_those_of_the_callers_folder(project: Path) -> None:
    result = call("../x", "--params", "../../../params.yaml", "--name", "../name")
    assert result.stdout == f"a/x ../params.yaml ../name {project}\n"
    absolute = str(project / "a" / "x")
    assert CliRunner().invoke(app, [absolute]).stdout.startswith(f"{absolute} ")


@pytest.mark.parametrize("files", [("params.yaml",), ("params.yaml", "dvc.yaml")])
def test_a_folder_with_settings_is_used_itself(project: Path, files: tuple[str, ...]) -> None:
    here = Path.cwd()
    for name in files:
        Path(name).touch()
    result = call("x")
    assert (result.stdout, result.stderr) == (f"x params.yaml  {here}\n", "")


@pytest.mark.parametrize("left", [(), ("dvc.yaml",), ("params.yaml",)])
def test_without_a_project_above_the_folder_stays(tmp_path: Path, left: tuple[str, ...]) -> None:
    (tmp_path / "a").mkdir()
    for name in left:
        (tmp_path / name).touch()
    assert project_above(tmp_path / "a") is None


@pytest.mark.parametrize(("sides", "missing"), [((".", "other"), "reports"), (("other", "."), "a/b/other/reports")])
def test_compared_folders_are_the_callers_and_a_dot_is_the_project(
    project: Path, sides: tuple[str, str], missing: str
) -> None:
    Path("other").mkdir()
    result = CliRunner().invoke(yolact, ["compare", *sides])
    assert result.exit_code == 1
    assert f"\n{missing}/eval/report.json: no such file" in result.stderr
