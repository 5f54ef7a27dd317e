"""Predictions over HTTP: equal to the predictor's, in every form of request."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools import mask as coco_mask

from tests.serving.conftest import CATEGORY_IDS, CLASSES, SIZE, encoded, error_of, metric, picture, post, running
from yolact.inference.detections import Detections
from yolact.inference.export import export_onnx
from yolact.inference.predictor import Predictor
from yolact.models.yolact import Yolact
from yolact_ops.tracking.run_record import RunRecord


@pytest.fixture(scope="module")
def expected(model_dir: Path, png: bytes) -> Detections:
    found = Predictor.load(model_dir, device="cpu").predict(png)
    assert len(found) > 2
    return found


def entry(answer: requests.Response, index: int = 0) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    image: dict[str, Any] = answer.json()["images"][index]
    return image


def assert_same(image: dict[str, Any], expected: Detections) -> None:
    rows = image["detections"]
    np.testing.assert_allclose([row["box"] for row in rows], expected.boxes, atol=0.02)
    np.testing.assert_allclose([row["score"] for row in rows], expected.scores, atol=1e-3)
    assert [row["class"] for row in rows] == [CLASSES[label] for label in expected.labels]
    assert [row["class_id"] for row in rows] == expected.labels.tolist()
    assert [row["category_id"] for row in rows] == [CATEGORY_IDS[row["class"]] for row in rows]
    masks = [coco_mask.decode(row["mask"]) for row in rows]
    np.testing.assert_array_equal(masks, expected.masks)


def test_an_image_as_the_body_gives_the_predictors_detections(url: str, png: bytes, expected: Detections) -> None:
    answer = post(f"{url}/predict", png)
    image = entry(answer)
    assert (image["name"], image["width"], image["height"]) == (None, *SIZE)
    assert_same(image, expected)
    assert answer.json()["model"]["name"] == "yolact"
    assert_same(entry(post(f"{url}/predict", png, "application/octet-stream")), expected)


def test_several_files_of_a_form_come_back_in_order_with_their_names(
    url: str, png: bytes, expected: Detections
) -> None:
    files = [("images", ("a.png", png)), ("other", ("b.png", encoded(picture((40, 30))))), ("images", ("ä.png", png))]
    answer = requests.post(f"{url}/predict", files=files, timeout=30)
    images = answer.json()["images"]
    assert [(image["name"], image["width"]) for image in images] == [("a.png", 96), ("b.png", 40), ("ä.png", 96)]
    assert_same(images[0], expected)
    assert_same(images[2], expected)


def test_json_takes_base64_with_line_breaks_and_data_urls(url: str, png: bytes, expected: Detections) -> None:
    plain, lines = base64.b64encode(png).decode(), base64.encodebytes(png).decode()
    body = {"images": [plain, lines, {"data": f"data:image/png;base64,{plain}", "name": "c"}]}
    answer = requests.post(f"{url}/predict", json=body, timeout=30)
    for index in range(3):
        assert_same(entry(answer, index), expected)
    assert entry(answer, 2)["name"] == "c"
    assert requests.post(f"{url}/predict", json={"images": []}, timeout=30).json()["images"] == []


def test_one_bad_image_does_not_fail_the_others(url: str, png: bytes, expected: Detections) -> None:
    before = metric(url, 'yolact_images_total{result="error"}') if "error" in metrics_text(url) else 0.0
    files = [("images", ("a.png", png)), ("images", ("notes.jpg", b"only text")), ("images", ("b.png", png))]
    answer = requests.post(f"{url}/predict", files=files, timeout=30)
    assert_same(entry(answer, 0), expected)
    assert entry(answer, 1) == {"name": "notes.jpg", "error": "it is not a JPEG, PNG, WebP, GIF or BMP image"}
    assert_same(entry(answer, 2), expected)
    assert metric(url, 'yolact_images_total{result="error"}') == before + 1


def metrics_text(url: str) -> str:
    return requests.get(f"{url}/metrics", timeout=10).text


def test_parameters_of_a_request_override_the_models_settings(url: str, png: bytes, expected: Detections) -> None:
    limit = float(expected.scores[1]) - 1e-4
    rows = entry(post(f"{url}/predict?score_threshold={limit}", png))["detections"]
    assert len(rows) == 2
    assert len(entry(post(f"{url}/predict?max_detections=1", png))["detections"]) == 1
    label = CLASSES[int(expected.labels[0])]
    rows = entry(post(f"{url}/predict", png, params={"classes": [label]}))["detections"]
    assert [row["class"] for row in rows] == [label] * int((expected.labels == expected.labels[0]).sum())
    assert_same(entry(post(f"{url}/predict", png)), expected)  # one request's parameters do not affect the next


def test_masks_come_as_run_lengths_polygons_or_not_at_all(url: str, png: bytes, expected: Detections) -> None:
    rows = entry(post(f"{url}/predict?masks=polygons", png))["detections"]
    outlines = expected.polygons()
    assert [[len(part) for part in row["mask"]] for row in rows] == [
        [part.size for part in parts] for parts in outlines
    ]
    first = next(index for index, parts in enumerate(outlines) if parts)
    np.testing.assert_allclose(rows[first]["mask"][0], outlines[first][0].ravel())
    assert all("mask" not in row for row in entry(post(f"{url}/predict?masks=none", png))["detections"])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("score_treshold=0.3", "score_treshold: there is no such parameter"),
        ("score_threshold=2", "score_threshold: "),
        ("score_threshold=nan", "score_threshold: "),
        ("max_detections=0", "max_detections: "),
        ("masks=png", "masks: "),
        ("classes=unicorn", "classes: the model does not know 'unicorn'; it has: disc, box, bar"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(url: str, png: bytes, query: str, message: str) -> None:
    answer = post(f"{url}/predict?{query}", png)
    assert answer.status_code == 422
    assert error_of(answer).startswith(message)


def test_the_overlay_is_a_png_with_the_objects_drawn(url: str, png: bytes) -> None:
    answer = post(f"{url}/predict/overlay?score_threshold=0.05", png)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    drawn = Image.open(io.BytesIO(answer.content))
    assert drawn.width / drawn.height == pytest.approx(SIZE[0] / SIZE[1], abs=0.02)
    plain = Image.open(io.BytesIO(post(f"{url}/predict/overlay?score_threshold=0.99", png).content))
    assert np.any(np.asarray(drawn) != np.asarray(plain))
    large = encoded(picture((1600, 1000)), "JPEG")
    reduced = post(f"{url}/predict/overlay?side=800", large, "image/jpeg")
    assert Image.open(io.BytesIO(reduced.content)).size == (800, 500)


def test_the_model_is_described(url: str, server: Any) -> None:
    tree = requests.get(f"{url}/model", timeout=10).json()
    assert (tree["name"], tree["classes"], tree["image_size"]) == ("yolact", CLASSES, 64)
    assert len(tree["version"]) == 12
    assert tree["detection"]["score_threshold"] == 0.05


def test_a_folder_is_described_with_the_run_that_trained_it_and_no_metrics(
    model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = tmp_path / "project"
    shutil.copytree(model_dir, project / "models")
    (project / "metrics").mkdir()
    (project / "metrics" / "eval.json").write_text('{"mask": {"AP": 0.9}}')  # of whatever weights
    record = RunRecord("0123abcd", "1", "yolact", "http://secret-host:5000")
    record.write(project / "models" / "run.json")
    with running(model=str(project / "models")) as server:
        answer = requests.get(f"{server.address}/model", timeout=10)
    assert answer.json()["lineage"] == {"run": {"run_id": "0123abcd", "experiment": "yolact"}}
    assert answer.json()["metrics"] == {}
    assert "secret-host" not in answer.text
    (project / "models" / "run.json").write_text("{}")
    with running(model=str(project / "models")) as server:
        assert requests.get(f"{server.address}/model", timeout=10).json()["lineage"] == {}
    assert "run.json: not the record of a run" in caplog.text


@pytest.mark.slow
def test_an_onnx_file_is_served_like_the_folder_it_was_exported_from(
    tmp_path: Path, network: Yolact, png: bytes, expected: Detections
) -> None:
    export_onnx(network, CLASSES, tmp_path / "model.onnx")
    with running(model=str(tmp_path / "model.onnx")) as server:
        rows = entry(post(f"{server.address}/predict?score_threshold=0.3", png))["detections"]
        assert requests.get(f"{server.address}/model", timeout=10).json()["device"] == "onnxruntime"
    sure = expected.above(0.3)
    assert [row["class"] for row in rows] == [CLASSES[label] for label in sure.labels]
    assert [row["category_id"] for row in rows] == [1 + label for label in sure.labels]  # the file states none
    np.testing.assert_allclose([row["box"] for row in rows], sure.boxes, atol=0.1)


def test_openapi_names_every_route_and_its_examples_are_answered(url: str) -> None:
    tree = requests.get(f"{url}/openapi.json", timeout=10).json()
    assert {"/predict", "/predict/overlay", "/model", "/healthz", "/readyz", "/metrics"} <= tree["paths"].keys()
    content = tree["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/json", "image/jpeg"} <= content.keys()
    for example in content["application/json"]["examples"].values():
        answer = requests.post(f"{url}/predict", json=example["value"], timeout=30)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["images"][0]["width"], answer.json()["images"][0]["height"]) == (2, 2)
    overlay = tree["paths"]["/predict/overlay"]["post"]["requestBody"]["content"]
    for kind in ("multipart/form-data", "application/json"):
        images = overlay[kind]["schema"]["properties"]["images"]
        assert (images["minItems"], images["maxItems"]) == (1, 1)


def test_health_and_metrics_are_open(url: str) -> None:
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"healthy": True, "error": None}
    ready = requests.get(f"{url}/readyz", timeout=10)
    assert (ready.status_code, ready.json()["ready"], ready.json()["offered"]) == (200, True, None)
    assert metric(url, "yolact_ready") == 1
    assert metric(url, "yolact_queue_images") == 0
    assert metric(url, "yolact_request_bytes") == 0
