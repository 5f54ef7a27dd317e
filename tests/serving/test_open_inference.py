"""The Open Inference Protocol, as KServe's client and others speak it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
import requests
from pycocotools import mask as coco_mask

from tests.serving.conftest import CLASSES, encoded, error_of, picture, running
from yolact.inference.detections import Detections
from yolact.inference.predictor import Predictor

NAMES = ("num_detections", "image_sizes", "boxes", "scores", "class_ids", "classes", "mask_sizes", "masks")


@pytest.fixture(scope="module")
def expected(model_dir: Any) -> list[Detections]:
    return Predictor.load(model_dir, device="cpu").predict([encoded(picture()), encoded(picture((40, 30)))])


def nested(depth: int) -> list[Any]:
    """``["x"]`` in so many lists."""
    data: list[Any] = ["x"]
    for _ in range(depth):
        data = [data]
    return data


def infer(url: str, tree: Any) -> requests.Response:
    return requests.post(f"{url}/v2/models/yolact/infer", json=tree, timeout=30)


def infer_binary(url: str, tensor: dict[str, Any], data: bytes) -> requests.Response:
    """As KServe's client sends tensors by default."""
    tensor = {"name": "image", "parameters": {"binary_data_size": len(data)}} | tensor
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return requests.post(f"{url}/v2/models/yolact/infer", data=header + data, headers=headers, timeout=30)


def outputs(answer: requests.Response, tree: Any = None) -> dict[str, np.ndarray]:
    assert answer.status_code == 200, answer.text
    tree = answer.json() if tree is None else tree
    assert tree["model_name"] == "yolact"
    kinds = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BYTES": object}
    return {
        each["name"]: np.array(each["data"], kinds[each["datatype"]]).reshape(each["shape"]) for each in tree["outputs"]
    }


def assert_same(found: dict[str, np.ndarray], expected: list[Detections]) -> None:
    assert tuple(found) == NAMES
    assert found["num_detections"].tolist() == [len(each) for each in expected]
    np.testing.assert_allclose(found["boxes"], np.concatenate([each.boxes for each in expected]), atol=1e-3)
    np.testing.assert_allclose(found["scores"], np.concatenate([each.scores for each in expected]), atol=1e-5)
    labels = [label for each in expected for label in each.labels.tolist()]
    assert found["class_ids"].tolist() == labels
    assert found["classes"].tolist() == [CLASSES[label] for label in labels]
    masks = [mask for each in expected for mask in each.masks.numpy()]
    for size, counts, mask in zip(found["mask_sizes"].tolist(), found["masks"], masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode({"size": size, "counts": counts}), mask)


def test_openapi_has_an_example_that_is_answered_and_the_header_of_binary_tensors(url: str) -> None:
    tree = requests.get(f"{url}/openapi.json", timeout=10).json()["paths"]["/v2/models/{name}/infer"]["post"]
    example = tree["requestBody"]["content"]["application/json"]["example"]
    assert outputs(infer(url, example))["image_sizes"].tolist() == [[2, 2]]
    assert ("header", "Inference-Header-Content-Length") in {(each["in"], each["name"]) for each in tree["parameters"]}


def test_health_and_metadata_have_the_protocols_form(url: str) -> None:
    for path, tree in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/yolact/ready", {"name": "yolact", "ready": True}),
    ):
        answer = requests.get(url + path, timeout=10)
        assert (answer.status_code, answer.json()) == (200, tree)
    assert requests.get(f"{url}/v2", timeout=10).json().keys() == {"name", "version", "extensions"}
    metadata = requests.get(f"{url}/v2/models/yolact", timeout=10).json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert tuple(each["name"] for each in metadata["outputs"]) == NAMES
    assert requests.get(f"{url}/v2/models/other", timeout=10).status_code == 404
    assert requests.get(f"{url}/v2/models/other/ready", timeout=10).status_code == 404


def test_encoded_images_in_json_and_in_binary_give_the_predictors_detections(
    url: str, expected: list[Detections]
) -> None:
    images = [encoded(picture()), encoded(picture((40, 30)))]
    data = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": data}
    answer = infer(url, {"id": "7", "inputs": [tensor]})
    assert answer.json()["id"] == "7"
    assert_same(outputs(answer), expected)
    assert_same(
        outputs(infer(url, {"inputs": [tensor | {"shape": [2, 1], "data": [[each] for each in data]}]})), expected
    )
    for elements in (images, [each.encode() for each in data]):
        binary = b"".join(struct.pack("<I", len(each)) + each for each in elements)
        assert_same(outputs(infer_binary(url, {"shape": [2], "datatype": "BYTES"}, binary)), expected)


def test_pixels_in_json_and_in_binary_give_the_predictors_detections(url: str, expected: list[Detections]) -> None:
    pixels = np.array(picture())
    shape = list(pixels.shape)
    for tensor in (
        {"shape": shape, "data": pixels.ravel().tolist()},
        {"shape": [1, *shape], "data": [pixels.tolist()]},
    ):
        answer = infer(url, {"inputs": [{"name": "image", "datatype": "UINT8"} | tensor]})
        assert_same(outputs(answer), expected[:1])
    binary = infer_binary(url, {"shape": [2, *shape], "datatype": "UINT8"}, pixels.tobytes() * 2)
    assert_same(outputs(binary), [expected[0], expected[0]])


def test_parameters_and_outputs_can_be_chosen(url: str, png: bytes) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(png).decode()]}
    tree = {"inputs": [tensor], "parameters": {"max_detections": 1}, "outputs": [{"name": "scores"}]}
    found = outputs(infer(url, tree))
    assert list(found) == ["scores"]
    assert found["scores"].shape == (1,)


def with_binary(answer: requests.Response) -> tuple[dict[str, np.ndarray], set[str]]:
    """The outputs of an answer, and the names of the binary ones."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers["Inference-Header-Content-Length"])
    tree, rest = json.loads(answer.content[:length]), answer.content[length:]
    binary = set()
    for each in tree["outputs"]:
        if "data" in each:
            assert "parameters" not in each
            continue
        size = each["parameters"]["binary_data_size"]
        part, rest = rest[:size], rest[size:]
        assert len(part) == size
        binary.add(each["name"])
        if each["datatype"] == "BYTES":
            each["data"] = []
            while part:
                [count] = struct.unpack("<I", part[:4])
                each["data"].append(part[4 : 4 + count].decode())
                part = part[4 + count :]
        else:
            kind = {"INT32": "i", "INT64": "q", "FP32": "f"}[each["datatype"]]
            each["data"] = list(struct.unpack(f"<{len(part) // struct.calcsize(kind)}{kind}", part))
    assert rest == b""
    return outputs(answer, tree), binary


def test_outputs_are_binary_where_the_request_says_so(url: str, png: bytes, expected: list[Detections]) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(png).decode()]}
    tree: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    found, binary = with_binary(infer(url, tree))
    assert_same(found, expected[:1])
    assert binary == set(NAMES)
    own = [{"name": "classes", "parameters": None}, {"name": "scores", "parameters": {"binary_data": False}}]
    found, binary = with_binary(infer(url, tree | {"outputs": own}))
    assert (set(found), binary) == ({"scores", "classes"}, {"classes"})
    own = [{"name": "classes"}, {"name": "scores", "parameters": {"binary_data": True}}]
    found, binary = with_binary(infer(url, {"inputs": [tensor], "outputs": own}))
    assert (set(found), binary) == ({"scores", "classes"}, {"scores"})
    nothing = tree | {"parameters": {"binary_data_output": True, "score_threshold": 0.999}}
    assert all(
        len(values) == 0 for name, values in with_binary(infer(url, nothing))[0].items() if name not in NAMES[:2]
    )
    assert list(outputs(infer(url, {"inputs": [tensor], "parameters": {"binary_data_output": False}}))) == list(NAMES)


IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["aGk="]}
PIXEL = IMAGE | {"datatype": "UINT8", "shape": [1, 1, 3]}


@pytest.mark.parametrize(
    ("tree", "status", "message"),
    [
        ({}, 400, "inputs: "),
        ([], 400, "body: "),
        ({"inputs": []}, 400, "there must be one input, 'image'; found none"),
        ({"inputs": [IMAGE | {"name": "x"}]}, 400, "there must be one input, 'image'; found x"),
        ({"inputs": [IMAGE | {"shape": [2]}]}, 400, "image: the shape is [2], but there are 1 elements"),
        ({"inputs": [IMAGE | {"shape": [-1]}]}, 400, "inputs.0.shape.0: Input should be greater than or equal to 0"),
        ({"inputs": [IMAGE | {"shape": [9] * 100_000}]}, 400, "inputs.0.shape: List should have at most 4 items"),
        ({"inputs": [IMAGE | {"shape": [1000]}]}, 413, "1000 images; a request may have at most 8"),
        ({"inputs": [IMAGE | {"data": ["x"] * 100_000}]}, 400, "image: the shape is [1], but there are more than 8"),
        ({"inputs": [IMAGE | {"data": nested(900)}]}, 422, "image[0]: it is not base64"),
        ({"inputs": [IMAGE | {"datatype": "FP32"}]}, 400, "image: datatype 'FP32'"),
        ({"inputs": [IMAGE | {"data": None}]}, 400, "image: there is no data"),
        ({"inputs": [IMAGE]}, 422, "image[0]: it is not a JPEG"),
        ({"inputs": [IMAGE | {"data": ["?"]}]}, 422, "image[0]: it is not base64"),
        ({"inputs": [IMAGE | {"data": [3]}]}, 422, "image[0]: it must be base64 text"),
        ({"inputs": [IMAGE | {"datatype": "UINT8", "shape": [2, 2]}]}, 400, "image: UINT8 pixels must be"),
        ({"inputs": [PIXEL | {"data": [1, 2]}]}, 400, "image: the data does"),
        (
            {"inputs": [PIXEL | {"data": [1, 2, 300]}]},
            400,
            "image: UINT8 must",
        ),
        (
            {"inputs": [PIXEL | {"data": [1, "2", 3]}]},
            400,
            "image: UINT8 must",
        ),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 3}}]}, 400, "image: binary_data_size is 3, but 0"),
        ({"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}, 400, "parameters.binary_data_output: must be"),
        (
            {"inputs": [IMAGE], "outputs": [{"name": "boxes", "parameters": {"binary_data": "yes"}}]},
            400,
            "outputs.0.parameters.binary_data: Input should be a valid boolean",
        ),
        ({"inputs": [IMAGE], "outputs": [{"name": "bpxes"}]}, 400, "outputs: there is no bpxes; there are: num_detect"),
        ({"inputs": [IMAGE], "parameters": {"score_threshold": 7}}, 422, "parameters.score_threshold: "),
        ({"inputs": [IMAGE | {"shape": [9], "data": ["aGk="] * 9}]}, 413, "9 images; a request may have at most 8"),
    ],
)
def test_a_wrong_request_is_refused_with_the_protocols_form_of_error(
    url: str, tree: Any, status: int, message: str
) -> None:
    answer = infer(url, tree)
    assert (answer.status_code, error_of(answer)[: len(message)]) == (status, message)


def test_binary_data_that_does_not_fit_is_refused(url: str) -> None:
    answer = infer_binary(url, {"shape": [1], "datatype": "BYTES"}, struct.pack("<I", 100) + b"short")
    assert (answer.status_code, error_of(answer)) == (400, "image: the element at byte 0 is longer than the data")
    for length in ("99", "9" * 5000):
        headers = {"Inference-Header-Content-Length": length}
        answer = requests.post(f"{url}/v2/models/yolact/infer", data=b"{}", headers=headers, timeout=10)
        assert answer.status_code == 400


def test_the_model_has_the_name_that_kserve_gives_it(model_dir: Any) -> None:
    with running(model=str(model_dir), name="mine") as server:
        assert requests.get(f"{server.address}/v2/models/mine/ready", timeout=10).json()["ready"]
