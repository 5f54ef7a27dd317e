"""The README's commands, run as printed in a fresh copy of the checkout, with the preset `smoke`."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from tests.servers.servers import free_port
from tests.test_documents import FENCE
from tests.test_pipeline import Project, copy_of_checkout
from tests.yolact.test_video import clip

LIMIT = 250
"""Maximum number of lines; the rest is in docs/."""

NOT_RUN = {
    "make demo": "tests/test_pipeline.py runs the pipeline; it would install an environment",
    "make test": "runs this test",
    "make image": "tests/containers builds it",
    "make mlflow": "tests/yolact_cli/test_mlflow_ui.py starts it",
    "export KF_PIPELINES_ENDPOINT": "needs a cluster",
    "python -m pipelines check": "needs a cluster",
    "python -m pipelines submit": "needs a cluster",
    "python -m pipelines status": "needs a cluster",
}
"""Beginnings of commands that are not run, and why."""


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return [block for _, named, block in FENCE.findall(text) if named == language]


def commands(block: str) -> list[str]:
    """The commands of a block without remarks."""
    lines = [re.sub(r"\s+#\s.*$", "", line) for line in block.splitlines()]
    return [line for line in lines if not any(line.startswith(beginning) for beginning in NOT_RUN)]


def expected(line: str) -> re.Pattern[str]:
    """A quoted line: numbers may differ, … stands for anything, and the model has the preset's name."""
    text = re.escape(re.sub(r'\byolact(?=:? version|@|","version)', "yolact-smoke", line))
    text = re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", text).replace("…", ".*")
    return re.compile(re.sub(r"(\\ )+", r"\\s+", text))


def test_it_is_short(repository: Path) -> None:
    assert len((repository / "README.md").read_text(encoding="utf-8").splitlines()) <= LIMIT


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_dvc_takes_every_printed_source_as_one_value(repository: Path, page: str) -> None:
    """DVC gives what follows -S to Hydra's parser; # is a syntax error there, and a comma makes several experiments."""
    printed = re.findall(r"^dvc exp run .*", (repository / page).read_text(encoding="utf-8"), re.MULTILINE)
    words = [word for command in printed for word in shlex.split(command, comments=True)]
    overrides = OverridesParser.create().parse_overrides([word for word in words if word.startswith("data.source=")])
    assert not any(override.is_sweep_override() for override in overrides)
    assert page == "README.md" or "dvc:REPOSITORY#PATH@REVISION" in [override.value() for override in overrides]


class Shell:
    """Runs the README's commands in a copy of the checkout, and remembers what they printed."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.printed: dict[str, str] = {}

    def run(self, command: str, *, expect: int = 0) -> str:
        output = self.project.run("bash", "-c", command, expect=expect, timeout=1800)
        self.printed[command] = output
        return output

    def run_block(self, block: str, replaced: dict[str, str] | None = None) -> None:
        for command in commands(block):
            for old, new in {"models:/yolact@": "models:/yolact-smoke@", **(replaced or {})}.items():
                command = command.replace(old, new)
            self.run(command)

    def has_printed(self, line: str) -> bool:
        return any(expected(line).search(output) for output in self.printed.values())


def draw_image(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)


@pytest.mark.slow
def test_the_commands_run_as_printed_and_print_what_is_quoted(repository: Path, tmp_path: Path) -> None:
    project = copy_of_checkout(repository, tmp_path / "project")
    shell, root = Shell(project), project.root
    all_blocks = blocks(repository, "sh")
    unused = [block for block in all_blocks if not commands(block)]
    with_dvc, presets, local, compare, promote, predict, own = [each for each in all_blocks if each not in unused]

    # 1. DVC, and settings
    assert with_dvc.startswith("dvc repro ")
    first, _, rest = with_dvc.partition("\n")
    shell.run_block(first)
    project.commit("first")
    shell.run_block(rest)  # makes a second run and version
    [messages] = blocks(repository, "")
    settings = (root / "params.yaml").read_text(encoding="utf-8")
    for line in messages.splitlines():
        wrong = settings.replace("lr: ", "lr: fast # ", 1) if "fast" in line else settings.replace("epochs:", "epoch:")
        (root / "params.yaml").write_text(wrong, encoding="utf-8")
        assert line in shell.run("python -m components.train.step", expect=1)
    shell.run_block(presets)
    (root / "params.yaml").write_text(settings, encoding="utf-8")

    # 2. Kubeflow Pipelines without a cluster
    shell.run_block(local)

    # 3. Compare
    listed = shell.run("yolact runs --json")
    ids = re.findall(r'"run_id": "([0-9a-f]{32})"', listed)
    assert len(ids) >= 2
    shell.run_block(compare, {"RUN RUN": f"{ids[0]} {ids[1]}"})
    assert (root / "reports/compare/index.html").is_file()

    # 4. Promote: a rollback needs an earlier champion
    shell.run("yolact promote --version 1")
    shell.run_block(promote)

    # Predict and serve
    for name in ("photos/c.jpg", "a.jpg", "b.jpg", "image.jpg"):
        draw_image(root / name)
    clip(root / "clip.mp4", [0, 40, 80])
    port = free_port()
    server: subprocess.Popen[str] | None = None
    try:
        for command in commands(predict):
            there = command.replace("models:/yolact@", "models:/yolact-smoke@").replace(":8080", f":{port}")
            if there.startswith("yolact serve"):
                server = project.start("bash", "-c", f"exec {there} --port {port}")
                wait_for(f"http://127.0.0.1:{port}/readyz", server)
            else:
                shell.run(there)
        assert '"detections"' in next(text for command, text in shell.printed.items() if command.startswith("curl"))
    finally:
        if server is not None:
            server.terminate()
            shell.printed["yolact serve"] = server.communicate(timeout=60)[0]
    (root / "program.py").write_text(blocks(repository, "python")[0], encoding="utf-8")
    shell.run("python program.py")

    # Your own images
    shutil.copytree(root / "data/raw/VOCdevkit/VOC2012", root / "path/to/folder")
    steps = "\n".join(command for command in commands(own) if not command.startswith("yolact serve"))
    shell.run_block(steps, {"yolact train path/to/folder": "yolact train path/to/folder --preset smoke"})

    quoted = [line for block in blocks(repository, "text") for line in block.splitlines()]
    assert [line for line in quoted if not shell.has_printed(line)] == []


def wait_for(address: str, server: subprocess.Popen[str]) -> None:
    """Wait until a server is ready.

    Raises:
        AssertionError: it has ended.
    """
    while True:
        assert server.poll() is None, server.communicate()[0]
        try:
            urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
