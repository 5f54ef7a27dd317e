"""Damaged, hostile and unusual requests: each gets a clear answer, and the server goes on."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
import requests
from PIL import Image

from tests.serving.conftest import SIZE, encoded, error_of, metric, picture, post


@pytest.fixture(autouse=True)
def still_well(url: str, png: bytes) -> Iterator[None]:
    """After each of these requests the next one is answered, and nothing is kept of it."""
    yield
    assert post(f"{url}/predict", png).status_code == 200
    assert metric(url, "yolact_queue_images") == 0
    assert metric(url, "yolact_request_bytes") == 0


def bomb() -> bytes:
    """A PNG that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"only text", "it is not a JPEG, PNG, WebP, GIF or BMP image"),
        (encoded(picture())[:-60], "it cannot be decoded: "),
        (encoded(picture(), "JPEG")[:-200], "it cannot be decoded: image file is truncated"),
        (bomb(), "it has far too many pixels"),
        (encoded(Image.new("L", (2000, 1100))), "it has 2.2 megapixels (2000x1100); at most 2 are accepted"),
        (sixteen_bit(), "it cannot be decoded: it has 16 or more bits per channel"),
        (encoded(picture(), "TIFF"), "it is not a JPEG, PNG, WebP, GIF or BMP image"),
        (b"\x89PNG\r\n\x1a\n", "it is not a JPEG"),
    ],
    ids=["text", "truncated PNG", "truncated JPEG", "bomb", "too many pixels", "16 bits", "TIFF", "only a signature"],
)
def test_what_is_no_usable_image_is_refused_with_the_reason(url: str, data: bytes, message: str) -> None:
    answer = post(f"{url}/predict", data, "image/jpeg")
    assert answer.status_code == 422
    assert error_of(answer).startswith(f"image 1: {message}")
    assert post(f"{url}/predict/overlay", data).status_code == 422


@pytest.mark.parametrize(
    "image",
    [
        encoded(picture().convert("CMYK"), "JPEG"),
        encoded(picture().convert("L")),
        encoded(picture().convert("P")),
        encoded(picture().convert("RGBA"), "WEBP"),
        encoded(picture(), "BMP"),
        encoded(
            picture(), "GIF", save_all=True, append_images=[picture().transpose(Image.Transpose.FLIP_TOP_BOTTOM)] * 3
        ),
    ],
    ids=["CMYK", "grey", "palette", "WebP with alpha", "BMP", "animated GIF"],
)
def test_unusual_images_are_turned_into_rgb(url: str, image: bytes) -> None:
    answer = post(f"{url}/predict", image, "application/octet-stream")
    [entry] = answer.json()["images"]
    assert (entry["width"], entry["height"]) == SIZE


def test_of_an_animation_the_first_frame_counts(url: str) -> None:
    first, second = picture(), Image.new("RGB", SIZE, "white")
    animated = encoded(first, "GIF", save_all=True, append_images=[second] * 3)
    alone = encoded(first, "GIF")
    assert post(f"{url}/predict", animated).json()["images"] == post(f"{url}/predict", alone).json()["images"]


def test_an_image_of_one_pixel_is_answered(url: str) -> None:
    [entry] = post(f"{url}/predict", encoded(Image.new("RGB", (1, 1)))).json()["images"]
    assert (entry["width"], entry["height"]) == (1, 1)


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, False), (6, True), (8, True), (99, False)])
def test_an_image_is_turned_upright_as_its_exif_says_and_odd_values_are_ignored(
    url: str, orientation: int, turned: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    [entry] = post(f"{url}/predict", encoded(picture(), "JPEG", exif=exif), "image/jpeg").json()["images"]
    assert (entry["width"], entry["height"]) == (SIZE[::-1] if turned else SIZE)
    assert all(row["mask"]["size"] == [entry["height"], entry["width"]] for row in entry["detections"])


def test_broken_exif_data_is_ignored(url: str) -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(20))
    assert post(f"{url}/predict", data, "image/jpeg").json()["images"][0]["width"] == SIZE[0]


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"", "image/jpeg", 400, "the body is empty"),
        (b"x", "text/plain", 415, "content type 'text/plain'; send multipart/form-data"),
        (b"x", "image/tiff", 415, "content type 'image/tiff'"),
        (b"x", "multipart/form-data", 400, "not a form with files"),
        (b"no form", "multipart/form-data; boundary=x", 400, "not a form with files"),
        (b"", "multipart/form-data; boundary=x", 400, "the form has no files"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "the form has no files"),
        (b"", "application/json", 400, "the body is not JSON"),
        (b"{", "application/json", 400, "the body is not JSON"),
        (b"\xff", "application/json", 400, "the body is not JSON"),
        (b"[" * 100_000, "application/json", 400, "the JSON is too deeply nested"),
        (b'{"images":' + b"[" * 900 + b"]" * 900 + b"}", "application/json", 422, "image 1: it must be base64 text"),
        (b"[]", "application/json", 400, 'the JSON must be {"images": [image, ...]}'),
        (b'{"image": "x"}', "application/json", 400, 'the JSON must be {"images": [image, ...]}'),
        (b'{"images": ["?"]}', "application/json", 422, "image 1: it is not base64"),
        (b'{"images": ["data:image/png,abc"]}', "application/json", 422, "image 1: it is not base64: a data URL must"),
        (b'{"images": [3]}', "application/json", 422, "image 1: it must be base64 text or a data URL; found int"),
        (b'{"images": [{"url": "x"}]}', "application/json", 422, "image 1: it must be base64 text, a data URL"),
    ],
)
def test_a_body_that_is_not_what_its_type_says_is_refused(
    url: str, body: bytes, kind: str, status: int, message: str
) -> None:
    answer = post(f"{url}/predict", body, kind)
    assert (answer.status_code, error_of(answer)[: len(message)]) == (status, message)


def test_a_name_that_is_no_text_comes_back_as_it_was(url: str, png: bytes) -> None:
    good = {"name": "\ud800", "data": base64.b64encode(png).decode()}
    answer = requests.post(f"{url}/predict", json={"images": [good]}, timeout=30)
    assert (answer.status_code, answer.json()["images"][0]["name"]) == (200, "\ud800")
    answer = requests.post(f"{url}/predict", json={"images": [{"name": "\ud800", "data": "?"}]}, timeout=30)
    assert (answer.status_code, error_of(answer)) == (
        422,
        "image 1 (\\ud800): it is not base64: Only base64 data is allowed",
    )


def test_a_form_with_fields_but_no_files_is_explained(url: str) -> None:
    answer = requests.post(f"{url}/predict", files={"images": (None, "text")}, timeout=10)
    assert answer.status_code == 400
    assert "fields without a file name: 1" in error_of(answer)


def test_a_thousand_images_in_a_request_are_refused(url: str, png: bytes) -> None:
    files = [("images", (f"{number}.png", png)) for number in range(1000)]
    answer = requests.post(f"{url}/predict", files=files, timeout=30)
    assert answer.status_code == 413
    assert error_of(answer) == "more than 8 images; a request may have at most 8"
    tree = {"images": [base64.b64encode(png).decode()] * 1000}
    answer = requests.post(f"{url}/predict", json=tree, timeout=30)
    assert (answer.status_code, error_of(answer)) == (413, "1000 images; a request may have at most 8")


def test_a_form_with_very_many_fields_is_refused(url: str) -> None:
    answer = requests.post(f"{url}/predict", files=[("x", (None, "text"))] * 500, timeout=10)
    assert (answer.status_code, error_of(answer)) == (413, "the form has more than 100 fields that are no files")


def test_when_no_image_can_be_used_the_error_names_the_first_ones(url: str) -> None:
    answer = requests.post(f"{url}/predict", json={"images": ["aGk="] * 7}, timeout=10)
    assert answer.status_code == 422
    text = error_of(answer)
    assert text.startswith("image 1: it is not a JPEG")
    assert text.endswith("; and 2 more")


# Bodies that never end ---------------------------------------------------------------------------------------------


class RawClient:
    """A connection whose bytes a test chooses."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)

    def send(self, text: str | bytes) -> None:
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def status(self) -> int:
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = self.socket.recv(65536)
            assert part, answer
            answer += part
        return int(answer.split()[1])

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def raw(url: str) -> Iterator[RawClient]:
    client = RawClient(url)
    yield client
    client.close()


def head(*lines: str) -> str:
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", "Content-Type: image/png", *lines]) + "\r\n\r\n"


def test_a_gigabyte_is_refused_before_it_is_sent(raw: RawClient) -> None:
    raw.send(head("Content-Length: 1000000000"))
    assert raw.status() == 413


def test_a_body_of_unknown_length_is_refused_at_the_limit(raw: RawClient) -> None:
    raw.send(head("Transfer-Encoding: chunked"))
    block = bytes(500_000)
    sent = 0
    with suppress(OSError):  # the server closes the connection
        for _ in range(2000):
            raw.send(f"{len(block):x}\r\n".encode() + block + b"\r\n")
            sent += len(block)
    assert sent < 100e6
    with suppress(ConnectionResetError):  # the answer was lost with what the server had not read
        assert raw.status() == 413


def test_a_client_that_is_too_slow_is_answered_408(raw: RawClient) -> None:
    raw.send(head("Content-Length: 100000"))
    start = time.monotonic()
    raw.send(b"x" * 100)
    assert raw.status() == 408
    assert 0.8 < time.monotonic() - start < 5


def test_a_client_that_goes_away_leaves_nothing_behind(raw: RawClient, url: str) -> None:
    raw.send(head("Content-Length: 100000") + "x" * 1000)
    time.sleep(0.1)
    assert metric(url, "yolact_request_bytes") == 1000
    raw.close()
    end = time.monotonic() + 5
    while metric(url, "yolact_request_bytes"):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/nothing", 404)])
def test_unknown_addresses_have_the_same_form_of_error(url: str, method: str, path: str, status: int) -> None:
    answer = requests.request(method, url + path, timeout=10)
    assert answer.status_code == status
    assert json.loads(answer.text).keys() == {"error"}
