"""Copy versions from a real MLflow registry to a Model Registry: the small one, and the real server if it is found."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.servers.model_registry import exchange, small_model_registry, unique_name
from tests.servers.servers import CuttingProxy, free_port
from yolact.errors import EX_UNAVAILABLE
from yolact_ops.registry import model_registry as api
from yolact_ops.registry import publication
from yolact_ops.registry.champion import exclusive
from yolact_ops.registry.model_registry import (
    API_VERSIONS,
    TOKEN_VARIABLE,
    ModelRegistry,
    ModelRegistryError,
    ModelRegistryUnavailableError,
)
from yolact_ops.registry.publication import publish, storage_uri
from yolact_ops.registry.versions import RegisteredModel
from yolact_ops.settings.params import Params, RegisterConfig

FILES = "s3://mlflow/artifacts"
Tree = dict[str, Any]


@pytest.fixture
def name() -> str:
    return unique_name()


@pytest.fixture
def model(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> RegisteredModel:
    """A registered model without versions, in a store of its own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    return RegisteredModel.open_or_create(MlflowClient(tracking_uri=store), name)


@pytest.fixture
def settings(params: Params) -> Callable[..., RegisterConfig]:
    def make(address: str, files: str = FILES) -> RegisterConfig:
        return params.register_.model_copy(update={"model_registry": address, "model_registry_files": files})

    return make


Make = Callable[..., RegisterConfig]


def add_version(model: RegisteredModel, digest: str, source: str | None = None) -> int:
    """Register a version that has no files, only an address for them."""
    tags = {"model_digest": digest, "data_digest": "data", "detect_hash": "detect", "user": "ada", "git_branch": ""}
    tags |= {"mask_AP": "0.1234567890123456", "data_source": "sample"}
    version = model.client.create_model_version(
        model.name,
        source or f"mlflow-artifacts:/1/models/m-{digest}/artifacts",
        tags=tags,
        description=f"card {digest}",
    )
    return int(version.version)


def decide(model: RegisteredModel, action: Any, version: int) -> None:
    with exclusive(model) as access:
        access.record(action, version)


def copies(address: str, name: str) -> dict[str, Tree]:
    """What the Model Registry has: state, labels, properties and addresses of the files, by version."""
    _, found = exchange(address, "GET", f"registered_model?name={name}")
    _, page = exchange(address, "GET", f"registered_models/{found['id']}/versions?pageSize=1000")
    copied = {}
    for version in page["items"]:
        _, artifacts = exchange(address, "GET", f"model_artifact?name={name}&parentResourceId={version['id']}")
        values = {key: value.get("string_value", value) for key, value in version["customProperties"].items()}
        labels = {key for key, value in values.items() if value == ""}
        properties = {key: value for key, value in values.items() if value != ""}
        copied[version["name"]] = version | {"labels": labels, "properties": properties, "artifact": artifacts}
    return copied


def states(address: str, name: str) -> dict[str, tuple[str, set[str]]]:
    """State and labels by version."""
    return {number: (copy["state"], copy["labels"]) for number, copy in copies(address, name).items()}


def test_a_version_is_copied_with_lineage_metrics_and_an_address_for_kserve(
    model: RegisteredModel, name: str, settings: Make, model_registry: str
) -> None:
    add_version(model, "one")
    add_version(model, "two", "s3://elsewhere/two")
    model.set_alias("candidate", 2)
    decide(model, "promote", 1)
    publish(settings(model_registry), name)
    found = copies(model_registry, name)
    assert {number: copy["artifact"]["uri"] for number, copy in found.items()} == {
        "1": f"{FILES}/1/models/m-one/artifacts",
        "2": "s3://elsewhere/two",
    }
    first = found["1"]
    assert (first["author"], first["description"]) == ("ada", "card one")
    assert first["artifact"]["modelFormatName"] == "yolact"
    assert first["properties"] == {
        "model_digest": "one",
        "data_digest": "data",
        "detect_hash": "detect",
        "user": "ada",
        "data_source": "sample",
        "mask_AP": {"metadataType": "MetadataDoubleValue", "double_value": 0.1234567890123456},
        "model_uri": f"models:/{name}/1",
    }
    assert states(model_registry, name) == {"1": ("LIVE", {"champion"}), "2": ("LIVE", {"candidate"})}


def test_state_and_labels_follow_promotion_rollback_and_deletion(
    model: RegisteredModel, name: str, settings: Make, model_registry: str
) -> None:
    for digest in ("one", "two", "three"):
        add_version(model, digest)
    decide(model, "promote", 1)
    decide(model, "promote", 2)
    publish(settings(model_registry), name)
    assert states(model_registry, name) == {"1": ("LIVE", set()), "2": ("LIVE", {"champion"}), "3": ("LIVE", set())}
    decide(model, "rollback", 1)
    publish(settings(model_registry), name)
    assert states(model_registry, name) == {"1": ("LIVE", {"champion"}), "2": ("ARCHIVED", set()), "3": ("LIVE", set())}
    decide(model, "promote", 2)
    model.client.delete_model_version(name, "1")
    publish(settings(model_registry), name)
    assert states(model_registry, name) == {"1": ("ARCHIVED", set()), "2": ("LIVE", {"champion"}), "3": ("LIVE", set())}


def test_nothing_is_written_twice_and_what_others_wrote_stays(
    model: RegisteredModel,
    name: str,
    settings: Make,
    model_registry: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "_PAGE", 2)  # several pages
    caplog.set_level(logging.INFO)
    for digest in ("one", "two", "three", "four", "five"):
        add_version(model, digest)
    config = settings(model_registry)
    publish(config, name)
    assert caplog.messages[-1] == f"{model_registry} has 5 versions of {name} (11 writes)"
    found = copies(model_registry, name)["3"]
    note = {"reviewed": {"metadataType": "MetadataStringValue", "string_value": "by Bob"}}
    changed = {"customProperties": found["customProperties"] | note}
    exchange(model_registry, "PATCH", f"model_versions/{found['id']}", changed)
    publish(config, name)
    assert caplog.messages[-1].endswith("(0 writes)")
    decide(model, "promote", 3)
    publish(config, name)
    assert caplog.messages[-1].endswith("(1 writes)")
    assert copies(model_registry, name)["3"]["properties"]["reviewed"] == "by Bob"
    assert states(model_registry, name)["3"] == ("LIVE", {"champion"})
    publish(settings(model_registry, "s3://moved"), name)
    assert caplog.messages[-1].endswith("(5 writes)")
    assert copies(model_registry, name)["3"]["artifact"]["uri"] == "s3://moved/1/models/m-three/artifacts"


class KilledError(BaseException):
    """Nobody catches it."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_a_killed_process_left_is_completed(
    model: RegisteredModel, settings: Make, model_registry: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before or after each of the requests."""
    add_version(model, "one")
    add_version(model, "two")
    decide(model, "promote", 1)
    send, requests = ModelRegistry._send, 0
    left = -1

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal left, requests
        left -= 1
        requests += 1
        if left == 0 and moment == "before":
            raise KilledError
        answer = send(*arguments, **options)
        if left == 0:
            raise KilledError
        return answer

    monkeypatch.setattr(ModelRegistry, "_send", dying)
    publish(settings(model_registry), model.name)
    expected, total = states(model_registry, model.name), requests
    assert total > 8
    for request in range(1, total + 1):
        name = unique_name()
        model.client.rename_registered_model(model.name, name)
        model = RegisteredModel(model.client, name)
        left = request
        with pytest.raises(KilledError):
            publish(settings(model_registry), name)
        left = -1
        publish(settings(model_registry), name)
        assert states(model_registry, name) == expected
        assert {c["artifact"]["uri"] for c in copies(model_registry, name).values()} == {
            f"{FILES}/1/models/m-{digest}/artifacts" for digest in ("one", "two")
        }


@pytest.mark.parametrize("fault", ["cut", "503", "slow"])
def test_a_model_registry_that_fails_on_the_way_is_named_and_the_next_try_completes_the_copy(
    model: RegisteredModel, settings: Make, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    add_version(model, "one")
    add_version(model, "two")
    decide(model, "promote", 1)
    expected = {"1": ("LIVE", {"champion"}), "2": ("LIVE", set())}
    length = 0
    for part in (1.0, 0.0, 0.5):  # the first one gives the length of all answers
        with small_model_registry() as registry:
            line = CuttingProxy(registry.address)
            config = settings(line.url)
            line.fail(fault, round(part * length) if length else 1 << 30)
            if length:
                with monkeypatch.context() as patch:
                    patch.setattr(api, "TIMEOUT", 0.5 if fault == "slow" else 30.0)
                    with pytest.raises(ModelRegistryUnavailableError, match="To complete it: yolact publish") as failed:
                        publish(config, model.name)
                assert failed.value.exit_code == EX_UNAVAILABLE
                line.heal()
            publish(config, model.name)
            length = length or line.passed
            line.close()
            assert states(registry.address, model.name) == expected
            assert len(registry.entries) == 5


def test_processes_at_the_same_time_make_one_of_each(
    model: RegisteredModel, name: str, settings: Make, model_registry: str
) -> None:
    for digest in ("one", "two", "three"):
        add_version(model, digest)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            publish(settings(model_registry), name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert states(model_registry, name) == {number: ("LIVE", set()) for number in ("1", "2", "3")}


def test_a_promotion_meanwhile_is_not_overwritten(
    model: RegisteredModel, name: str, settings: Make, model_registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(model, "one")
    add_version(model, "two")
    decide(model, "promote", 1)
    write = publication._write

    def overtaken(*arguments: Any) -> int:
        monkeypatch.setattr(publication, "_write", write)
        decide(model, "promote", 2)
        publish(settings(model_registry), name)
        return write(*arguments)  # with what was read before

    monkeypatch.setattr(publication, "_write", overtaken)
    publish(settings(model_registry), name)
    assert states(model_registry, name) == {"1": ("LIVE", set()), "2": ("LIVE", {"champion"})}


def test_a_model_or_a_version_of_others_is_refused(
    model: RegisteredModel, name: str, settings: Make, model_registry: str
) -> None:
    add_version(model, "one")
    exchange(model_registry, "POST", "registered_models", {"name": name})
    with pytest.raises(ModelRegistryError, match=r"taken by another model .*\n.*To complete it: yolact publish"):
        publish(settings(model_registry), name)
    other = unique_name()
    model.client.rename_registered_model(name, other)
    publish(settings(model_registry), other)
    before = copies(model_registry, other)
    model.client.delete_registered_model(other)
    theirs = RegisteredModel.open_or_create(model.client, other)  # as another MLflow server has it
    add_version(theirs, "another")
    add_version(theirs, "more")
    with pytest.raises(ModelRegistryError, match=r"version 1 of .* is another one \(its model_digest differs\)"):
        publish(settings(model_registry), other)
    assert copies(model_registry, other) == before


def test_incomplete_and_foreign_versions_are_left_out(model: RegisteredModel, name: str, settings: Make) -> None:
    add_version(model, "one")
    model.client.create_model_version(name, "s3://elsewhere/by-hand")
    with small_model_registry() as registry:
        publish(settings(registry.address), name)
        assert list(copies(registry.address, name)) == ["1"]


@pytest.mark.parametrize("version", API_VERSIONS)
def test_every_version_of_the_api_is_found(model: RegisteredModel, name: str, settings: Make, version: str) -> None:
    add_version(model, "one")
    with small_model_registry(api=version) as registry:
        publish(settings(registry.address + "/"), name)
        assert [kind for kind, _ in registry.entries] == ["registered_model", "model_version", "model_artifact"]


def test_a_gateway_gets_the_token_and_its_refusal_names_the_variable(
    model: RegisteredModel, name: str, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(model, "one")
    with small_model_registry(token="secret") as registry:
        with pytest.raises(ModelRegistryError, match="answers 401: set the variable MODEL_REGISTRY_TOKEN"):
            publish(settings(registry.address), name)
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        publish(settings(registry.address), name)
        assert len(registry.entries) == 3


def test_wrong_addresses_are_explained(model: RegisteredModel, name: str, settings: Make) -> None:
    add_version(model, "one")
    away = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ModelRegistryUnavailableError, match=rf"at {away} does not answer .* register\.model_registry"):
        publish(settings(away), name)
    with (
        small_model_registry(api="v9") as registry,
        pytest.raises(ModelRegistryError, match=r"is not Kubeflow's Model Registry: .*v1,v1alpha3"),
    ):
        publish(settings(registry.address), name)
    publish(settings("none"), "no such model")


@pytest.mark.parametrize(
    ("location", "files", "uri"),
    [
        ("s3://bucket/a/b", "none", "s3://bucket/a/b"),
        ("s3://bucket/a/b", "s3://other", "s3://bucket/a/b"),
        ("gs://bucket/a", "none", "gs://bucket/a"),
        ("mlflow-artifacts:/1/models/m-1/artifacts", "s3://mlflow/x/", "s3://mlflow/x/1/models/m-1/artifacts"),
        ("mlflow-artifacts://host:5000/1/models/m-1/artifacts", "s3://mlflow", "s3://mlflow/1/models/m-1/artifacts"),
    ],
)
def test_addresses_for_kserve(location: str, files: str, uri: str) -> None:
    assert storage_uri(location, files, "yolact version 1") == uri


def test_files_that_kserve_cannot_fetch_are_refused_with_the_fix(
    model: RegisteredModel, name: str, settings: Make
) -> None:
    add_version(model, "one")
    with small_model_registry() as registry:
        with pytest.raises(ModelRegistryError, match=r"Set register\.model_registry_files .*--artifacts-destination"):
            publish(settings(registry.address, "none"), name)
        assert registry.entries == []
    with pytest.raises(ModelRegistryError, match="Let MLflow keep artifacts in S3 and register the model again"):
        storage_uri("/home/ada/mlruns/1/models/m-1/artifacts", FILES, "yolact version 1")
