"""Links and commands of all Markdown files: what they point to exists, without running anything.

`tests/test_readme.py` and `tests/test_tutorials.py` run those of the README and the tutorials.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from dvc.cli.parser import get_main_parser

from pipelines.__main__ import app as pipelines_app
from pipelines.config import load_cluster
from yolact.models.published import PUBLISHED_MODELS
from yolact_cli.main import app as yolact_app
from yolact_ops.reports.formatting import flatten
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import change, preset_names
from yolact_ops.settings.yaml_text import read_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z", "*.md"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name and (REPOSITORY / name).is_file()
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    """Markdown without its blocks and pieces of code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def slug(title: str) -> str:
    """GitHub's anchor of a heading: lower case, without punctuation, hyphens for spaces."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """All anchors of a page: its headings, numbered where several have one name; of a Python file its functions."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        return set(re.findall(r"^def (\w+)\(", text, re.MULTILINE))
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.*)$", FENCE.sub("", text), re.MULTILINE):
        name, number = slug(title), 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_and_anchor_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Two `words`, here\n[a](other.md) [b](#two-words-here) [c](#elsewhere) [d](page.md#two-words-here) "
        "[e](https://example.com/x) `[f](code.md)` ![g](image.jpg)\n```\n[h](block.md)\n# not a heading\n```\n"
        "[i](#not-a-heading)\n# Two words here\n[j](#two-words-here-1)\n"
    )
    assert broken_links(page) == ["other.md", "#elsewhere", "image.jpg", "#not-a-heading"]


# Commands ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command as a page prints it."""

    page: str
    text: str
    is_whole: bool
    """From a block; a piece of code in a sentence may leave out what the command needs."""

    def may_be(self, what: str) -> bool:
        """Whether a fault is only that something is left out in a sentence."""
        return not self.is_whole and (what.startswith("Missing ") or what.endswith("requires an argument."))

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


OURS = ("yolact ", "python -m pipelines", "make ", "dvc ")


def commands() -> Iterator[Command]:
    """The commands of ours in blocks of shell, behind the prompts of sessions, and in pieces of code in the text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [block for _, language, block in FENCE.findall(text) if language in ("", "sh")]
        sessions = [block for _, language, block in FENCE.findall(text) if language == "console"]
        blocks += [command for block in sessions for command in re.findall(r"^\$ ((?:.*\\\n)*.*)", block, re.MULTILINE)]
        lines = [(line, True) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += [(" ".join(code.split()), False) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
        for line, is_whole in lines:
            if re.match(r" *yolact {2,}", line):  # a drawing of packages
                continue
            found = [part for part in parts_of(line) if part.startswith(OURS)]
            yield from (Command(name_of(page), part, is_whole) for part in found)


def parts_of(line: str) -> Iterator[str]:
    """The commands of a line, without what the shell adds: pipes, variables, redirections and remarks."""
    line = re.sub(r"\$\([^)]*\)", "OUTPUT", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe in a sentence
        return
    part: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("|&;<>"):
            while part and re.fullmatch(r"[A-Z_]+=.*|\$|if|then|while|do", part[0]):
                part.pop(0)
            if part:
                yield shlex.join(part)
            part = []
        else:
            part.append(word)


COMMANDS = sorted(set(commands()), key=str)


PLACEHOLDERS = {"N": "1", "PORT": "1", "KEY=VALUE": "train.lr=1"}
"""Words that stand for a value, with one that an option takes."""


def fault(app: typer.Typer, words: list[str]) -> str:
    """What the command's own parser finds wrong with a command line, which is not run; empty if nothing."""
    current: Any = typer.main.get_command(app)
    words = [PLACEHOLDERS.get(word, word) for word in words]
    try:
        while hasattr(current, "resolve_command"):  # a group
            if not words or "--help" in words:
                return ""
            context = current.make_context("", words)
            _, current, words = current.resolve_command(context, [*context._protected_args, *context.args])
        if "--help" not in words:
            current.make_context("", words)
    except Exception as error:
        if not hasattr(error, "format_message"):  # no UsageError of the parser
            raise
        return str(error.format_message())
    return ""


@pytest.mark.parametrize(
    ("app", "beginning"),
    [(yolact_app, ["yolact"]), (pipelines_app, ["python", "-m", "pipelines"])],
    ids=["yolact", "pipelines"],
)
def test_every_command_exists_with_its_options(app: typer.Typer, beginning: list[str]) -> None:
    printed = [each for each in COMMANDS if each.words[: len(beginning)] == beginning]
    assert len(printed) > 40
    found = [(each, fault(app, each.words[len(beginning) :])) for each in printed]
    assert [f"{each}: {what}" for each, what in found if what and not each.may_be(what)] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dta x", "No such command 'dta'"),
        ("data x --bogus", "No such option: --bogus"),
        ("predict x --batch-size many", "unable to parse string as an integer"),
        ("preset chose smoke", "No such command 'chose'"),
        ("compare a", "Missing argument"),
    ],
)
def test_a_wrong_command_is_found(line: str, message: str) -> None:
    assert message in fault(yolact_app, line.split())


def test_every_target_of_make_exists_with_its_variables() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    printed = [each for each in COMMANDS if each.words[0] == "make"]
    assert len(printed) > 15
    for command in printed:
        for word in command.words[1:]:
            if word == "...":
                continue
            name, is_variable, _ = word.partition("=")
            assert f"$({name})" in makefile if is_variable else name in targets, str(command)


def test_every_command_of_dvc_exists_with_its_options() -> None:
    parser = get_main_parser()
    printed = [each for each in COMMANDS if each.words[0] == "dvc" and each.is_whole]
    assert len(printed) > 20
    for command in printed:
        arguments = parser.parse_args(command.words[1:])
        if arguments.cmd == "repro":
            stages = read_yaml(REPOSITORY / "dvc.yaml")["stages"]
            assert set(arguments.targets) <= set(stages) | {"STAGE"}, str(command)


def overrides(option: str) -> dict[Command, list[str]]:
    """The ``KEY=VALUE`` of all options ``-S`` or ``-C``, by command."""
    found = {}
    for command in COMMANDS:
        pairs = zip(command.words, command.words[1:], strict=False)
        found[command] = [value for word, value in pairs if word == option and "=" in value and value != "KEY=VALUE"]
    return {command: values for command, values in found.items() if values}


SEARCHED = re.compile(r"=(loguniform|uniform|int|choice)\(.*")
"""A value that a sweep tries: docs/sweeps.md."""


def test_every_printed_setting_exists_and_takes_its_value(params: Params) -> None:
    printed = overrides("-S")
    assert len(printed) > 15
    keys = flatten(params.model_dump(mode="json", by_alias=True)).keys()
    for command, values in printed.items():
        assert {text.partition("=")[0] for text in values} <= keys, str(command)
        if command.page == "docs/extending.md":  # its backbone is the reader's
            continue
        values = [text for text in values if not SEARCHED.search(text)]
        if command.words[0] == "dvc":  # Hydra takes inner quotes away, and a comma makes several experiments
            values = [text.replace('="', "=").rstrip('"').partition(",")[0] for text in values]
        change(params, values)


def test_every_printed_setting_of_the_cluster_exists() -> None:
    printed = overrides("-C")
    assert len(printed) > 5
    for values in printed.values():
        load_cluster(overrides=values)


def test_every_printed_preset_exists() -> None:
    known = {*preset_names(REPOSITORY / "conf"), *PUBLISHED_MODELS, "base", "NAME", "FIRST", "SECOND"}
    named = [
        (str(command), following)
        for command in COMMANDS
        for word, following in zip(command.words, command.words[1:], strict=False)
        if word == "--preset" or (word in ("use", "show") and command.words[:2] == ["yolact", "preset"])
    ]
    assert len(named) > 10
    assert [command for command, name in named if not set(name.split("+")) <= known] == []
