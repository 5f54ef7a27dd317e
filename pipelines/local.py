"""Run a pipeline on this machine with kfp's own local runners: tasks as processes, or in containers.

kfp orders the tasks, passes artifacts, retries and caches. This module adds what kfp 2.17 lacks: it makes the output
readable (a file has all of it), reports the run's folder at the end, and removes a container only after reading its
exit code (`_run_container`).
"""

from __future__ import annotations

import builtins
import io
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout
from kfp import local
from kfp.local import docker_task_handler
from kfp.local.config import LocalExecutionConfig
from kfp.local.orchestrator import task_spec_utils

from pipelines.compiler import PIPELINES
from pipelines.config import ClusterConfig, RetryConfig
from yolact.errors import SettingsError, YolactError
from yolact_ops.lineage.code import installed_versions
from yolact_ops.sources.access import PASSWORD_VARIABLE, USER_VARIABLE

PAUSES = RetryConfig(pause=1, factor=2)
"""Pauses between attempts of a failed local task: short, as no cluster has to recover."""

PASSED_ON = re.compile(rf"(AWS|MLFLOW|YOLACT)_.*|{USER_VARIABLE}|{PASSWORD_VARIABLE}|OMP_NUM_THREADS")
"""Names of environment variables to pass to containers."""

LOCK = "lock"
"""File in the folder of results that is locked during a run."""

SHARED_MEMORY = "2g"
"""Size of a container's /dev/shm, for loader processes."""

_COLOUR = re.compile(r"\x1b\[\d+m")
_KFP_LINE = re.compile(r"^\d\d:\d\d:\d\d\.\d+ - (?P<level>[A-Z]+) - (?P<text>.*)$")
_INDENT = re.compile(r"^(    )+|^ +$")
"""kfp indents a task's lines, and twice if two tasks write at once."""
_JSON_LINE = re.compile(r"\s*(\"|[\[\]{}],?$)")
"""A line of the JSON inputs that kfp prints before a task starts."""
_EXECUTING = re.compile(r"^Executing task '(?P<task>[^']+)'$")
_FAILED = re.compile(r"^\S+ failed: ")


class LocalRunError(YolactError):
    """A pipeline run has failed; names the task, with its message."""


@dataclass(frozen=True)
class Containers:
    """How tasks run in containers."""

    image: str
    mounts: tuple[Path, ...] = ()
    """Folders mounted read-only into containers at the same path."""
    gpus: bool = False


@dataclass(frozen=True)
class LocalRun:
    """Results of a pipeline run."""

    folder: Path
    """One folder for each task, with its artifacts."""
    log: Path


def run_pipeline(
    name: str,
    arguments: Mapping[str, Any],
    cluster: ClusterConfig,
    output: Path,
    *,
    containers: Containers | None = None,
    cache: bool = True,
) -> LocalRun:
    """Run a pipeline and keep everything that its tasks wrote.

    Args:
        name: key of `PIPELINES`.
        arguments: the pipeline's arguments; ``checkpoints`` is set to a folder of ``output`` if the pipeline has it.
        cluster: its retries and caching apply; its resources and secrets are ignored.
        output: gets a folder for the run, next to ``checkpoints`` and ``cache``.
        containers: how to run tasks in containers; None runs them as processes.
        cache: reuse the outputs of tasks with ``cache`` from an earlier run if nothing changed.

    Raises:
        LocalRunError: a task has failed, after its retries.
        SettingsError: containers cannot be run; or another run uses ``output``.
    """
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCK, timeout=0):
            return _run(name, arguments, cluster, output, containers, cache=cache)
    except Timeout:
        raise SettingsError(
            f"{output}: another run is in progress there. Wait for it to end, or write the results of this one "
            "to another folder: -o DIR"
        ) from None


def _run(
    name: str,
    arguments: Mapping[str, Any],
    cluster: ClusterConfig,
    output: Path,
    containers: Containers | None,
    *,
    cache: bool,
) -> LocalRun:
    here: dict[str, Any] = {"retry": PAUSES} | ({} if containers is None else {"image": containers.image})
    pipeline = PIPELINES[name](cluster.model_copy(update=here), installed_versions())
    inputs = pipeline.pipeline_spec.root.input_definitions.parameters
    volume = output / "checkpoints"
    volume.mkdir(exist_ok=True)
    given = dict(arguments) | ({"checkpoints": str(volume)} if "checkpoints" in inputs else {})
    runner = local.SubprocessRunner(use_venv=False) if containers is None else _container_runner(containers)
    before = set(output.iterdir()), set(volume.iterdir())
    log = output / f"{pipeline.name}.log"
    with log.open("w", encoding="utf-8") as file, warnings.catch_warnings(), _own_containers(), _own_iterations():
        warnings.simplefilter("ignore")  # about settings that local runs ignore
        progress = Progress(sys.stdout, file)
        local.init(
            runner,
            pipeline_root=str(output),
            raise_on_error=True,
            enable_caching=cache,
            cache_root=str(output / "cache"),
        )
        try:
            with redirect_stdout(progress), _log_to(progress):
                pipeline(**given)
        except RuntimeError as error:
            raise LocalRunError(_explain(error, progress, log, volume, before[1])) from None
        finally:
            LocalExecutionConfig.instance = None
    for folder in set(volume.iterdir()) - before[1]:
        shutil.rmtree(folder)
    [folder] = (path for path in set(output.iterdir()) - before[0] if path.name.startswith(f"{pipeline.name}-"))
    return LocalRun(folder, Path(shutil.move(log, folder / "pipeline.log")))


def _explain(error: RuntimeError, progress: Progress, log: Path, volume: Path, before: set[Path]) -> str:
    message = "\n".join(progress.failure).strip() or _COLOUR.sub("", str(error))
    text = f"{message}\nThe full output of the tasks is in {log}."
    unfinished = [path.name for path in volume.iterdir() if path not in before and any(path.iterdir())]
    if unfinished:
        text += f" To resume its training: --resume-pipeline-run {unfinished[0]}"
    return text


class Progress(io.TextIOBase):
    """kfp's output: written in full to a file, and shown in a short, readable form.

    Shows the names of the tasks as they start, and their own lines. ``failure`` is the last message with which a task
    ended.
    """

    def __init__(self, shown: TextIO, file: TextIO) -> None:
        self.failure: list[str] = []
        self._shown = shown
        self._file = file
        self._line = ""
        self._in_failure = False
        self._skipping = False

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            line = _COLOUR.sub("", line)
            self._file.write(f"{line}\n")
            self._file.flush()
            self._show(line)
        return len(text)

    def flush(self) -> None:
        self._shown.flush()

    def _show(self, line: str) -> None:
        if found := _KFP_LINE.match(line):
            self._skipping = True  # until a task writes something: kfp lists values of outputs
            self._in_failure = False
            if executing := _EXECUTING.match(found["text"]):
                self._tell(f"--- {executing['task']}")
            elif found["level"] != "INFO" or "Retrying" in found["text"] or "cache hit" in found["text"]:
                self._tell(f"    {found['text']}")
            elif found["text"].startswith("Streamed logs"):
                self._skipping = False
            return
        own = _INDENT.sub("", line)
        if self._skipping or own.startswith("[KFP Executor") or _JSON_LINE.match(own):
            return
        if _FAILED.match(own):
            self._in_failure, self.failure = True, []
        if self._in_failure:
            self.failure.append(own)
        if own and "Wrote executor output file" not in own:
            self._tell(f"    {own}")

    def _tell(self, line: str) -> None:
        """Show a line, with paths relative to the working folder; not with `print`, which kfp indents."""
        self._shown.write(f"{line.replace(f'{Path.cwd()}/', '')}\n")
        self._shown.flush()


def _container_runner(containers: Containers) -> local.DockerRunner:
    import docker
    from docker.errors import DockerException, ImageNotFound

    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        raise SettingsError(
            "MLFLOW_TRACKING_URI: must name an MLflow server that containers can reach; a file in a container is lost. "
            "`make mlflow` starts one at http://127.0.0.1:5000"
        )
    try:
        client = docker.from_env()
        client.images.get(containers.image)
    except ImageNotFound:
        message = f"there is no image {containers.image!r}; build it with `make image`, or name another"
        raise SettingsError(message) from None
    except DockerException as error:
        raise SettingsError(f"Docker cannot be reached ({error}). Start it, or set DOCKER_HOST.") from None
    arguments: dict[str, Any] = {
        "network_mode": "host",
        "environment": _passed_on() | {"HOME": "/tmp"},  # noqa: S108 - the container's own
        "user": f"{os.getuid()}:{os.getgid()}",
        "shm_size": SHARED_MEMORY,
        "mounts": [
            docker.types.Mount(str(path.resolve()), str(path.resolve()), type="bind", read_only=True)
            for path in containers.mounts
        ],
    }
    if containers.gpus:
        arguments["device_requests"] = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return local.DockerRunner(**arguments)


def _passed_on() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


@contextmanager
def _log_to(progress: Progress) -> Iterator[None]:
    """Write what kfp logs between tasks (attempts, cached results) in the format of its task logs.

    kfp replaces log handlers and `print` around each task and restores what it found; two simultaneous tasks restore
    each other's. This context restores the originals at the end.
    """
    handler = logging.StreamHandler(progress)
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d - %(levelname)s - %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    before = root.handlers[:], root.level, builtins.print
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:], level, builtins.print = before
        root.setLevel(level)


@contextmanager
def _own_containers() -> Iterator[None]:
    """Make kfp's handler run containers with `_run_container`."""
    theirs = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = _run_container
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = theirs


@contextmanager
def _own_iterations() -> Iterator[None]:
    """Make kfp's loops leave alone what is not their item: kfp 2.17 replaces every parameter that comes from a task
    before the loop by the loop's item."""
    theirs = task_spec_utils.create_parameter_loop_iteration_task_spec

    def iteration(original: Any, item: Any, name: str) -> Any:
        found = theirs(original, item, name)
        for key, given in original.inputs.parameters.items():
            if given.HasField("task_output_parameter"):
                found.inputs.parameters[key].CopyFrom(given)
        return found

    task_spec_utils.create_parameter_loop_iteration_task_spec = iteration
    try:
        yield
    finally:
        task_spec_utils.create_parameter_loop_iteration_task_spec = theirs


def _run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any) -> int:
    """Run a container, print its output, and return its exit code.

    kfp 2.17 lets Docker remove a container when it exits, and treats one that is gone before its exit code was read as
    a success, so a killed task would count as done.
    """
    container = client.containers.run(image, command, detach=True, volumes=volumes, **arguments)
    try:
        rest = b""
        for block in container.logs(stream=True, follow=True):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                print(line.decode(errors="replace"))
        if rest:
            print(rest.decode(errors="replace"))
        return int(container.wait()["StatusCode"])
    finally:
        from docker.errors import APIError

        with suppress(APIError):
            container.remove(force=True)
