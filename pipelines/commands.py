"""The commands of ``python -m pipelines``; their work is imported when they are called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.config import CLUSTER, load_cluster
from yolact_ops.commands.errors import ErrorGroup
from yolact_ops.settings.presets import PARAMS, choose

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

ClusterFile = Annotated[
    Path,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="Images, resources, secrets, volumes.",
        show_default="pipelines/cluster.yaml of the project",
    ),
]
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


class Runner(StrEnum):
    """What a task is on this machine."""

    SUBPROCESS = "subprocess"
    DOCKER = "docker"


@app.command("run-local")
def run_local(
    runner: Annotated[Runner, typer.Option(help="Tasks as processes, or in containers.")] = Runner.SUBPROCESS,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Settings: of this preset; `yolact preset list` names them.")
    ] = None,
    params: Annotated[Path, typer.Option(metavar="FILE", help="Settings: this file.")] = PARAMS,
    overrides: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", metavar="KEY=VALUE", help="Change a setting, as in `dvc exp run -S`."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Keep the results here.")] = OUTPUT,
    image: Annotated[str | None, typer.Option(help="With containers: their image; the cluster file's if none.")] = None,
    mount: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="With containers: a folder that they may read.")
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="With containers: give them the machine's GPUs.")] = False,
    resume_run: Annotated[str, typer.Option(metavar="ID", help="Go on with the training of a run that stopped.")] = "",
    cache: Annotated[bool, typer.Option(help="Take data steps from an earlier run where nothing changed.")] = True,
    cluster: ClusterFile = CLUSTER,
) -> None:
    """Run the pipeline `training` on this machine."""
    from pipelines.run_local import run_training

    config = load_cluster(cluster)
    containers = None
    if runner is Runner.DOCKER:
        from pipelines.local import Containers

        containers = Containers(image or config.image, tuple(mount or ()), gpus=gpus)
    settings = choose(preset, params, overrides or [])
    run_training(settings, config, output, containers=containers, resume_run=resume_run, cache=cache)
