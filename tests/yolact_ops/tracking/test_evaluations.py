"""Ground truth and detections stored with a run, in a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name

from yolact_ops.tracking.evaluations import DETECTIONS, FOLDER, GROUND_TRUTH, pack_evaluation, read_evaluation
from yolact_ops.tracking.store import TrackingError
from yolact_ops.tracking.tracker import allowed_names

GROUND = {"images": [{"id": 1, "width": 4, "height": 3}], "annotations": [], "categories": [{"id": 2, "name": "café"}]}
ROWS = [{"image_id": 1, "category_id": 2, "score": 0.123456789012345, "bbox": [0.5, 1.0, 2.0, 1.0]}]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(tmp_path)
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def new_run(client: MlflowClient) -> str:
    return str(client.create_run(client.create_experiment("evaluations")).info.run_id)


def test_a_stored_evaluation_is_read_back_and_a_second_one_replaces_it(client: MlflowClient, tmp_path: Path) -> None:
    run_id = new_run(client)
    (tmp_path / FOLDER).mkdir()
    for rows in ([], ROWS):
        (tmp_path / "val.json").write_text(json.dumps(GROUND))
        (tmp_path / "found.json").write_text(json.dumps(rows))
        pack_evaluation(tmp_path / FOLDER, tmp_path / "val.json", tmp_path / "found.json")
        client.log_artifacts(run_id, str(tmp_path / FOLDER), FOLDER)
    assert read_evaluation(client, run_id) == (GROUND, ROWS)


def test_a_run_that_was_not_evaluated_is_named_with_the_fix(client: MlflowClient) -> None:
    run_id = new_run(client)
    with pytest.raises(TrackingError, match=f"run {run_id} .*no {GROUND_TRUTH} and no {DETECTIONS}.*evaluate step"):
        read_evaluation(client, run_id)


def test_a_damaged_file_is_named(client: MlflowClient, tmp_path: Path) -> None:
    run_id = new_run(client)
    for name in (GROUND_TRUTH, DETECTIONS):
        (tmp_path / Path(name).name).write_bytes(b"\x1f\x8bno archive")
        client.log_artifact(run_id, str(tmp_path / Path(name).name), "eval")
    with pytest.raises(TrackingError, match=rf"{GROUND_TRUTH} of run {run_id} .*damaged"):
        read_evaluation(client, run_id)


@given(st.lists(st.text(max_size=8), unique=True))
def test_allowed_names_are_allowed_and_unique(names: list[str]) -> None:
    found = allowed_names(names)
    assert len(set(found.values())) == len(names)
    for name in found.values():
        _validate_metric_name(f"eval/per_class/mask_AP50/{name}")
