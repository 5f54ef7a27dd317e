"""The commands of ``python -m pipelines``; their work is imported when they are called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import ClusterOptions, SettingsOptions, expand
from yolact_ops.commands.errors import ErrorGroup

app = typer.Typer(
    cls=ErrorGroup,
    help="Kubeflow pipelines: from images to a registered model, evaluation, prediction of many images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of variables on narrow screens
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
    """What a task is on this machine."""

    SUBPROCESS = "subprocess"
    DOCKER = "docker"


@app.command("run-local")
@expand
def run_local(
    *,
    runner: Annotated[Runner, typer.Option(help="Tasks as processes, or in containers.")] = Runner.SUBPROCESS,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Keep the results here.")] = OUTPUT,
    image: Annotated[
        str | None, typer.Option(help="With containers: their image; by default the cluster file's.")
    ] = None,
    mount: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="With containers: a folder that they may read.")
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="With containers: give them the machine's GPUs.")] = False,
    resume_pipeline_run: Annotated[
        str, typer.Option(metavar="ID", help="Resume the training of a pipeline run that stopped.")
    ] = "",
    cache: Annotated[bool, typer.Option(help="Take data steps from an earlier run where nothing changed.")] = True,
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
