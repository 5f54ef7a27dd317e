"""Two models through all steps, on a real MLflow server with PostgreSQL and S3."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import mlflow
import pytest
import yaml
from typer.testing import CliRunner

from components.evaluate import step as evaluate
from components.ingest import step as ingest
from components.preprocess import step as preprocess
from components.register import step as register
from components.train import training as train
from tests.servers.mlflow_servers import MlflowServer
from yolact_cli.main import app
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import choose

SETTINGS = [
    "runtime.device=cpu",
    "data.sample.train_images=8",
    "data.sample.val_images=4",
    "train.epochs=1",
    "evaluate.detect.score_threshold=0.001",
]
RAW, PROCESSED, MODELS, METRICS = (Path(path) for path in ("data/raw", "data/processed", "models", "metrics/eval.json"))
TRAIN_DATA, EVAL_DATA = PROCESSED / "train", PROCESSED / "eval"


def write_settings(name: str, *overrides: str) -> Params:
    """``params.yaml`` of the working folder, for a registered model and an experiment of that name."""
    own = [f"register.model_name={name}", f"register.experiment={name}"]
    params = choose("smoke", overrides=[*SETTINGS, *own, *overrides])
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    return params


def make_version(params: Params) -> None:
    """Train, evaluate and register on the existing data."""
    plots = Path("plots")
    train.run(
        params,
        train_data_dir=TRAIN_DATA,
        eval_data_dir=EVAL_DATA,
        model_dir=MODELS,
        metrics_path=Path("train.json"),
        plots_dir=plots / "train",
    )
    evaluate.run(
        params,
        eval_data_dir=EVAL_DATA,
        model_dir=MODELS,
        metrics_path=METRICS,
        report_dir=Path("reports/eval"),
        plots_dir=plots / "eval",
    )
    register.run(
        params,
        model_dir=MODELS,
        eval_data_dir=EVAL_DATA,
        metrics_path=METRICS,
        report_path=Path("registration.json"),
    )


def yolact(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result.output


@pytest.mark.usefixtures("one_thread")
def test_two_trained_models_are_compared_refused_promoted_and_rolled_back(
    on_server: MlflowServer, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"yolact-{uuid.uuid4().hex[:8]}"
    shutil.copytree(repository / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    mlflow.set_tracking_uri(on_server.address)

    params = write_settings(name)
    ingest.run(params, raw_dir=RAW, downloads_dir=Path("data/downloads"))
    preprocess.run(params, raw_dir=RAW, processed_dir=PROCESSED, report_dir=Path("reports/data"))
    make_version(params)
    assert "version 1 is the champion now (champion was: none)" in yolact("promote")

    make_version(write_settings(name, "train.seed=7", "promote.min_gain=0.5"))
    assert len(json.loads(yolact("runs", "--json"))) == 2
    compared = yolact("compare", f"models:/{name}/1", f"models:/{name}/2")
    assert "train.seed" in compared
    assert "mask AP" in compared
    assert "train.seed" in Path("reports/compare/index.html").read_text()

    refusal = yolact("promote", exit_code=3)
    assert "version 2 is refused; nothing was changed (champion is: version 1)" in refusal
    assert "REFUSED  promote.min_gain" in refusal
    write_settings(name, "promote.min_gain=-1", "promote.max_doubt=1", "promote.max_class_loss=1")
    assert "version 2 is the champion now (champion was: version 1)" in yolact("promote")
    assert "version 1 is the champion again (was: 2)" in yolact("rollback", "--reason", "a test")

    image = next((EVAL_DATA / "images").iterdir())
    champion = mlflow.pyfunc.load_model(f"models:/{name}@champion", model_config={"device": "cpu"})
    [found] = champion.predict([{"image": image.read_bytes()}])
    assert set(found) == {"boxes", "scores", "labels", "masks"}
