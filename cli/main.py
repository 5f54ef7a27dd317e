"""The ``yolact`` command: thin shells over the rooms, which are imported only when they are called."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from yolact.errors import YolactError


class _Group(TyperGroup):
    """Ends on errors that a user can mend with their message, without a traceback, and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except YolactError as error:
            message = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror}"
        print(message, file=sys.stderr)
        raise typer.Exit(1)


app = typer.Typer(
    cls=_Group,
    help="Instance segmentation with YOLACT: settings and results of the pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
preset_app = typer.Typer(help="Choose the settings: presets are small named differences from conf/base.yaml.")
app.add_typer(preset_app, name="preset", no_args_is_help=True)

PresetName = Annotated[str, typer.Argument(metavar="NAME", help="A preset; `yolact preset list` names them.")]


@preset_app.command("list")
def preset_list() -> None:
    """Name the presets."""
    from cli import presets

    presets.print_list()


@preset_app.command("show")
def preset_show(
    name: PresetName,
    whole: Annotated[bool, typer.Option("--yaml", help="Print the whole params.yaml it makes.")] = False,
) -> None:
    """Show what a preset changes in conf/base.yaml."""
    from cli import presets

    presets.print_preset(name, whole=whole)


@preset_app.command("use")
def preset_use(
    name: PresetName,
    overrides: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", metavar="KEY=VALUE", help="Change a key, as in `dvc exp run -S`."),
    ] = None,
) -> None:
    """Write a preset to params.yaml and show what changed there."""
    from cli import presets

    presets.use(name, overrides or [])


@app.command()
def mlflow(port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the local pages.")] = 5000) -> None:
    """Show the last run in MLflow."""
    from cli import mlflow_ui

    raise typer.Exit(mlflow_ui.serve(port))


@app.command()
def summary() -> None:
    """Show the last run's results in a short table, and what to try next."""
    from cli import summary as results

    results.print_summary()


if __name__ == "__main__":
    app()
