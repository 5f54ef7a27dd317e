"""Overload, deadlines, the token, and the end of the server."""

from __future__ import annotations

import signal
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from torch import Tensor

from serving.bodies import find_uploads, parsed_size
from serving.errors import ApiError
from serving.server import Server
from serving.settings import read_settings
from tests.serving.conftest import command, encoded, error_of, metric, picture, post, running, wait
from yolact.errors import SettingsError, WeightsError
from yolact.inference.detections import Detections
from yolact.settings import DetectConfig


@contextmanager
def held(server: Server) -> Iterator[threading.Event]:
    """The network waits until the event is set."""
    model = server.service.following.model
    assert model is not None
    detect, free = model.detect, threading.Event()

    def waiting(images: Sequence[Tensor], config: DetectConfig) -> list[Detections]:
        assert free.wait(20)
        return detect(images, config)

    model.detect = waiting  # type: ignore[method-assign]
    try:
        yield free
    finally:
        free.set()
        model.detect = detect  # type: ignore[method-assign]


@contextmanager
def posting(number: int, send: Callable[[], requests.Response]) -> Iterator[list[Any]]:
    """Requests of that many clients at once; at the end of the block they have their answers."""
    with ThreadPoolExecutor(number) as clients:
        futures = [clients.submit(send) for _ in range(number)]
        answers: list[Any] = []
        yield answers
        answers += [future.result() for future in futures]


def test_a_full_queue_is_answered_429_with_the_time_to_wait_and_empties_again(model_dir: Path, png: bytes) -> None:
    with running(model=str(model_dir), queue_size=4, max_images=4, batch_size=4) as server:
        url = server.address
        with held(server) as free:
            with posting(4, lambda: post(f"{url}/predict", png)) as answers:
                wait(lambda: server.service.batcher.reserved == 4)
                refused = post(f"{url}/predict", png)
                assert (refused.status_code, error_of(refused)[:17]) == (429, "the queue is full")
                assert 1 <= int(refused.headers["Retry-After"]) <= 60
                assert requests.get(f"{url}/healthz", timeout=1).status_code == 200
                free.set()
            assert [answer.status_code for answer in answers] == [200] * 4
        assert post(f"{url}/predict", png).status_code == 200
        assert metric(url, 'yolact_refused_requests_total{reason="the queue is full"}') == 1


def test_images_that_wait_run_together(model_dir: Path, png: bytes) -> None:
    with running(model=str(model_dir), batch_size=4) as server:
        url = server.address
        alone = post(f"{url}/predict", png).json()
        before = metric(url, "yolact_batch_images_count")
        with held(server) as free, posting(1, lambda: post(f"{url}/predict", png)):
            wait(lambda: server.service.batcher.busy_since)
            with posting(8, lambda: post(f"{url}/predict", png)) as answers:
                wait(lambda: len(server.service.batcher._waiting) == 8)
                free.set()
        assert metric(url, "yolact_batch_images_count") == before + 3  # the first one, then 4 and 4
        for answer in answers:
            found = [(row["class"], row["score"]) for row in answer.json()["images"][0]["detections"]]
            assert found == [(row["class"], row["score"]) for row in alone["images"][0]["detections"]]


def test_requests_with_other_parameters_do_not_share_a_batch(model_dir: Path, png: bytes) -> None:
    with running(model=str(model_dir)) as server:
        url = server.address
        counts = iter([1, 2, 1, 2, 1, 2])
        lock = threading.Lock()

        def send() -> tuple[int, int]:
            with lock:
                count = next(counts)
            answer = post(f"{url}/predict?max_detections={count}", png)
            return count, len(answer.json()["images"][0]["detections"])

        with held(server) as free, posting(6, send) as answers:  # type: ignore[arg-type]
            wait(lambda: server.service.batcher.reserved == 6)
            free.set()
        assert all(asked == found for asked, found in answers)


def test_the_memory_of_requests_is_limited(model_dir: Path) -> None:
    image = encoded(picture((1300, 1000)))
    limits = {"memory_mb": 11, "max_body_mb": 1, "max_megapixels": 2}
    with running(model=str(model_dir), **limits) as server:
        url = server.address
        with held(server) as free, posting(2, lambda: post(f"{url}/predict", image)) as answers:
            wait(lambda: server.service.memory.used > 7.8e6)
            refused = post(f"{url}/predict", image)
            free.set()
        assert (refused.status_code, error_of(refused)[:30]) == (429, "the memory for requests is ful")
        assert [answer.status_code for answer in answers] == [200, 200]
        assert server.service.memory.used == 0


def test_an_answer_that_takes_too_long_is_given_up_and_its_images_do_not_run(model_dir: Path, png: bytes) -> None:
    with running(model=str(model_dir), timeout=1, batch_size=1) as server:
        url = server.address
        runs = metric(url, "yolact_batch_images_count")
        with held(server) as free, posting(3, lambda: post(f"{url}/predict", png)) as answers:
            wait(lambda: server.service.batcher.reserved == 3)
            wait(lambda: server.service.batcher.reserved == 0)
            free.set()
        assert [answer.status_code for answer in answers] == [504] * 3
        assert error_of(answers[0]) == "there was no answer within 1 s"
        assert post(f"{url}/predict", png).status_code == 200
        assert metric(url, "yolact_batch_images_count") == runs + 2  # the one that was running, and the last


def test_an_image_on_which_the_network_fails_does_not_fail_those_of_its_batch(model_dir: Path) -> None:
    with running(model=str(model_dir)) as server:
        model = server.service.following.model
        assert model is not None
        detect = model.detect

        def fails_on_squares(images: Sequence[Tensor], config: DetectConfig) -> list[Detections]:
            if any(image.shape[1] == image.shape[2] for image in images):
                raise RuntimeError("no squares")
            return detect(images, config)

        model.detect = fails_on_squares  # type: ignore[method-assign]
        files = [("images", (name, encoded(picture(size)))) for name, size in (("a", (40, 30)), ("b", (30, 30)))]
        images = requests.post(f"{server.address}/predict", files=files, timeout=10).json()["images"]
        assert "detections" in images[0]
        assert images[1] == {"name": "b", "error": "the network failed: RuntimeError"}
        assert requests.get(f"{server.address}/healthz", timeout=10).status_code == 200


def test_a_server_whose_network_hangs_is_not_healthy_until_it_answers_again(
    model_dir: Path, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.service.STUCK", 0.2)
    with running(model=str(model_dir)) as server:
        url = server.address
        with held(server) as free, posting(1, lambda: post(f"{url}/predict", png)) as answers:
            wait(lambda: requests.get(f"{url}/healthz", timeout=10).status_code == 503)
            sick = requests.get(f"{url}/healthz", timeout=10).json()
            free.set()
        assert sick == {"healthy": False, "error": "a batch has run for more than 0.2 s"}
        assert answers[0].status_code == 200
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"healthy": True, "error": None}


def test_a_server_without_its_batches_is_not_healthy(model_dir: Path, png: bytes) -> None:
    with running(model=str(model_dir), timeout=1) as server:
        url = server.address

        def fail() -> None:
            raise RuntimeError("a bug")

        server.service.batcher._next_batch = fail  # type: ignore[method-assign, assignment]
        assert post(f"{url}/predict", png).status_code == 504
        answer = requests.get(f"{url}/healthz", timeout=10)
        assert (answer.status_code, answer.json()["error"]) == (503, "an internal task has failed")


def test_with_a_token_only_health_and_metrics_are_open(model_dir: Path, tmp_path: Path, png: bytes) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with running(model=str(model_dir), token_file=tmp_path / "token") as server:
        url = server.address
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for method, path in (("POST", "/predict"), ("GET", "/model"), ("POST", "/v2/models/yolact/infer")):
                answer = requests.request(method, url + path, headers=header, timeout=10)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert "s3cret" not in error_of(answer)
        right = {"Authorization": "Bearer s3cret", "Content-Type": "image/png"}
        assert requests.post(f"{url}/predict", png, headers=right, timeout=10).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/models/yolact/ready"):
            assert requests.get(url + path, timeout=10).status_code == 200


def test_a_stop_first_ends_readiness_then_answers_what_came(model_dir: Path, png: bytes) -> None:
    with running(model=str(model_dir), drain=0.5) as server:
        url = server.address
        with held(server) as free, posting(3, lambda: post(f"{url}/predict", png)) as answers:
            wait(lambda: server.service.batcher.reserved == 3)
            server.handle_exit(signal.SIGTERM, None)
            ready = requests.get(f"{url}/readyz", timeout=10)
            assert (ready.status_code, ready.json()["stopping"]) == (503, True)
            assert ready.headers["Connection"] == "close"
            late = ThreadPoolExecutor(1).submit(post, f"{url}/predict", png)  # still accepted
            wait(lambda: server.should_exit)
            free.set()
        assert [answer.status_code for answer in [*answers, late.result()]] == [200] * 4
        wait(lambda: not server.started or not server.servers[0].is_serving())
        with pytest.raises(requests.ConnectionError):
            post(f"{url}/predict", png)


def test_health_is_answered_when_too_many_requests_are_in_work(model_dir: Path, png: bytes) -> None:
    with running(model=str(model_dir), max_requests=2) as server:
        port = int(server.address.rpartition(":")[2])
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
        waiting = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(2)]
        for each in waiting:
            each.sendall(head)
        wait(lambda: post(f"{server.address}/predict", png).status_code == 503)
        refused = post(f"{server.address}/predict", png)
        assert (refused.headers["Retry-After"], error_of(refused)) == ("1", "too many requests are in work")
        for path in ("healthz", "readyz", "metrics", "v2/health/live"):
            assert requests.get(f"{server.address}/{path}", timeout=10).status_code == 200
        for each in waiting:
            each.close()
        wait(lambda: post(f"{server.address}/predict", png).status_code == 200)


@pytest.mark.parametrize("unit", [b"-9,", b'"",', b'"a",', b'"ab",', b"1.5,", b"AA "])
def test_parsing_takes_no_more_memory_than_is_counted(unit: bytes) -> None:
    """Those that took most when they were measured; `bodies.MAX_JSON_CONTAINERS` bounds lists and objects."""
    repeated = (unit * (1_000_000 // len(unit))).rstrip(b",")
    text = b"AA" in unit
    body = b'{"images": [' + (b'"' + repeated + b'"' if text else repeated) + b"]}"
    tracemalloc.start()
    try:
        with suppress(ApiError):
            find_uploads(body, "application/json", {}, 32)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < peak <= parsed_size(body)


def test_a_model_that_is_not_there_is_refused_before_the_server_listens(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="Name a folder with a model"):
        Server(read_settings(model=str(tmp_path / "none"), port=0))


@pytest.mark.parametrize(
    ("given", "variables", "message"),
    [
        ({"port": 70000}, {}, r"--port: input should be less than or equal to 65535 \(found 70000\)"),
        ({}, {"BATCH_SIZE": "many"}, r"YOLACT_SERVE_BATCH_SIZE: .*integer.*\(found 'many'\)"),
        ({}, {"QUEUE_SIZE": "8"}, r"serving: max_images \(32\) must not be larger than queue_size \(8\)"),
        ({}, {"MEMORY_MB": "100"}, r"serving: memory_mb \(100\) must hold the largest request"),
        ({"device": "tpu"}, {}, "--device: "),
    ],
)
def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"YOLACT_SERVE_{name}", value)
    with pytest.raises(SettingsError, match=message):
        read_settings(**given)


def test_arguments_outrank_variables_and_tokens_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("YOLACT_SERVE_PORT", "81")
    monkeypatch.setenv("YOLACT_SERVE_TOKEN", "hidden")
    assert (read_settings().port, read_settings(port=82, host=None).port) == (81, 82)
    assert "hidden" not in repr(read_settings())
    with pytest.raises(SettingsError, match="set one of them") as raised:
        read_settings(token_file=tmp_path / "x")
    assert "hidden" not in str(raised.value)
    monkeypatch.delenv("YOLACT_SERVE_TOKEN")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings(token_file=tmp_path / "x").read_token()
    (tmp_path / "x").write_text("\n")
    with pytest.raises(SettingsError, match="the token is empty"):
        read_settings(token_file=tmp_path / "x").read_token()


@pytest.mark.slow
def test_the_command_serves_and_ends_with_0_on_sigterm(model_dir: Path, png: bytes) -> None:
    with command(model_dir) as (process, url):
        assert post(f"{url}/predict", png).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
