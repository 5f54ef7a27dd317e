"""The tutorials' commands, run in their order in a fresh copy of the checkout, with fewer images and epochs.

What is quoted has to come in that order: numbers, names of runs and classes found may differ, and where ``...`` stands
anything may come.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.servers import free_port
from tests.test_documents import FENCE
from tests.test_pipeline import Project, copy_of_checkout
from tests.test_readme import wait_for

NOT_RUN = ("make install", "source .venv")
"""They would install an environment; `tests/test_ci.py` does."""

SMALLER = {
    "train_images=300": "train_images=24",
    "val_images=60": "val_images=8",
    "train.epochs=6": "train.epochs=4 -S train.warmup_steps=auto",
    "train.epochs=20": "train.epochs=3 -S train.validate_every=1 -S register.min_mask_ap50=0",
    "score_threshold=0.2": "score_threshold=0.01",
}
"""What is replaced in commands, so that all takes minutes; networks then find hardly anything."""

FOUND = re.compile(r"^(metrics/mask\.json|mask AP|car |bus | objects ).*$", re.MULTILINE)
"""Quoted lines that only a network prints that has learned something."""

REFUSAL = "no version of yolact has the alias candidate"
"""Beginning of what the one command prints that is refused, as the tutorial says."""

TABLE = re.compile(r"[\u2500-\u257f]|\x1b\[[\d;]*m")
"""Lines of tables, and colours."""

VARIES = re.compile(
    r"(?P<word>\b[a-z]+-[a-z]+-\d+\b|'[a-z]+-[a-z]+'|\b(?:[0-9a-f]{32}|[0-9a-f]{12}|[0-9a-f]{8})\b|\broot\b"
    r"|(?<=\"class\":)\"\w+\"|…)|(?P<number>[-+]?\d+(?:\.\d+)*)"
)
"""Names and ids of runs, the user's name, a class that was found, and numbers."""


def plain(text: str) -> str:
    return " ".join(TABLE.sub(" ", text).split())


def pattern(quoted: str) -> re.Pattern[str]:
    whole, end = "", 0
    for found in VARIES.finditer(quoted):
        whole += re.escape(quoted[end : found.start()]) + (r"(?:[-+]?[\d.]+|-)" if found["number"] else r".*?")
        end = found.end()
    whole += re.escape(quoted[end:])
    return re.compile(whole.replace(r"\ ", " ?"))  # pages wrap long lines


def missing(quoted: str, output: str) -> str:
    """The first quoted piece that was not printed after those before it; empty if all were."""
    printed, place = plain(output), 0
    for piece in filter(None, map(plain, FOUND.sub("...", quoted).split("..."))):
        found = pattern(piece).search(printed, place)
        if found is None:
            return piece
        place = found.end()
    return ""


def session(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what is quoted after it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, quoted = re.sub(r"\\\n", "", part).partition("\n")
        yield command, quoted


class Reader:
    """Does what a tutorial says, in one folder."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.variables = ""
        self.served: tuple[subprocess.Popen[str], str] | None = None
        self.port = free_port()
        self.missing: list[str] = []

    def follow(self, page: Path) -> None:
        for _, language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "python":
                self.project.run("python", "-c", block, timeout=1800)
            elif language == "console":
                for command, quoted in session(block):
                    self.enter(command, quoted)
            elif language == "sh":
                for command in block.splitlines():
                    self.enter(command, "")
        self.stop()

    def enter(self, command: str, quoted: str) -> None:
        for old, new in SMALLER.items():
            command = command.replace(old, new)
        command = command.replace("8123", str(self.port))
        if command.startswith(NOT_RUN):
            return
        if re.match(r"\w+=", command):
            self.variables += f"{command}\n"
        elif command.startswith("yolact serve"):
            server = self.project.start("bash", "-c", f"exec {command}")
            self.served = server, quoted
            wait_for(f"http://127.0.0.1:{self.port}/readyz", server)
        else:
            expect = 1 if quoted.startswith(REFUSAL) else 0
            output = self.project.run("bash", "-c", self.variables + command, expect=expect, timeout=1800)
            self.compare(command, quoted, output)

    def stop(self) -> None:
        """End the server, if there is one, and check what it printed."""
        if self.served is not None:
            server, quoted = self.served
            self.served = None
            server.terminate()
            output, _ = server.communicate(timeout=60)
            self.compare("yolact serve", quoted, output)

    def compare(self, command: str, quoted: str, output: str) -> None:
        piece = missing(quoted, output)
        if piece:
            self.missing.append(f"{command}\nshould have printed: {piece}\nand printed:\n{output}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "pages", [("first-run", "compare-and-promote"), ("own-images",)], ids=lambda pages: "-".join(pages)
)
def test_the_commands_of_the_tutorials_run_and_print_what_is_quoted(
    repository: Path, tmp_path: Path, pages: tuple[str, ...]
) -> None:
    project = copy_of_checkout(repository, tmp_path / "project")
    project.environment["COLUMNS"] = "160"
    project.run("git", "config", "user.name", "t")
    project.run("git", "config", "user.email", "t@example.com")
    project.run("yolact", "preset", "use", "sample-cpu")
    project.commit("as cloned")
    reader = Reader(project)
    try:
        for page in pages:
            reader.follow(repository / f"docs/tutorials/{page}.md")
    finally:
        if reader.served is not None:
            reader.served[0].kill()
    assert reader.missing == [], "\n\n".join(reader.missing)
    assert project.run("git", "status", "--porcelain", "--", "practice", "found", "look.html", "drawn.png") == ""


@pytest.mark.parametrize(
    ("quoted", "output", "first"),
    [
        ("[train] done: 222 steps\n...\n┃ setting ┃ now ┃", "[train] done: 12 steps, 1 s\n\nx\n│ setting │ now │", ""),
        ("run fair-owl-963 (dbea179f)\nloss 27.94", "run a-b-1 (41fb7733)\nloss -1.5", ""),
        ('{"width":257,\n"height":314', '{"width":80,"height":60}', ""),
        ("one\n...\ntwo", "two\none\n", "two"),
        ("one\ntwo", "one\nand a half\ntwo\n", "one two"),
        ("version 1 registered", "version x registered", "version 1 registered"),
    ],
)
def test_a_line_that_was_not_printed_is_found(quoted: str, output: str, first: str) -> None:
    assert missing(quoted, output) == first
