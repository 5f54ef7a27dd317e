"""Register, promote and roll back on a real MLflow server with S3, copied to a Model Registry.

The Model Registry is the small one, then the real server where it is found.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from tests.components.registry_versions import add_version
from tests.servers.mlflow_servers import BUCKET, MlflowServer, S3Server, s3_keys
from tests.servers.model_registry import exchange, unique_name
from yolact.errors import SettingsError
from yolact_cli.main import app
from yolact_ops.settings.params import parse_params

KILL = """
import os, signal, sys
from yolact_cli.main import app
from yolact_ops.registry.model_registry import ModelRegistry

def killed(*arguments): os.kill(os.getpid(), signal.SIGKILL)
ModelRegistry.update = killed
app(sys.argv[1:])
"""
"""A command that is killed before it changes anything in the Model Registry."""


@pytest.fixture
def name() -> str:
    return unique_name()


@pytest.fixture
def project(
    on_server: MlflowServer, name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder; `use` writes its settings."""
    shutil.copytree(repository / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def use(name: str, model_registry: str, files: str = f"s3://{BUCKET}/artifacts") -> None:
    """Settings whose gate every version passes."""
    tree = yaml.safe_load(Path("conf/base.yaml").read_text())
    tree["register"] |= {"model_name": name, "model_registry": model_registry, "model_registry_files": files}
    tree["promote"] |= {"samples": 100, "min_gain": -1.0, "max_doubt": 1.0, "max_class_loss": 1.0, "min_first": 0.0}
    Path("params.yaml").write_text(yaml.safe_dump(tree))


def yolact(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    return result.output


def copied(address: str, name: str) -> dict[str, tuple[str, set[str]]]:
    """State and labels by version."""
    status, model = exchange(address, "GET", f"registered_model?name={name}")
    if status == 404:
        return {}
    _, page = exchange(address, "GET", f"registered_models/{model['id']}/versions?pageSize=100")
    labels: list[set[str]] = [
        {key for key, value in version["customProperties"].items() if value.get("string_value") == ""}
        for version in page["items"]
    ]
    return {item["name"]: (item["state"], found) for item, found in zip(page["items"], labels, strict=True)}


def uri(address: str, name: str, version: str) -> str:
    """Address of a version's files, as KServe reads it."""
    _, model = exchange(address, "GET", f"registered_model?name={name}")
    _, found = exchange(address, "GET", f"model_version?name={version}&parentResourceId={model['id']}")
    _, page = exchange(address, "GET", f"model_artifact?name={name}&parentResourceId={found['id']}")
    return str(page["uri"])


def test_the_commands_copy_what_they_decide(
    project: Path, on_server: MlflowServer, s3: S3Server, name: str, model_registry: str
) -> None:
    client = MlflowClient(tracking_uri=on_server.address)
    use(name, model_registry)
    add_version(client, {"cat": 20}, name=name)
    yolact("promote", "--dry-run")
    assert copied(model_registry, name) == {}
    yolact("promote")
    assert copied(model_registry, name) == {"1": ("LIVE", {"champion", "candidate"})}
    address = uri(model_registry, name, "1")
    assert address.startswith(f"s3://{BUCKET}/artifacts/")
    prefix = address.removeprefix(f"s3://{BUCKET}/")
    assert s3_keys(s3, prefix) == [f"{prefix}/artifacts/model/model.json"]  # all that this version has
    add_version(client, {"cat": 30}, name=name)
    yolact("promote")
    assert copied(model_registry, name) == {"1": ("LIVE", set()), "2": ("LIVE", {"champion", "candidate"})}
    assert "version 1 is the champion again" in yolact("rollback")
    assert copied(model_registry, name) == {"1": ("LIVE", {"champion"}), "2": ("ARCHIVED", {"candidate"})}


def test_a_rollback_killed_before_its_copy_stands_and_publish_completes_it(
    project: Path, on_server: MlflowServer, name: str, repository: Path, model_registry: str
) -> None:
    client = MlflowClient(tracking_uri=on_server.address)
    use(name, model_registry)
    for found in (20, 30):
        add_version(client, {"cat": found}, name=name)
        yolact("promote")
    before = copied(model_registry, name)
    killed = subprocess.run(
        [sys.executable, "-c", KILL, "rollback"],
        env=os.environ | {"PYTHONPATH": str(repository)},
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert client.get_registered_model(name).aliases["champion"] == "1"
    assert copied(model_registry, name) == before
    yolact("publish")
    assert copied(model_registry, name) == {"1": ("LIVE", {"champion"}), "2": ("ARCHIVED", {"candidate"})}


def test_a_failed_copy_says_that_the_rollback_stands(
    project: Path, on_server: MlflowServer, name: str, model_registry: str
) -> None:
    client = MlflowClient(tracking_uri=on_server.address)
    use(name, model_registry)
    for found in (20, 30):
        add_version(client, {"cat": found}, name=name)
        yolact("promote")
    use(name, model_registry, files="none")
    said = yolact("rollback", exit_code=1)
    assert "version 1 is the champion again (was: 2)" in said
    assert "Set register.model_registry_files in params.yaml" in said
    assert "MLflow's registry is complete, only the copy is not. To complete it: yolact publish" in said


def test_publish_without_a_model_registry_names_the_setting(project: Path, name: str) -> None:
    use(name, "none")
    assert "register.model_registry is none" in yolact("publish", exit_code=1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_registry", "registry:8080", "register.model_registry"),
        ("model_registry", "http://me:secret@registry:8080", "set the variable MODEL_REGISTRY_TOKEN"),
        ("model_registry_files", "mlflow-artifacts:/", "register.model_registry_files"),
    ],
)
def test_wrong_settings_are_refused(repository: Path, key: str, value: str, message: str) -> None:
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["register"][key] = value
    with pytest.raises(SettingsError, match=message):
        parse_params(tree)
