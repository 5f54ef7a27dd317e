"""The ``yolact`` command: thin shells over the rooms, which are imported only when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_ops.commands.errors import ErrorGroup

app = typer.Typer(
    cls=ErrorGroup,
    help="Instance segmentation with YOLACT: settings and results of the pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
preset_app = typer.Typer(
    help="Choose the settings: presets are small named differences from conf/base.yaml, the published configurations "
    "among them."
)
app.add_typer(preset_app, name="preset", no_args_is_help=True)

PresetName = Annotated[str, typer.Argument(metavar="NAME", help="A preset; `yolact preset list` names them.")]


@preset_app.command("list")
def preset_list() -> None:
    """Name the presets."""
    from yolact_cli import presets

    presets.print_list()


@preset_app.command("show")
def preset_show(
    name: PresetName,
    whole: Annotated[bool, typer.Option("--yaml", help="Print the whole params.yaml it makes.")] = False,
) -> None:
    """Show what a preset changes in conf/base.yaml."""
    from yolact_cli import presets

    presets.print_preset(name, whole=whole)


@preset_app.command("use")
def preset_use(
    name: PresetName,
    overrides: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", metavar="KEY=VALUE", help="Change a key, as in `dvc exp run -S`."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take the network of a published configuration; `yolact models` names them."),
    ] = None,
) -> None:
    """Write a preset to params.yaml and show what changed there."""
    from yolact_cli import presets

    presets.use(name, overrides or [], model)


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one in full.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/models.md.")] = False,
) -> None:
    """List the published configurations: size, cost, published accuracy and speed."""
    if markdown and (name or as_json):
        raise typer.BadParameter("--markdown prints the table of all; it goes with neither NAME nor --json")
    from yolact_cli import models as zoo

    if as_json:
        zoo.print_json(name)
    elif markdown:
        zoo.print_markdown()
    elif name:
        zoo.print_model(name)
    else:
        zoo.print_list()


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of the published code, .pth.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Folder to write to; models/imported/<name> if none."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="It is of this published configuration; `yolact models` names them."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=64, metavar="N", help="Side of the network's input, pixels.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Class names, one in each line; by default those of COCO or PASCAL VOC."),
    ] = None,
) -> None:
    """Turn a published checkpoint into model.safetensors and model.json; finds out which network it is of."""
    from yolact_cli import import_weights as command

    command.run(file, output, model=model, image_size=image_size, classes=classes)


@app.command()
def export(
    model_dir: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="Folder with model.safetensors and model.json.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.onnx", help="File to write; model.onnx in MODEL_DIR if none."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images in each batch; any number if none.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32; or fp16, half the size, for GPUs.")] = "fp32",
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="ONNX operator set; the lowest that will do if none.")
    ] = None,
) -> None:
    """Write a model as an ONNX file, for onnxruntime, OpenVINO or TensorRT, and check it."""
    from yolact_cli import export as command

    command.run(model_dir, output, batch=batch, precision=precision, opset=opset)


@app.command()
def parity(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Fixtures: what the published YOLACT computed, as .npz and JSON files."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove that this network computes what the published one does; exits with 1 where it does not."""
    from yolact_cli import parity as checks

    raise typer.Exit(checks.show(directory, as_json=as_json))


@app.command()
def anchors(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A folder that preprocess wrote, or a COCO instances file.")
    ],
    params: Annotated[Path, typer.Option(help="Settings file; its section model has the anchors.")] = Path(
        "params.yaml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how well the anchors cover a data set's boxes, and suggest better ones."""
    from yolact_cli import anchors as command

    command.run(data, params, as_json=as_json)


ModelName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Registered model; register.model_name of params.yaml if none.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def lineage(
    spec: Annotated[
        str, typer.Argument(metavar="VERSION", help="models:/NAME@ALIAS or models:/NAME/NUMBER, or without models:/.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a registered version was made from, and the commands that rebuild it."""
    from yolact_cli import lineage as command

    command.show(spec, as_json=as_json)


@app.command()
def promote(
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Version to promote; the candidate if none.")
    ] = None,
    name: ModelName = None,
    force: Annotated[bool, typer.Option("--force", help="Promote although the gate refuses; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Kept with the decision.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare and judge, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a version with the champion on the same images; promote it, or exit with 3 if the gate refuses."""
    from components.promote.promotion import Request
    from yolact_cli import promotion

    request = Request(version=version, name=name, force=force, reason=reason, dry_run=dry_run)
    raise typer.Exit(promotion.promote(request, as_json=as_json))


@app.command()
def rollback(
    to: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="An earlier champion; the previous one if none.")
    ] = None,
    name: ModelName = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Kept with the decision.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion champion again; again, the one before that."""
    from yolact_cli import promotion

    promotion.rollback(name, to, reason, as_json=as_json)


@app.command()
def history(name: ModelName = None, as_json: AsJson = False) -> None:
    """Show who promoted which version when and why, and every rollback."""
    from yolact_cli import promotion

    promotion.history(name, as_json=as_json)


@app.command()
def mlflow(port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the local pages.")] = 5000) -> None:
    """Open MLflow's pages, at the last run if there is one."""
    from yolact_cli import mlflow_ui

    raise typer.Exit(mlflow_ui.serve(port))


@app.command()
def sync(
    model_dir: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="Folder of run.json; the journals are below it.")
    ] = Path("models"),
) -> None:
    """Send MLflow what runs could not send while its server was away; exits with 1 where something is left."""
    from yolact_cli import sync as command

    raise typer.Exit(command.run(model_dir))


@app.command()
def runs(
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of this experiment, or of all: '*'. That of params.yaml if none is named.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most runs, the newest.")] = 20,
    filter_string: Annotated[
        str, typer.Option("--filter", metavar="FILTER", help='MLflow\'s filter: "metrics.`eval/mask_AP` > 0.3".')
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs with their key metrics, settings, data, code and registered versions."""
    from yolact_cli import runs as command

    command.run(experiment, limit, filter_string, as_json=as_json)


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A run's id (its beginning will do) or name, models:/NAME@ALIAS, models:/NAME/VERSION, or a "
            "folder: `.` is the working folder.",
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one; differences are B - A.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder that preprocess wrote, for the images.")] = Path(
        "data/processed"
    ),
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for index.html and comparison.json.")
    ] = Path("reports/compare"),
    samples: Annotated[int, typer.Option(min=100, metavar="N", help="Draws of the bootstrap.")] = 1000,
    images: Annotated[int, typer.Option(min=0, metavar="N", help="Most images on the page.")] = 12,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Detections below it are not drawn or counted in images.")
    ] = 0.3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two runs: settings, metrics with confidence intervals, classes, images in which they disagree."""
    from yolact_cli import compare as command

    command.run(command.Options(a, b, data, output, samples, images, min_score, as_json))


@app.command()
def summary() -> None:
    """Show the last run's results in a short table, and what to try next."""
    from yolact_cli import summary as results

    results.print_summary()


@app.command()
def bench(
    model_dir: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL_DIR", help="Folder with model.safetensors and model.json; with --loader, of the data."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Without MODEL_DIR: a published configuration with random weights (yolact_resnet50)."),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A image, a drawn one if none; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16; several with commas. fp32 if none.", show_default=False)
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Measure each precision compiled as well.")] = False,
    detection: Annotated[
        str | None,
        typer.Option(
            help="default, published, or published-no-tail (published, but for its detections below the score "
            "threshold), which is the one that --against takes."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images that pass at once; 1, with --train 2.", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of each contestant that count; 20, with --train 5.", show_default=False),
    ] = None,
    objects: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Detections that random weights shall lead to, 20; with --train objects in each image, 8.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on the CPU; PyTorch's choice if none.")] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.py",
            help="Another implementation, see docs/benchmarks.md; may be repeated. The first is the reference.",
        ),
    ] = None,
    memory: Annotated[
        bool | None,
        typer.Option("--memory/--no-memory", help="Measure peak memory too; yes if not said.", show_default=False),
    ] = None,
    evaluation_work: Annotated[
        bool, typer.Option("--evaluation-work", help="Instead: masks and RLE of 100 detections, without a network.")
    ] = False,
    loader: Annotated[
        bool, typer.Option("--loader", help="Instead: the training data loader, by stage, on one core.")
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Instead: training steps; each --precision, and each --against.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure speed and memory, stage by stage."""
    from yolact_cli import bench as command

    command.run(
        command.Options(
            model_dir=model_dir,
            model=model,
            images=image or [],
            device=device,
            precision=precision,
            compile=compile,
            detection=detection,
            batch=batch,
            rounds=rounds,
            objects=objects,
            threads=threads,
            against=against or [],
            memory=memory,
            evaluation_work=evaluation_work,
            loader=loader,
            train=train,
            as_json=as_json,
        )
    )


if __name__ == "__main__":
    app()
