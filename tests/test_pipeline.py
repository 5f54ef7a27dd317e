"""The pipeline as a user runs it: `dvc repro` in a copy of the checkout, with the preset `smoke`."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebooks import run_notebook
from tests.servers.servers import KEY, SECRET, s3_server

STEPS = ["ingest", "preprocess", "train", "evaluate", "register"]


class Project:
    """A copy of the checkout with its own git history, DVC cache and MLflow store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        own_tools = Path(sys.executable).parent
        outside = ("MLFLOW_", "DVC_", "GIT_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)} | {
            "PATH": f"{own_tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

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

    def run(self, *command: str, expect: int = 0, timeout: float = 300) -> str:
        process = self.start(*command)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == expect, f"{' '.join(command)}:\n{output}"
        return output

    def json(self, file: str) -> dict:
        return json.loads((self.root / file).read_text())

    def use(self, *overrides: str) -> None:
        arguments = [part for override in overrides for part in ("-S", override)]
        self.run("python", "-m", "yolact_cli.main", "preset", "use", "smoke", *arguments)

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", message)


def copy_of_checkout(repository: Path, root: Path) -> Project:
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=repository, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (repository / name).is_file():  # not one that was deleted and is still in the index
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, root / name)
    for leftover in ("dvc.lock", "metrics", "reports"):  # of the developer's own runs
        path = root / leftover
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    project = Project(root)
    project.run("git", "init", "-q")
    project.use()
    project.commit("start")
    return project


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory) -> Project:
    """A project in which the whole pipeline ran once and the result was committed."""
    project = copy_of_checkout(repository, tmp_path_factory.mktemp("project"))
    output = project.run("dvc", "repro")
    for step in STEPS:
        assert f"Running stage '{step}'" in output
    project.commit("results")
    return project


def test_every_step_leaves_what_the_readme_says(finished):
    scores = finished.json("metrics/eval.json")
    for kind in ("box", "mask"):
        assert {"AP", "AP50", "AP75", "AP70", "per_class"} <= scores[kind].keys()
        assert len(scores[kind]["per_class"]) == 20
    assert finished.json("metrics/train.json")["steps"] == 6  # 2 epochs of 12 images, 4 a step
    assert finished.json("reports/registration.json")["version"] == 1
    with (finished.root / "plots/train/losses.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == list("012345")
    for report in ("data", "eval"):
        assert "aeroplane" in (finished.root / f"reports/{report}/index.html").read_text()


def test_one_mlflow_run_spans_train_evaluate_and_register(finished):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished.root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1
    assert runs[0].info.run_id == finished.json("models/run.json")["run_id"]
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.params["train.batch_size"] == "4"
    assert {"train/total", "val/mask_AP50", "eval/mask_AP50"} <= runs[0].data.metrics.keys()
    assert len(client.get_metric_history(runs[0].info.run_id, "train/total")) == 6
    digest = finished.json("data/processed/eval/stats.json")["digest"]
    data_sets = {entry.dataset.name: json.loads(entry.dataset.profile) for entry in runs[0].inputs.dataset_inputs}
    splits = finished.json("data/processed/eval/stats.json")["split_digests"]
    assert {name: found["digest"] for name, found in data_sets.items()} == splits
    assert runs[0].data.tags["data_digest"] == digest
    version = client.get_model_version("yolact-smoke", "1")
    assert version.run_id == runs[0].info.run_id
    assert version.tags["data_digest"] == digest


def test_a_second_repro_only_checks_the_source(finished):
    output = finished.run("dvc", "repro")
    assert [line for line in output.splitlines() if "Running stage" in line] == ["Running stage 'source':"]
    assert finished.run("git", "status", "--porcelain") == ""


def test_metrics_and_plots_can_be_shown(finished):
    header, *rows = finished.run("dvc", "metrics", "show").splitlines()
    assert {"AP", "AP50", "AP75", "AP70"} <= set(header.split())
    assert [row.split()[0] for row in rows] == ["metrics/box.json", "metrics/mask.json"]
    assert len(header) < 120
    page = finished.run("dvc", "plots", "show", "--out", "dvc_plots").split()[-1]
    text = Path(page.removeprefix("file://")).read_text()
    for title in (
        "Training loss",
        "Learning rate",
        "AP on the validation split over epochs",
        "Precision over recall",
    ):
        assert title in text


@pytest.mark.slow
def test_an_experiment_with_another_learning_rate_trains_but_does_not_preprocess(finished):
    output = finished.run("dvc", "exp", "run", "-S", "train.lr=2e-3")
    for step in ("ingest", "preprocess"):
        assert f"'{step}' didn't change" in output
    for step in ("train", "evaluate", "register"):
        assert f"Running stage '{step}'" in output
    assert "metrics/mask.json" in finished.run("dvc", "metrics", "diff", "--all")
    assert "train.lr" in finished.run("dvc", "params", "diff")


@pytest.fixture
def fresh(finished, tmp_path) -> Project:
    """A second project that has the first one's data, so that train is the first step to run."""
    root = tmp_path / "again"
    shutil.copytree(finished.root, root, symlinks=True)
    project = Project(root)
    project.run("git", "reset", "-q", "--hard", "HEAD")
    project.run("dvc", "checkout", "--force")
    return project


@pytest.mark.slow
def test_equal_settings_give_equal_metrics_also_after_a_kill_in_train(fresh):
    fresh.use("train.seed=1")
    checkpoints = fresh.root / "models/checkpoints"
    shutil.rmtree(checkpoints)  # of the run before

    def epoch_done() -> bool:
        return any("-step_00000000-" not in path.name for path in checkpoints.glob("*-step_*.pt"))

    process = fresh.start("dvc", "repro")
    deadline = time.monotonic() + 120
    while not epoch_done() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert epoch_done()
    assert not (fresh.root / "models/model.safetensors").exists()

    output = fresh.run("dvc", "repro")
    assert "resuming after epoch 1 of 2" in output
    resumed = fresh.json("metrics/eval.json"), (fresh.root / "models/model.safetensors").read_bytes()

    output = fresh.run("dvc", "repro", "--force", "--single-item", "train")
    assert "going on" not in output
    fresh.run("dvc", "repro", "--force", "--single-item", "evaluate")
    assert (fresh.json("metrics/eval.json"), (fresh.root / "models/model.safetensors").read_bytes()) == resumed


@pytest.mark.slow
def test_a_second_repro_beside_the_first_is_refused(fresh: Project) -> None:
    fresh.use("train.seed=2")
    lock = fresh.root / ".models.lock"
    first = fresh.start("dvc", "repro")
    deadline = time.monotonic() + 120
    while not lock.is_file() or not lock.read_text():
        assert time.monotonic() < deadline, "train has not begun"
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    training = int(lock.read_text().split()[1])
    os.kill(training, signal.SIGSTOP)
    try:
        assert "is busy, it is being blocked by" in fresh.run("dvc", "repro", expect=255)
    finally:
        os.kill(training, signal.SIGCONT)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert "Running stage 'register'" in output


def test_a_failing_step_says_what_to_do_and_the_next_repro_continues(fresh):
    source = fresh.root / "source"
    shutil.copytree(fresh.root / "data/raw", source)
    mask = next((source / "VOCdevkit/VOC2012/SegmentationObject").glob("*.png"))
    kept = mask.read_bytes()
    mask.unlink()
    fresh.use("data.source=source")
    output = fresh.run("dvc", "repro", "preprocess", expect=255)
    assert f"SegmentationObject/{mask.name}: no such file" in output
    assert "Traceback" not in output
    assert "`dvc checkout data/processed/train data/processed/eval`" in output
    assert not list(fresh.root.glob("data/processed/*"))

    mask.write_bytes(kept)
    output = fresh.run("dvc", "repro", "preprocess")
    assert "Running stage 'ingest'" in output
    assert (fresh.root / "data/processed/eval/stats.json").is_file()


# The notebooks in examples/


def test_the_notebook_predict_finds_what_evaluate_found(finished, monkeypatch):
    shown = run_notebook(
        finished.root / "examples/predict.ipynb",
        finished.environment,
        monkeypatch,
        replaced=('"models", score_threshold=0.3', '"models", score_threshold=0.05'),  # it has learned next to nothing
        added="import json\nkeys = 'image_id', 'category_id', 'score'\n"
        "print(json.dumps([[row[key] for key in keys] for row in results]))",
    )
    rows = json.loads((finished.root / "reports/eval/detections.json").read_text())
    evaluated = sorted((row["image_id"], row["category_id"], row["score"]) for row in rows if row["score"] > 0.05)
    found = sorted(map(tuple, json.loads(shown[-1])))
    assert [row[:2] for row in found] == [row[:2] for row in evaluated]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in evaluated], abs=1e-5)
    assert len(found) > 20
    assert shown[-2] == "equal\n"


def test_the_notebook_compare_runs_shows_both_runs_and_the_versions(fresh, monkeypatch):
    first = fresh.json("models/run.json")["run_id"]
    fresh.use("train.lr=2e-3")
    fresh.run("dvc", "repro")
    second = fresh.json("models/run.json")["run_id"]

    _, runs, curves, compared, versions, lineage, settings, commands, _ = run_notebook(
        fresh.root / "examples/compare_runs.ipynb", fresh.environment, monkeypatch
    )
    assert -1 < runs.index(second) < runs.index(first)  # the newest first
    assert "yolact-smoke/2 @candidate" in runs
    assert "Figure" in curves
    assert compared.startswith("train.lr: 0.001 -> 0.002\n")
    assert "<td>mask AP50</td>" in compared
    assert re.findall(r"<td>yolact-smoke</td>\s*<td>(\d)</td>\s*<td>(\w*)</td>", versions) == [
        ("1", ""),
        ("2", "candidate"),
    ]
    assert fresh.json("data/processed/eval/stats.json")["digest"] in lineage
    assert second in lineage
    assert re.search(r"<th>train.lr</th>\s*<td>0.002</td>", settings)
    assert "models:/yolact-smoke/2/artifacts/params.yaml" in commands


def test_the_notebook_extend_trains_its_backbone(finished, monkeypatch):
    shown = run_notebook(
        finished.root / "examples/extend.ipynb",
        finished.environment,
        monkeypatch,
        added="import json\nprint(json.dumps(history))",
    )
    first, *_, last = json.loads(shown[-1])
    assert last["classification"] < first["classification"]
    assert last["semantic"] < first["semantic"]


def printed_block(page: Path, beginning: str) -> str:
    """The block of commands on a page that begins so."""
    (block,) = (
        part.partition("```")[0]
        for part in page.read_text(encoding="utf-8").split("```sh\n")
        if part.startswith(beginning)
    )
    return block


@pytest.fixture
def with_bucket(fresh: Project, tmp_path: Path) -> Iterator[Project]:
    """The project in an environment that has the keys of an S3 server with a bucket, and an MLflow store for all."""
    (tmp_path / "s3/bucket").mkdir(parents=True)
    with s3_server(tmp_path / "s3") as server:
        fresh.environment |= {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "S3_SERVER": server,
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
            **{f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        fresh.environment.pop("PYTHONPATH")  # each checkout uses its own code, found in the current folder
        yield fresh


@pytest.mark.slow
def test_the_printed_commands_on_versions_of_the_data_run_as_written(
    with_bucket: Project, repository: Path, tmp_path: Path
) -> None:
    block = printed_block(repository / "docs" / "data.md", "dvc remote add --default team s3://bucket/dvc")
    assert "http://127.0.0.1:9000" in block
    script = f"set -eux\n{block}".replace("http://127.0.0.1:9000", with_bucket.environment["S3_SERVER"])
    output = with_bucket.run("bash", "-c", script, timeout=900)

    parts = dict(zip(*[iter(re.split(r"^\+ ((?:dvc|git) .*)$", output, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert "files pushed" in parts["dvc push"]
    assert "Running stage 'preprocess'" in parts["dvc exp run -S data.sample.seed=1"]
    assert "dvc metrics diff data-v1 data-v2" in parts
    # The block has `dvc repro` and `dvc pull` twice; these are the last ones, in the clone.
    assert re.findall(r"Running stage '(\w+)'", parts["dvc repro"]) == ["source"]

    clone = Project(tmp_path / "elsewhere")
    clone.environment = with_bucket.environment
    digests = [clone.json("data/processed/eval/stats.json")["digest"]]
    clone.run("git", "checkout", "-q", "data-v1")
    clone.run("dvc", "checkout")
    digests.append(clone.json("data/processed/eval/stats.json")["digest"])
    assert len(set(digests)) == 2
    clone.run("git", "checkout", "-q", "-")

    assert clone.run("dvc", "queue", "status").count("Success") == 2
    table = list(csv.DictReader(clone.run("dvc", "exp", "show", "--csv").splitlines()))
    finished = [row for row in table if row["typ"].startswith("branch")]
    assert {row["train.lr"] for row in finished} == {"0.001", "0.002"}
    assert all(any(value and name.endswith("mask.AP50") for name, value in row.items()) for row in finished)
