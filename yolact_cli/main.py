"""The command ``yolact``: options and help; each command imports what it needs only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_cli.bench import bench_app
from yolact_ops.commands.container import limit_threads
from yolact_ops.commands.errors import ErrorGroup
from yolact_ops.commands.options import AsJson
from yolact_ops.commands.project import CALLER, ProjectTyper

app = ProjectTyper(
    cls=ErrorGroup,
    help="Instance segmentation with YOLACT: settings, models, runs and results of the pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
preset_app = ProjectTyper(
    help="Choose the settings. A preset is a named set of changes to conf/base.yaml; the published configurations are "
    "presets too."
)
app.add_typer(preset_app, name="preset", no_args_is_help=True)
app.add_typer(bench_app, name="bench", no_args_is_help=True)


@app.callback()
def prepare() -> None:
    """Called before each command, which imports PyTorch only afterwards."""
    limit_threads()


PresetName = Annotated[
    str, typer.Argument(metavar="NAME", help="A preset, or several: FIRST+SECOND. `yolact preset list` lists them.")
]


@preset_app.command("list")
def preset_list() -> None:
    """List the presets."""
    from yolact_cli import presets

    presets.print_list()


@preset_app.command("show")
def preset_show(
    name: PresetName,
    whole: Annotated[bool, typer.Option("--yaml", help="Print the whole params.yaml that it makes.")] = False,
) -> None:
    """Show what a preset changes in conf/base.yaml."""
    from yolact_cli import presets

    presets.print_preset(name, whole=whole)


@preset_app.command("use")
def preset_use(
    name: PresetName,
    overrides: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", metavar="KEY=VALUE", help="Set a key, as in `dvc exp run -S`; repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Use the network of a published configuration; `yolact models` lists them."),
    ] = None,
) -> None:
    """Write a preset to params.yaml and show what changed."""
    from yolact_cli import presets

    presets.use(name, overrides or [], model)


def _path_or_address(text: str) -> str | Path:
    """A path, which `ProjectCommand` sees from the project's folder; an address stays as it is."""
    return text if "://" in text or text.startswith(("dvc:", "models:/")) else Path(text)


OWN_IMAGES = "lite0-320+modern"
"""Preset of `yolact train`."""


@app.command()
def data(
    context: typer.Context,
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", parser=_path_or_address, help="Folder with images and annotations; unpack archives first."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "-S", "--set-param", metavar="KEY=VALUE", help="Try a setting, such as data.crowds=objects; repeatable."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Read about this many images at most.")] = 500,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Page to write, with four images drawn.", show_default="no page"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a folder of annotated images holds and how to train on it; exit with 1 if it cannot be used."""
    from yolact_cli import data as command

    caller = context.meta[CALLER]
    command.run(command.Options(str(folder), overrides or [], images, report, as_json, OWN_IMAGES, caller))


@app.command()
def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            parser=_path_or_address,
            help="Folder or archive with images and annotations, or another value of data.source.",
        ),
    ],
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="Preset to train with; `yolact preset list` lists them.")
    ] = OWN_IMAGES,
    overrides: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", metavar="KEY=VALUE", help="Set a key, as in `dvc exp run -S`; repeatable."),
    ] = None,
) -> None:
    """Train, evaluate and register a model of your images: writes params.yaml and runs `dvc repro`."""
    from yolact_cli import train as command

    raise typer.Exit(command.run(str(source), preset, overrides or []))


def _source(text: str) -> str | Path:
    """What to predict: a path or a glob, which `ProjectCommand` sees from the project's folder, or something else."""
    return text if text == "-" or text.startswith(("s3://", "camera:")) else Path(text)


def _model(text: str) -> str | Path:
    """A model's path, which `ProjectCommand` sees from the project's folder, or its address."""
    return text if text.startswith(("s3://", "models:")) else Path(text)


DETECTION, RUNNING = "Detection", "Running"
"""Headings of options in the help of `predict`."""
OWN = "the model's own"


@app.command()
def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            parser=_source,
            help="Images, videos, folders, 'globs', text files of paths, camera:N, s3://BUCKET/PREFIX, or - for an "
            "image from standard input.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder to write; earlier predictions in it are replaced."),
    ] = Path("predictions"),
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            parser=_model,
            help="Folder of a model, an exported .onnx or .xml file, or a registered version: models:/yolact@champion.",
        ),
    ] = "models",
    save: Annotated[
        str,
        typer.Option(
            metavar="FORMATS",
            help="What to write, separated by commas: pictures (videos for videos), coco (COCO results), instances "
            "(COCO instances, which CVAT and Label Studio import), polygons (JSON), cutouts, voc, yolo.",
        ),
    ] = "pictures,coco",
    score_threshold: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="S", help="Least score of a detection; 0.05 to measure AP.", rich_help_panel=DETECTION
        ),
    ] = 0.3,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Keep these classes, separated by commas.",
            show_default="all",
            rich_help_panel=DETECTION,
        ),
    ] = None,
    nms: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="fast, cross_class or traditional.", show_default=OWN, rich_help_panel=DETECTION
        ),
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="IOU",
            help="Overlap at which the lower score is suppressed.",
            show_default=OWN,
            rich_help_panel=DETECTION,
        ),
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Most detections of an image.",
            show_default=OWN,
            rich_help_panel=DETECTION,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RUNNING)
    ] = "auto",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="fp32, bf16 or, on GPUs, fp16.", rich_help_panel=RUNNING)
    ] = "fp32",
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images per forward pass.", rich_help_panel=RUNNING)
    ] = 8,
) -> None:
    """Detect objects in images and videos; exit with 4 if some could not be read."""
    from yolact_cli import predict as command

    detection = {"score_threshold": score_threshold, "nms": nms, "nms_iou": nms_iou, "max_detections": max_detections}
    command.run(
        command.Options(
            [str(source) for source in sources],
            output,
            str(model),
            save,
            classes,
            device,
            precision,
            batch_size,
            {name: value for name, value in detection.items() if value is not None},
        )
    )


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one in detail.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in docs/models.md.")] = False,
    backbones: Annotated[bool, typer.Option("--backbones", help="List the backbones instead.")] = False,
) -> None:
    """List the published configurations: size, cost, published accuracy and speed."""
    if markdown and (name or as_json):
        raise typer.BadParameter("--markdown prints the table of all models; leave out NAME and --json")
    if backbones and (name or as_json):
        raise typer.BadParameter("--backbones prints the table of all backbones; leave out NAME and --json")
    from yolact_cli import models as zoo

    if backbones:
        zoo.print_backbones(markdown)
    elif as_json:
        zoo.print_json(name)
    elif markdown:
        zoo.print_markdown()
    elif name:
        zoo.print_model(name)
    else:
        zoo.print_list()


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of the published code, .pth.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="Folder to write to.", show_default="models/imported/<name of FILE>"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Published configuration, if it cannot be inferred; `yolact models` lists them.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=64, metavar="N", help="Input size in pixels, if it cannot be inferred."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of class names, one per line.", show_default="those of COCO or PASCAL VOC"
        ),
    ] = None,
) -> None:
    """Convert a published checkpoint to model.safetensors and model.json; the network is inferred from it."""
    from yolact_cli import import_weights as command

    command.run(file, output, model=model, image_size=image_size, classes=classes)


@app.command()
def export(
    model_dir: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="Folder with model.safetensors and model.json.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="File to write: .onnx for onnxruntime or TensorRT, .xml for OpenVINO.",
            show_default="model.onnx in MODEL_DIR",
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N", help="Fixed batch size, or any.", show_default="any; 1 with --tensorrt")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32; fp16, half the size; or int8, a quarter, calibrated with images.")
    ] = "fp32",
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="ONNX opset.", show_default="the lowest that works")
    ] = None,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="For TensorRT: int8 in its form, and a fixed batch size by default.")
    ] = False,
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder that preprocess wrote: its validation images check and calibrate."),
    ] = Path("data/processed"),
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of images to check and calibrate with instead.", show_default=False),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="Also measure AP of the file and of the model on the data, with the default detection settings.",
        ),
    ] = False,
) -> None:
    """Export a model for onnxruntime, OpenVINO or TensorRT, and check the file with images."""
    from yolact_cli import export as command

    command.run(
        model_dir,
        output,
        command.Options(
            batch=batch,
            precision=precision,
            opset=opset,
            tensorrt=tensorrt,
            data=data,
            images=images,
            evaluate=evaluate,
        ),
    )


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            parser=_path_or_address,
            help="models:/NAME@ALIAS (followed), models:/NAME/VERSION, a model's folder, or an .onnx or .xml file.",
            show_default="models:/yolact@champion",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; 0.0.0.0 for all.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 for a free one.", show_default="8080")] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's name for KServe.", show_default="the registered name"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="auto")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.", show_default="fp32")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Largest number of images per pass of the network.", show_default="8")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with a token that requests must bear.", show_default="no token"),
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            parser=_path_or_address,
            help="A second model to compare with on the page.",
            show_default="none",
        ),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Store images whose detections users call wrong.", show_default="off"),
    ] = None,
) -> None:
    """Serve a model over HTTP. Every option is also a variable, as YOLACT_SERVE_PORT: docs/serving.md has all."""
    from yolact_cli import serve as command

    command.run(
        None if model is None else str(model),
        host=host,
        port=port,
        name=name,
        device=device,
        precision=precision,
        batch_size=batch_size,
        token_file=token_file,
        candidate=None if candidate is None else str(candidate),
        feedback=feedback,
    )


@app.command()
def parity(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Fixtures: results of the published YOLACT as .npz and JSON files."),
    ],
    as_json: AsJson = False,
) -> None:
    """Check that this network computes what the published one does; exit with 1 if it does not."""
    from yolact_cli import parity as checks

    raise typer.Exit(checks.show(directory, as_json=as_json))


@app.command()
def anchors(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder that preprocess wrote, or a COCO instances file.")
    ],
    params: Annotated[Path, typer.Option(help="Settings file with the anchors, in section model.")] = Path(
        "params.yaml"
    ),
    as_json: AsJson = False,
) -> None:
    """Measure how well the anchors fit the boxes of a data set, and suggest better ones."""
    from yolact_cli import anchors as command

    command.run(data, params, as_json=as_json)


REGISTRY = "Model registry"
"""Heading of its commands in the help."""

ModelName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Registered model.", show_default="register.model_name in params.yaml"),
]


@app.command(rich_help_panel=REGISTRY)
def lineage(
    spec: Annotated[
        str,
        typer.Argument(metavar="VERSION", help="models:/NAME@ALIAS or models:/NAME/VERSION; models:/ is optional."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show the data, code and settings that a registered version was made from, and how to rebuild it."""
    from yolact_cli import lineage as command

    command.show(spec, as_json=as_json)


@app.command(rich_help_panel=REGISTRY)
def promote(
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Version to promote.", show_default="the candidate")
    ] = None,
    name: ModelName = None,
    force: Annotated[bool, typer.Option("--force", help="Promote even if the gate refuses; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Reason, recorded with the decision.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare and decide, but change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a version with the champion on the same images and promote it.

    Exit codes: 3 if the gate refuses, 4 if promote.service does not take it up.
    """
    from components.promote.promotion import Request
    from yolact_cli import promotion

    request = Request(version=version, name=name, force=force, reason=reason, dry_run=dry_run)
    raise typer.Exit(promotion.promote(request, as_json=as_json))


@app.command(rich_help_panel=REGISTRY)
def rollback(
    to: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Version of an earlier champion.", show_default="the previous one"),
    ] = None,
    name: ModelName = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Reason, recorded with the decision.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again; repeat to go further back."""
    from yolact_cli import promotion

    promotion.rollback(name, to, reason, as_json=as_json)


@app.command(rich_help_panel=REGISTRY)
def history(name: ModelName = None, as_json: AsJson = False) -> None:
    """Show every promotion and rollback: version, time, user and reason."""
    from yolact_cli import promotion

    promotion.history(name, as_json=as_json)


@app.command(rich_help_panel=REGISTRY)
def publish(name: ModelName = None) -> None:
    """Copy all versions to Kubeflow's Model Registry, as register, promote and rollback do by themselves."""
    from yolact_cli import promotion

    promotion.publish(name)


@app.command()
def mlflow(port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow's local server.")] = 5000) -> None:
    """Start MLflow's web interface and print the address of the last run."""
    from yolact_cli import mlflow_ui

    raise typer.Exit(mlflow_ui.serve(port))


@app.command()
def sync(
    model_dir: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="Model folder, with run.json and the journals of its runs.")
    ] = Path("models"),
) -> None:
    """Send MLflow what runs could not log while its server was unavailable; exit with 1 if something is left."""
    from yolact_cli import sync as command

    raise typer.Exit(command.run(model_dir))


@app.command()
def runs(
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Experiment to list, or '*' for all.",
            show_default="register.experiment in params.yaml",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of runs, newest first.")] = 20,
    filter_string: Annotated[
        str, typer.Option("--filter", metavar="FILTER", help='MLflow filter, such as "metrics.`eval/mask_AP` > 0.3".')
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List runs with their key metrics, settings, data, code and registered versions."""
    from yolact_cli import runs as command

    command.run(experiment, limit, filter_string, as_json=as_json)


def _folder_or_name(text: str) -> str | Path:
    """A side of a comparison: another folder than the project's as a path, see `ProjectCommand`."""
    return Path(text) if text != "." and Path(text).is_dir() else text


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            parser=_folder_or_name,
            help="A run's id (or its beginning) or name, models:/NAME@ALIAS, models:/NAME/VERSION, or a project folder "
            "(`.` for this one).",
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B", parser=_folder_or_name, help="The other side, named like A; differences are B - A."
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder that preprocess wrote; its images are shown.")
    ] = Path("data/processed"),
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for index.html and comparison.json.")
    ] = Path("reports/compare"),
    samples: Annotated[int, typer.Option(min=100, metavar="N", help="Bootstrap samples.")] = 1000,
    images: Annotated[int, typer.Option(min=0, metavar="N", help="Maximum number of images on the page.")] = 12,
    min_score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Minimum score of the detections drawn and counted on images."),
    ] = 0.3,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: settings, metrics with confidence intervals, classes, and images where they disagree."""
    from yolact_cli import compare as command

    command.run(command.Options(str(a), str(b), data, output, samples, images, min_score, as_json))


@app.command()
def summary() -> None:
    """Show the last run's results and what to try next."""
    from yolact_cli import summary as results

    results.print_summary()


if __name__ == "__main__":
    app()
