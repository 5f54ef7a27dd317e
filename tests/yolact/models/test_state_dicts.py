"""Reading tensor files: tensors are read as saved, and each kind of invalid file is named."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from yolact.errors import WeightsError
from yolact.models.state_dicts import read_state_dict, shortened


def state() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0]), "n": torch.tensor(7)}


def assert_is_state(found: dict[str, Tensor]) -> None:
    assert list(found) == list(state())
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        read_state_dict(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


# --- files that are read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_new_and_old_pytorch_are_read(path: Path, zipped: bool) -> None:
    """The published weights are from before PyTorch 1.6, whose files are not zip archives."""
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    assert_is_state(read_state_dict(path))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_read_whatever_their_name(tmp_path: Path, name: str) -> None:
    save_file(state(), tmp_path / name)
    found = read_state_dict(tmp_path / name)
    assert_is_state({key: found[key] for key in state()})


def test_parameters_are_read_as_plain_tensors(path: Path) -> None:
    torch.save({name: nn.Parameter(tensor) for name, tensor in state().items() if tensor.is_floating_point()}, path)
    assert not any(tensor.requires_grad for tensor in read_state_dict(path).values())


def test_the_prefix_of_data_parallel_is_removed(path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in state().items()}, path)
    assert_is_state(read_state_dict(path))


def test_a_prefix_that_not_all_names_have_is_kept(path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, path)
    assert list(read_state_dict(path)) == ["module.a", "b"]


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_next_to_other_data_is_found(path: Path, key: str) -> None:
    torch.save({"epoch": 3, key: state(), "optimizer": {"state": {}, "param_groups": []}}, path)
    assert_is_state(read_state_dict(path))


# --- files that are not -------------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_named(path: Path, tmp_path: Path) -> None:
    assert refusal(path) == "no such file"
    assert refusal(tmp_path) == "is a folder; name the file of weights in it"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"hello\nworld\n", "text"),
        (
            b"\n<!DOCTYPE html><html>Too many users",
            "a web page or XML, which servers send instead of a file; download it",
        ),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(64), "a JPEG picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer instead of the file"),
        (pickle.dumps({"a": 1}), "a pickle that PyTorch did not write"),
        (bytes(range(1, 60)), "of an unknown type"),
    ],
)
def test_other_kinds_of_files_are_identified(path: Path, content: bytes, kind: str) -> None:
    path.write_bytes(content)
    assert refusal(path).startswith(f"is not a file of PyTorch weights; it is {kind}")


def test_an_empty_file_is_rejected(path: Path) -> None:
    path.touch()
    assert refusal(path) == "is empty"


def test_a_zip_archive_of_other_files_is_rejected_with_some_of_them(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/b.txt", "a/c.txt", "d.txt", "e.txt"):
            archive.writestr(name, "text")
    assert refusal(path) == "is a zip archive, but not one of PyTorch; it holds b.txt, c.txt, d.txt and 1 more"


def test_a_torchscript_program_is_rejected(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/net.py"):
            archive.writestr(name, b"")
    assert refusal(path) == "is a TorchScript program; save its state_dict() with torch.save instead"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [1, 3, 10, 40, 200, 700, -200, -1])
def test_a_truncated_file_is_rejected(path: Path, zipped: bool, kept: int) -> None:
    torch.save({"a": torch.arange(200.0), "b": torch.arange(99.0)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()[:kept]
    path.write_bytes(content)
    assert refusal(path) == (
        f"is truncated or damaged; it has {len(content):,} bytes. Compare with its source and download it again"
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_truncated_safetensors_are_rejected(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(path).startswith("is not a safetensors file, or is truncated: ")


def test_a_damaged_pickle_is_rejected(path: Path) -> None:
    torch.save(state(), path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a.weight", b"\xff.weight"))
    assert refusal(path).startswith("is truncated or damaged; ")


def test_a_pickle_that_cannot_be_read_safely_is_rejected(path: Path) -> None:
    torch.save(state(), path, pickle_protocol=4)
    with pytest.warns(UserWarning, match="pickle protocol 4"):
        message = refusal(path)
    assert message == "is pickled in a way that cannot be read safely; save it with torch.save's own pickle_protocol"


class Dangerous:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("code of a weights file was run",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (lambda: {"state_dict": state(), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (lambda: {"a.weight": Dangerous()}, f"{os.mkdir.__module__}.mkdir"),
    ],
)
def test_python_objects_are_rejected_unread_with_advice_to_save_the_tensors(
    path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], object], named: str, zipped: bool
) -> None:
    monkeypatch.chdir(path.parent)
    torch.save(make(), path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert message.startswith(f"holds Python objects ({named}), not only tensors. Reading them can run arbitrary code")
    assert "torch.load('weights.pth', weights_only=False)" in message
    assert "torch.save(content.state_dict(), 'plain.pth')" in message
    assert [file.name for file in path.parent.iterdir()] == ["weights.pth"]


def test_the_advice_of_that_message_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    torch.manual_seed(0)
    torch.save(nn.Linear(2, 3), path)
    commands = re.findall(
        r"content = torch\.load\(.*?\)|torch\.save\(content\.state_dict\(\), 'plain\.pth'\)", refusal(path)
    )
    assert len(commands) == 2
    exec("\n".join(commands), {"torch": torch})
    assert list(read_state_dict(Path("plain.pth"))) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("content", "described"),
    [
        ([torch.zeros(1)], "one object of type list"),
        (torch.zeros(2, 3), "one tensor of shape (2, 3)"),
        ({}, "a dictionary of nothing"),
        (3, "one object of type int"),
        (
            {"epoch": 3, "lr": 0.1, "best": None, "name": "x"},
            "a dictionary of epoch (int), lr (float), best (NoneType)",
        ),
        ({"a": torch.zeros(1), "epoch": 3}, "a dictionary of 1 tensor and epoch (int)"),
        ({"state_dict": {"a": [1]}}, "a dictionary of state_dict (dict)"),
        ({1: torch.zeros(1)}, "a dictionary of 1 tensor"),
    ],
)
def test_a_file_without_a_state_dict_is_rejected_with_its_content(path: Path, content: object, described: str) -> None:
    torch.save(content, path)
    assert refusal(path).startswith(f"holds no state_dict (tensors by name), but {described}")


def test_two_state_dicts_are_ambiguous(path: Path) -> None:
    torch.save({"model": state(), "state_dict": state()}, path)
    assert refusal(path) == "holds more than one state_dict (state_dict, model); save the right one alone"


def test_long_lists_are_shortened() -> None:
    assert shortened(["a"]) == "a"
    assert shortened(["a", "b", "c"]) == "a, b, c"
    assert shortened(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
