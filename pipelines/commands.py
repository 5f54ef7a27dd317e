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


@app.command("sweep")
@expand
def sweep_command(
    *,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, failed ones included.")] = 20,
    parallel: Annotated[int, typer.Option(min=1, help="Trials at a time: processes, or pods with --katib.")] = 1,
    metric: Annotated[str, typer.Option(help="Metric of evaluate to make as large as possible.")] = "mask_AP",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the sweep; the same command again goes on with it.")] = "sweep",
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The results go into its folder NAME.")
    ] = OUTPUT,
    processed: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Processed data, as data/processed; by default made once for the sweep."),
    ] = None,
    register: Annotated[
        bool, typer.Option("--register/--no-register", help="Register the best model and ask the gate.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be tried, and end.")] = False,
    katib: Annotated[bool, typer.Option("--katib", help="Run on a cluster, as an experiment of Katib.")] = False,
    namespace: Annotated[
        str | None,
        typer.Option(
            "-n", "--namespace", envvar="KF_PIPELINES_NAMESPACE", help="With --katib: the experiment's namespace."
        ),
    ] = None,
    settings: SettingsOptions,
    cluster: ClusterOptions,
) -> None:
    """Train with many settings and register the best model: -S 'train.lr=loguniform(1e-4,1e-2)'."""
    from pipelines.sweeps.start import Start, start_sweep

    start = Start(trials, parallel, metric, seed, name, register, dry_run)
    where = namespace or "kubeflow" if katib else None
    start_sweep(start, settings, cluster.load(), output=output, processed=processed, namespace=where)
