"""Weights on disk: nothing changes when saving and loading, and every error is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.small_networks import tiny_config
from yolact.errors import WeightsError
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.weights import load_model, read_category_ids, save_model
from yolact.models.yolact import Yolact

CLASSES = ["cat", "dog"]


def tiny() -> Yolact:
    torch.manual_seed(3)
    return Yolact(tiny_config(), len(CLASSES))


@pytest.fixture(scope="module")
def model() -> Yolact:
    model = tiny()
    for key, value in model.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
        elif "num_batches" in key:
            value.fill_(7)
    return model


@pytest.fixture(scope="module")
def saved(model: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model; tests must not change it."""
    directory = tmp_path_factory.mktemp("models") / "deep" / "er"
    save_model(model, CLASSES, directory)
    return directory


@pytest.fixture
def damaged(saved: Path, tmp_path: Path) -> Path:
    """A model to be damaged: its description is a copy, its weights are a link."""
    (tmp_path / DESCRIPTION_FILE).write_bytes((saved / DESCRIPTION_FILE).read_bytes())
    (tmp_path / WEIGHTS_FILE).symlink_to(saved / WEIGHTS_FILE)
    return tmp_path


# --- our own format -----------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_bit_by_bit(model: Yolact, saved: Path) -> None:
    loaded, classes = load_model(saved)
    assert classes == CLASSES
    assert loaded.config == model.config
    assert loaded.num_classes == 2
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_only_the_two_files_remain(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted([WEIGHTS_FILE, DESCRIPTION_FILE])


def test_the_description_is_plain_json(saved: Path) -> None:
    description = json.loads((saved / DESCRIPTION_FILE).read_text())
    assert description["format"] == 2
    assert description["classes"] == CLASSES
    assert description["model"]["initial_weights"] == "none"
    assert description["model"]["backbone"] == "resnet18"


def test_a_model_from_before_a_setting_was_added_behaves_as_before(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d["model"].pop("keep_aspect_ratio"))
    loaded, classes = load_model(damaged)
    assert classes == CLASSES
    assert loaded.config.keep_aspect_ratio is False


@pytest.mark.parametrize("settings", [[], None, "resnet18"])
def test_settings_that_are_not_an_object_are_rejected(damaged: Path, settings: Any) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d.update(model=settings))
    with pytest.raises(WeightsError, match="model must be an object with settings"):
        load_model(damaged)


def test_a_model_in_channels_last_order_is_saved_the_same(tmp_path: Path) -> None:
    model = tiny().to(memory_format=torch.channels_last)
    save_model(model, CLASSES, tmp_path)
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.state_dict()["proto_net.0.weight"], model.state_dict()["proto_net.0.weight"])


@pytest.mark.parametrize("name", [WEIGHTS_FILE, DESCRIPTION_FILE])
def test_a_missing_file_is_named(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(WeightsError, match=f"{name}: no such file"):
        load_model(damaged)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize("classes", ["cat", [], None, ["cat", 3]])
def test_classes_that_are_not_a_list_of_names_are_rejected(damaged: Path, classes: Any) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda description: description.update(classes=classes))
    with pytest.raises(WeightsError, match="classes must be a list of names"):
        load_model(damaged)


def test_category_ids_are_kept_and_count_from_1_if_there_are_none(model: Yolact, saved: Path, tmp_path: Path) -> None:
    assert read_category_ids(saved) == [1, 2]
    save_model(model, CLASSES, tmp_path, [0, 90])
    assert read_category_ids(tmp_path) == [0, 90]


@pytest.mark.parametrize("ids", [[1], [1, 1], [1, "2"], "12", None])
def test_category_ids_that_are_not_one_whole_number_per_class_are_rejected(damaged: Path, ids: Any) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda description: description.update(category_ids=ids))
    with pytest.raises(WeightsError, match="category_ids must be 2 different whole numbers"):
        load_model(damaged)


def test_truncated_weights_are_rejected(saved: Path, damaged: Path) -> None:
    whole = (saved / WEIGHTS_FILE).read_bytes()
    (damaged / WEIGHTS_FILE).unlink()
    for length in (0, 5, 1000, len(whole) - 1):
        (damaged / WEIGHTS_FILE).write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=f"{WEIGHTS_FILE}: not a safetensors file, or truncated"):
            load_model(damaged)


@pytest.mark.parametrize("content", [b"", b'{"format": 2,', b"\xff\xfe\x00"])
def test_a_description_that_is_not_json_is_rejected(damaged: Path, content: bytes) -> None:
    (damaged / DESCRIPTION_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{DESCRIPTION_FILE}: not JSON"):
        load_model(damaged)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 2, "classes": []}'])
def test_a_description_that_lacks_keys_is_rejected(damaged: Path, content: str) -> None:
    (damaged / DESCRIPTION_FILE).write_text(content)
    with pytest.raises(WeightsError, match="needs the keys format, classes and model"):
        load_model(damaged)


def test_a_model_of_another_version_is_rejected_with_advice(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d.update(format=1))
    with pytest.raises(WeightsError) as refused:
        load_model(damaged)
    assert str(refused.value) == (
        f"{damaged / DESCRIPTION_FILE}: has format 1, but this version reads 2. "
        "Train one (`dvc repro train`) or import one (`yolact import-weights FILE`) with it"
    )


def test_a_file_instead_of_the_folder_suggests_the_import(tmp_path: Path) -> None:
    (tmp_path / "yolact_base.pth").write_bytes(b"weights")
    with pytest.raises(WeightsError, match=r"yolact_base\.pth/model\.json: no such file\..*yolact import-weights FILE"):
        load_model(tmp_path / "yolact_base.pth")


def test_an_unknown_setting_in_the_description_is_rejected(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d["model"].update(dilation=2))
    with pytest.raises(WeightsError, match=r"(?s)not a model of this version.*dilation"):
        load_model(damaged)


def test_weights_of_another_network_are_rejected_with_their_names(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d["model"].update(backbone_blocks=[1, 2, 1, 1]))
    with pytest.raises(WeightsError, match=r"(?s)does not fit model\.json.*backbone\.layers\.1\.1\.conv1\.weight"):
        load_model(damaged)


def test_another_number_of_classes_is_rejected_with_the_shapes(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: (d["classes"].append("cow"), d["category_ids"].append(9)))
    with pytest.raises(WeightsError, match=r"(?s)does not fit model\.json.*semantic_seg_conv\.weight"):
        load_model(damaged)


def test_a_failed_save_leaves_the_old_model(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (damaged / WEIGHTS_FILE).read_bytes()

    def full_disk(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("yolact.models.weights.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(tiny(), CLASSES, damaged)
    assert (damaged / WEIGHTS_FILE).read_bytes() == before
    assert sorted(path.name for path in damaged.iterdir()) == sorted([WEIGHTS_FILE, DESCRIPTION_FILE])
