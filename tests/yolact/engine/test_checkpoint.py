"""Checkpoints: what comes back, which are kept, and which are not used."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yolact.engine.checkpoint import CheckpointStore, TrainingState
from yolact.errors import YolactError

RUN = "this run"


def state(epochs_done: int = 1, **changes: Any) -> TrainingState:
    """A state as the trainer makes it, with a small network that has a momentum."""
    torch.manual_seed(epochs_done)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    facts: dict[str, Any] = {
        "fingerprint": RUN,
        "epochs_done": epochs_done,
        "step": 10 * epochs_done,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "best_score": 0.25,
        "best_epoch": 1,
        "history": {"steps": [{"epoch": 1, "step": 0, "total": 3.5}], "epochs": [{"epoch": 1, "mask_AP": 0.25}]},
        "seconds": 1.5,
        "finished": False,
        "extra": {"run_id": "abc"},
    }
    return TrainingState(**(facts | changes))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "models" / "checkpoints", keep=2)


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected
        assert type(found) is type(expected)


def latest(store: CheckpointStore) -> TrainingState:
    found = store.latest()
    assert found is not None
    return found


def test_everything_comes_back(store: CheckpointStore) -> None:
    saved = state()
    path = store.save(saved)
    assert path.is_file()
    assert_equal(vars(latest(store)), vars(saved))


def test_a_checkpoint_holds_nothing_that_could_run_code(store: CheckpointStore) -> None:
    content = torch.load(store.save(state()), weights_only=True)
    assert content["fingerprint"] == RUN
    assert content["format"] == 1


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(store: CheckpointStore) -> None:
    assert store.latest() is None
    assert store.begin(RUN) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_ones_are_kept(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path, keep)
    for epoch in range(5):
        store.save(state(epoch))
    assert names(store) == [f"epoch_{epoch:04d}.pt" for epoch in range(5 - keep, 5)]
    assert latest(store).epochs_done == 4


def test_epochs_are_counted_beyond_four_digits(store: CheckpointStore) -> None:
    for epoch in (9_999, 10_000, 10_001):
        store.save(state(epoch))
    assert names(store) == ["epoch_10000.pt", "epoch_10001.pt"]
    assert latest(store).epochs_done == 10_001


def test_saving_an_epoch_again_replaces_it(store: CheckpointStore) -> None:
    store.save(state(3, best_score=0.1))
    store.save(state(3, best_score=0.2))
    assert names(store) == ["epoch_0003.pt"]
    assert latest(store).best_score == 0.2


@pytest.mark.parametrize("damage", ["cut", "emptied", "text", "other format", "field missing"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store.save(state(1))
    newest = store.save(state(2))
    match damage:
        case "cut":
            newest.write_bytes(newest.read_bytes()[:-200])
        case "emptied":
            newest.write_bytes(b"")
        case "text":
            newest.write_text("no checkpoint")
        case "other format":
            torch.save(torch.load(newest, weights_only=True) | {"format": 99}, newest)
        case "field missing":
            content = torch.load(newest, weights_only=True)
            del content["step"]
            torch.save(content, newest)
    with caplog.at_level(logging.WARNING):
        assert latest(store).epochs_done == 1
    assert [str(newest) in record.getMessage() for record in caplog.records] == [True]


def test_with_nothing_but_damaged_checkpoints_a_run_begins_anew(store: CheckpointStore) -> None:
    store.save(state(1)).write_bytes(b"")
    store.save(state(2)).write_bytes(b"")
    assert store.latest() is None


class Payload:
    """What a hostile pickle does: it names a function to be called on loading."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_not_run(store: CheckpointStore, tmp_path: Path) -> None:
    path = store.save(state(1))
    torch.save({"format": 1, "fingerprint": Payload(tmp_path / "ran")}, path)
    assert store.latest() is None
    assert not (tmp_path / "ran").exists()


def test_an_unfinished_run_is_gone_on_with(store: CheckpointStore) -> None:
    store.save(state(1))
    store.save(state(2))
    found = store.begin(RUN)
    assert found is not None
    assert found.epochs_done == 2
    assert len(names(store)) == 2


def test_an_unfinished_run_of_other_settings_is_moved_aside_and_named(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(state(1))
    with caplog.at_level(logging.WARNING):
        assert store.begin("another run") is None
    aside = store.directory.with_name(f"{store.directory.name}-{RUN[:8]}")
    assert [path.name for path in aside.iterdir()] == ["epoch_0001.pt"]
    assert not store.directory.exists()
    assert str(aside) in caplog.text
    assert "1 epochs done" in caplog.text

    aside.replace(store.directory)  # the way back that the message tells
    assert store.begin(RUN) is not None


def test_a_finished_run_is_not_gone_on_with(store: CheckpointStore) -> None:
    store.save(state(1))
    store.save(state(2, finished=True))
    store.best_dir(2).mkdir()
    (store.directory / ".epoch_0002.pt.x1.part").write_bytes(b"half")
    (store.directory / "notes.txt").write_text("mine")
    assert store.begin(RUN) is None
    assert names(store) == ["notes.txt"]


def test_best_weights_stay_until_a_checkpoint_names_better_ones(store: CheckpointStore) -> None:
    store.best_dir(1).mkdir(parents=True)
    store.save(state(1, best_epoch=1))
    store.best_dir(2).mkdir()  # killed here: the checkpoint still names the first
    assert store.best_dir(latest(store).best_epoch).is_dir()
    store.save(state(2, best_epoch=2))
    assert store.best_dir(1).is_dir()  # the checkpoint before may still be needed: the newest may be damaged
    store.save(state(3, best_epoch=2))
    assert not store.best_dir(1).exists()  # no kept checkpoint names it any more
    assert store.best_dir(2).is_dir()


def test_best_weights_of_the_checkpoint_before_a_damaged_one_are_there(store: CheckpointStore) -> None:
    for epoch in (1, 2):
        store.best_dir(epoch).mkdir(parents=True)
        newest = store.save(state(epoch, best_epoch=epoch))
    newest.write_bytes(b"")
    assert latest(store).best_epoch == 1
    assert store.best_dir(1).is_dir()


def test_checkpoints_of_which_none_can_be_read_are_kept_aside(store: CheckpointStore) -> None:
    store.save(state(1)).write_bytes(b"damaged")
    assert store.begin(RUN) is None
    aside = store.directory.with_name(f"{store.directory.name}-unreadable")
    assert [path.read_bytes() for path in aside.iterdir()] == [b"damaged"]


def test_a_run_of_other_settings_without_a_finished_epoch_is_not_kept(store: CheckpointStore) -> None:
    store.save(state(0))
    assert store.begin("another run") is None
    assert names(store) == []


def test_a_failed_save_leaves_the_others_and_no_leavings(store: CheckpointStore) -> None:
    """A limit on the size of files stands in for a full disk."""
    resource = pytest.importorskip("resource")
    store.save(state(1))
    store.save(state(2))
    large = state(3, model={"weight": torch.zeros(1_000_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(YolactError, match=r"epoch_0003\.pt: could not be written.*disk full"):
            store.save(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(store) == ["epoch_0001.pt", "epoch_0002.pt"]
    assert latest(store).epochs_done == 2
