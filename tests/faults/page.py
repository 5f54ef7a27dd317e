"""The tests that docs/reliability.md names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
_LINK = re.compile(r"\]\(\.\./(tests/[\w/]+\.py)#(test_\w+)\)")


def named_tests() -> set[tuple[str, str]]:
    """File, relative to the repository, and function of each test that the page links to."""
    return set(_LINK.findall(PAGE.read_text(encoding="utf-8")))


@cache
def functions_of(file: Path) -> set[str]:
    """Names of the test functions in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
