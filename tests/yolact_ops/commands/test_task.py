"""What components for Kubeflow share: settings as text, clear errors, checkpoints' folders, and folders that describe
themselves."""

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
from pipelines.compiler import COMPONENTS
from yolact.errors import DataError, SettingsError
from yolact_ops.commands import task as kubeflow
from yolact_ops.lineage.lineage import CODE_VARIABLE
from yolact_ops.settings.params import DataParams, Params, load_params


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    return load_params(repository / "params.yaml")


def with_source(params: Params, text: str) -> Params:
    return params.model_copy(update={"data": params.data.model_copy(update={"source": text})})


@given(text=st.text(min_size=1) | st.sampled_from(["s3://b/python3/{{$.x}}", "{{{$}}", "/data/python3python3"]))
def test_settings_come_back_as_they_went_and_hide_what_kfp_would_replace(params: Params, text: str) -> None:
    given_params = with_source(params, text)
    sent = kubeflow.as_text(given_params)
    assert kubeflow.settings(sent) == given_params
    assert json.loads(sent) == given_params.model_dump(mode="json", by_alias=True)
    assert "python3" not in sent
    assert "{{" not in sent


def test_settings_may_be_the_text_of_the_file_itself(params: Params, repository: Path) -> None:
    assert kubeflow.settings((repository / "params.yaml").read_text()) == params


def test_the_datas_settings_alone_do_not_change_with_the_others(params: Params) -> None:
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


def test_a_task_ends_with_its_message_and_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    class HeldError(DataError):
        exit_code = 75

    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        with pytest.raises(SystemExit) as caught, kubeflow.task("train", "abc"):
            logging.getLogger("x").info("hello")
            raise HeldError("image.jpg: is broken")
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
        os.environ.pop(CODE_VARIABLE, None)
    assert caught.value.code == 75
    assert capfd.readouterr().err == "[train] hello\n\ntrain failed: image.jpg: is broken\n"


def test_in_a_pod_a_step_that_is_tracked_needs_a_server(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(CODE_VARIABLE, "abc")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    with kubeflow.task("ingest", "abc"):
        pass
    with pytest.raises(SystemExit), kubeflow.task("train", "abc"):
        raise AssertionError("training began")
    assert "train failed: MLFLOW_TRACKING_URI is not set" in capfd.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with kubeflow.task("train", "abc"):
        pass


@pytest.mark.parametrize(
    ("image", "asked", "is_warned"),
    [
        (None, "aaa", False),
        ("unknown", "aaa", False),
        ("unknown-dirty", "aaa", False),
        ("aaa", "aaa", False),
        ("aaa-dirty", "aaa-0123456789abcdef", False),
        ("bbb", "aaa", True),
        ("aaa-dirty", "aaa", True),
        ("aaa", "aaa-0123456789abcdef", True),
        ("bbb-dirty", "aaa-0123456789abcdef", True),
    ],
)
def test_an_image_of_other_code_than_the_run_asks_for_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, image: str | None, asked: str, is_warned: bool
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    monkeypatch.setenv(CODE_VARIABLE, asked)
    monkeypatch.delenv("YOLACT_COMMIT", raising=False)
    if image is not None:
        monkeypatch.setenv("YOLACT_COMMIT", image)
    with kubeflow.task("ingest", asked):
        pass
    warned = f"this image was built from commit {image}, but the run asks for the code {asked}" in caplog.text
    assert warned == is_warned == bool(caplog.records)


def test_each_run_has_a_folder_of_checkpoints_and_can_go_on_with_an_earlier_ones(tmp_path: Path) -> None:
    volume, model = str(tmp_path), tmp_path / "task" / "model"
    assert kubeflow.checkpoints_folder(volume, "run-2", "", model) == tmp_path / "run-2"
    (tmp_path / "run-1").mkdir()
    assert kubeflow.checkpoints_folder(volume, "run-2", "run-1", model) == tmp_path / "run-1"
    with pytest.raises(SettingsError, match="run-0: no such folder"):
        kubeflow.checkpoints_folder(volume, "run-2", "run-0", model)
    with pytest.raises(SettingsError, match="there is no volume"):
        kubeflow.checkpoints_folder("", "run-2", "run-1", model)


def test_without_a_volume_checkpoints_are_no_part_of_the_artifact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "task" / "model"
    folder = kubeflow.checkpoints_folder("", "run-2", "", model)
    assert folder.parent == model.parent
    assert folder != model
    assert not caplog.text
    assert kubeflow.checkpoints_folder(str(tmp_path / "none"), "run-2", "", model) == folder
    assert "a retry begins again" in caplog.text


@pytest.mark.parametrize("name", ["../other", "a/b", ".", ".."])
def test_a_run_to_go_on_with_cannot_lead_out_of_the_volume(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="resume_run"):
        kubeflow.checkpoints_folder(str(tmp_path), "run-2", name, tmp_path / "model")


def test_in_a_pipeline_evaluate_does_not_end_before_mlflow_has_all(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_to_step: dict[str, Any] = {}
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    monkeypatch.setattr("components.evaluate.step.run", lambda params, **given: given_to_step.update(given))
    for name in ("describe_evaluation", "show_page"):
        monkeypatch.setattr(kubeflow, name, lambda *_: None)
    artifacts = {
        name: SimpleNamespace(path=str(tmp_path / name))
        for name in ("processed", "model", "evaluation", "metrics", "report", "summary")
    }
    evaluate.python_func(params=kubeflow.as_text(params), code_version="abc", **artifacts)
    assert given_to_step["needs_store"] is True


def test_a_table_keeps_its_columns_whatever_a_cell_holds() -> None:
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


def test_a_revision_needs_all_of_its_three_parts(params: Params) -> None:
    with pytest.raises(SettingsError, match=r"^data_path: empty\. All of data_repository, data_path, data_revision"):
        source.run(params, repository="https://git.example/x.git", revision="v1")


def test_a_password_in_the_repositorys_address_is_refused_and_not_repeated(params: Params) -> None:
    with pytest.raises(SettingsError, match="holds a password") as caught:
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
    with pytest.raises(SettingsError, match="holds a password") as caught:
        source.choose_source(with_source(params, address))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("address", ["dvc:ssh://git@git.example/x.git#a@v1", "dvc:git@h:x.git#a@v1", "https://h/a?b=c"])
def test_an_address_without_a_password_is_taken_as_it_is(params: Params, address: str) -> None:
    assert source.choose_source(with_source(params, address)).data.source == address


# What lies beside a component ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_components_folder_is_complete(name: str, repository: Path) -> None:
    """After the conventions of kubeflow/pipelines-components: names, order and kinds of the metadata's keys."""
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
