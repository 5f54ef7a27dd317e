"""`yolact bench`: one command per measurement; what they need is imported only when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact.errors import SettingsError
from yolact_ops.commands.options import AsJson

bench_app = typer.Typer(help="Measure speed and memory, stage by stage.", no_args_is_help=True)

DEFAULT_MODEL = "yolact_resnet50"
NETWORK_OBJECTS = 20
"""Detections per image of random weights."""

ModelDir = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL_DIR",
        help="Trained model: a folder with model.safetensors and model.json. Without it, --model with random weights.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Published configuration or preset; `yolact models` and `yolact preset` list them.",
        show_default=DEFAULT_MODEL,
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="Image file; repeatable.", show_default="one generated image"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precisions = Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16; several separated by commas.")]
Detection = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Detection settings: default, published, or published-no-tail (published without the detections below the "
        "score threshold).",
        show_default="default; with --against published-no-tail",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Images per batch.")]
RoundCount = Annotated[int, typer.Option("--rounds", min=1, help="Timed runs of each backend, after the warm-up.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="PyTorch's threads on the CPU.",
        show_default="PyTorch's choice",
    ),
]
Against = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.py",
        help="Another implementation to compare with (see docs/benchmarks.md); repeatable. The first one is "
        "the reference.",
    ),
]
Memory = Annotated[bool, typer.Option("--memory/--no-memory", help="Also measure peak memory.")]


@bench_app.command()
def inference(
    model_dir: ModelDir = None,
    model: Model = None,
    image: Images = None,
    device: Device = "auto",
    precision: Precisions = "fp32",
    compile: Annotated[bool, typer.Option("--compile", help="Also measure each precision with torch.compile.")] = False,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Also measure the network exported for onnxruntime or openvino (fp32), onnxruntime-fp16, "
            "onnxruntime-int8, openvino-fp16 or openvino-int8, on the CPU; several separated by commas, or all that "
            "are installed. TensorRT needs a GPU and is not among them: trtexec measures its engines.",
            show_default=False,
        ),
    ] = "",
    detection: Detection = None,
    batch: Batch = 1,
    rounds: RoundCount = 20,
    objects: Annotated[
        int, typer.Option(min=1, help="Target number of detections for random weights.")
    ] = NETWORK_OBJECTS,
    threads: Threads = None,
    against: Against = None,
    memory: Memory = True,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="CPU time of all threads, not elapsed time: with one, on a busy machine."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure inference, from images in memory to full-size masks."""
    _refuse_two_models(model_dir, model)
    from yolact_bench.speed.images import read_images
    from yolact_bench.speed.inference import measure
    from yolact_cli.bench_options import (
        backend_specs,
        build_network,
        find_detection,
        prepare,
        progress,
        runtime_specs,
    )
    from yolact_cli.bench_tables import print_inference

    chosen_device = prepare(device, threads)
    runtimes, left_out = runtime_specs(runtime, chosen_device)
    specs = backend_specs(precision, against or [], compile=compile, runtimes=runtimes)
    config = find_detection(detection or ("published-no-tail" if against else "default"))
    images = read_images(image or [])
    with progress() as show:
        show("building the network")
        network, classes, weights = build_network(model_dir, model or DEFAULT_MODEL, images[0], objects)
        result = measure(
            network,
            classes,
            images,
            specs,
            config,
            weights=weights,
            device=chosen_device,
            batch=batch,
            rounds=rounds,
            memory=memory,
            cpu_time=cpu_time,
            progress=show,
            leave_out=left_out.append if runtime == "all" else None,
        )
    for line in left_out:
        typer.echo(line, err=True)
    print_inference(result, as_json=as_json)


@bench_app.command()
def train(
    model_dir: ModelDir = None,
    model: Model = None,
    image: Images = None,
    device: Device = "auto",
    precision: Precisions = "fp32",
    batch: Batch = 2,
    rounds: RoundCount = 5,
    objects: Annotated[int, typer.Option(min=1, help="Synthetic objects per image.")] = 8,
    threads: Threads = None,
    against: Against = None,
    memory: Memory = True,
    as_json: AsJson = False,
) -> None:
    """Measure a training step: forward pass, loss, backward pass, optimizer."""
    _refuse_two_models(model_dir, model)
    from yolact_bench.parity.losses import PUBLISHED_LOSS
    from yolact_bench.speed.images import read_images
    from yolact_bench.speed.training import measure
    from yolact_cli.bench_options import backend_specs, build_network, prepare, progress
    from yolact_cli.bench_tables import print_training

    chosen_device = prepare(device, threads)
    specs = backend_specs(precision, against or [])
    images = read_images(image or [])
    with progress() as show:
        show("building the network")
        network, _, weights = build_network(model_dir, model or DEFAULT_MODEL, images[0], NETWORK_OBJECTS)
        result = measure(
            network,
            images,
            specs,
            PUBLISHED_LOSS,
            weights=weights,
            device=chosen_device,
            batch=batch,
            objects=objects,
            rounds=rounds,
            memory=memory,
            progress=show,
        )
    print_training(result, as_json=as_json)


@bench_app.command()
def loader(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Folder that preprocess wrote.", show_default="generated images"),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Published configuration or preset whose input size to use.")
    ] = DEFAULT_MODEL,
    rounds: RoundCount = 20,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.py",
            help="Another augmentation to compare with (see docs/benchmarks.md); repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the training data loader on one core: decoding, colours, geometry, masks."""
    from yolact_bench.speed.loading import measure
    from yolact_cli.bench_options import find_network, progress
    from yolact_cli.bench_tables import print_loading

    size = find_network(model)[0].image_size
    with progress() as show:
        result = measure(data, image_size=size, rounds=rounds, against=against or [], progress=show)
    print_loading(result, as_json=as_json)


@bench_app.command()
def evaluation(
    device: Device = "auto",
    detection: Annotated[
        str, typer.Option(metavar="NAME", help="Detection settings: default, published or published-no-tail.")
    ] = "default",
    rounds: RoundCount = 20,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure masks and RLE of 100 detections, without a network."""
    from yolact_bench.speed.evaluation import measure
    from yolact_cli.bench_options import find_detection, prepare, progress
    from yolact_cli.bench_tables import print_evaluation

    chosen_device = prepare(device, threads)
    config = find_detection(detection)
    with progress() as show:
        result = measure(device=chosen_device, rounds=rounds, detection=config, progress=show)
    print_evaluation(result, as_json=as_json)


def _refuse_two_models(model_dir: Path | None, model: str | None) -> None:
    if model_dir is not None and model is not None:
        raise SettingsError("MODEL_DIR and --model: name a trained model or a published configuration, not both")
