"""The commands of ``python -m pipelines``; their work is imported when they are called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.config import CLUSTER, load_cluster
from yolact.errors import YolactError


class _Group(TyperGroup):
    """Ends on errors that a user can mend with their message, without a traceback, and their exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except YolactError as error:
            print(f"[{ctx.invoked_subcommand}] failed: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_Group,
    help="Kubeflow pipelines: from photos to a registered model, evaluation, prediction of many photos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ClusterFile = Annotated[Path, typer.Option("--cluster", metavar="FILE", help="Images, resources, secrets, volumes.")]
ClusterChanges = Annotated[
    list[str] | None,
    typer.Option("-C", "--set-cluster", metavar="KEY=VALUE", help="Change a key of it, as tasks.train.gpus=0."),
]


@app.callback()
def main() -> None:
    """Kubeflow pipelines."""


@app.command("compile")
def compile_command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write to here; the project's own if none.")
    ] = None,
    cluster: ClusterFile = CLUSTER,
    changes: ClusterChanges = None,
) -> None:
    """Write the YAML files of all pipelines and components."""
    from pipelines.compiler import COMPILED, compile_all

    for path in compile_all(load_cluster(cluster, changes or []), output or COMPILED):
        print(path)
