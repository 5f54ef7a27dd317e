"""KServe's own client against `yolact serve`. It speaks REST only: the server has no gRPC."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from tests.interop.packages import needed
from tests.serving.conftest import command, encoded, picture
from tests.serving.test_open_inference import assert_same
from yolact.inference.predictor import Predictor

kserve = needed("kserve")

pytestmark = pytest.mark.interop

TOKEN = "let me in"
IMAGES = [encoded(picture()), encoded(picture((40, 30)))]
PIXELS = np.array(picture())
Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def address(model_dir: Path) -> Iterator[str]:
    with command(model_dir, YOLACT_SERVE_TOKEN=TOKEN) as (_, url):
        yield url


def run(call: Coroutine[Any, Any, Answer]) -> Answer:
    return asyncio.run(call)


async def infer(address: str, request: Any, token: str = TOKEN) -> Any:
    async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")) as client:
        headers = {"Authorization": f"Bearer {token}"}
        return await client.infer(address, request, model_name=request.model_name, headers=headers)


def request_of(data: np.ndarray, datatype: str, binary: bool, **options: Any) -> Any:
    tensor = kserve.InferInput("image", list(data.shape), datatype)
    tensor.set_data_from_numpy(data, binary_data=binary)
    return kserve.InferRequest("yolact", [tensor], **options)


def outputs(answer: Any) -> dict[str, np.ndarray]:
    return {output.name: output.as_numpy() for output in answer.outputs}


def test_the_client_asks_whether_server_and_model_are_ready(address: str) -> None:
    async def asked() -> list[bool]:
        async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")) as client:
            return [
                await client.is_server_live(address),
                await client.is_server_ready(address),
                await client.is_model_ready(address, "yolact"),
                await client.is_model_ready(address, "other"),
            ]

    assert run(asked()) == [True, True, True, False]


@pytest.mark.parametrize(
    ("data", "datatype", "binary", "images"),
    [
        (PIXELS, "UINT8", True, IMAGES[:1]),
        (PIXELS, "UINT8", False, IMAGES[:1]),
        (np.stack([PIXELS, PIXELS]), "UINT8", True, IMAGES[:1] * 2),
        (np.array(IMAGES, object), "BYTES", True, IMAGES),
        # The client puts text, not bytes, into JSON.
        (np.array([base64.b64encode(image).decode() for image in IMAGES], object), "BYTES", False, IMAGES),
    ],
    ids=["pixels", "pixels in JSON", "a batch of pixels", "files", "files in JSON"],
)
def test_the_client_gets_the_predictors_detections(
    address: str, model_dir: Path, data: np.ndarray, datatype: str, binary: bool, images: list[bytes]
) -> None:
    answer = run(infer(address, request_of(data, datatype, binary, request_id="7")))
    assert (answer.id, answer.model_name) == ("7", "yolact")
    assert_same(outputs(answer), Predictor.load(model_dir, device="cpu").predict(images))


def test_the_client_gets_binary_outputs(address: str, model_dir: Path) -> None:
    answer = run(infer(address, request_of(PIXELS, "UINT8", True, parameters={"binary_data_output": True})))
    assert [output.parameters for output in answer.outputs] == [{}] * 8  # it takes the size out; JSON has no parameters
    assert_same(outputs(answer), Predictor.load(model_dir, device="cpu").predict(IMAGES[:1]))


def test_the_client_chooses_parameters_and_outputs(address: str) -> None:
    wanted = [kserve.protocol.infer_type.RequestedOutput("scores", {"binary_data": True})]
    request = request_of(PIXELS, "UINT8", True, parameters={"max_detections": 2}, request_outputs=wanted)
    found = outputs(run(infer(address, request)))
    assert list(found) == ["scores"]
    assert found["scores"].shape == (2,)


def test_the_client_shows_the_servers_reasons(address: str) -> None:
    httpx = needed("httpx")
    with pytest.raises(httpx.HTTPStatusError, match=r"image: datatype 'FP32'.*400 Bad Request"):
        run(infer(address, request_of(np.zeros((2, 2, 3), np.float32), "FP32", True)))
    with pytest.raises(httpx.HTTPStatusError, match=r"the token is wrong.*401"):
        run(infer(address, request_of(PIXELS, "UINT8", True), token="wrong"))
