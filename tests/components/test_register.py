"""Register a small untrained network in real MLflow stores and predict with the registered model."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.pyfunc import PythonModelContext
from mlflow.pyfunc.scoring_server import invocations
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from components.preprocess import step as preprocess
from components.register import packaging, step
from components.register.candidate import Candidate, Metrics
from components.register.data_card import data_card
from components.register.model_card import CardFacts, description, model_card
from components.register.pyfunc_model import YolactModel, decode_image, read_image
from components.train.starting import load_start
from tests.servers.mlflow_servers import BUCKET, MlflowServer, PostgresServer, S3Server, s3_keys
from tests.servers.model_registry import exchange, small_model_registry, unique_name
from tests.servers.servers import free_port
from yolact.errors import DataError, SettingsError, WeightsError
from yolact.formats.sample import generate_sample
from yolact.inference.predictor import Predictor
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import SampleConfig
from yolact_ops.lineage.hashing import hash_params
from yolact_ops.registry.model_registry import ModelRegistryError
from yolact_ops.registry.versions import RegistryError
from yolact_ops.settings.params import Params, load_params, parse_params
from yolact_ops.tracking.run_record import RunRecord
from yolact_ops.tracking.runs import start_run
from yolact_ops.tracking.store import StoreUnavailableError

CLASSES = ["aeroplane", "bicycle"]
IMAGE = Path("data/processed/eval/images/drawn.png")
REPORT = Path("reports/registration.json")


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    """The published settings with the smallest network."""
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["model"] |= {"backbone": "resnet18", "backbone_weights": "none", "image_size": 64}
    tree["model"] |= {"fpn_channels": 16, "num_prototypes": 4}
    tree["evaluate"]["detect"] |= {"max_detections": 5}
    return parse_params(tree)


@pytest.fixture(scope="module")
def network(params: Params) -> Yolact:
    torch.manual_seed(0)
    return Yolact(params.model, len(CLASSES)).eval()


@pytest.fixture(scope="module")
def starting_point(tmp_path_factory: pytest.TempPathFactory, network: Yolact) -> Path:
    """A folder with the network in ``models/`` and an empty store, which takes MLflow seconds to make."""
    folder = tmp_path_factory.mktemp("start")
    save_model(network, CLASSES, folder / "models")
    (folder / "models" / "checkpoints").mkdir()
    (folder / "models" / "checkpoints" / "last.pt").write_bytes(b"not for the registry")
    MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starting_point: Path) -> Path:
    """A working folder as it is after ingest, preprocess, train and evaluate."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    write_data("digest-of-the-data")
    write_metrics(mask_ap50=0.625)
    shutil.copytree(starting_point / "models", "models", copy_function=os.link)
    shutil.copy(starting_point / "mlflow.db", "mlflow.db")
    return tmp_path


def write_data(digest: str) -> None:
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (90, 60), "navy")
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill="orange")
    image.save(IMAGE)
    pixels = {"id": 1, "file_name": IMAGE.name, "width": 90, "height": 60}
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    folder = IMAGE.parent.parent
    (folder / "val.json").write_text(json.dumps({"images": [pixels], "annotations": [], "categories": categories}))
    splits = {split: {"images": count, "instances": 3 * count} for split, count in (("train", 20), ("val", 1))}
    stats = {"digest": digest, "splits": splits, "duplicates": {"across_splits": {"count": 2}}}
    (folder / "stats.json").write_text(json.dumps(stats))


def write_metrics(mask_ap50: float | None) -> None:
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/eval.json").write_text(json.dumps(metrics(mask_ap50, CLASSES)))


def metrics(mask_ap50: float | None, classes: list[str]) -> dict[str, Any]:
    """What evaluate would write, with invented metrics."""
    per_class = {name: {"AP": 0.25, "AP50": None, "AP70": 0.5, "instances": 40 + k} for k, name in enumerate(classes)}
    return {
        "split": "val",
        "images": 1,
        "box": {"AP": 0.375, "AP50": 0.75, "per_class": per_class},
        "mask": {"AP": 0.25, "AP50": mask_ap50, "per_class": per_class},
    }


def train(params: Params) -> str:
    with start_run(params, Path("models/run.json")) as tracker:
        return tracker.run_id


def register(params: Params) -> dict[str, Any]:
    step.run(
        params,
        model_dir=Path("models"),
        eval_data_dir=Path("data/processed/eval"),
        metrics_path=Path("metrics/eval.json"),
        report_path=REPORT,
    )
    return dict(json.loads(REPORT.read_text()))


def local_store() -> str:
    return f"sqlite:///{Path('mlflow.db').absolute()}"


def client() -> MlflowClient:
    return MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local_store()))


def versions() -> dict[int, ModelVersion]:
    return {int(version.version): version for version in client().search_model_versions("name = 'yolact'")}


def model_id() -> str:
    return str(versions()[1].source).removeprefix("models:/")


def model_folder() -> Path:
    return Path(client().get_logged_model(model_id()).artifact_location)


def candidate() -> int | None:
    version = client().get_registered_model("yolact").aliases.get("candidate")
    return None if version is None else int(version)


def test_a_good_model_becomes_version_1_and_candidate(params: Params) -> None:
    run_id = train(params)
    report = register(params)
    version = client().get_model_version_by_alias("yolact", "candidate")
    assert int(version.version) == 1
    assert version.run_id == run_id
    assert version.status == "READY"
    assert report["name"] == "yolact"
    assert report["version"] == 1
    assert report["alias"] == "candidate"
    assert report["run_id"] == run_id
    assert report["model_uri"] == "models:/yolact/1"
    assert report["metrics"] == {"box": {"AP": 0.375, "AP50": 0.75}, "mask": {"AP": 0.25, "AP50": 0.625}}
    run = client().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["registered_model"] == "yolact/1"
    assert [output.model_id for output in run.outputs.model_outputs] == [model_id()]
    assert json.loads(client().get_logged_model(model_id()).tags["mlflow.modelVersions"]) == [
        {"name": "yolact", "version": version.version}
    ]


def test_the_version_carries_its_lineage_and_metrics(params: Params, project: Path) -> None:
    for arguments in (
        ["init", "--quiet"],
        ["add", "data/processed/eval/stats.json"],
        ["-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "data"],
        ["remote", "add", "origin", "https://me:s3cret@git.example.org/p.git"],
    ):
        subprocess.run(["git", *arguments], check=True, cwd=project)
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%H"], check=True, cwd=project, capture_output=True, text=True
    )
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {train: {cmd: x}}\n")
    run_id = train(params)
    register(params)
    tags = versions()[1].tags
    assert {
        "git_commit",
        "git_dirty",
        "git_branch",
        "git_remote",
        "dvc_lock_hash",
        "params_hash",
        "detect_hash",
        "data_digest",
        "model_digest",
        "run_id",
        "host",
        "python_version",
        "torch_version",
        "torchvision_version",
        "mlflow_version",
        "box_AP",
        "box_AP50",
        "mask_AP",
        "mask_AP50",
        "data_source",
    } <= set(tags)
    assert tags["git_commit"] == commit.stdout.strip()
    assert tags["run_id"] == run_id
    assert tags["data_digest"] == "digest-of-the-data"
    assert (float(tags["mask_AP"]), float(tags["mask_AP50"])) == (0.25, 0.625)
    assert (float(tags["box_AP"]), float(tags["box_AP50"])) == (0.375, 0.75)
    assert "s3cret" not in json.dumps(tags)


def test_the_model_card_has_metrics_data_training_use_limits_and_licence(params: Params) -> None:
    run_id = train(params)
    register(params)
    card = (model_folder() / "model_card.md").read_text()
    assert versions()[1].description == card
    for part in (
        "| mask | 25.0 | 62.5 | - |",
        "| box | 37.5 | 75.0 | - |",
        "| bicycle | 41 | 25.0 | - | 25.0 | - |",
        "on the 1 images of the val split",
        "Source: `sample`",
        "`digest-of-the-data`",
        "train: 20 images, 60 objects",
        "2 pairs of images in different splits are near-duplicates",
        "resnet18, 64 px",
        run_id,
        "Not for decisions about people",
        "generated by this project's code",
    ):
        assert part in card, part


def test_the_data_card_says_what_preprocess_found(params: Params, tmp_path: Path) -> None:
    """Of a real data set: three sizes of split, a damaged object, a copy in both splits."""
    sample = SampleConfig(seed=0, train_images=6, val_images=3, min_size=64, max_size=80, max_objects=2)
    generate_sample(tmp_path / "raw", sample)
    folder = tmp_path / "raw" / "VOCdevkit" / "VOC2012"
    names = [(folder / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()[0] for split in ("train", "val")]
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationObject", "png"), ("SegmentationClass", "png")):
        shutil.copy(*(folder / kind / f"{name}.{suffix}" for name in names))
    shutil.copy(*(folder / "Annotations" / f"{name}.xml" for name in names))
    processed, data = tmp_path / "real", params.model_copy(deep=True)
    preprocess.run(data, raw_dir=tmp_path / "raw", processed_dir=processed, report_dir=tmp_path / "report", workers=1)
    stats = json.loads((processed / "eval/stats.json").read_text())
    card = data_card(CardFacts("yolact", params, metrics(0.5, CLASSES), stats, {"data_digest": stats["digest"]}))

    val = json.loads((processed / "eval/val.json").read_text())
    widths = sorted(image["width"] for image in val["images"])
    boats = [each["id"] for each in val["categories"] if each["name"] == "boat"]
    of_boats = [each for each in val["annotations"] if each["category_id"] in boats]
    images, objects = len({each["image_id"] for each in of_boats}), len(of_boats)
    for line in (
        f"| val | 3 | 0 | {len(val['annotations'])} | 0 | source | `{stats['split_digests']['val']}` |",
        f"| val | image width | {widths[0]} | {widths[1]} | {widths[2]} |",
        "Source: `sample`, in the format PASCAL VOC",
        f"`{stats['digest']}`",
        "Pairs of images in different splits: 1; AP is too high there.",
        "no object in any image",
        "generated by this project's code",
    ):
        assert line in card, line
    [row] = re.findall(r"^\| boat \|.*", card, flags=re.MULTILINE)
    assert row.endswith(f"| {images} | {objects} |")
    assert names[0] not in card


def test_without_findings_the_data_card_has_the_rest(params: Params) -> None:
    """`stats.json` of the fixture has no more than the model card needs, as old ones may."""
    train(params)
    register(params)
    card = (model_folder() / "data_card.md").read_text()
    assert "| train | 20 | - | 60 | - | - | - |" in card
    assert not re.search("^## (Sizes|Classes|Dropped)", card, re.MULTILINE)


def facts(params: Params, classes: list[str]) -> CardFacts:
    stats = json.loads(Path("data/processed/eval/stats.json").read_text())
    return CardFacts("yolact", params, metrics(0.5, classes), stats, {"data_digest": "d"})


def test_a_description_fits_however_many_classes_there_are_and_the_card_has_them_all(params: Params) -> None:
    classes = [f"a class with a longish name {k}" for k in range(1000)]
    text = description(facts(params, classes))
    assert len(text) <= 5000
    shown = sum(name + " |" in text for name in classes)
    assert 10 < shown < 1000
    assert f"and {1000 - shown} more classes" in text
    assert all(name + " |" in model_card(facts(params, classes)) for name in classes)


@pytest.mark.parametrize(
    ("section", "changes", "note"),
    [
        ("data", {"source": "voc2012"}, "Flickr"),
        ("data", {"source": "https://me:secret@host.example/set.zip?key=1"}, "licence is not known"),
        ("model", {"backbone_weights": "imagenet"}, "non-commercial"),
        ("model", {"initial_weights": "models/other"}, "weights that training started from"),
    ],
)
def test_the_card_says_which_terms_apply(params: Params, section: str, changes: dict[str, str], note: str) -> None:
    changed = params.model_copy(update={section: getattr(params, section).model_copy(update=changes)})
    card = model_card(facts(changed, CLASSES))
    assert note in card
    assert "secret" not in card


def test_the_model_page_shows_the_metrics(params: Params) -> None:
    train(params)
    register(params)
    model = client().get_logged_model(model_id())
    assert {metric.key: metric.value for metric in model.metrics} == {
        "eval/box_AP": 0.375,
        "eval/box_AP50": 0.75,
        "eval/mask_AP": 0.25,
        "eval/mask_AP50": 0.625,
    }


def test_the_version_is_copied_to_the_model_registry_with_an_address_in_s3(
    params: Params, on_server: MlflowServer, s3: S3Server, model_registry: str
) -> None:
    name = unique_name()
    files = f"s3://{BUCKET}/artifacts"
    changes = {"model_name": name, "model_registry": model_registry, "model_registry_files": files}
    copied = params.model_copy(update={"register_": params.register_.model_copy(update=changes)})
    train(copied)
    for _ in range(2):
        register(copied)
        _, model = exchange(model_registry, "GET", f"registered_model?name={name}")
        _, page = exchange(model_registry, "GET", f"registered_models/{model['id']}/versions")
        [version] = page["items"]
        assert (version["name"], version["state"]) == ("1", "LIVE")
        assert version["description"].startswith(f"# {name}\n")
        assert version["customProperties"]["candidate"]["string_value"] == ""
        assert version["customProperties"]["mask_AP50"]["double_value"] == 0.625
        _, artifact = exchange(model_registry, "GET", f"model_artifact?name={name}&parentResourceId={version['id']}")
        prefix = artifact["uri"].removeprefix(f"s3://{BUCKET}/")
        stored = s3_keys(s3, prefix)
        assert {f"{prefix}/MLmodel", f"{prefix}/artifacts/model/model.safetensors"} <= set(stored)


def test_a_copy_that_fails_leaves_the_version_and_the_report(params: Params) -> None:
    train(params)
    with small_model_registry() as registry:
        changes = {"model_registry": registry.address}
        copied = params.model_copy(update={"register_": params.register_.model_copy(update=changes)})
        with pytest.raises(
            ModelRegistryError, match=r"version 1 are at .*\n.*To complete it: yolact publish"
        ) as raised:
            register(copied)
        assert "where KServe cannot fetch them" in str(raised.value)  # files of a local store
    assert json.loads(REPORT.read_text())["version"] == 1
    assert candidate() == 1


def test_below_the_floor_the_version_gets_no_alias_and_the_shortfall_is_logged(
    params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    train(params)
    write_metrics(mask_ap50=0.31)
    report = register(params)
    assert report["alias"] is None
    assert set(versions()) == {1}
    assert candidate() is None
    assert "0.3100 is 0.1900 below register.min_mask_ap50 0.5000. " in caplog.text
    assert "(yolact serve models:/yolact/1) and promoted by its number (yolact promote --version 1)" in caplog.text


def test_exactly_at_the_floor_is_enough(params: Params) -> None:
    train(params)
    write_metrics(mask_ap50=params.register_.min_mask_ap50)
    assert register(params)["alias"] == "candidate"


def test_a_model_that_could_not_be_measured_gets_no_alias(params: Params, caplog: pytest.LogCaptureFixture) -> None:
    train(params)
    write_metrics(mask_ap50=None)
    assert register(params)["alias"] is None
    assert "could not be measured" in caplog.text
    assert "mask_AP50" not in versions()[1].tags


def test_the_same_model_again_is_the_same_version(params: Params, caplog: pytest.LogCaptureFixture) -> None:
    train(params)
    first = register(params)
    caplog.set_level("INFO")
    assert register(params) == first
    assert set(versions()) == {1}
    assert len(client().search_logged_models([RunRecord.read(Path("models/run.json")).experiment_id])) == 1
    assert "was registered before and is reused" in caplog.text


def test_a_model_registered_twice_at_once_is_one_version(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """From two checkouts: the second one registers it while the first one stores its files."""
    run_id = train(params)
    shutil.copytree("models", "elsewhere/models")
    log_model = step._log_model

    def overtaken(tracker: Any, found: Candidate) -> str:
        monkeypatch.setattr(step, "_log_model", log_model)
        step.run(
            params,
            model_dir=Path("elsewhere/models"),
            eval_data_dir=Path("data/processed/eval"),
            metrics_path=Path("metrics/eval.json"),
            report_path=Path("elsewhere/registration.json"),
        )
        return log_model(tracker, found)

    monkeypatch.setattr(step, "_log_model", overtaken)
    assert register(params)["version"] == 1
    assert json.loads(Path("elsewhere/registration.json").read_text())["version"] == 1
    assert list(versions()) == [1]
    assert candidate() == 1
    run = client().get_run(run_id)
    assert (run.info.status, run.data.tags["registered_model"]) == ("FINISHED", "yolact/1")


def test_a_database_restarted_under_a_registration_is_named_and_the_next_one_completes_it(
    params: Params, on_server: MlflowServer, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    name = unique_name()
    named = params.model_copy(update={"register_": params.register_.model_copy(update={"model_name": name})})
    train(named)
    package = step.package_model

    def packed(*arguments: Any) -> None:
        package(*arguments)
        postgres.stop()

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailableError, match="could not store the model"):
        patch.setattr(step, "package_model", packed)
        try:
            register(named)
        finally:
            postgres.start()
    assert list(client().search_model_versions(f"name = '{name}'")) == []
    assert register(named)["version"] == 1
    [version] = client().search_model_versions(f"name = '{name}'")
    assert version.status == "READY"
    assert client().get_registered_model(name).aliases["candidate"] == "1"


def test_a_reused_version_shows_the_latest_metrics_and_loses_the_alias_with_them(params: Params) -> None:
    train(params)
    register(params)
    write_metrics(mask_ap50=0.125)
    register(params)
    assert candidate() is None
    assert float(versions()[1].tags["mask_AP50"]) == 0.125
    assert "| mask | 25.0 | 12.5 |" in versions()[1].description


@pytest.mark.parametrize("changed", ["model", "data", "detection"])
def test_another_model_data_or_detection_is_another_version(params: Params, network: Yolact, changed: str) -> None:
    train(params)
    register(params)
    if changed == "model":
        torch.manual_seed(1)
        save_model(Yolact(params.model, len(CLASSES)), CLASSES, Path("models"))
    elif changed == "data":
        write_data("digest-of-other-data")
    else:
        detect = params.evaluate.detect.model_copy(update={"nms": "cross_class"})
        params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"detect": detect})})
    assert register(params)["version"] == 2
    assert candidate() == 2


def test_a_raised_floor_takes_the_alias_from_the_same_version(params: Params) -> None:
    train(params)
    register(params)
    assert candidate() == 1
    floor = params.register_.model_copy(update={"min_mask_ap50": 1.0})
    report = register(params.model_copy(update={"register_": floor}))
    assert (report["version"], report["alias"], candidate()) == (1, None, None)


def test_a_worse_version_leaves_the_candidate_as_it_is(params: Params) -> None:
    train(params)
    register(params)
    write_data("digest-of-other-data")
    write_metrics(mask_ap50=0.25)
    assert register(params)["version"] == 2
    assert candidate() == 1


def test_a_model_from_elsewhere_names_the_run_that_trained_it(params: Params) -> None:
    record = {"run_id": "e" * 32, "experiment_id": "1", "experiment": "yolact", "tracking_uri": "http://elsewhere"}
    Path("models/run.json").write_text(json.dumps(record))
    report = register(params)
    tags = versions()[1].tags
    assert tags["train_run_id"] == "e" * 32
    assert tags["run_id"] == report["run_id"] == versions()[1].run_id != "e" * 32


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        ("models/model.safetensors", WeightsError, "dvc repro train"),
        ("models/model.json", WeightsError, "dvc repro train"),
        ("models/run.json", DataError, "train step"),
        ("metrics/eval.json", DataError, "evaluate step"),
        ("data/processed/eval/stats.json", DataError, "preprocess step"),
        ("data/processed/eval/val.json", DataError, "preprocess step"),
    ],
)
def test_a_missing_input_names_the_file_and_the_step(
    params: Params, missing: str, error: type[Exception], message: str
) -> None:
    train(params)
    Path(missing).unlink()
    with pytest.raises(error, match=message) as raised:
        register(params)
    assert missing in str(raised.value)
    assert not REPORT.exists()
    assert client().search_registered_models() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"box": {"AP": 0.1, "AP50": 0.1}, "mask": {"AP": 0.1}}', r"mask\.AP50 is missing"),
        ('{"box": {"AP": 37.5, "AP50": 0.1}, "mask": {"AP": 0.1, "AP50": 0.1}}', r"box\.AP must be .* found 37\.5"),
    ],
)
def test_invalid_metrics_are_named(params: Params, content: str, message: str) -> None:
    Path("metrics/eval.json").write_text(content)
    with pytest.raises(DataError, match=message):
        register(params)


def test_when_packing_fails_nothing_is_registered_and_the_next_attempt_works(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run_id = train(params)
    experiment = client().get_run(run_id).info.experiment_id
    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        broken.setattr(step, "package_model", full)
        register(params)
    assert client().get_run(run_id).info.status == "FAILED"
    assert versions() == {}
    assert [model.status for model in client().search_logged_models([experiment])] == ["FAILED"]
    assert register(params)["version"] == 1
    assert client().get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("taken_by", ["another model", "a prompt"])
def test_a_taken_name_is_refused_and_nothing_changes(params: Params, taken_by: str) -> None:
    run_id = train(params)
    if taken_by == "a prompt":
        client().register_prompt("yolact", "Say {{this}}")
    else:
        client().create_registered_model("yolact")
        client().create_model_version("yolact", "s3://elsewhere/forecast")
    before = set(versions())
    with pytest.raises(RegistryError, match=f"'yolact' at .* is taken by {taken_by}.*nothing was changed"):
        register(params)
    assert set(versions()) == before
    assert client().search_logged_models([client().get_run(run_id).info.experiment_id]) == []
    assert not REPORT.exists()


def test_the_model_holds_what_it_needs_and_nothing_else(params: Params) -> None:
    train(params)
    register(params)
    folder = model_folder()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith("artifacts/")} == {
        "artifacts/model/model.safetensors",
        "artifacts/model/model.json",
        "artifacts/detect.json",
        "artifacts/params.yaml",
    }
    assert {
        "MLmodel",
        "pyfunc_model.py",
        "code/yolact/inference/predictor.py",
        "input_example.json",
        "model_card.md",
        "data_card.md",
    } <= files
    assert hash_params(load_params(folder / "artifacts/params.yaml")) == versions()[1].tags["params_hash"]
    assert not [name for name in files if name.endswith((".pkl", ".pyc", ".pt"))]
    requirements = (folder / "requirements.txt").read_text().split()
    assert sorted(requirements) == sorted(packaging.pinned_requirements())
    assert all("==" in line and "+" not in line for line in requirements)


def test_the_device_can_be_chosen_when_the_model_is_loaded(params: Params) -> None:
    train(params)
    register(params)
    with pytest.raises(SettingsError, match="'cuda:99'"):
        mlflow.pyfunc.load_model(str(model_folder()), model_config={"device": "cuda:99"})


def test_the_command_prints_only_its_own_messages(params: Params, project: Path, repository: Path) -> None:
    train(params)
    (project / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    inherited = {name: value for name, value in os.environ.items() if "MLFLOW" not in name and name != "DO_NOT_TRACK"}
    done = subprocess.run(
        [sys.executable, "-m", "components.register.step"],
        cwd=project,
        env=inherited | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.splitlines() == [
        "[register] yolact version 1 registered",
        "[register] version 1 is the candidate: mask AP50 0.6250, floor 0.5000",
    ]


PREDICT = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1], model_config={"device": "cpu"})
found = model.predict(pandas.DataFrame({"image": [sys.argv[2]]}))
import yolact
print(json.dumps({"found": found, "code": yolact.__file__}))
"""


@pytest.fixture(scope="module")
def bare_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with what the model requires, what that requires in turn, and nothing else."""
    wanted, needed = list(packaging.REQUIREMENTS), {}
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in needed:
            continue
        try:
            needed[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform or Python
            continue
        requirements = map(Requirement, needed[name].requires or [])
        wanted += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    folder = tmp_path_factory.mktemp("packages")
    for distribution in needed.values():
        for part in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (folder / part).exists():
                (folder / part).symlink_to(Path(str(distribution.locate_file(part))))
    assert (folder / "torch").is_dir()
    assert not (folder / "dvc").exists()
    assert not (folder / "matplotlib").exists() or "matplotlib" in needed
    return folder


def predict_alone(uri: str, image: Path, folder: Path, packages: Path, store: str) -> dict[str, Any]:
    """Load and predict in a fresh process, in an empty folder, with ``packages`` as the only installed ones."""
    folder.mkdir()
    encoded_image = base64.b64encode(image.read_bytes()).decode()
    done = subprocess.run(
        [sys.executable, "-S", "-c", PREDICT, uri, encoded_image],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(packages), "MLFLOW_TRACKING_URI": store},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def assert_same_detections(row: dict[str, Any], predictor: Predictor, image: Path) -> None:
    pixels = np.array(Image.open(image).convert("RGB"))
    (expected,) = predictor.predict([pixels])
    assert len(expected) > 0
    np.testing.assert_allclose(row["boxes"], expected.boxes.numpy(), atol=1e-2)
    np.testing.assert_allclose(row["scores"], expected.scores.numpy(), atol=1e-5)
    assert row["labels"] == [CLASSES[label] for label in expected.labels]
    assert all(rle["size"] == list(pixels.shape[:2]) for rle in row["masks"])
    masks = np.stack([coco_mask.decode(rle) for rle in row["masks"]])
    assert np.mean(masks != expected.masks.numpy()) < 1e-3


def test_the_registered_model_predicts_without_this_repository(
    params: Params, project: Path, network: Yolact, repository: Path, bare_packages: Path
) -> None:
    train(params)
    register(params)
    result = predict_alone("models:/yolact/1", IMAGE, project / "empty", bare_packages, local_store())
    assert_same_detections(result["found"][0], Predictor(network, CLASSES, params.evaluate.detect), IMAGE)
    assert Path(result["code"]).is_relative_to(model_folder())
    assert not Path(result["code"]).is_relative_to(repository)


def test_base64_text_and_bytes_are_the_same_image() -> None:
    data = IMAGE.read_bytes()
    expected = np.array(Image.open(IMAGE).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, 0), expected)
    np.testing.assert_array_equal(decode_image(base64.b64encode(data).decode(), 0), expected)


def encoded(format: str, mode: str) -> str:
    stream = io.BytesIO()
    Image.new(mode, (4, 3)).save(stream, format)
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, np.ndarray.tolist, lambda pixels: pixels.astype(int)])
def test_an_array_a_tensor_and_nested_lists_are_the_same_image(form: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    read = read_image(form(pixels), 0)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize(("format", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P")])
def test_every_kind_of_jpeg_and_png_is_turned_into_rgb(format: str, mode: str) -> None:
    assert decode_image(encoded(format, mode), 0).shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no base64!", "row 3: 'image' is not base64"),
        (base64.b64encode(b"hello").decode(), "row 3: 'image' is not a readable JPEG or PNG"),
        (encoded("GIF", "P"), "row 3: 'image' is not a readable JPEG or PNG"),
        (encoded("PNG", "I;16"), "row 3: 'image' is not a readable JPEG or PNG: it has 16 or more bits"),
        (["a list"], "row 3: 'image', as an array, must be .* found the shape"),
        ([[[1, 2, 3]], [[1, 2]]], "row 3: 'image', as an array, must be"),
        ([[[1, 2, 300]]], "row 3: 'image', as an array, must be .* out of range"),
        (np.zeros((4, 5, 3), np.float32), "row 3: 'image', as an array, must be .* float32"),
        (np.zeros((0, 5, 3), np.uint8), r"row 3: .* found the shape \(0, 5, 3\)"),
        (np.zeros((3, 4, 5), np.uint8), r"row 3: .* found the shape \(3, 4, 5\)"),
        (None, "row 3: 'image' must be base64 text, bytes or an array; found NoneType"),
    ],
)
def test_a_value_that_is_not_an_image_is_refused_with_its_row(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_image(value, 3)


def test_a_truncated_image_is_refused() -> None:
    with pytest.raises(DataError, match="row 0: 'image' is not a readable"):
        decode_image(IMAGE.read_bytes()[:-40], 0)


@pytest.fixture(scope="module")
def loaded(
    params: Params, network: Yolact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[mlflow.pyfunc.PyFuncModel]:
    """The model as MLflow loads it from what was packed, signature and all."""
    parts = tmp_path_factory.mktemp("loaded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(parts)
        patch.setattr(sys, "path", list(sys.path))  # loading the model adds its code
        write_data("digest")
        save_model(network, CLASSES, parts / "models")
        candidate = Candidate(
            parts / "models", IMAGE.read_bytes(), Metrics(None, None, None, None), facts(params, CLASSES)
        )
        entry = SimpleNamespace(artifact_location="", source_run_id=None, model_id=None)
        packaging.package_model(candidate, parts / "parts", parts / "packed", entry)
        yield mlflow.pyfunc.load_model(str(parts / "packed"), model_config={"device": "cpu"})


def test_text_bytes_arrays_and_lists_give_the_same_detections(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    data, pixels = IMAGE.read_bytes(), np.array(Image.open(IMAGE).convert("RGB"))
    (expected,) = loaded.predict([{"image": base64.b64encode(data).decode()}])
    assert expected["scores"]
    for rows in (
        pd.DataFrame({"image": [data]}),
        pd.DataFrame({"image": [pixels]}),
        [{"image": data}],
        [{"image": pixels}],
        [{"image": torch.from_numpy(pixels)}],
        [{"image": pixels.tolist()}],
        {"image": [pixels]},
        {"image": pixels[np.newaxis]},
    ):
        assert loaded.predict(rows) == [expected]
    assert loaded.predict([{"image": data}, {"image": pixels}]) == [expected, expected]


def test_mlflows_server_takes_lists_of_images_and_base64_with_line_breaks(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    """Forms that users sent: mlflow/mlflow#3683, and `base64` without -w0."""
    text, broken = base64.b64encode(IMAGE.read_bytes()).decode(), base64.encodebytes(IMAGE.read_bytes()).decode()
    (expected,) = loaded.predict([{"image": text}])
    schema = loaded.metadata.get_input_schema()
    for body in (
        {"inputs": {"image": [text, broken]}},
        {"inputs": [text, broken]},
        {"instances": [text, broken]},
        {"dataframe_records": [{"image": text}, {"image": broken}]},
        {"dataframe_split": {"columns": ["image"], "data": [[text], [broken]]}},
    ):
        answer = invocations(json.dumps(body), "application/json", loaded, schema)
        assert answer.status == 200, (list(body), answer.response)
        assert json.loads(answer.response)["predictions"] == [expected, expected]


def test_a_bare_array_is_refused_by_mlflow_as_the_signature_has_a_column(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    with pytest.raises(mlflow.MlflowException, match="Failed to enforce schema"):
        loaded.predict(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_request_can_ask_for_higher_scores_and_fewer_detections(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    image = [{"image": IMAGE.read_bytes()}]
    (found,) = loaded.predict(image)
    assert len(found["scores"]) == 5
    (fewer,) = loaded.predict(image, params={"max_detections": 2})
    assert fewer["scores"] == found["scores"][:2]
    (surer,) = loaded.predict(image, params={"score_threshold": found["scores"][1] - 1e-6})
    assert surer["scores"] == found["scores"][:2]
    assert loaded.predict(image) == [found]  # parameters of one request do not affect the next
    with pytest.raises(SettingsError, match="score_threshold"):
        loaded.predict(image, params={"score_threshold": 1.5})


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_rotated_image_gives_the_predictors_detections_for_its_file(
    loaded: mlflow.pyfunc.PyFuncModel, params: Params, network: Yolact, tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.open(IMAGE).convert("RGB").resize((90, 60)).save(path, quality=95, exif=exif)
    (expected,) = Predictor(network, CLASSES, params.evaluate.detect).predict([path])
    assert len(expected) > 0
    (found,) = loaded.predict([{"image": path.read_bytes()}])
    assert {tuple(mask["size"]) for mask in found["masks"]} == {(90, 60) if orientation == 6 else (60, 90)}
    np.testing.assert_allclose(found["boxes"], expected.boxes.numpy(), atol=1e-2)
    np.testing.assert_allclose(found["scores"], expected.scores.numpy(), atol=1e-5)


def test_rows_keep_their_order_over_several_batches(params: Params, network: Yolact) -> None:
    model = YolactModel()
    model.predictor = Predictor(network, CLASSES, params.evaluate.detect)
    model.batch_size = 2
    sizes = [(30, 20), (20, 30), (40, 10), (10, 40), (25, 25)]
    rows = []
    for size in sizes:
        stream = io.BytesIO()
        Image.new("RGB", size, "green").save(stream, "PNG")
        rows.append(stream.getvalue())
    found = model.predict(None, pd.DataFrame({"image": rows}))
    assert [row["masks"][0]["size"] for row in found] == [[height, width] for width, height in sizes]


def test_device_and_batch_size_are_set_when_the_model_is_loaded(
    params: Params, starting_point: Path, tmp_path: Path
) -> None:
    (tmp_path / "detect.json").write_text(params.evaluate.detect.model_dump_json())
    artifacts = {"model": str(starting_point / "models"), "detect": str(tmp_path / "detect.json")}
    model = YolactModel()
    model.load_context(PythonModelContext(artifacts, {"device": "cpu", "batch_size": 3}))
    assert model.predictor.device == torch.device("cpu")
    assert model.predictor.batch_size == model.batch_size == 3
    assert model.predictor.config == params.evaluate.detect


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running ``mlflow server`` that keeps the artifacts itself."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", "sqlite:///mlflow.db"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.2)
        else:
            pytest.fail(f"mlflow server did not start:\n{(folder / 'log.txt').read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_a_model_on_a_server_predicts_a_real_image(
    params: Params, network: Yolact, server: str, voc_mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading the model adds its code
    train(params)
    register(params)
    assert candidate() == 1
    assert not Path("mlruns").exists()
    image = min((voc_mini / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg"))
    model = mlflow.pyfunc.load_model("models:/yolact@candidate", model_config={"device": "cpu"})
    (row,) = model.predict([{"image": base64.b64encode(image.read_bytes()).decode()}])
    assert_same_detections(row, Predictor(network, CLASSES, params.evaluate.detect), image)


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has what the model's ``requirements.txt`` names, installed by uv."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "requirements.txt").write_text("\n".join(packaging.pinned_requirements()))
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    programs = folder / "venv" / "bin"

    def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uv", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    made = uv("venv", "--quiet", "--python", sys.executable, str(programs.parent))
    assert made.returncode == 0, made.stderr
    install = (
        "pip",
        "install",
        "--quiet",
        "--python",
        str(programs / "python"),
        "-r",
        str(folder / "requirements.txt"),
    )
    if uv(*install, "--offline").returncode != 0:
        done = uv(*install)
        if done.returncode != 0:
            pytest.skip(f"the model's requirements are neither in uv's cache nor available: {done.stderr.strip()}")
    return programs


@contextmanager
def serving(uri: str, programs: Path, folder: Path) -> Iterator[str]:
    """Address of ``mlflow models serve`` with the programs of an environment, started in an empty folder."""
    folder.mkdir()
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [programs / "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)],
            cwd=folder,
            env=kept | {"PATH": path, "MLFLOW_TRACKING_URI": local_store(), "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(900):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.2)
        else:
            pytest.fail(f"mlflow models serve did not start:\n{(folder / 'log.txt').read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def invoke(address: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return list(json.load(answer)["predictions"])


@pytest.mark.slow
def test_mlflow_serves_the_champion_from_a_bare_environment_and_answers_a_real_image(
    params: Params, network: Yolact, project: Path, bare_environment: Path, voc_mini: Path
) -> None:
    train(params)
    register(params)
    client().set_registered_model_alias("yolact", "champion", "1")
    image = min((voc_mini / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg"))
    text = base64.b64encode(image.read_bytes()).decode()
    with serving("models:/yolact@champion", bare_environment, project / "empty") as address:
        (row,) = invoke(address, {"dataframe_split": {"columns": ["image"], "data": [[text]]}})
        assert_same_detections(row, Predictor(network, CLASSES, params.evaluate.detect), image)
        pixels = np.array(Image.open(image).convert("RGB"))
        for body in (
            {"dataframe_records": [{"image": text}]},
            {"instances": [{"image": text}]},
            {"inputs": [{"image": text}]},
            {"dataframe_records": [{"image": pixels.tolist()}]},
        ):
            assert invoke(address, body) == [row]
        (few,) = invoke(address, {"dataframe_records": [{"image": text}], "params": {"max_detections": 1}})
        assert few["scores"] == row["scores"][:1]


@pytest.mark.parametrize("name", ["models:/yolact@candidate", "models:/yolact/1"])
def test_a_training_can_start_from_a_registered_version(params: Params, network: Yolact, name: str) -> None:
    train(params)
    register(params)
    for key in ("initial_weights", "backbone_weights"):
        torch.manual_seed(1)
        model = Yolact(params.model.model_copy(update={key: name}), len(CLASSES))
        assert load_start(model, CLASSES) == "models:/yolact/1"
        assert torch.equal(model.backbone.conv1.weight, network.backbone.conv1.weight)
        same = torch.equal(model.proto_net[0].weight, network.proto_net[0].weight)
        assert same == (key == "initial_weights")


def test_a_training_cannot_start_from_a_version_that_does_not_exist(params: Params) -> None:
    train(params)
    register(params)
    for name, reason in (("models:/yolact/7", "version 7"), ("models:/yolact@champion", "has the alias 'champion'")):
        with pytest.raises(RegistryError, match=rf"^model\.initial_weights: .*{reason}"):
            load_start(Yolact(params.model.model_copy(update={"initial_weights": name}), 1), CLASSES)
