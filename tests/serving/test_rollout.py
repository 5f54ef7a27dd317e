"""After a promotion a real server takes up the champion, or the champion goes back; the registry is real, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from components.promote import rollout, step
from components.promote.promotion import Outcome, Request, promote
from components.promote.rollout import NotServedError, ServiceError, ServiceUnavailableError
from serving.server import Server
from tests.components.registry_versions import add_version
from tests.servers.servers import listening
from tests.serving.conftest import CLASSES, detection_settings, post, running, wait
from yolact.errors import SettingsError
from yolact.models.weights import load_model, save_model
from yolact_cli.main import app
from yolact_ops.registry.history import Decision, read_history
from yolact_ops.registry.versions import CHAMPION, RegisteredModel
from yolact_ops.settings.params import Params, parse_params

FOLLOWING = {"model": "models:/yolact@champion", "poll": 0.2}

ABSENT = "http://127.0.0.1:9"
"""Nobody listens there."""


class Registry:
    """A store with versions that can be compared and served."""

    def __init__(self, client: MlflowClient, model_dir: Path) -> None:
        self.client, self.model_dir = client, model_dir

    def add(self, found: int, *, broken: bool = False) -> int:
        """Register a candidate that detects each class in ``found`` images; a broken one has weights that are not
        finite."""
        number = add_version(self.client, dict.fromkeys(CLASSES, found))
        source = self.client.get_model_version("yolact", str(number)).source
        packed = Path(source.removeprefix("file://")) / "artifacts"
        shutil.copytree(self.model_dir, packed / "model", dirs_exist_ok=True)
        (packed / "detect.json").write_text(detection_settings())
        if broken:
            network, classes = load_model(self.model_dir)
            with torch.no_grad():
                network.prediction_layers[0].conf_layer.weight.fill_(float("nan"))  # type: ignore[operator, union-attr]
            save_model(network, classes, packed / "model")
        return number

    @property
    def champion(self) -> int | None:
        return RegisteredModel.open(self.client, "yolact").alias(CHAMPION)

    @property
    def decisions(self) -> list[Decision]:
        return read_history(RegisteredModel.open(self.client, "yolact")).decisions


@pytest.fixture
def registry(tmp_path: Path, model_dir: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_USERNAME", rollout.TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr("serving.following.FIRST_RETRY", 0.2)
    monkeypatch.setattr(rollout, "INTERVAL", 0.1)
    return Registry(MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"), model_dir)


def settings(repository: Path, service: str, timeout: int = 60) -> dict[str, Any]:
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["promote"] |= {"samples": 100, "service": service, "service_timeout": timeout}
    return tree


def run_step(params: Params, version: int) -> dict[str, Any]:
    """What the step writes."""
    folder = Path("reports")
    folder.mkdir(exist_ok=True)
    registration = {"name": "yolact", "version": version, "alias": "candidate", "min_mask_ap50": 0.5}
    (folder / "registration.json").write_text(json.dumps(registration))
    step.run(
        params,
        registration_path=folder / "registration.json",
        eval_data_dir=Path("data/processed/eval"),
        report_path=folder / "promotion.json",
        page_path=folder / "promotion.md",
    )
    return report()


def report() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(Path("reports/promotion.json").read_text())
    return tree


def ask(params: Params, version: int) -> Outcome:
    return promote(params, Request(version=version), eval_data_dir=Path("data/processed/eval"))


def answering(server: Server, png: bytes) -> str:
    """Version of the model that answers a request."""
    return str(post(f"{server.address}/predict", png).json()["model"]["version"])


@contextmanager
def serving_first(registry: Registry, repository: Path, **changes: Any) -> Iterator[Server]:
    """A server with version 1, which is the champion."""
    ask(parse_params(settings(repository, "none")), registry.add(10))
    with running(**FOLLOWING | changes) as server:
        wait(lambda: server.service.is_ready, 60)
        yield server


def test_the_step_ends_when_the_service_answers_with_the_new_champion(
    registry: Registry, repository: Path, png: bytes
) -> None:
    with serving_first(registry, repository) as server:
        params = parse_params(settings(repository, f"{server.address}/"))
        tree = run_step(params, registry.add(20))
        assert answering(server, png) == "2"
        assert (tree["status"], tree["service"], tree["rollback"]) == (
            "promoted",
            {"service": server.address, "problem": None},
            None,
        )
        assert f"{server.address} answers with this version." in Path("reports/promotion.md").read_text()
        again = run_step(params, 2)
        assert (again["status"], again["service"]["problem"]) == ("unchanged", None)
        assert [decision.action for decision in registry.decisions] == ["promote", "promote"]


def test_a_champion_that_the_service_refuses_goes_back_and_fails_the_step(
    registry: Registry, repository: Path, png: bytes
) -> None:
    with serving_first(registry, repository) as server:
        params = parse_params(settings(repository, server.address))
        broken = registry.add(20, broken=True)
        with pytest.raises(NotServedError, match="not finite") as caught:
            run_step(params, broken)
        assert caught.value.exit_code == 4
        assert "version 2 is not served; version 1 is the champion again" in str(caught.value)
        assert (registry.champion, answering(server, png)) == (1, "1")
        promoted, back = registry.decisions[1:]
        assert (promoted.action, promoted.version, promoted.state) == ("promote", 2, "done")
        assert (back.action, back.version, back.previous, back.state) == ("rollback", 1, 2, "done")
        assert "not finite" in str(back.reason)
        assert (report()["status"], report()["rollback"]) == ("not_served", back.key)
        assert "not finite" in report()["service"]["problem"]
        with pytest.raises(NotServedError, match=r"version 2 is refused.*rolled back by .*not finite"):
            run_step(params, broken)  # as when the failed task is tried again
        assert (report()["status"], report()["rules"][0]["name"]) == ("refused", "promote.service")
        assert len(registry.decisions) == 3


def test_the_command_says_so_and_has_an_exit_code_of_its_own(registry: Registry, repository: Path) -> None:
    with serving_first(registry, repository) as server:
        Path("params.yaml").write_text(yaml.safe_dump(settings(repository, server.address)))
        registry.add(20, broken=True)
        done = CliRunner().invoke(app, ["promote"])
        assert done.exit_code == 4
        assert "version 2 is not served; version 1 is the champion again" in done.output
        assert f"{server.address} refuses it: " in done.output
        registry.add(30)
        done = CliRunner().invoke(app, ["promote"])
        assert (done.exit_code, f"{server.address} answers with this version" in done.output) == (0, True)


def test_a_service_that_does_not_look_in_time_costs_the_promotion(registry: Registry, repository: Path) -> None:
    with serving_first(registry, repository, poll=3600) as server:
        outcome = ask(parse_params(settings(repository, server.address, timeout=1)), registry.add(20))
        assert outcome.rollout is not None
        assert outcome.rollout.problem == "answers with version 1 (1 s after the promotion)"
        assert (outcome.status, registry.champion) == ("not_served", 1)


@pytest.mark.parametrize("dry_run", [False, True])
def test_without_a_service_nothing_is_changed(registry: Registry, repository: Path, dry_run: bool) -> None:
    params = parse_params(settings(repository, ABSENT, timeout=1))
    number = registry.add(20)
    if dry_run:
        outcome = promote(params, Request(version=number, dry_run=True), eval_data_dir=Path("data/processed/eval"))
        assert outcome.status == "possible"
    else:
        with pytest.raises(ServiceUnavailableError, match=rf"{ABSENT} does not answer \(ConnectionError\)\. Nothing"):
            run_step(params, number)
        Path("params.yaml").write_text(yaml.safe_dump(settings(repository, ABSENT, timeout=1)))
        assert CliRunner().invoke(app, ["promote"]).exit_code == 69
    assert (registry.champion, registry.decisions) == (None, [])


def test_another_model_and_a_fixed_version_are_noticed_before_anything_is_changed(
    registry: Registry, repository: Path
) -> None:
    with serving_first(registry, repository, model="models:/yolact/1") as server:
        with pytest.raises(ServiceError, match="serves yolact version 1, and does not follow models:/yolact@champion"):
            ask(parse_params(settings(repository, server.address)), registry.add(20))
        assert registry.champion == 1


def test_a_first_champion_that_is_refused_has_nobody_to_go_back_to(registry: Registry, repository: Path) -> None:
    with running(**FOLLOWING) as server:
        outcome = ask(parse_params(settings(repository, server.address)), registry.add(20, broken=True))
        assert outcome.rollout is not None
        assert "not finite" in str(outcome.rollout.problem)
        assert (outcome.status, outcome.rollback, registry.champion) == ("not_served", None, 1)


def test_a_roll_out_whose_process_died_is_made_up_for(registry: Registry, repository: Path) -> None:
    with serving_first(registry, repository) as server:
        ask(parse_params(settings(repository, "none")), registry.add(20, broken=True))
        assert registry.champion == 2
        outcome = ask(parse_params(settings(repository, server.address)), 2)
        assert (outcome.status, outcome.previous, registry.champion) == ("not_served", 2, 1)


@contextmanager
def gateway(target: str, token: str) -> Iterator[str]:
    """A proxy that lets only requests with the token pass."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {token}":
                self.send_error(401)
                return
            answer = requests.get(f"{target}{self.path}", timeout=10)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_gateway_gets_the_token_of_the_environment(
    registry: Registry, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_first(registry, repository) as server, gateway(server.address, "secret-token") as address:
        number = registry.add(20)
        with pytest.raises(ServiceError, match="answers 401: set the variable YOLACT_SERVE_TOKEN") as caught:
            ask(parse_params(settings(repository, address, timeout=1)), number)
        assert caught.value.exit_code == 1
        monkeypatch.setenv(rollout.TOKEN_VARIABLE, "secret-token")
        outcome = ask(parse_params(settings(repository, address)), number)
        assert (outcome.status, registry.champion) == ("promoted", 2)
        assert "secret-token" not in json.dumps(outcome.to_json())


def test_a_page_that_is_no_server_of_ours_is_named(model_dir: Path) -> None:
    with running(model=str(model_dir)) as server:
        service = rollout.Service(f"{server.address}/openapi.json?", 0.1)
        with pytest.raises(ServiceError, match="is not `yolact serve`: /readyz answers 200 and something") as caught:
            service.check("yolact")
        assert caught.value.exit_code == 1


@pytest.mark.parametrize(("status", "code"), [(502, 69), (503, 69), (429, 69), (404, 1)])
def test_a_gateway_without_a_server_behind_it_may_have_one_later(status: int, code: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as port, pytest.raises(ServiceError, match=f"answers {status}") as caught:
        rollout.Service(f"http://127.0.0.1:{port}", 0.1).check("yolact")
    assert caught.value.exit_code == code


@pytest.mark.parametrize("service", ["", "yolact-serving", "ftp://a", "https://", "http://user:password@host/x"])
def test_addresses_that_cannot_be_asked_are_refused(repository: Path, service: str) -> None:
    with pytest.raises(SettingsError, match=r"promote\.service"):
        parse_params(settings(repository, service))
