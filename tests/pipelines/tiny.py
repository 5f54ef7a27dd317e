"""A small pipeline to send to the fake server: settings, a loop, settings for Kubernetes."""

from pathlib import Path

from kfp import compiler, dsl, kubernetes


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def train(params: str, epochs: int) -> str:
    return f"{params}{epochs}"


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def predict(model: str, shard: int) -> None:
    print(model, shard)


@dsl.pipeline(name="tiny")
def tiny(params: str, epochs: int = 1, rate: float = 0.5, fast: bool = False, shards: list = [0, 1]) -> None:  # noqa: B006
    trained = train(params=params, epochs=epochs)
    trained.set_caching_options(False)
    kubernetes.use_secret_as_env(trained, "s3-keys", {"key": "AWS_ACCESS_KEY_ID"})
    with dsl.ParallelFor(shards) as shard:
        predict(model=trained.output, shard=shard)


@dsl.pipeline(name="plain")
def plain(epochs: int) -> None:
    train(params="", epochs=epochs)


def compile_to(folder: Path) -> dict[str, Path]:
    """Compile both; files by the pipeline's name."""
    files = {}
    for pipeline in (tiny, plain):
        files[pipeline.name] = folder / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(files[pipeline.name]))
    return files
