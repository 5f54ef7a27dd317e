"""The pages of the site, where each comes from, and the links between them. Needs no part of MkDocs."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BESIDE_CODE = (
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "components/*/README.md",
    "deploy/README.md",
    "examples/README.md",
    "pipelines/README.md",
    "yolact_ops/comparison/README.md",
)
"""Pages that are not in docs/: patterns below the repository's root."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash"}
"""Language of a shown file, by the end of its name."""

HOME = "README.md"
"""Links to it lead to the site's first page."""

DESCRIBED = {
    "params.yaml": "reference/settings.md",
    "serving/settings.py": "reference/server-settings.md",
    "serving/app.py": "reference/http.md",
    "yolact_cli/main.py": "reference/yolact.md",
    "pipelines/commands.py": "reference/pipelines.md",
    **{
        f"yolact/{path.parent.name}": f"reference/python/{path.parent.name}.md"
        for path in ROOT.glob("yolact/*/__init__.py")
    },
}
"""Links to these files and folders lead to the generated page about them: in the repository there is no such page."""

_FENCE = re.compile(r"^ *(```+|~~~+)")
_CODE_OR_LINK = re.compile(
    r"(?P<code>(`+)(?:(?!\n\s*\n).)*?(?<!`)\2(?!`))|(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>[^)]*\))", re.DOTALL
)


def documents(root: Path = ROOT) -> dict[str, str]:
    """Written pages: the path in the repository of each, and that in the site. Pages of docs/ lose that prefix."""
    paths = [path for path in root.glob("docs/**/*.md") if path.relative_to(root).parts[1] != "site"]
    paths += [path for pattern in BESIDE_CODE for path in root.glob(pattern)]
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    return {name: name.removeprefix("docs/") for name in names}


def places(root: Path = ROOT) -> dict[str, str]:
    """Path in the site of each path in the repository that has one."""
    return {**documents(root), **{path: f"{path}.md" for path in linked_files(root)}, **DESCRIBED, HOME: "index.md"}


def links(markdown: str) -> Iterator[str]:
    """Relative targets of a page's links and images, with their anchors, in order; those in code do not count."""
    found: list[str] = []

    def note(target: str) -> str:
        found.append(target)
        return target

    _change_links(markdown, note)
    yield from found


def resolve(page: str, target: str) -> tuple[str, str]:
    """The path in the repository that a page links to, and the rest: `#anchor` or nothing.

    Args:
        page: the page's path in the repository.
        target: as `links` gives it.
    """
    path, mark, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)), mark + anchor


def linked_files(root: Path = ROOT) -> list[str]:
    """Files outside of docs/ that pages link to and that are no pages: the site shows their text."""
    pages = documents(root)
    targets = {resolve(page, target)[0] for page in pages for target in links(_read(root, page))}
    return sorted(
        target
        for target in targets - pages.keys() - DESCRIBED.keys() - {HOME}
        if not target.startswith("docs/") and (root / target).is_file()
    )


def shown_file(path: str, text: str) -> str:
    """The page of a file that is no page itself, Markdown: a notebook as text and code, another file as it is.

    Args:
        path: in the repository.
        text: of the file.
    """
    if path.endswith(".ipynb"):
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        written = [source if kind == "markdown" else _fenced(source, "python") for kind, source in cells]
        remark = f"*The notebook `{path}`. It is stored without results: run it to see them.*"
        title, _, rest = written[0].partition("\n")
        return "\n\n".join([title, remark, rest, *written[1:]]) + "\n"
    code = _fenced(text, LANGUAGES.get(posixpath.splitext(path)[1], "text"))
    return f"---\nsearch: {{exclude: true}}\n---\n# `{path}`\n\n{code}\n"


def _fenced(code: str, language: str) -> str:
    return f"``````{language}\n{code}\n``````"


def adapt(markdown: str, page: str, places: dict[str, str]) -> str:
    """A page's text with the links of the repository changed to those of the site.

    Args:
        markdown: the text.
        page: its path in the repository.
        places: path in the site of each path in the repository that has one.
    """

    def change(target: str) -> str:
        path, anchor = resolve(page, target)
        if path not in places:
            return target
        if places[path] == f"{path}.md":  # the text of a file, which has no headings
            anchor = ""
        return os.path.relpath(places[path], posixpath.dirname(places[page]) or ".") + anchor

    return _change_links(markdown, change)


def _change_links(markdown: str, change: Callable[[str], str]) -> str:
    """``change`` is applied to each relative target outside of code; anchors of the same page stay as they are."""

    def replace(match: re.Match[str]) -> str:
        if match["code"] or "://" in match["target"] or match["target"].startswith(("#", "mailto:")):
            return match[0]
        return match["before"] + change(match["target"]) + match["after"]

    parts: list[str] = []
    text: list[str] = []
    fence = ""
    for line in markdown.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence or mark:
            parts.append(_CODE_OR_LINK.sub(replace, "".join(text)))
            parts.append(line)
            text = []
            if not fence and mark:
                fence = mark[1]
            elif mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
        else:
            text.append(line)
    return "".join([*parts, _CODE_OR_LINK.sub(replace, "".join(text))])


def _read(root: Path, page: str) -> str:
    return (root / page).read_text(encoding="utf-8")
