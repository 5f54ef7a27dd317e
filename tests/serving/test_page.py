"""The page's files, its candidate, and its modules run by Node."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from serving.routes.page import FOLDER
from tests.serving.conftest import CLASSES, error_of, picture, post, running, wait
from tests.small_networks import tiny_config
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_bench.speed.calibration import calibrated_network

# Files -------------------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_load_nothing_from_elsewhere(url: str) -> None:
    page = requests.get(f"{url}/", timeout=10)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for path in ("/", *(f"/page/{file.name}" for file in FOLDER.iterdir())):
        answer = requests.get(url + path, timeout=10)
        assert answer.status_code == 200, path
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert not re.search(r"unsafe|https?:|\*|data:", policy)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), path
    assert not re.search(r"<style|<script>| style=| on\w+=", page.text)


def test_other_files_are_not_served(url: str) -> None:
    for path in ("app.py", "..%2Fapp.py", "../app.py", "%2e%2e/app.py"):
        assert requests.get(f"{url}/page/{path}", timeout=10).status_code == 404


def test_examples_are_generated_images(url: str) -> None:
    count = requests.get(f"{url}/page/options", timeout=10).json()["examples"]
    data = requests.get(f"{url}/page/examples/0.jpg", timeout=30).content
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    assert data != requests.get(f"{url}/page/examples/{count - 1}.jpg", timeout=30).content
    assert requests.get(f"{url}/page/examples/{count}.jpg", timeout=10).status_code == 404


def test_the_page_needs_no_token_and_says_that_requests_do(model_dir: Path) -> None:
    with running(model=str(model_dir), token="secret", feedback_days=3) as server:
        assert requests.get(f"{server.address}/", timeout=10).status_code == 200
        options = requests.get(f"{server.address}/page/options", timeout=10).json()
        assert (options["token"], options["candidate"], options["feedback_days"]) == (True, False, None)
        assert "secret" not in json.dumps(options)


# The candidate -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    network: Yolact = calibrated_network(tiny_config(), len(CLASSES), np.array(picture()), objects=3)
    folder = tmp_path_factory.mktemp("candidate") / "model"
    save_model(network, CLASSES, folder)
    return folder


def test_requests_may_ask_the_candidate(model_dir: Path, other_model: Path, png: bytes) -> None:
    with running(model=str(model_dir), candidate=str(other_model)) as server:
        url = server.address
        candidate = server.service.candidate
        assert candidate is not None
        wait(lambda: candidate.model is not None)
        answers = [post(f"{url}/predict", png, params=query).json() for query in ({}, {"candidate": "true"})]
        models = [requests.get(f"{url}/model", params=query, timeout=10).json() for query in ({}, {"candidate": "1"})]
        versions = [answer["model"]["version"] for answer in answers]
        assert versions == [model["version"] for model in models]
        assert versions[0] != versions[1]
        assert answers[0]["images"] != answers[1]["images"]


def test_a_candidate_that_cannot_be_loaded_leaves_the_model_alone(model_dir: Path, tmp_path: Path, png: bytes) -> None:
    damaged = shutil.copytree(model_dir, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x")
    with running(model=str(model_dir), candidate=str(damaged)) as server:
        url = server.address
        assert post(f"{url}/predict", png).status_code == 200
        assert requests.get(f"{url}/readyz", timeout=10).status_code == 200
        refused = post(f"{url}/predict", png, params={"candidate": "true"})
        assert (refused.status_code, error_of(refused)) == (503, "the candidate is not loaded yet")


def test_a_server_without_a_candidate_says_so(url: str, png: bytes) -> None:
    assert post(f"{url}/predict", png, params={"candidate": "true"}).status_code == 404
    assert requests.get(f"{url}/model", params={"candidate": "true"}, timeout=10).status_code == 404


# Modules -----------------------------------------------------------------------------------------------------------


def node(module: str, call: str, given: Any) -> Any:
    """Result of a JavaScript expression with a module's names and ``given``."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node is not installed; it runs the page's modules")
    script = (
        f"import * as page from {json.dumps((FOLDER / module).as_uri())};"
        f"const given = {json.dumps(given)};"
        f"console.log(JSON.stringify({call}));"
    )
    command = [program, "--input-type=module", "-e", script]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def whole(masks: list[dict[str, Any]], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    found = []
    for mask, shape in zip(masks, shapes, strict=True):
        full = np.zeros(shape, np.uint8)
        data = np.array(list(mask["data"]), np.uint8).reshape(mask["height"], mask["width"])
        full[mask["y"] : mask["y"] + mask["height"], mask["x"] : mask["x"] + mask["width"]] = data
        found.append(full)
    return found


def random_masks(rng: np.random.Generator) -> list[np.ndarray]:
    masks = [np.zeros((5, 7), np.uint8), np.ones((4, 3), np.uint8), np.eye(6, dtype=np.uint8)]
    masks += [(rng.random(rng.integers(1, 40, 2)) < share).astype(np.uint8) for share in (0.02, 0.3, 0.5, 0.97) * 4]
    blob = np.zeros((700, 900), np.uint8)
    blob[100:650, 200:850] = 1
    return [*masks, blob, np.ones((1, 1), np.uint8)]


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_masks_are_decoded_as_pycocotools_does_and_thinned(step: int) -> None:
    masks = random_masks(np.random.default_rng(step))
    rles = [rle_of(mask) for mask in masks]
    call = f"given.map((rle) => page.decodeMask(rle, {step})).map((mask) => ({{ ...mask, data: [...mask.data] }}))"
    thinned = [mask[::step, ::step] for mask in masks]
    found = node("rle.js", call, rles)
    for decoded, mask, expected in zip(whole(found, [mask.shape for mask in thinned]), found, thinned, strict=True):
        np.testing.assert_array_equal(decoded, expected)
        assert mask["width"] * mask["height"] == 0 or (np.any(expected[mask["y"]]) and np.any(expected[:, mask["x"]]))


@pytest.mark.parametrize("factors", [(1, 1), (2, 3), (1.4, 1.37), (5.5, 1)])
def test_masks_are_enlarged_to_their_image(factors: tuple[float, float]) -> None:
    given, expected = [], []
    for mask in random_masks(np.random.default_rng(4)):
        height, width = (int(side * factor) for side, factor in zip(mask.shape, factors, strict=True))
        large = mask
        for axis, length in enumerate((height, width)):
            edges = np.floor(np.arange(mask.shape[axis] + 1) * length / mask.shape[axis] + 0.5).astype(int)
            large = large.repeat(np.diff(edges), axis)
        assert large.shape == (height, width)
        given.append([rle_of(mask), width, height])
        expected.append(rle_of(large))
    assert node("rle.js", "given.map((each) => page.enlarged(...each))", given) == expected


def test_detections_of_two_models_match_by_class_and_overlap() -> None:
    def found(name: str, *box: float) -> dict[str, Any]:
        return {"class": name, "box": box}

    ones = [found("cat", 0, 0, 10, 10), found("cat", 100, 0, 110, 10), found("dog", 50, 50, 60, 60)]
    others = [
        found("cat", 0, 0, 10, 6),  # IoU 0.6 with the first
        found("cat", 0, 0, 10, 9),  # 0.9: the better partner
        found("cat", 50, 50, 60, 60),  # another class
        found("cat", 105, 0, 115, 10),  # 1/3
        found("dog", 50, 50, 60, 55),  # exactly 0.5
    ]
    result = node("compare.js", "page.match(given[0], given[1])", [ones, others])
    assert result == {"pairs": [[0, 1], [2, 4]], "onlyOnes": [1], "onlyOthers": [0, 2, 3]}


def test_overlap_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.integers(0, 20, (2, 300, 2)), rng.integers(1, 20, (2, 300, 2))], axis=2)  # x, y, w, h
    corners = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=2)
    result = node("compare.js", "given[0].map((one, i) => page.iou(one, given[1][i]))", corners.tolist())
    expected = coco_mask.iou(boxes[0].astype(float), boxes[1].astype(float), [0] * 300).diagonal()
    assert 50 < np.count_nonzero(expected) < 300
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_downloads_have_the_forms_of_coco_and_yolo() -> None:
    found = {
        "class": "cat",
        "class_id": 7,
        "category_id": 90,
        "score": 0.5,
        "box": [1, 2, 11.5, 22],
        "mask": rle_of(np.eye(10, dtype=np.uint8)),
    }
    [row] = json.loads(node("files.js", "page.toCoco(given, 20, 30)", [found]))
    assert (row["bbox"], row["category_id"], row["score"]) == ([1, 2, 10.5, 20], 90, 0.5)
    assert coco_mask.decode(row["segmentation"]).shape == (30, 20)
    parts = [[10, 10, 30, 10, 30, 40, 10, 40], [60, 20, 90, 20, 90, 30, 60, 30]]
    text = node("files.js", "page.toYolo(given, 100, 50)", [found | {"mask": parts}, found | {"mask": []}])
    [line] = text.splitlines()
    number, *values = line.split()
    assert number == "7"
    outline = np.array(values, float).reshape(-1, 2) * (100, 50)
    rles = coco_mask.frPyObjects([outline.ravel().tolist()], 50, 100)
    expected = coco_mask.merge(coco_mask.frPyObjects(parts, 50, 100))
    assert coco_mask.iou(rles, [expected], [0])[0, 0] > 0.95
