"""Untrained networks in the registry: a champion evaluated on other data is evaluated again; lineage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image

from components.promote import evidence
from components.promote.promotion import Outcome, Request, promote
from components.register import step as register_step
from yolact.data.coco import CocoInstances
from yolact.evaluation.evaluator import evaluate_coco, load_ground_truth, predict_dataset
from yolact.inference.predictor import Predictor
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_ops.registry.lineage_report import report_lineage
from yolact_ops.registry.versions import RegisteredModel
from yolact_ops.settings.params import Params, load_params, parse_params
from yolact_ops.tracking.evaluations import FOLDER, pack_evaluation
from yolact_ops.tracking.runs import resume_run, start_run

CLASSES = ["cat", "dog"]
EVAL_DATA, MODELS = Path("data/processed/eval"), Path("models")
IMAGES = 3


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    """Settings with a gate that every version passes, and the smallest network."""
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["model"] |= {"backbone": "resnet18", "backbone_weights": "none", "image_size": 64}
    tree["model"] |= {"fpn_channels": 16, "num_prototypes": 4}
    tree["evaluate"]["detect"] |= {"max_detections": 5}
    tree["register"] |= {"min_mask_ap50": 0.0}
    tree["promote"] |= {"samples": 100, "min_gain": -1.0, "max_doubt": 1.0, "max_class_loss": 1.0, "min_first": 0.0}
    tree["runtime"] |= {"device": "cpu"}
    return parse_params(tree)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def write_data(seed: int) -> None:
    """Write a val split of noise; each seed gives other content and another digest."""
    random = np.random.default_rng(seed)
    (EVAL_DATA / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for k in range(1, IMAGES + 1):
        Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(EVAL_DATA / f"images/{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "width": 80, "height": 60})
        left = 5 * seed
        polygon = [left, 5, left + 40, 5, left + 40, 45, left, 45]
        annotations.append(
            {"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [left, 5, 40, 40], "area": 1600, "iscrowd": 0}
            | {"segmentation": [polygon]}
        )
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (EVAL_DATA / "val.json").write_text(json.dumps(tree))
    splits = {split: {"images": IMAGES, "instances": IMAGES} for split in ("train", "val")}
    stats = {"digest": f"data-{seed}", "splits": splits, "duplicates": {"across_splits": {"count": 0}}}
    (EVAL_DATA / "stats.json").write_text(json.dumps(stats))


def found_by(seed: int, params: Params) -> list[dict[str, Any]]:
    """Detections of the network on the current data."""
    data = CocoInstances.load(EVAL_DATA / "val.json", EVAL_DATA / "images")
    return predict_dataset(Predictor(network(seed, params), CLASSES, params.evaluate.detect), data).rows


def network(seed: int, params: Params, classes: Sequence[str] = CLASSES) -> Yolact:
    torch.manual_seed(seed)
    return Yolact(params.model, len(classes)).eval()


def train_evaluate_register(
    params: Params, client: MlflowClient, seed: int, begin: Callable[[str], None] = lambda step: None
) -> int:
    """Write the outputs of train and evaluate and register them; returns the version. ``begin`` is called first."""
    shutil.rmtree(MODELS, ignore_errors=True)
    begin("train")
    save_model(network(seed, params), CLASSES, MODELS)
    with start_run(params, MODELS / "run.json"):
        pass
    rows = found_by(seed, params)
    ground_truth = load_ground_truth(EVAL_DATA / "val.json")
    metrics = {kind: evaluate_coco(ground_truth, rows, kind).to_json() for kind in ("box", "mask")}
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/eval.json").write_text(json.dumps({"split": "val", "images": IMAGES} | metrics))
    Path("detections.json").write_text(json.dumps(rows))
    folder = Path("packed")
    folder.mkdir(exist_ok=True)
    pack_evaluation(folder, EVAL_DATA / "val.json", Path("detections.json"))
    begin("evaluate")
    with resume_run(params, MODELS / "run.json", step="evaluate") as tracker:
        client.log_artifacts(tracker.run_id, str(folder), FOLDER)
    begin("register")
    report = Path("reports/registration.json")
    register_step.run(
        params,
        model_dir=MODELS,
        eval_data_dir=EVAL_DATA,
        metrics_path=Path("metrics/eval.json"),
        report_path=report,
    )
    return int(json.loads(report.read_text())["version"])


def ask(params: Params, version: int) -> Outcome:
    return promote(params, Request(version=version), eval_data_dir=EVAL_DATA)


def test_a_champion_of_other_data_is_evaluated_once_on_the_candidates_data(
    client: MlflowClient, params: Params
) -> None:
    write_data(seed=1)
    assert train_evaluate_register(params, client, seed=1) == 1
    assert ask(params, 1).status == "promoted"
    write_data(seed=2)
    assert train_evaluate_register(params, client, seed=2) == 2

    outcome = ask(params, 2)
    assert outcome.status == "promoted"
    metrics = outcome.assessment.metrics
    run = client.get_run(metrics["champion_evaluation_run"])
    assert run.info.status == "FINISHED"
    assert run.data.tags[evidence.VERSION_TAG] == "yolact/1"
    assert run.data.tags["data_digest"] == "data-2"
    _, rows = evidence.read_evaluation(client, run.info.run_id)
    expected = found_by(1, params)  # the champion's network on the candidate's data
    assert len(rows) == len(expected) > 0
    ground_truth = load_ground_truth(EVAL_DATA / "val.json")
    value = evaluate_coco(ground_truth, expected, "mask").AP
    assert metrics["champion"] == pytest.approx(value, abs=1e-6)
    assert run.data.metrics["eval/mask_AP"] == pytest.approx(value, abs=1e-6)
    assert metrics["candidate_evaluation_run"] == RegisteredModel.open(client, "yolact").version(2).run_id
    assert any("measured on other data" in note for note in outcome.assessment.notes)

    client.set_registered_model_alias("yolact", "champion", "1")
    shutil.rmtree(EVAL_DATA)  # not needed again
    again = ask(params, 2)
    assert again.assessment.metrics["champion_evaluation_run"] == run.info.run_id


def test_under_kubeflows_mlflow_integration_each_run_is_below_its_one_parent_run(
    client: MlflowClient, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubeflow Pipelines 2.17 makes one run a pipeline run and, below it, one a task, and names the latter."""
    experiment = client.create_experiment("KFP-Default")
    parent = client.create_run(experiment, run_name="training", tags={"kfp.pipeline_run_id": "1"}).info.run_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)

    def begin(step: str) -> None:
        task = client.create_run(experiment, run_name=step, tags={"mlflow.parentRunId": parent})
        monkeypatch.setenv("MLFLOW_RUN_ID", task.info.run_id)

    write_data(seed=1)
    version = train_evaluate_register(params, client, seed=1, begin=begin)
    begin("promote")
    promoting = os.environ["MLFLOW_RUN_ID"]
    assert ask(params, version).status == "promoted"
    names = {
        run.info.run_name: run.data.tags.get("mlflow.parentRunId")
        for run in client.search_runs([each.experiment_id for each in client.search_experiments()])
    }
    steps = dict.fromkeys(("train", "evaluate", "register", "promote"), parent)
    assert names == {"training": None} | steps | {f"evaluation of yolact {version}": promoting}


def test_classes_are_matched_by_name(client: MlflowClient, params: Params) -> None:
    write_data(seed=1)
    data = CocoInstances.load(EVAL_DATA / "val.json", EVAL_DATA / "images")
    classes = ["bird", "dog", "cat"]
    predictor = Predictor(network(3, params, classes), classes, params.evaluate.detect)
    rows = evidence._predict(predictor, data)
    expected = []
    for image in data.images:
        found = predictor.predict(data.read_image(image))
        expected += [(image.id, classes[k]) for k in found.labels.tolist() if classes[k] != "bird"]
    assert [(row["image_id"], CLASSES[row["category_id"] - 1]) for row in rows] == expected


def test_latency_is_measured_if_a_limit_is_set(client: MlflowClient, params: Params) -> None:
    write_data(seed=1)
    train_evaluate_register(params, client, seed=1)
    gate = params.promote.model_copy(update={"max_latency_ms": 1e-6})
    outcome = ask(params.model_copy(update={"promote": gate}), 1)
    (rule,) = outcome.assessment.refusals
    assert rule.name == "promote.max_latency_ms"
    assert rule.value > 0
    assert "80x60" in rule.text
    assert outcome.assessment.metrics["latency_ms"] == rule.value


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_lineage_has_the_origin_and_the_commands_that_rebuild_the_version(
    client: MlflowClient, params: Params, repository: Path
) -> None:
    write_data(seed=1)
    data = params.data.model_copy(update={"source": "https://host.example/set.zip"})
    params = params.model_copy(update={"data": data})
    shutil.copytree(repository / "conf", "conf")
    Path(".gitignore").write_text("models/\nmlflow.db\nmlruns/\n")
    git("init", "--quiet")
    git("remote", "add", "origin", "https://me:s3cret@git.example.org/p.git")
    git("add", "conf", ".gitignore")
    git("commit", "--quiet", "-m", "code")
    code = git("rev-parse", "HEAD")
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {train: {cmd: x}}\n")
    train_evaluate_register(params, client, seed=1)
    client.set_registered_model_alias("yolact", "champion", "1")
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {train: {cmd: x}, register: {cmd: y}}\n")
    git("add", "dvc.lock")
    git("commit", "--quiet", "-m", "results")
    results = git("rev-parse", "HEAD")

    report = report_lineage(client, "models:/yolact@champion")
    assert report.to_json() == report_lineage(client, "yolact/1").to_json()
    assert report.aliases == ["candidate", "champion"]
    assert report.groups()["code"]["git_commit"] == code
    assert report.groups()["data"]["data_digest"] == "data-1"
    assert report.changed_settings()["model.image_size"] == "64"
    assert "train.lr" not in report.changed_settings()
    assert report.commands() == [
        "git clone https://git.example.org/p.git rebuilt",
        f"git -C rebuilt checkout {code}",
        "mlflow artifacts download --artifact-uri models:/yolact/1/artifacts/params.yaml --dst-path rebuilt"
        " && mv rebuilt/artifacts/params.yaml rebuilt/",
        "cd rebuilt && make install && source .venv/bin/activate",
        f"git checkout {results} -- dvc.lock && dvc pull data/raw data/processed/train data/processed/eval",
        "dvc repro --force --single-item train",
        "dvc repro evaluate",
    ]
    (doubt,) = report.doubts()
    assert "last bit" in doubt
    assert "s3cret" not in json.dumps(report.to_json())

    # The commands that need no internet; the default store is a file here.
    here = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": "https://git.example.org/p.git"}
    here["GIT_CONFIG_KEY_0"] = f"url.{Path.cwd()}.insteadOf"
    here["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "\n".join(["set -e", *report.commands()[:3]])
    done = subprocess.run(["bash", "-c", script], env=os.environ | here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_params(Path("rebuilt/params.yaml")) == params
    assert Path("rebuilt/conf/base.yaml").is_file()

    outside = report_lineage(client, "yolact/1", root=Path(os.environ["GIT_CEILING_DIRECTORIES"]))
    assert outside.lock_commit is None
    assert outside.commands() == [*report.commands()[:4], "dvc repro evaluate"]
    assert "https://host.example/set.zip, which may have changed since" in outside.doubts()[0]


def test_lineage_reports_when_a_rebuild_is_not_exact(client: MlflowClient, params: Params) -> None:
    write_data(seed=1)
    data = params.data.model_copy(update={"source": "s3://bucket/set"})
    params = params.model_copy(update={"data": data})
    train_evaluate_register(params, client, seed=1)
    doubts = "\n".join(report_lineage(client, "yolact/1").doubts())
    assert "outside a git repository" in doubts
    assert "s3://bucket/set, which may have changed since" in doubts
    assert "another digest than data-1" in doubts
