"""`yolact summary`: the last run's results, read from the files that the steps wrote."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from yolact.errors import DataError
from yolact_ops.reports.formatting import decimal


@dataclass(frozen=True)
class Results:
    """Results of a pipeline run; AP values are 0 to 1, None without objects."""

    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None
    mask_ap50: float | None
    seconds_per_step: float
    model_name: str
    version: str
    alias: str | None


def read_results(root: Path = Path()) -> Results:
    """Collect the results in the project folder ``root``.

    Raises:
        DataError: a step's file is missing, not JSON or lacks a value; names the file and the step to run.
    """
    train = _StepFile(root / "metrics" / "train.json", "train")
    evaluate = _StepFile(root / "metrics" / "eval.json", "evaluate")
    register = _StepFile(root / "reports" / "registration.json", "register")
    return Results(
        box_ap=evaluate.value("box", "AP"),
        box_ap50=evaluate.value("box", "AP50"),
        mask_ap=evaluate.value("mask", "AP"),
        mask_ap50=evaluate.value("mask", "AP50"),
        seconds_per_step=train.value("seconds_per_step"),
        model_name=register.value("name"),
        version=str(register.value("version")),
        alias=register.value("alias"),
    )


def print_summary(root: Path = Path(), console: Console | None = None) -> None:
    """Print the results and the next commands to try.

    Raises:
        DataError: see `read_results`.
    """
    results = read_results(root)
    console = console or Console(highlight=False)
    alias = f"alias {results.alias}" if results.alias else "without an alias"
    table = Table(show_header=False)
    table.add_row("box AP, AP50", f"{decimal(results.box_ap)}, {decimal(results.box_ap50)}")
    table.add_row("mask AP, AP50", f"{decimal(results.mask_ap)}, {decimal(results.mask_ap50)}")
    table.add_row("training step", f"{results.seconds_per_step:.3f} s")
    table.add_row("registered", f"{results.model_name} version {results.version}, {alias}")
    console.print(table)
    console.print("\nNext:")
    for command, what in _next_commands():
        console.print(f"  [bold]{command}[/bold]\n      {what}")


class _StepFile:
    """A JSON file that a step wrote, with errors that name the step."""

    def __init__(self, path: Path, step: str) -> None:
        self.path = path
        self.hint = f"run the step that writes it: dvc repro {step}"
        try:
            self.tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; {self.hint}") from None
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error}); {self.hint}") from error

    def value(self, *keys: str) -> Any:
        tree = self.tree
        for key in keys:
            if not isinstance(tree, dict) or key not in tree:
                raise DataError(f"{self.path}: has no {'.'.join(keys)}; {self.hint}")
            tree = tree[key]
        return tree


def _next_commands() -> list[tuple[str, str]]:
    show = "open" if sys.platform == "darwin" else "xdg-open"
    return [
        ("make mlflow", "the run in MLflow: curves, images, the registered model"),
        (f"{show} reports/eval/index.html", "what the model finds in the evaluated images, and what it misses"),
        (
            "source .venv/bin/activate && dvc exp run -S train.lr=5e-4 && dvc exp show",
            "try another setting and compare; only the affected steps run again",
        ),
    ]
