"""A step added from outside: a folder in ``components`` and its place in a pipeline, nothing else; and images of other
code, which must not reach the caches. Its tasks are real ones, as `python -m pipelines run-local` starts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_ops.lineage import code

COMPONENT = '''
from kfp import dsl
from kfp.dsl import Artifact, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def count_words(text: str, code_version: str, counts: Output[Artifact]) -> int:
    """Count words.

    Args:
        text: to count the words of.
        code_version: of this step.
        counts: number of words, as JSON.

    Returns:
        Number of words.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("count_words", code_version):
        from components.count_words import display, step

        words = step.run(text, Path(counts.path))
        display.describe(counts, words)
        return words
'''

STEP = """
import json
from pathlib import Path


def run(text: str, path: Path) -> int:
    words = len(text.split())
    path.write_text(json.dumps({"words": words}))
    return words
"""

DISPLAY = """
from yolact_ops.commands.task import Artifact


def describe(counts: Artifact, words: int) -> None:
    counts.metadata["words"] = words
"""

PIPELINE = """
import sys
from pathlib import Path

from kfp import dsl

from components.count_words.component import count_words
from pipelines import compiler, local
from pipelines.config import load_cluster
from pipelines.placement import configure_task
from yolact.errors import YolactError


def build(cluster, versions):
    @dsl.pipeline(name="counting")
    def counting(text: str) -> None:
        configure_task(count_words(text=text, code_version=versions["count_words"]), cluster)

    return counting


if __name__ == "__main__":
    compiler.PIPELINES["counting"] = build
    cluster = load_cluster(overrides=["tasks.count_words={cache: true, retries: 0}"])
    if sys.argv[1:] == ["compile"]:
        compiler.compile_all(cluster, Path("compiled"))
    elif sys.argv[1:]:  # the version of another checkout
        local.installed_versions = lambda: {"count_words": sys.argv[1]}
    try:
        print(local.run_pipeline("counting", {"text": "one two three"}, cluster, Path("out")).folder)
    except YolactError as error:
        sys.exit(str(error))
"""


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A copy of the code with another step."""
    for name in ("yolact", "yolact_ops", "components", "pipelines"):
        shutil.copytree(repository / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
    shutil.copy(repository / code.LOCK, tmp_path)
    step = tmp_path / "components/count_words"
    step.mkdir()
    for name, text in {"__init__": "", "component": COMPONENT, "step": STEP, "display": DISPLAY}.items():
        (step / f"{name}.py").write_text(text)
    (tmp_path / "counting.py").write_text(PIPELINE)
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the pipeline `counting`; ``compile`` compiles all pipelines before, anything else is another version."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    environment.pop("YOLACT_CODE_VERSION", None)
    command = [sys.executable, "counting.py", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_step_is_one_folder_and_its_place_in_a_pipeline(checkout: Path) -> None:
    done = run(checkout, "compile")
    assert done.returncode == 0, done.stderr
    assert "count_words=" in code.versions_to_text(code.code_versions(checkout))
    assert (checkout / "compiled/components/count_words.yaml").exists()
    assert code.code_version(checkout, "count_words") in (checkout / "compiled/counting.yaml").read_text()
    folder = Path(done.stdout.splitlines()[-1])
    assert json.loads((folder / "count-words/counts").read_text()) == {"words": 3}
    output = json.loads((folder / "count-words/executor_output.json").read_text())
    assert output["artifacts"]["counts"]["artifacts"][0]["metadata"] == {"words": 3}
    assert "cache hit" in run(checkout).stdout
    (checkout / "README.md").write_text("other docs")
    assert "cache hit" in run(checkout).stdout
    with (checkout / "components/count_words/step.py").open("a") as file:
        file.write("# other code\n")
    assert "cache hit" not in run(checkout).stdout


def test_a_task_in_an_image_of_another_version_fails_and_its_outputs_never_enter_the_cache(checkout: Path) -> None:
    (checkout / code.RECORD).write_text(json.dumps(code.code_versions(checkout)))  # as in an image
    other = "0" * code.LENGTH
    for _ in range(2):
        failed = run(checkout, other)
        assert failed.returncode == 1
        assert (
            f"count_words failed: the pipeline was compiled for version {other} of the step count_words"
            in failed.stderr
        )
        assert "Nothing was run." in failed.stderr
        assert "cache hit" not in failed.stdout
        assert not list((checkout / "out").rglob("counts"))
    right = run(checkout)
    assert right.returncode == 0, right.stderr
    assert "cache hit" not in right.stdout
    assert "cache hit" in run(checkout).stdout
