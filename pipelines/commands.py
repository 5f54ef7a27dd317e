"""The commands of ``python -m pipelines``; each imports what it needs only when it is called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import ClusterOptions, SettingsOptions, expand
from yolact_ops.commands.errors import ErrorGroup

app = typer.Typer(
    cls=ErrorGroup,
    help="Kubeflow pipelines: training up to a registered model, evaluation, batch prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables truncate variable names in narrow terminals
)

OUTPUT = Path("runs")
"""Where local runs keep their results."""


@app.callback()
def main() -> None:
    """Kubeflow pipelines."""


@app.command("compile")
@expand
def compile_command(
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write to this folder; by default pipelines/compiled."),
    ] = None,
    cluster: ClusterOptions,
) -> None:
    """Write the YAML files of all pipelines and components."""
    from pipelines.compiler import COMPILED, compile_all

    for path in compile_all(cluster.load(), output or COMPILED):
        print(path)


class Runner(StrEnum):
    """How a task runs on this machine."""

    SUBPROCESS = "subprocess"
    DOCKER = "docker"


@app.command("run-local")
@expand
def run_local(
    *,
    runner: Annotated[Runner, typer.Option(help="Run tasks as processes or in containers.")] = Runner.SUBPROCESS,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the results.")] = OUTPUT,
    image: Annotated[
        str | None, typer.Option(help="With containers: their image; by default the cluster file's.")
    ] = None,
    mount: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="With containers: a folder to mount read-only.")
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="With containers: use this machine's GPUs.")] = False,
    resume_pipeline_run: Annotated[
        str, typer.Option(metavar="ID", help="Resume the training of a pipeline run that stopped.")
    ] = "",
    cache: Annotated[bool, typer.Option(help="Reuse data steps of an earlier run if nothing changed.")] = True,
    settings: SettingsOptions,
    cluster: ClusterOptions,
) -> None:
    """Run the pipeline `training` on this machine."""
    from pipelines.run_local import run_training

    config = cluster.load()
    containers = None
    if runner is Runner.DOCKER:
        from pipelines.local import Containers

        containers = Containers(image or config.image, tuple(mount or ()), gpus=gpus)
    run_training(
        settings.read(),
        config,
        output,
        containers=containers,
        resume_pipeline_run=resume_pipeline_run,
        cache=cache,
    )
