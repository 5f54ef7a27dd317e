"""Import contracts (in pyproject.toml), and what `dvc.yaml` must list because of what a step imports."""

from __future__ import annotations

import ast
import fnmatch
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import grimp
import pytest
import yaml

from yolact.backbone_registry import backbones, find_backbone
from yolact_ops.lineage.dvc_lock import STEPS

PACKAGES = ("yolact", "yolact_ops", "components", "pipelines", "serving", "yolact_bench", "yolact_cli")

PIPELINE_LIBRARIES = {"mlflow", "dvc", "kfp", "boto3", "botocore", "fastapi", "uvicorn", "typer", "ruamel"}
"""Libraries of tracking, orchestration, clouds and commands, which the library `yolact` must not need."""

OPTIONAL = {"av", "onnx", "onnxscript", "onnxruntime", "timm"}
"""Libraries of the extras ``export``, ``timm`` and ``video``: imported only when they are used, so that all else works
without them."""


def stages(repository: Path) -> dict[str, dict]:
    return yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


STAGES = list(stages(Path(__file__).parents[1]))


# Contracts -------------------------------------------------------------------------------------------------------


def test_each_import_contract_finds_a_breach(repository: Path, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(repository / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", tmp_path)
    breaches = {
        "yolact/boxes.py": "from yolact_ops.tracking import store",
        "yolact/losses/matcher.py": "def later():\n    import yolact.engine.trainer",
        "yolact/masks.py": "def later():\n    import mlflow",
        "yolact_ops/lineage/__init__.py": "import yolact_ops.comparison.tables",
        "pipelines/servers/kube.py": "def later():\n    import pipelines.status.nodes",
        "yolact/formats/split.py": "import yolact.formats.prepare",
        "yolact/formats/prepare.py": "import yolact.formats.split",
        "components/train/step.py": "import components.ingest.step",
        "components/evaluate/step.py": "import kfp",
        "serving/results.py": "import yolact_cli.main",
    }
    for file, line in breaches.items():
        with (tmp_path / file).open("a", encoding="utf-8") as code:
            code.write(f"\n{line}\n")
    program = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    config = (repository / "pyproject.toml").read_text(encoding="utf-8")
    names = [line.split('"')[1] for line in config.splitlines() if line.startswith('name = "')][1:]
    assert len(names) >= 8
    assert [name for name in names if f"{name} BROKEN" not in done.stdout] == []


def test_importing_all_of_yolact_loads_no_other_package_and_no_pipeline_or_optional_library(repository: Path) -> None:
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
    assert loaded & (PIPELINE_LIBRARIES | OPTIONAL | set(PACKAGES) - {"yolact"}) == set()


# What re-runs a stage --------------------------------------------------------------------------------------------

TRACKED_BY_VALUE = ("yolact/settings.py", "yolact_ops/settings/")
"""Code that only reads and checks settings. It has no defaults, so a stage sees it through the values in ``params``:
a new key, or a comment in another section, does not retrain."""


@functools.cache
def import_graph() -> grimp.ImportGraph:
    """The project's imports, lazy ones and the classes of backbones included, without what only settings code
    imports."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    for spec in (*backbones(), find_backbone("timm/any")):
        implementation = spec.implementation.partition(":")[0]
        graph.add_import(importer="yolact.models.backbones.base", imported=implementation)
    for module in sorted(graph.modules):
        if f"{module.replace('.', '/')}.py".startswith(TRACKED_BY_VALUE):
            graph.remove_module(module)
    return graph


def module_file(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    if path.suffix != ".py":
        return True
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def templates_of(files: Iterable[Path]) -> set[Path]:
    """Templates next to ``files`` that these, or other such templates, name."""
    named: set[Path] = set()
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    candidates = {template for file in texts for template in file.parent.glob("*.j2")}
    while found := {t for t in candidates - named if any(t.name in text for text in texts.values())}:
        named |= found
        texts |= {template: template.read_text(encoding="utf-8") for template in found}
    return named


def code_behind(root: Path, module: str) -> set[str]:
    """The project's files that run when ``module`` runs, below ``root``; those without code aside."""
    graph = import_graph()
    modules = {module, *graph.find_upstream_modules(module)}
    modules |= {above for name in modules for above in parents(name)}
    files = {module_file(root, name) for name in modules}
    files |= templates_of(files)
    return {file.relative_to(root).as_posix() for file in files if has_code(file)}


def parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def listed_code(root: Path, deps: Iterable[str]) -> set[str]:
    """Files with code that the entries of ``deps`` name or, where they are folders, hold, less those in .dvcignore."""
    files: set[Path] = set()
    for dep in deps:
        path = root / dep
        if dep.partition("/")[0] in PACKAGES:
            assert path.exists(), f"dvc.yaml names {dep}, which does not exist"
            files |= {path} if path.is_file() else {*path.rglob("*.py"), *path.rglob("*.j2")}
    names = {file.relative_to(root).as_posix() for file in files if has_code(file)}
    patterns = [line[1:] for line in (root / ".dvcignore").read_text().splitlines() if line.startswith("/components/")]
    assert patterns
    return {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_exactly_the_code_that_a_stage_runs(repository: Path, stage: str) -> None:
    entry = stages(repository)[stage]
    module = entry["cmd"].split()[-1]
    needed, listed = code_behind(repository, module), listed_code(repository, entry["deps"])
    assert f"{module.replace('.', '/')}.py" in needed
    assert {"missing": needed - listed, "superfluous": listed - needed} == {"missing": set(), "superfluous": set()}


def test_editing_a_benchmark_a_format_or_an_exporter_does_not_retrain(repository: Path) -> None:
    listed = listed_code(repository, stages(repository)["train"]["deps"])
    assert "yolact/losses/criterion.py" in listed
    assert not [
        file for file in listed if file.startswith(("yolact_bench", "yolact/formats", "yolact/inference/export"))
    ]


def test_the_check_sees_lazy_imports_and_passes_over_type_checking_ones(tmp_path: Path) -> None:
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "lazy.py").touch()
    (package / "types_only.py").touch()
    (package / "start.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import made_up.types_only\n"
        "def later():\n    from made_up import lazy\n",
        encoding="utf-8",
    )
    program = (
        "import grimp\n"
        "graph = grimp.build_graph('made_up', exclude_type_checking_imports=True, cache_dir=None)\n"
        "print(*sorted(graph.find_upstream_modules('made_up.start')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["made_up.lazy"]


ROUNDING_ONLY = "params.evaluate.batch_size"
"""Decides how many images pass the network at once: as with all of ``runtime``, no stage runs again for it."""


CHECKED = {"source": {"model"}}
"""Sections that a stage only checks, each time: its output does not depend on them."""


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


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_all_settings_that_a_stage_reads(repository: Path, stage: str) -> None:
    read = sections_read(repository / "components" / stage)
    assert read, "the check found no setting read"
    checked = CHECKED.get(stage, set())
    assert checked <= read
    assert stages(repository)[stage].get("always_changed") or not checked
    assert read - checked <= {key.split(".")[0] for key in stages(repository)[stage]["params"]}


def test_a_training_setting_does_not_re_run_the_data_stages(repository: Path) -> None:
    found = stages(repository)
    assert list(found) == list(STEPS)  # the order that hash_lock_text takes for granted
    for stage in ("source", "ingest", "preprocess"):
        params = set(found[stage]["params"]) - {"runtime.shards"}  # where preprocess puts shards
        assert {key.split(".")[0] for key in params} == {"data"}
        assert not any(dep.startswith(("models", "metrics")) for dep in found[stage]["deps"])
