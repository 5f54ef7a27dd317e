"""Reference of the library: mkdocstrings reads the docstrings; this names the modules of each page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pages import ROOT

LIBRARY = ROOT / "yolact"


def _page(package: Path, files: list[Path]) -> str:
    title = ".".join(package.relative_to(ROOT).parts)
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.name != "__init__.py"]
    options = ("members: false", "show_root_heading: false", "show_root_toc_entry: false")
    introduction = f"::: {title}\n    options:\n" + "".join(f"      {option}\n" for option in options)
    return f"# `{title}`\n\n{introduction}\n" + "\n".join(f"::: {module}\n" for module in modules)


PAGES: dict[str, Callable[[], str]] = {
    "reference/python/yolact.md": partial(_page, LIBRARY, sorted(LIBRARY.glob("*.py"))),
    **{
        f"reference/python/{file.parent.name}.md": partial(_page, file.parent, sorted(file.parent.rglob("*.py")))
        for file in sorted(LIBRARY.glob("*/__init__.py"))
    },
}
"""A page for each package of the library, and one for the modules below all of them, by path in the site."""
