"""Shared by the Kubeflow tasks: settings as text, the check of the code version, clear errors, complete folders."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.evaluate.component import evaluate
from components.source import step as source
from yolact.errors import DataError, SettingsError, WeightsError
from yolact_ops.commands import task as kubeflow
from yolact_ops.lineage import code
from yolact_ops.lineage.variables import CODE_VARIABLE
from yolact_ops.settings.params import DataParams, Params, load_params


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    return load_params(repository / "params.yaml")


def with_source(params: Params, text: str) -> Params:
    return params.model_copy(update={"data": params.data.model_copy(update={"source": text})})


@given(text=st.text(min_size=1) | st.sampled_from(["s3://b/python3/{{$.x}}", "{{{$}}", "/data/python3python3"]))
def test_settings_survive_as_text_without_what_kfp_would_replace(params: Params, text: str) -> None:
    given_params = with_source(params, text)
    sent = kubeflow.as_text(given_params)
    assert kubeflow.settings(sent) == given_params
    assert json.loads(sent) == given_params.model_dump(mode="json", by_alias=True)
    assert "python3" not in sent
    assert "{{" not in sent


def test_settings_may_be_the_text_of_the_file_itself(params: Params, repository: Path) -> None:
    assert kubeflow.settings((repository / "params.yaml").read_text()) == params


def test_the_text_of_the_data_settings_does_not_depend_on_other_settings(params: Params) -> None:
    other = params.model_copy(update={"train": params.train.model_copy(update={"lr": 0.5})})
    texts = {kubeflow.as_text(DataParams(data=some.data)) for some in (params, other)}
    assert len(texts) == 1
    assert kubeflow.data_settings(texts.pop()).data == params.data


def test_wrong_settings_are_named(params: Params) -> None:
    tree = params.model_dump(mode="json", by_alias=True)
    tree["train"]["epoch"] = tree["train"].pop("epochs")
    with pytest.raises(SettingsError, match=r"parameter params: train.epoch: unknown key; did you mean 'epochs'\?"):
        kubeflow.settings(json.dumps(tree))
    with pytest.raises(SettingsError, match="parameter params: not valid YAML"):
        kubeflow.settings("{")
    with pytest.raises(SettingsError, match="parameter params: model: unknown key; allowed here: data"):
        kubeflow.data_settings(kubeflow.as_text(params))


VERSION = "0123456789abcdef"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container image that recorded `VERSION` for two steps; the logging configuration is kept."""
    (tmp_path / code.RECORD).write_text(json.dumps(dict.fromkeys(("train", "ingest", "evaluate"), VERSION)))
    monkeypatch.setattr(code.is_recorded, "__defaults__", (tmp_path,))
    monkeypatch.setattr(code.installed_version, "__defaults__", (tmp_path,))
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    monkeypatch.setenv(CODE_VARIABLE, VERSION)


def test_a_task_ends_with_its_message_and_exit_code(capfd: pytest.CaptureFixture[str], repository: Path) -> None:
    class HeldError(DataError):
        exit_code = 75

    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        with pytest.raises(SystemExit) as caught, kubeflow.task("split", code.code_version(repository, "split")):
            logging.getLogger("x").info("hello")
            raise HeldError("image.jpg: is broken")
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
        os.environ.pop(CODE_VARIABLE, None)
    assert caught.value.code == 75
    assert capfd.readouterr().err == "[split] hello\n\nsplit failed: image.jpg: is broken\n"


@pytest.mark.usefixtures("installed")
def test_in_a_pod_a_step_that_needs_mlflow_needs_a_server(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with kubeflow.task("ingest", VERSION):
        pass
    with pytest.raises(SystemExit), kubeflow.task("train", VERSION, needs_mlflow=True):
        raise AssertionError("training began")
    assert "train failed: MLFLOW_TRACKING_URI is not set" in capfd.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with kubeflow.task("train", VERSION, needs_mlflow=True):
        pass


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("step", "compiled_for", "message"),
    [
        ("train", "fedcba9876543210", f"but the image reg/y:1 has version {VERSION} (commit abc)."),
        ("merge", VERSION, "but the image reg/y:1 has version none (commit abc)."),
        ("train", "", "code_version: empty. `python -m pipelines compile`"),
    ],
)
def test_a_task_in_an_image_of_another_version_refuses_to_work(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], step: str, compiled_for: str, message: str
) -> None:
    monkeypatch.setenv("YOLACT_IMAGE", "reg/y:1")
    monkeypatch.setenv("YOLACT_COMMIT", "abc")
    with pytest.raises(SystemExit) as caught, kubeflow.task(step, compiled_for):
        raise AssertionError("the task began")
    assert caught.value.code == 1
    error = capfd.readouterr().err
    assert f"{step} failed: " in error
    assert message in error


def test_outside_an_image_the_version_is_that_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], repository: Path
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    monkeypatch.setenv(CODE_VARIABLE, "x")
    with kubeflow.task("split", code.code_version(repository, "split")):
        pass
    with pytest.raises(SystemExit), kubeflow.task("split", VERSION):
        raise AssertionError("the task began")
    assert f"compiled for version {VERSION} of the step split, but {repository} now has" in capfd.readouterr().err


@pytest.mark.usefixtures("installed")
def test_in_a_pipeline_evaluate_does_not_end_before_mlflow_has_all(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_to_step: dict[str, Any] = {}
    monkeypatch.setattr("components.evaluate.step.run", lambda params, **given: given_to_step.update(given))
    monkeypatch.setattr("components.evaluate.display.describe", lambda *_: None)
    monkeypatch.setattr(kubeflow, "show_page", lambda *_: None)
    artifacts = {
        name: SimpleNamespace(path=str(tmp_path / name), uri="")
        for name in ("eval_data", "model", "evaluation", "metrics", "report", "summary")
    }
    for name in ("eval_data", "model"):
        (tmp_path / name / "content").mkdir(parents=True)
    evaluate.python_func(params=kubeflow.as_text(params), code_version=VERSION, **artifacts)
    assert given_to_step["needs_store"] is True


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("folder_exists", [True, False])
def test_a_cached_input_that_the_object_store_has_no_more_is_named_with_the_way_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], folder_exists: bool
) -> None:
    processed = SimpleNamespace(path=str(tmp_path / "processed"), uri="minio://mlpipeline/x/processed", metadata={})
    if folder_exists:
        (tmp_path / "processed").mkdir()
    with pytest.raises(SystemExit), kubeflow.task("train", VERSION, inputs=[processed]):
        raise AssertionError("training began")
    error = capfd.readouterr().err
    assert "train failed: minio://mlpipeline/x/processed: there is nothing in the object store" in error
    assert "--no-enable-caching" in error


def test_a_table_keeps_its_columns_with_any_text_in_a_cell() -> None:
    assert kubeflow.markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n"


# The step `source` ---------------------------------------------------------------------------------------------


def test_the_sample_has_no_revision(params: Params) -> None:
    assert source.run(params) == source.PinnedData(params, "generated")


def test_a_changed_folder_has_another_fingerprint(params: Params, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    first = source.run(with_source(params, str(tmp_path)))
    assert source.run(with_source(params, str(tmp_path))) == first
    (tmp_path / "a.jpg").write_bytes(b"22")
    assert source.run(with_source(params, str(tmp_path))).fingerprint != first.fingerprint


def test_weights_that_do_not_exist_are_refused_but_files_may_be_on_the_trainings_volume(params: Params) -> None:
    def starting_from(**settings: str) -> Params:
        return params.model_copy(update={"model": params.model.model_copy(update=settings)})

    source.run(starting_from(backbone_weights="/weights/own.pth"))
    with pytest.raises(WeightsError, match="imagenet-v2: there are none for resnet18"):
        source.run(starting_from(backbone="resnet18", backbone_weights="imagenet-v2"))


def test_a_revision_needs_all_of_its_three_parts(params: Params) -> None:
    with pytest.raises(SettingsError, match=r"^data_path: empty\. Set all of data_repository, data_path, data_rev"):
        source.run(params, repository="https://git.example/x.git", revision="v1")


def test_a_password_in_the_repositorys_address_is_refused_and_not_repeated(params: Params) -> None:
    with pytest.raises(SettingsError, match="contains a password") as caught:
        source.run(params, repository="https://me:hidden@git.example/x.git", path="data", revision="v1")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "dvc:https://me:hidden@git.example/x.git#data@v1",
        "dvc:ssh://git:hidden@git.example/x.git#data@v1",
        "dvc:https://me:hidden@git.example/x.git",
        "https://me:hidden@host.example/images.zip",
    ],
)
def test_a_password_in_the_settings_is_refused_and_not_repeated(params: Params, address: str) -> None:
    with pytest.raises(SettingsError, match="contains a password") as caught:
        source.choose_source(with_source(params, address))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("address", ["dvc:ssh://git@git.example/x.git#a@v1", "dvc:git@h:x.git#a@v1", "https://h/a?b=c"])
def test_an_address_without_a_password_is_unchanged(params: Params, address: str) -> None:
    assert source.choose_source(with_source(params, address)).data.source == address


# Files next to a component ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", code.find_steps())
def test_a_components_folder_is_complete(name: str, repository: Path) -> None:
    """By the conventions of kubeflow/pipelines-components: names, order and types of the metadata's keys."""
    folder = repository / "components" / name
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    assert list(metadata)[:4] == ["name", "stability", "dependencies", "lastVerified"]
    assert metadata.keys() <= {"name", "stability", "dependencies", "lastVerified", "tags", "links", "ci"}
    assert metadata["name"] == name
    assert metadata["stability"] in ("experimental", "alpha", "beta", "stable")
    assert "Pipelines" in [entry["name"] for entry in metadata["dependencies"]["kubeflow"]]
    assert isinstance(metadata["lastVerified"], datetime)
    assert metadata["lastVerified"].astimezone(UTC).year >= 2026
    assert set(yaml.safe_load((folder / "OWNERS").read_text())) == {"approvers", "reviewers"}
    assert (folder / "README.md").read_text().startswith(f"# {name}\n")
