"""Commands that use the registry, when its server, its database or its files fail."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from mlflow import MlflowClient

from components.fetch import step as fetch
from components.promote import promotion
from tests.components.registry_versions import add_model, add_version
from tests.servers.mlflow_servers import BUCKET, MlflowServer, PostgresServer, S3Server
from tests.servers.model_registry import SmallModelRegistry, small_model_registry
from tests.servers.servers import KEY, SECRET, CuttingProxy
from tests.small_networks import tiny_config
from yolact.errors import EX_UNAVAILABLE, YolactError
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION
from yolact_ops.prediction.model import load_predictor
from yolact_ops.registry import lock
from yolact_ops.registry.history import read_history
from yolact_ops.registry.publication import publish
from yolact_ops.registry.versions import CHAMPION, RegisteredModel, RegistryError
from yolact_ops.settings.params import Params, parse_params
from yolact_ops.tracking.store import StoreUnavailableError

NOWHERE = Path("no processed data")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder; a kept connection that was cut is replaced, and nothing else is tried again."""
    monkeypatch.chdir(tmp_path)
    once = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
    for name, value in once.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lock, "_REQUESTS", once)


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    """Settings whose gate every version passes."""
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["promote"] |= {"samples": 100, "min_gain": -1.0, "max_doubt": 1.0, "max_class_loss": 1.0, "min_first": 0.0}
    return parse_params(tree)


@pytest.fixture
def client(on_server: MlflowServer) -> MlflowClient:
    """Its requests do not pass the line."""
    return MlflowClient(tracking_uri=on_server.address)


@pytest.fixture
def name(client: MlflowClient, params: Params) -> str:
    """A registered model with a champion, version 1, and a candidate, version 2."""
    made = f"yolact-{uuid.uuid4().hex[:8]}"
    for found in (20, 30):
        add_version(client, {"cat": found}, name=made)
    client.set_registered_model_alias(made, CHAMPION, "1")
    return made


@pytest.fixture
def network(client: MlflowClient, tmp_path: Path) -> str:
    """Address of a champion that has a network."""
    made = f"network-{uuid.uuid4().hex[:8]}"
    save_model(Yolact(tiny_config(), 1), ["cat"], tmp_path / "packed")
    version = add_model(client, made, tmp_path / "packed", DEFAULT_DETECTION)
    client.set_registered_model_alias(made, CHAMPION, str(version))
    return f"models:/{made}@{CHAMPION}"


@pytest.fixture
def model_registry() -> Iterator[SmallModelRegistry]:
    with small_model_registry() as made:
        yield made


def predict(address: str) -> str:
    return load_predictor(address, device="cpu")[1].rpartition("/")[2]


def batch(address: str) -> str:
    """Fetch the files, and read them."""
    version = fetch.run(model=address, model_dir=Path("model")).rpartition("/")[2]
    load_predictor("model", device="cpu")
    return version


@pytest.fixture
def commands(
    name: str, network: str, params: Params, model_registry: SmallModelRegistry
) -> dict[str, Callable[[], Any]]:
    """What each command does in the registry; each returns the version that it used."""

    def promote() -> str:
        found = promotion.promote(params, promotion.Request(name=name, dry_run=True), eval_data_dir=NOWHERE)
        assert found.status == "possible"
        return str(found.version)

    def publication() -> str:
        settings = {"model_registry": model_registry.address, "model_registry_files": f"s3://{BUCKET}"}
        publish(params.register_.model_copy(update=settings), name)
        return max(entry["name"] for kind, entry in model_registry.entries if kind == "model_version")

    return {
        "predict": partial(predict, network),
        "batch": partial(batch, network),
        "promote": promote,
        "publish": publication,
    }


EXPECTED = {"predict": "1", "batch": "1", "promote": "2", "publish": "2"}


def assert_unavailable(command: Callable[[], Any]) -> None:
    with pytest.raises(StoreUnavailableError, match=r"(?s)could not .*Check that the MLflow server runs") as failed:
        command()
    assert failed.value.exit_code == EX_UNAVAILABLE


@pytest.mark.parametrize("command", EXPECTED)
def test_a_registry_that_is_cut_off_slow_or_in_error_is_named_and_the_next_try_works(
    commands: dict[str, Callable[[], str]], line: CuttingProxy, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Before the first answer, and when half of what the command reads has come."""
    start = line.passed
    assert commands[command]() == EXPECTED[command]
    half = (line.passed - start) // 2
    assert half > 0
    for fault, after in (("cut", 0), ("cut", half), ("503", 0), ("503", half)):
        line.fail(fault, after)
        assert_unavailable(commands[command])
        line.heal()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        line.fail("slow")
        assert_unavailable(commands[command])
    line.heal()
    assert commands[command]() == EXPECTED[command]


def test_a_database_restarted_under_the_registry_is_named_and_the_next_try_works(
    commands: dict[str, Callable[[], str]], postgres: PostgresServer, line: CuttingProxy
) -> None:
    assert {command: work() for command, work in commands.items()} == EXPECTED
    postgres.stop()
    try:
        for work in commands.values():
            assert_unavailable(work)
    finally:
        postgres.start()
    assert {command: work() for command, work in commands.items()} == EXPECTED


@pytest.mark.parametrize(("moment", "champion", "state"), [("before", 1, "abandoned"), ("after", 2, "done")])
@pytest.mark.parametrize("fault", ["503", "database"])
def test_a_promotion_whose_server_fails_before_or_after_the_alias_moves_is_settled_by_the_next(
    client: MlflowClient,
    name: str,
    params: Params,
    line: CuttingProxy,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    moment: str,
    champion: int,
    state: str,
) -> None:
    move = RegisteredModel.set_alias

    def failing(model: RegisteredModel, *arguments: Any) -> None:
        if moment == "after":
            move(model, *arguments)
        if fault == "503":
            line.fail(fault)
        else:
            postgres.stop()
        if moment == "before":
            move(model, *arguments)

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailableError):
        patch.setattr(RegisteredModel, "set_alias", failing)
        try:
            promotion.promote(params, promotion.Request(name=name), eval_data_dir=NOWHERE)
        finally:
            line.heal()
            if fault == "database":
                postgres.start()
    model = RegisteredModel(client, name)
    assert model.alias(CHAMPION) == champion
    assert [decision.state for decision in read_history(model).decisions] == ["intended"]

    monkeypatch.setattr(lock, "_is_dead", lambda _: True)  # the lifetime of the lock that it left has passed
    add_version(client, {"cat": 35}, name=name)
    assert promotion.promote(params, promotion.Request(name=name), eval_data_dir=NOWHERE).status == "promoted"
    history = read_history(model)
    assert [decision.state for decision in history.decisions] == [state, "done"]
    assert (history.champion, history.decisions[-1].previous) == (3, champion)
    assert [found.name for found in client.search_registered_models(f"name LIKE '{name}%'")] == [name]


@contextmanager
def damaged(s3: S3Server, client: MlflowClient, run_id: str, path: str, fault: str) -> Iterator[None]:
    """A file of a run is gone from S3, or cut short, while the block runs."""
    store = boto3.Session(KEY, SECRET, region_name="us-east-1").client("s3", endpoint_url=s3.address)
    uri = client.get_run(run_id).info.artifact_uri
    there = {"Bucket": BUCKET, "Key": f"artifacts/{uri.removeprefix('mlflow-artifacts:/')}/{path}"}
    whole = store.get_object(**there)["Body"].read()
    store.delete_object(**there)
    if fault == "cut short":
        store.put_object(**there, Body=whole[: len(whole) // 2])
    yield
    store.put_object(**there, Body=whole)


@pytest.mark.parametrize("fault", ["cut short", "gone"])
def test_a_promotion_without_the_evaluation_of_a_version_is_refused_and_changes_nothing(
    client: MlflowClient, name: str, params: Params, s3: S3Server, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """It would evaluate the version again, but the data are not here."""
    caplog.set_level("INFO")
    version = client.get_model_version(name, "2")
    request = promotion.Request(name=name)
    with (
        damaged(s3, client, version.run_id, "eval/detections.json.gz", fault),
        pytest.raises(RegistryError, match=rf"{name} version 2 must be evaluated again"),
    ):
        promotion.promote(params, request, eval_data_dir=NOWHERE)
    assert f"detections.json.gz{'.' if fault == 'gone' else f' of run {version.run_id}'}" in caplog.text
    assert client.get_registered_model(name).aliases[CHAMPION] == "1"
    assert read_history(RegisteredModel(client, name)).decisions == []
    assert promotion.promote(params, request, eval_data_dir=NOWHERE).status == "promoted"


@pytest.mark.parametrize("command", [predict, batch])
def test_a_registered_network_whose_file_is_gone_or_cut_short_is_named(
    client: MlflowClient, network: str, s3: S3Server, command: Callable[[str], str]
) -> None:
    found = client.get_model_version_by_alias(network.removeprefix("models:/").partition("@")[0], CHAMPION)
    for file, fault in itertools.product((WEIGHTS_FILE, DESCRIPTION_FILE), ("gone", "cut short")):
        with (
            damaged(s3, client, found.run_id, f"packed/artifacts/model/{file}", fault),
            pytest.raises(YolactError, match=file),
        ):
            command(network)
    assert command(network) == "1"
