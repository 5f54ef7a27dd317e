"""The walls between the rooms: who may import whom, read from the source and checked in a running Python."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOMS: dict[str, set[str]] = {
    "yolact": set(),
    "components": {"yolact"},
    "pipelines": {"components", "yolact"},
    "serving": {"yolact"},
    "yolact_cli": {"yolact", "components", "pipelines", "serving"},
}
"""Each room with the other rooms that it may import."""

TRACKING = {"mlflow", "dvc", "kfp", "boto3", "botocore", "fastapi", "uvicorn", "typer", "ruamel"}
"""Libraries of tracking, orchestration, clouds and commands: the network's room stays free of them."""

OPTIONAL = {"onnx", "onnxscript", "onnxruntime"}
"""Libraries of the extra ``export``: imported only when they are used, so that all else works without them."""

STEPS = ["ingest", "preprocess", "train", "evaluate", "register"]


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str
    """Dotted and absolute."""

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def find_imports(root: Path, file: Path) -> Iterator[Import]:
    """Every import in a file, at any depth, also under TYPE_CHECKING and through `importlib.import_module("...")`."""
    package = file.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield Import(file, node.lineno, name.name)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else ()
                base = ".".join([*above, *([module] if module else [])])
                for name in names:
                    yield Import(file, node.lineno, f"{base}.{name.name}")
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                    yield Import(file, node.lineno, node.args[0].value)


def room_imports(root: Path) -> dict[str, list[Import]]:
    """All imports of each room that is there."""
    return {
        room: [found for file in sorted((root / room).rglob("*.py")) for found in find_imports(root, file)]
        for room in ROOMS
        if (root / room).is_dir()
    }


def find_breaches(root: Path) -> list[str]:
    """Imports that a wall forbids, as ``file:line: room imports module``."""
    breaches = []
    for room, imports in room_imports(root).items():
        for found in imports:
            is_foreign_room = found.top in ROOMS and found.top != room and found.top not in ROOMS[room]
            is_tracking = room == "yolact" and found.top in TRACKING
            is_kfp = room == "components" and found.top == "kfp" and found.file.name != "component.py"
            if is_foreign_room or is_tracking or is_kfp or found.top == "tests":
                breaches.append(f"{found.file.relative_to(root)}:{found.line}: {room} imports {found.module}")
    return breaches


def find_cycle(root: Path) -> list[str]:
    """Rooms that import each other in a circle, or an empty list."""
    graph = {
        room: {found.top for found in imports} & ROOMS.keys() - {room} for room, imports in room_imports(root).items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_no_file_imports_what_its_room_must_not(repository: Path) -> None:
    checked = room_imports(repository)
    assert {"yolact", "components", "yolact_cli"} <= checked.keys()
    assert all(len(imports) > 5 for imports in checked.values()), "the check read next to nothing"
    assert find_breaches(repository) == []


def test_rooms_do_not_import_each_other_in_a_circle(repository: Path) -> None:
    assert find_cycle(repository) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("yolact/models/net.py", "import mlflow"),
        ("yolact/models/net.py", "from dvc.api import open"),
        ("yolact/net.py", "import torch, kfp"),
        ("yolact/net.py", "def later():\n    import boto3"),
        ("yolact/net.py", "import importlib\nimportlib.import_module('fastapi')"),
        ("yolact/net.py", "from yolact_ops import tracking"),
        ("yolact/models/net.py", "from ...components import train"),
        ("components/train/step.py", "from pipelines import graph"),
        ("components/train/step.py", "import yolact_cli.main"),
        ("components/train/step.py", "from serving.app import app"),
        ("components/train/step.py", "from kfp import dsl"),
        ("yolact_ops/commands/task.py", "from kfp import dsl"),
        ("components/train/step.py", "from tests.conftest import x"),
        ("serving/app.py", "from yolact_ops import tracking"),
        ("pipelines/graph.py", "import yolact_cli"),
    ],
)
def test_the_check_finds_a_breach(tmp_path: Path, file: str, line: str) -> None:
    write_tree(tmp_path, {file: line})
    assert len(find_breaches(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("yolact/net.py", "import torch\nfrom yolact.errors import DataError"),
        ("yolact/models/net.py", "from . import fpn\nfrom .. import boxes"),
        ("components/train/component.py", "from kfp import dsl"),
        ("components/train/step.py", "import mlflow\nfrom yolact_ops import tracking\nimport yolact.settings"),
        ("yolact_cli/main.py", "def run():\n    from pipelines import graph"),
    ],
)
def test_the_check_lets_through_what_is_allowed(tmp_path: Path, file: str, line: str) -> None:
    write_tree(tmp_path, {file: line})
    assert find_breaches(tmp_path) == []


def test_the_check_finds_a_circle(tmp_path: Path) -> None:
    write_tree(tmp_path, {"yolact/a.py": "import serving", "serving/b.py": "from yolact import a"})
    assert set(find_cycle(tmp_path)) == {"yolact", "serving"}


def test_importing_all_of_yolact_loads_no_other_room_and_no_tracking_or_optional_library(repository: Path) -> None:
    program = (
        "import importlib, pkgutil, sys, yolact\n"
        "for module in pkgutil.walk_packages(yolact.__path__, 'yolact.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"yolact", "torch"} <= loaded
    assert loaded & (TRACKING | OPTIONAL | ROOMS.keys() - {"yolact"}) == set()


# What re-runs a step -------------------------------------------------------------------------------------------

NO_EFFECT = {
    "yolact/settings.py",
    "yolact/errors.py",
    "yolact/files.py",
    "yolact_ops/commands/step.py",
    "yolact_ops/transfer/disk.py",
    "yolact_ops/transfer/download.py",
    "yolact_ops/lineage/lineage.py",
    "yolact_ops/transfer/storage.py",
}
"""Reading settings (each value is tracked in params.yaml), errors, atomic writes, the command line, transfers that
give every byte or fail: what a step computes does not depend on them, so an edit there need not re-run ingest and
preprocess."""


def module_file(root: Path, module: str) -> Path | None:
    """The project's file behind ``a.b.c``, where ``c`` may be a name inside the module; None for other libraries."""
    for dotted in (module, module.rpartition(".")[0]):
        path = root.joinpath(*dotted.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if dotted and candidate.is_file():
                return candidate
    return None


def files_behind(root: Path, start: Path) -> set[str]:
    """The project's files that ``start`` imports, directly or through others; empty ones aside."""
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        targets = (module_file(root, found.module) for found in find_imports(root, file) if found.top in ROOMS)
        waiting += [target for target in targets if target]
    return {file.relative_to(root).as_posix() for file in seen if file.read_text(encoding="utf-8").strip()}


@pytest.mark.parametrize("step", STEPS)
def test_dvc_yaml_names_all_code_that_a_step_runs(repository: Path, step: str) -> None:
    stage = yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"][step]
    start = repository / "components" / step / "step.py"
    behind = files_behind(repository, start)
    assert start.relative_to(repository).as_posix() in behind
    missing = {
        file
        for file in behind - NO_EFFECT
        if not any(file == dep or file.startswith(f"{dep.rstrip('/')}/") for dep in stage["deps"])
    }
    assert missing == set()
    code = [dep for dep in stage["deps"] if dep.startswith(("components", "yolact"))]
    assert [dep for dep in code if not (repository / dep).exists()] == []


ROUNDING_ONLY = "params.evaluate.batch_size"
"""Decides how many images pass the network at once: as with all of ``runtime``, no step is run again for it."""


def sections_read(folder: Path) -> set[str]:
    """Sections of params.yaml that the code in a step's folder reads as ``params.<section>``."""
    sections = {"data", "model", "train", "evaluate", "register_"}
    nodes = [node for file in folder.rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    unlisted = {node.value for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node) == ROUNDING_ONLY}
    return {
        node.attr.rstrip("_")
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node not in unlisted
        and node.attr in sections
        and isinstance(node.value, ast.Name | ast.Attribute)
        and (node.value.id if isinstance(node.value, ast.Name) else node.value.attr) == "params"
    }


@pytest.mark.parametrize("step", STEPS)
def test_dvc_yaml_names_all_settings_that_a_step_reads(repository: Path, step: str) -> None:
    stage = yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"][step]
    read = sections_read(repository / "components" / step)
    assert read, "the check found no setting read"
    assert read <= {key.split(".")[0] for key in stage["params"]}


def test_a_training_setting_does_not_re_run_the_data_steps(repository: Path) -> None:
    stages = yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(stages) == ["source", *STEPS]
    for step in ("ingest", "preprocess"):
        assert {key.split(".")[0] for key in stages[step]["params"]} == {"data"}
        assert "yolact" not in stages[step]["deps"]
        assert not any(dep.startswith(("models", "metrics")) for dep in stages[step]["deps"])
