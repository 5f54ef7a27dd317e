"""The pipeline in containers: the same metrics as without, also after a kill; and the served model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.conftest import Docker
from tests.containers.test_image import LOCKED
from tests.servers.mlflow_servers import BUCKET, MlflowServer, S3Server
from tests.servers.servers import free_port, s3_server
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig

SAMPLE = SampleConfig(seed=0, train_images=12, val_images=6, min_size=96, max_size=128, max_objects=3)
SETTINGS = ("-S", "train.epochs=4", "-S", "runtime.device=cpu")
"""More epochs than in the preset `smoke`, to have time for a kill."""
RUN_TIMEOUT = 600
"""Seconds for a run of the pipeline; a quiet machine of two cores takes about a fifth."""


@dataclass
class Workshop:
    """A checkout of its own, an MLflow server, an S3 server, and data under DVC that was pushed there."""

    root: Path
    environment: dict[str, str]
    source: str
    """Value of ``data.source``."""

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, timeout: float = RUN_TIMEOUT) -> str:
        process = self.start(*command)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{' '.join(command)}:\n{output}"
        return output

    def pipeline(self, output: str, *options: str) -> list[str]:
        """The command that runs the training pipeline into a folder."""
        chosen = ["--preset", "smoke", *SETTINGS, "-S", f"data.source={self.source}"]
        return [sys.executable, "-m", "pipelines", "run-local", *chosen, "--output", output, *options]

    def results(self, output: str) -> Path:
        """Folder of the only run in ``output``."""
        [folder] = (path for path in (self.root / output).iterdir() if path.name.startswith("training-"))
        return folder


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    for bucket in (BUCKET, "team"):
        (folder / bucket).mkdir()
    with s3_server(folder) as address:
        yield S3Server(address, folder)


@pytest.fixture(scope="module")
def tracking(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"s3://{BUCKET}/runs"]
    server = MlflowServer(folder, store, s3.environment)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def workshop(
    image: str, repository: Path, s3: S3Server, tracking: MlflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Workshop:
    root = tmp_path_factory.mktemp("workshop")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    environment |= s3.environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
        "MLFLOW_TRACKING_URI": tracking.address,
        "AWS_EC2_METADATA_DISABLED": "true",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",  # sums in one order, whatever the container's processors
    }
    shutil.copytree(repository / "conf", root / "conf")
    made = Workshop(root, environment, f"dvc:{root / 'data'}#voc@v1")
    push_data(made, s3.address)
    return made


def push_data(workshop: Workshop, server: str) -> None:
    """A git repository with a data set under DVC, whose files are only in a bucket."""
    data = workshop.root / "data"
    generate_sample(data / "voc", SAMPLE)
    for command in (
        "git init --quiet",
        "dvc init --quiet",
        "dvc remote add --quiet --default team s3://team/dvc",
        f"dvc remote modify team endpointurl {server}",
        "dvc add --quiet voc",
        "git add --all",
        "git -c user.name=t -c user.email=t@example.com commit --quiet --message data",
        "git tag v1",
        "dvc push --quiet",
    ):
        workshop.run("sh", "-c", f"cd {data} && exec {command}")
    shutil.rmtree(data / "voc")
    shutil.rmtree(data / ".dvc" / "cache")


@pytest.fixture(scope="module")
def as_processes(workshop: Workshop) -> Path:
    """Results of the pipeline without containers."""
    workshop.run(*workshop.pipeline("processes"))
    return workshop.results("processes")


@dataclass
class KilledRun:
    """The pipeline in containers; the training container was killed after an epoch."""

    folder: Path
    output: str


@pytest.fixture(scope="module")
def in_containers(workshop: Workshop, image: str, docker: Docker) -> KilledRun:
    process = workshop.start(*workshop.pipeline("containers", "--runner", "docker", "--image", image))
    checkpoints = workshop.root / "containers" / "checkpoints"
    end = time.monotonic() + RUN_TIMEOUT
    try:
        while not any("-step_00000000-" not in path.name for path in checkpoints.rglob("*-step_*.pt")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, f"no checkpoint of an epoch in {RUN_TIMEOUT} s"
            time.sleep(0.02)
        [container] = docker("ps", "--quiet", "--filter", f"ancestor={image}").split()
        docker("kill", container)
        output, _ = process.communicate(timeout=RUN_TIMEOUT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return KilledRun(workshop.results("containers"), output)


def read(folder: Path, file: str) -> Any:
    return json.loads((folder / file).read_text(encoding="utf-8"))


def test_a_container_killed_during_training_is_retried_and_resumes(in_containers: KilledRun) -> None:
    assert re.search(r"\[train\] resuming after epoch [123] of 4", in_containers.output), in_containers.output


def test_metrics_and_weights_are_the_same_to_the_last_digit(as_processes: Path, in_containers: KilledRun) -> None:
    for file in ("evaluate/evaluation/eval.json", "preprocess/eval_data/stats.json"):
        assert read(in_containers.folder, file) == read(as_processes, file)
    for file in ("train/model/model.safetensors", "train/curves/plots/losses.csv", "train/curves/plots/ap.csv"):
        assert (in_containers.folder / file).read_bytes() == (as_processes / file).read_bytes()
    identity = ("version", "model_digest", "data_digest")
    registered = [read(folder, "register/registration") for folder in (as_processes, in_containers.folder)]
    assert [registered[0][key] for key in identity] == [registered[1][key] for key in identity]


def test_every_step_runs_without_privileges_on_a_read_only_file_system(
    workshop: Workshop, tmp_path: Path, image: str, docker: Docker, repository: Path
) -> None:
    workshop.run(sys.executable, "-m", "yolact_cli.main", "preset", "use", "smoke")
    shutil.copy(workshop.root / "params.yaml", tmp_path)
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:  # pytest's folders are its user's alone
        parent.chmod(0o755)
    stages = yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    steps = " && ".join(f"python -m components.{name}.step" for name in stages if name != "source")
    tracking = f"MLFLOW_TRACKING_URI={workshop.environment['MLFLOW_TRACKING_URI']}"
    variables = ("--env", "OMP_NUM_THREADS=1", "--env", tracking)
    mounts = ("--volume", f"{tmp_path}:/workspace", "--network", "host")
    docker("run", "--rm", *LOCKED, *variables, *mounts, image, "sh", "-c", steps)
    assert (tmp_path / "metrics" / "eval.json").stat().st_uid == 10001
    assert read(tmp_path, "reports/registration.json")["name"] == "yolact-smoke"
    docker("run", "--rm", *mounts, "--user", "0", image, "chown", "-R", f"{os.getuid()}:{os.getgid()}", "/workspace")


@contextmanager
def served(docker: Docker, image: str, workshop: Workshop, port: int) -> Iterator[str]:
    """A container that serves the registered model; its id, once it is ready and Docker finds it healthy."""
    command = ("yolact", "serve", "models:/yolact-smoke@candidate")
    variables = {
        "MLFLOW_TRACKING_URI": workshop.environment["MLFLOW_TRACKING_URI"],
        "YOLACT_SERVE_HOST": "127.0.0.1",
        "YOLACT_SERVE_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    options = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    container = docker(
        "run", "--detach", "--network", "host", *LOCKED, "--health-interval", "1s", *options, image, *command
    ).strip()
    logs = ("sh", "-c", f"docker logs {container} 2>&1")
    try:
        state = ""
        for _ in range(240):
            state = docker("inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", container).strip()
            if state != "running starting" and (state != "running healthy" or is_ready(port)):
                break
            time.sleep(1)
        assert state == "running healthy", subprocess.run(logs, capture_output=True, text=True, check=False).stdout
        yield container
    finally:
        docker("rm", "--force", container)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
            return True
    except urllib.error.URLError:
        return False


def test_the_image_serves_the_registered_model(
    workshop: Workshop, as_processes: Path, image: str, docker: Docker
) -> None:
    port = free_port()
    picture = next((as_processes / "preprocess/eval_data/images").iterdir())
    with served(docker, image, workshop, port) as container:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict", picture.read_bytes(), {"Content-Type": "application/octet-stream"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.loads(answer.read())
        docker("stop", container)  # as process 1 it hears SIGTERM
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container).strip() == "0"
    assert (found["model"]["name"], found["model"]["alias"]) == ("yolact-smoke", "candidate")
    assert "detections" in found["images"][0]
