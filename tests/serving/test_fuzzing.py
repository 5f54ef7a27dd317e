"""Damaged bodies: the server answers each with a result or with an error of its own, never with 500."""

from __future__ import annotations

import base64
import json

import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.conftest import encoded, picture
from tests.yolact.test_fuzzing import damaged

IMAGE = encoded(picture((24, 16)))
TEXT = base64.b64encode(IMAGE).decode()
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    + IMAGE
    + b"\r\n--x--\r\n"
)
INPUT = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
PIXELS = {"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": list(range(12))}
BODIES = [
    ("predict", "image/png", IMAGE),
    ("predict", "application/json", json.dumps({"images": [{"name": "a", "data": TEXT}]}).encode()),
    ("predict", "multipart/form-data; boundary=x", FORM),
    ("v2/models/yolact/infer", "application/json", json.dumps({"inputs": [INPUT]}).encode()),
    ("v2/models/yolact/infer", "application/json", json.dumps({"inputs": [PIXELS]}).encode()),
]
REFUSALS = (400, 413, 415, 422)


def assert_answered(answer: requests.Response) -> None:
    assert answer.status_code == 200 or answer.status_code in REFUSALS, answer.text
    assert answer.status_code == 200 or answer.json()["error"]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.sampled_from(BODIES).flatmap(lambda body: st.tuples(st.just(body[:2]), damaged([body[2]]))))
def test_damaged_bodies_are_answered(url: str, body: tuple[tuple[str, str], bytes]) -> None:
    (route, kind), data = body
    assert_answered(requests.post(f"{url}/{route}", data=data, headers={"Content-Type": kind}, timeout=60))


BINARY = json.dumps({"inputs": [{**PIXELS, "data": None, "parameters": {"binary_data_size": 12}}]}).replace(
    ', "data": null', ""
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=damaged([BINARY.encode() + bytes(range(12))]), shift=st.sampled_from([0, 0, -1, 1, 1000]))
def test_damaged_binary_tensors_are_answered(url: str, data: bytes, shift: int) -> None:
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(BINARY) + shift),
    }
    assert_answered(requests.post(f"{url}/v2/models/yolact/infer", data=data, headers=headers, timeout=60))
