"""The documentation site, docs/site: navigation, tables, drawings and generated reference.

`tests/test_documents.py` checks the links.
"""

from __future__ import annotations

import ast
import html
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from serving.settings import ServerSettings
from yolact_ops.settings.yaml_text import plain, read_yaml


@pytest.fixture(scope="module")
def site(repository: Path) -> Iterator[dict[str, ModuleType]]:
    """Modules that make the site, all but the one that needs MkDocs, by name."""
    folder = str(repository / "docs" / "site")
    names = ["pages", "reference", "python_reference", "settings_reference", "command_reference", "http_reference"]
    sys.path.insert(0, folder)
    yield {name: importlib.import_module(name) for name in [*names, "drawings"]}
    sys.path.remove(folder)
    for name in [*names, "drawings"]:
        del sys.modules[name]


def leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [leaf for below in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(below)]


def test_the_navigation_names_every_page_once(repository: Path, site: dict[str, ModuleType]) -> None:
    config = yaml.safe_load((repository / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8"))
    assert [next(iter(part)) for part in config["nav"]] == ["Home", "Tutorials", "How-to", "Reference", "Explanation"]
    pages = [*site["pages"].documents().values(), *site["reference"].PAGES]
    assert sorted(leaves(config["nav"])) == sorted(pages)


def test_every_markdown_file_is_a_page(repository: Path, site: dict[str, ModuleType]) -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=repository, capture_output=True, text=True, check=True)
    others = {"README.md", "tests/pipelines/recorded/README.md"}  # the site has a first page of its own
    assert set(listed.stdout.splitlines()) - others <= site["pages"].documents().keys()


def test_links_to_what_the_reference_describes_lead_there(repository: Path, site: dict[str, ModuleType]) -> None:
    described = site["pages"].DESCRIBED
    assert [path for path in described if not (repository / path).exists()] == []
    assert set(described.values()) <= site["reference"].PAGES.keys()
    assert (
        site["pages"].adapt("[s](../params.yaml)", "docs/index.md", site["pages"].places())
        == "[s](reference/settings.md)"
    )


def test_links_of_the_repository_become_links_of_the_site(site: dict[str, ModuleType]) -> None:
    places = {
        "docs/data.md": "data.md",
        "components/train/README.md": "components/train/README.md",
        "pipelines/cluster.yaml": "pipelines/cluster.yaml.md",
        "README.md": "index.md",
    }
    text = (
        "[a](../../docs/data.md#splits), [b](../../pipelines/cluster.yaml#gpus), [c](#here), "
        "[d](https://e.org/data.md), `[e](../../docs/data.md)`, ``a ` [f](../../README.md)``, [g](../../README.md)\n"
        "```sh\n[h](../../docs/data.md)\n```\n[i](../../docs/data.md)\n"
    )
    assert site["pages"].adapt(text, "components/train/README.md", places) == (
        "[a](../../data.md#splits), [b](../../pipelines/cluster.yaml.md), [c](#here), "
        "[d](https://e.org/data.md), `[e](../../docs/data.md)`, ``a ` [f](../../README.md)``, [g](../../index.md)\n"
        "```sh\n[h](../../docs/data.md)\n```\n[i](../../data.md)\n"
    )


def test_a_notebook_is_shown_as_text_and_code_and_another_file_as_it_is(
    repository: Path, site: dict[str, ModuleType]
) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "\n", "Text with [a link](https://example.com/).\n"]},
        {"cell_type": "code", "source": ["print(1)\n", "print(2)"]},
    ]
    page = site["pages"].shown_file("examples/a.ipynb", json.dumps({"cells": cells}))
    assert page.startswith("# A title\n\n*The notebook `examples/a.ipynb`.")
    assert "Text with [a link](https://example.com/)." in page
    assert page.endswith("``````python\nprint(1)\nprint(2)\n``````\n")
    assert "# `a.sh`\n\n``````bash\nls\n``````\n" in site["pages"].shown_file("a.sh", "ls")
    assert {"examples/predict.ipynb", "examples/onnx_client.py"} <= set(site["pages"].linked_files())


def table_rows(markdown: str) -> Iterator[list[str]]:
    """Rows of each table, the header first, split as GitHub does: at each bar, also in code, unless it is escaped."""
    rows: list[str] = []
    text = re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            yield [row for row in rows if not re.fullmatch(r"[|: -]+-[|: -]+", row)]
            rows = []


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().removeprefix("|").removesuffix("|"))]


def test_each_row_of_a_table_has_the_headers_number_of_cells(repository: Path, site: dict[str, ModuleType]) -> None:
    """GitHub splits cells at bars in code, too, and the site shows the backslash of an escaped one in code."""
    written = {
        page: (repository / page).read_text(encoding="utf-8") for page in [*site["pages"].documents(), "README.md"]
    }
    tables, wrong = 0, []
    for page, text in (written | {place: make() for place, make in site["reference"].PAGES.items()}).items():
        for rows in table_rows(text):
            tables += 1
            wrong += [f"{page}: {row}" for row in rows if len(cells(row)) != len(cells(rows[0]))]
            wrong += [f"{page}: {row}" for row in rows if re.search(r"`[^`]*\\\|[^`]*`", row)]
    assert tables > 80
    assert wrong == []


def test_the_drawings_are_what_their_program_draws(repository: Path, site: dict[str, ModuleType]) -> None:
    for name, draw in site["drawings"].DRAWINGS.items():
        assert (repository / "docs" / name).read_text(encoding="utf-8") == draw(), "run python docs/site/drawings.py"


def keys(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        whole = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and whole != "train.loss.weights":
            yield from keys(value, whole)
        else:
            yield whole, value


def test_the_reference_of_settings_has_every_key_with_its_value_and_a_description(
    repository: Path, site: dict[str, ModuleType]
) -> None:
    page = site["settings_reference"].settings()
    entries = re.findall(
        r"^#### `(\w+)` \{ #(\S+) \}\n\n(.*) · published: `(.*)`\n\{ .facts \}\n\n(.+)", page, re.MULTILINE
    )
    listed = {anchor: (facts, yaml.safe_load(value), text) for _, anchor, facts, value, text in entries}
    values = dict(keys(plain(read_yaml(repository / "conf" / "base.yaml"))))
    assert {key: value for key, (_, value, _) in listed.items()} == values
    assert listed["train.epochs"][0] == "whole number or `auto`"
    assert listed["train.lr"][0] == "number (above 0)"
    assert listed["model.image_size"][0] == "whole number (at least 64, at most 4096)"
    assert listed["evaluate.detect.nms"][0] == "`fast`, `cross_class`, `traditional`"
    assert listed["data.sample.max_objects"][2] == "Maximum number of objects drawn in one image."


def test_a_setting_without_docstring_has_the_comment_of_the_file(site: dict[str, ModuleType]) -> None:
    text = "a:   # of a section\n  b: 1   # one\n  c: 2\nd: [1]    # two,\n                     # and more\n"
    assert site["settings_reference"].base_comments(text) == {"a": "of a section", "a.b": "one", "d": "two, and more"}


def test_the_reference_of_the_server_has_every_variable(site: dict[str, ModuleType]) -> None:
    page = site["settings_reference"].server_settings()
    entries = re.findall(
        r"^#### `YOLACT_SERVE_(\w+)` .*\n\n.* · default: `(.*)`\n\{ .facts \}\n\n(.+)", page, re.MULTILINE
    )

    assert {name.lower() for name, _, _ in entries} == ServerSettings.model_fields.keys()
    assert ("MASK_SIDE", "2048") in [(name, default) for name, default, _ in entries]


@pytest.mark.parametrize("command", ["yolact", "python -m pipelines"])
def test_the_reference_of_commands_has_what_their_help_has(
    repository: Path, site: dict[str, ModuleType], command: str
) -> None:
    """The sources are read again, as text: a function's name or the one given to its decorator."""
    folder = repository / ("yolact_cli" if command == "yolact" else "pipelines")
    named = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".command"):
                    assert isinstance(node, ast.FunctionDef)
                    given = [each.value for each in decorator.args if isinstance(each, ast.Constant)]
                    named.add(given[0] if given else node.name.replace("_", "-"))
    page = site["command_reference"].commands(command)
    assert {title.split()[-1] for title in re.findall(rf"^## `{command} (.*)`$", page, re.MULTILINE)} == named
    if command == "yolact":
        assert "`--score-threshold S`\n:   Least score of a detection; 0.05 to measure AP. \\[default: 0.3;" in page


def test_the_reference_of_http_has_every_request_and_schema(site: dict[str, ModuleType]) -> None:
    page = site["http_reference"].http()
    for request in ("POST /predict", "POST /predict/overlay", "POST /v2/models/{name}/infer", "GET /readyz"):
        assert f"## `{request}`" in page
    links, anchors = set(re.findall(r"\]\(#(\w+)\)", page)), {name.lower() for name in re.findall(r"### (\w+)", page)}
    assert {"prediction", "error"} <= links <= anchors
    assert "- `score_threshold` · number (at least 0.001, below 1) or `null` · in the query<br>Only detections" in page


class Tables(HTMLParser):
    """The text of each row of a page's tables, and all that the page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.loaded: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "tr":
            self.rows.append("")
            self.inside = True
        if tag in ("script", "img", "iframe"):
            self.loaded.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(given.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "tr"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1] += data


def letters(text: str) -> str:
    return re.sub(r"\W|_", "", text)


def test_the_strict_build_has_no_warning_loses_no_cell_and_loads_nothing_from_elsewhere(
    repository: Path, site: dict[str, ModuleType], tmp_path: Path
) -> None:
    config = repository / "docs" / "site" / "mkdocs.yml"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(config), "-d", str(tmp_path)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    shown = {}
    for path in tmp_path.rglob("*.html"):
        shown[path] = Tables()
        shown[path].feed(path.read_text(encoding="utf-8"))
        assert [each for each in shown[path].loaded if "://" in each] == []
    styles = [path for path in tmp_path.rglob("*.css") if re.search(r"url\(['\"]?https?:|@import", path.read_text())]
    assert styles == []
    rows = 0
    for page, place in site["pages"].documents().items():
        target = tmp_path / place.replace("README.md", "index.md").replace(".md", ".html")
        found = {letters(row) for row in shown[target].rows}
        for table in table_rows((repository / page).read_text(encoding="utf-8")):
            for row in table:
                text = re.sub(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)|<(https?://[^>]*)>", r"\1\2", row)
                assert letters(html.unescape(text)) in found, f"{page}: {row}"
                rows += 1
    assert rows > 500
