"""Run the notebooks in examples/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient


def run_notebook(
    notebook: Path,
    environment: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    replaced: tuple[str, str] | None = None,
    added: str = "",
) -> list[str]:
    """Run a notebook from top to bottom, in its folder; its file stays as it is.

    Args:
        notebook: the file.
        environment: of its kernel.
        monkeypatch: for files of Jupyter, which otherwise go to the home folder.
        replaced: a text that is in one cell once, and what stands there instead.
        added: one more cell at the end.

    Raises:
        CellExecutionError: a cell fails.

    Returns:
        What each code cell printed and displayed.
    """
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(notebook.parent / ".jupyter"))
    book = nbformat.read(notebook, as_version=4)
    if replaced is not None:
        [cell] = [cell for cell in book.cells if replaced[0] in cell.source]
        assert cell.source.count(replaced[0]) == 1
        cell.source = cell.source.replace(*replaced)
    book.cells.append(nbformat.v4.new_code_cell(added))
    client = NotebookClient(book, timeout=600, resources={"metadata": {"path": str(notebook.parent)}})
    client.execute(env=dict(environment) | {"IPYTHONDIR": str(notebook.parent / ".ipython")})
    return ["\n".join(map(_text, cell.outputs)) for cell in book.cells if cell.cell_type == "code"]


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return str(output.data.get("text/html") or output.data["text/plain"])
