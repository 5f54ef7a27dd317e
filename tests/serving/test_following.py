"""The champion changes under load, in a real registry: no request fails, and what cannot be served is not."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.tracking.fluent
import numpy as np
import pytest
import requests
import torch
from mlflow import MlflowClient

from serving.following import Following
from serving.metrics import Metrics
from serving.models import FolderSource, Offer, ServedModel
from serving.server import Server
from serving.settings import read_settings
from tests.serving.conftest import CLASSES, detection_settings, metric, post, running, wait
from yolact.errors import WeightsError
from yolact.models.weights import load_model, save_model
from yolact_ops.registry.versions import RegisteredModel

CHAMPION = {"model": "models:/yolact@champion", "poll": 0.2}


class Registry:
    """A store with versions of the tiny model; each finds the same objects."""

    def __init__(self, folder: Path, model_dir: Path) -> None:
        self.folder, self.model_dir = folder, model_dir
        self.client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        experiment = self.client.create_experiment("made by hand", artifact_location=str(folder / "artifacts"))
        self.run = self.client.create_run(experiment).info.run_id
        self.model = RegisteredModel.open_or_create(self.client, "yolact")

    def add(self, breakage: str = "none") -> int:
        """Register a version, perhaps broken."""
        name = f"packed-{time.monotonic_ns()}"
        packed = self.folder / "artifacts" / name
        shutil.copytree(self.model_dir, packed / "artifacts" / "model")
        (packed / "artifacts" / "detect.json").write_text(detection_settings())
        weights = packed / "artifacts" / "model" / "model.safetensors"
        if breakage == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif breakage == "gone":
            shutil.rmtree(packed)
        elif breakage == "not finite":
            network, classes = load_model(self.model_dir)
            with torch.no_grad():
                network.prediction_layers[0].conf_layer.weight.fill_(float("nan"))  # type: ignore[operator, union-attr]
            save_model(network, classes, weights.parent)
        tags = {"model_digest": name, "data_digest": "d", "detect_hash": "h", "mask_AP50": "0.5", "git_commit": "abc"}
        tags |= {"host": "secret-host", "user": "somebody"}
        version = self.client.create_model_version("yolact", str(packed), self.run, tags=tags)
        return int(version.version)

    def promote(self, version: int) -> None:
        self.model.set_alias("champion", version)


@pytest.fixture
def registry(tmp_path: Path, model_dir: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setattr("serving.following.FIRST_RETRY", 0.5)
    yield Registry(tmp_path, model_dir)
    mlflow.tracking.fluent._last_active_run_id.set(None)


class Load:
    """Clients that send image after image; counts versions and failures of the answers."""

    def __init__(self, url: str, png: bytes) -> None:
        self.url, self.png = url, png
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.ended = False

    def client(self) -> None:
        while not self.ended:
            try:
                answer = post(f"{self.url}/predict", self.png)
                found = answer.json()
                if answer.status_code != 200 or not found["images"][0]["detections"]:
                    self.failures.append(answer.text)
                else:
                    self.answers[found["model"]["version"]] += 1
            except requests.RequestException as error:
                self.failures.append(repr(error))


@contextmanager
def load(url: str, png: bytes) -> Iterator[Load]:
    made = Load(url, png)
    threads = [threading.Thread(target=made.client) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.ended = True
        for thread in threads:
            thread.join(10)


def version(server: Server) -> str | None:
    model = server.service.following.model
    return None if model is None else model.offer.version


def ready(server: Server) -> dict[str, Any]:
    answer = requests.get(f"{server.address}/readyz", timeout=10)
    return {"status": answer.status_code} | dict(answer.json())


def test_a_new_champion_is_taken_up_and_broken_ones_are_not_without_a_failed_request(
    registry: Registry, png: bytes
) -> None:
    registry.promote(registry.add())
    with running(**CHAMPION) as server:
        wait(lambda: version(server) == "1")
        with load(server.address, png) as clients:
            wait(lambda: clients.answers["1"] > 2)
            registry.promote(registry.add())
            wait(lambda: clients.answers["2"] > 2)
            for number, breakage in enumerate(("truncated", "gone", "not finite"), start=3):
                registry.promote(registry.add(breakage))
                wait(lambda n=number: (ready(server)["offered"] or {}).get("version") == str(n))  # type: ignore[misc]
                details = ready(server)
                assert (details["status"], details["model"]["version"]) == (200, "2")
                assert details["offered"]["error"]
                assert metric(server.address, "yolact_model_outdated") == 1
            assert "not finite" in details["offered"]["error"]
            served = clients.answers["2"]
            wait(lambda: clients.answers["2"] > served + 2)
            registry.promote(registry.add())
            wait(lambda: clients.answers["6"] > 2)
        assert clients.failures == []
        assert clients.answers.keys() == {"1", "2", "6"}
        assert ready(server)["offered"] is None
        assert metric(server.address, "yolact_model_outdated") == 0
        assert metric(server.address, 'yolact_model_loads_total{result="ok"}') == 3
        assert metric(server.address, 'yolact_model_info{alias="champion",name="yolact",version="6"}') == 1


def test_the_served_version_goes_on_while_the_registry_is_away(registry: Registry, png: bytes) -> None:
    registry.promote(registry.add())
    with running(**CHAMPION) as server:
        wait(lambda: version(server) == "1")
        registry.model.delete_alias("champion")
        wait(lambda: ready(server)["source_error"])
        assert ready(server)["status"] == 200
        assert "has the alias 'champion' any more" in ready(server)["source_error"]
        assert metric(server.address, "yolact_registry_up") == 0
        assert post(f"{server.address}/predict", png).status_code == 200
        registry.promote(registry.add())
        wait(lambda: version(server) == "2")
        assert ready(server)["source_error"] is None


def test_without_a_champion_the_server_waits_for_one_and_says_so(
    registry: Registry, png: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    number = registry.add()
    with running(**CHAMPION) as server:
        wait(lambda: ready(server)["source_error"])
        assert ready(server)["status"] == 503
        assert "nothing was promoted yet" in ready(server)["source_error"]
        assert "by its number, as models:/" in ready(server)["source_error"]
        assert "which model to serve is not known; the server looks again: no version of" in caplog.text
        answer = post(f"{server.address}/predict", png)
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        registry.promote(number)
        wait(lambda: ready(server)["status"] == 200)


def test_the_candidate_follows_its_alias_and_leaves_the_champion_alone(registry: Registry, png: bytes) -> None:
    def answering(candidate: bool) -> Any:
        answer = post(f"{server.address}/predict", png, params={"candidate": candidate})
        return (answer.json()["model"]["version"], answer.json()["model"]["alias"]) if answer.ok else None

    registry.promote(registry.add())
    registry.model.set_alias("candidate", registry.add())
    with running(**CHAMPION, candidate="models:/yolact@candidate") as server:
        wait(lambda: version(server) == "1")
        wait(lambda: answering(candidate=True) == ("2", "candidate"))
        registry.model.set_alias("candidate", registry.add("not finite"))
        following = server.service.candidate
        assert following is not None
        wait(lambda: following.failure)
        assert answering(candidate=True) == ("2", "candidate")
        registry.model.set_alias("candidate", registry.add())
        wait(lambda: answering(candidate=True) == ("4", "candidate"))
        assert answering(candidate=False) == ("1", "champion")
        assert ready(server)["offered"] is None
        assert metric(server.address, 'yolact_model_loads_total{result="ok"}') == 1


def test_a_registered_version_is_described_with_its_metrics_and_lineage_but_nobodys_name(registry: Registry) -> None:
    registry.add()
    with running(model="models:/yolact/1") as server:
        text = requests.get(f"{server.address}/model", timeout=10).text
        tree = json.loads(text)
        assert (tree["name"], tree["version"], tree["alias"], tree["classes"]) == ("yolact", "1", None, CLASSES)
        assert tree["metrics"] == {"mask_AP50": 0.5}
        assert tree["lineage"]["code"] == {"git_commit": "abc"}
        assert "secret-host" not in text
        assert "somebody" not in text


# When it looks and tries -------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only while somebody sleeps, and ends then."""

    def __init__(self) -> None:
        self.now, self.end = 0.0, 0.0
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        if self.now > self.end:
            raise asyncio.CancelledError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("serving.following.monotonic", lambda: made.now)
    # For this module alone: servers of other tests run in the same process.
    monkeypatch.setattr("serving.following.asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": made.sleep}))
    return made


class Timetable(FolderSource):
    """An alias that names another version from each of some times on; only version 1 can be loaded."""

    follows = True

    def __init__(self, model_dir: Path, clock: Clock, versions: dict[float, int]) -> None:
        super().__init__(read_settings(model=str(model_dir), device="cpu"), model_dir)
        self.clock, self.versions = clock, versions
        self.tried: dict[int, list[float]] = {number: [] for number in versions.values()}
        """When each version was loaded."""

    def offered(self) -> Offer:
        return Offer("yolact", str(self.versions[max(time for time in self.versions if time <= self.clock.now)]))

    def load(self, offer: Offer) -> ServedModel:
        number = int(offer.version or 0)
        self.tried[number].append(self.clock.now)
        if number > 1:
            raise WeightsError("damaged")
        return super().load(offer)


def follow(source: Timetable, poll: float, seconds: float) -> Following:
    source.clock.end = seconds
    following = Following(source, poll, Metrics())
    # Not in this thread, where Playwright's loop runs after the browser's tests.
    with ThreadPoolExecutor(1) as pool, pytest.raises(asyncio.CancelledError):
        pool.submit(asyncio.run, following.run()).result()
    return following


@pytest.mark.parametrize(("poll", "version", "mean"), [(30, 1, 30), (30, 2, 5), (2, 2, 2)])
def test_looks_are_up_to_a_fifth_earlier_or_later_and_sooner_without_a_model(
    model_dir: Path, clock: Clock, poll: float, version: int, mean: float
) -> None:
    random.seed(0)
    follow(Timetable(model_dir, clock, {0: version}), poll, 500 * mean)
    shares = np.sort(clock.pauses) / mean
    assert 450 < len(shares) < 550
    assert 0.8 <= shares[0]
    assert shares[-1] <= 1.2
    np.testing.assert_allclose(shares, np.linspace(0.8, 1.2, len(shares)), atol=0.05)  # evenly


def test_a_failed_version_is_tried_again_after_times_that_double_up_to_ten_minutes(
    model_dir: Path, clock: Clock
) -> None:
    source = Timetable(model_dir, clock, {0: 2})
    following = follow(source, 1, 4000)
    waited = np.diff(source.tried[2])
    late = waited - [5, 10, 20, 40, 80, 160, 320, *[600] * (len(waited) - 7)]
    assert len(late) == 12
    assert 0 <= late.min()
    assert late.max() <= 1.2  # the next look
    offered = following.status()["offered"]
    assert (offered["version"], offered["error"], offered["failures"]) == ("2", "damaged", 13)
    assert offered["retry_in_seconds"] == round(source.tried[2][-1] + 600 - clock.now)


def test_another_version_is_tried_at_the_next_look_and_begins_with_the_shortest_time(
    model_dir: Path, clock: Clock
) -> None:
    source = Timetable(model_dir, clock, {0: 1, 50: 2, 100: 3, 200: 1})
    following = follow(source, 1, 210)
    for number, start, times in ((2, 50, [0, 5, 15, 35]), (3, 100, [0, 5, 15, 35, 75])):
        late = np.array(source.tried[number]) - start - times
        assert 0 <= late.min()
        assert late.max() <= 1.2 * len(times)  # a look for each
    assert source.tried[1] == [0]
    assert following.model is not None
    assert (following.model.offer.version, following.failure) == ("1", None)  # as it is the served one


def test_a_download_that_the_end_of_the_server_breaks_is_no_failure_of_the_model(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun, ended = threading.Event(), threading.Event()

    class Downloading(FolderSource):
        def load(self, offer: Offer) -> ServedModel:
            begun.set()
            ended.wait(60)
            raise RuntimeError("cannot schedule new futures after shutdown")

    following = Following(Downloading(read_settings(model=str(model_dir), device="cpu"), model_dir), 1, Metrics())

    async def stop_while_it_loads() -> None:
        task = asyncio.create_task(following.run())
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, stop_while_it_loads()).result()
    following._thread.shutdown(wait=True)
    assert following.failure is None
    assert caplog.text == ""
