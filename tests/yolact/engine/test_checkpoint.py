"""Checkpoints: what is restored, which are kept, and which are not used."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.small_networks import tiny_config
from yolact.engine.checkpoint import CheckpointStore, TrainingState, digest_of
from yolact.errors import WeightsError, YolactError
from yolact.models.yolact import Yolact

RUN = "this run"


def state(epochs_done: int = 1, **changes: Any) -> TrainingState:
    """A state as the trainer saves it, of a small network with momentum."""
    torch.manual_seed(epochs_done)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    facts: dict[str, Any] = {
        "settings": {"train": {"lr": 1e-3}},
        "steps_per_epoch": 10,
        "epochs_done": epochs_done,
        "batches_done": 3,
        "step": 10 * epochs_done,
        "validation_due": False,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0},
        "ema": {"updates": 2, "model": network.state_dict()},
        "random": {"cpu": torch.get_rng_state()},
        "terms": {"names": ["box"], "sums": torch.tensor([1.5]), "count": 2},
        "best_score": 0.25,
        "best": "",
        "history": {"steps": [{"epoch": 1, "step": 0, "total": 3.5}], "epochs": [{"epoch": 1, "mask_AP": 0.25}]},
        "seconds": 1.5,
        "finished": False,
        "extra": {"run_id": "abc"},
    }
    return TrainingState(**(facts | changes))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return new_store(tmp_path)


def new_store(folder: Path, run: str = RUN, keep: int = 2, mirror: Any = None) -> CheckpointStore:
    return CheckpointStore(folder / "models" / "checkpoints", keep, run, mirror)


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def steps(store: CheckpointStore) -> list[int]:
    """Steps of the checkpoints in the folder, oldest first."""
    return [int(name.split("-")[1].removeprefix("step_")) for name in names(store) if name.endswith(".pt")]


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
    found = store.begin()
    assert found is not None
    return found


def test_the_complete_state_is_restored(store: CheckpointStore) -> None:
    saved = state()
    path = store.save(saved)
    assert path.is_file()
    assert_equal(vars(latest(store)), vars(saved))


def test_a_checkpoint_contains_no_executable_code(store: CheckpointStore) -> None:
    content = torch.load(store.save(state()), weights_only=True)
    assert content["fingerprint"] == RUN
    assert content["format"] == 4


def test_a_name_contains_number_step_and_digest(store: CheckpointStore) -> None:
    store.save(state(1))
    path = store.save(state(2))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert path.name == f"000002-step_00000020-{digest}.pt"


def test_without_a_checkpoint_a_run_starts_over(store: CheckpointStore) -> None:
    assert store.begin() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    store = new_store(tmp_path, keep=keep)
    for epoch in range(5):
        store.save(state(epoch))
    assert steps(store) == [10 * epoch for epoch in range(5 - keep, 5)]
    assert latest(store).epochs_done == 4


def test_checkpoints_are_counted_beyond_six_digits(store: CheckpointStore) -> None:
    path = store.save(state(1))
    path.rename(path.with_name(path.name.replace("000001", "999999")))
    store.save(state(2))
    store.save(state(3))
    assert [name.split("-")[0] for name in names(store)] == ["1000000", "1000001"]
    assert latest(store).epochs_done == 3


def test_the_later_of_two_checkpoints_of_one_step_is_used(store: CheckpointStore) -> None:
    """Before and after a validation."""
    store.save(state(3, best_score=0.1))
    store.save(state(3, best_score=0.2))
    assert steps(store) == [30, 30]
    assert latest(store).best_score == 0.2


@pytest.mark.parametrize("fault", ["cut", "emptied", "text", "a bit", "other format", "field missing"])
def test_a_damaged_checkpoint_is_skipped_and_named(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    store.save(state(1))
    newest = store.save(state(2))
    match fault:
        case "cut":
            newest.write_bytes(newest.read_bytes()[:-200])
        case "emptied":
            newest.write_bytes(b"")
        case "text":
            newest.write_text("no checkpoint")
        case "a bit":
            content = bytearray(newest.read_bytes())
            weights = torch.load(newest, weights_only=True)["model"]["0.weight"].numpy().tobytes()
            content[bytes(content).index(weights) + 5] ^= 1  # in the middle of a number: the file can still be read
            newest.write_bytes(content)
            assert torch.load(newest, weights_only=True)["step"] == 20
        case "other format":
            newest = renamed(newest, torch.load(newest, weights_only=True) | {"format": 99})
        case "field missing":
            content = torch.load(newest, weights_only=True)
            del content["step"]
            newest = renamed(newest, content)
    with caplog.at_level(logging.WARNING):
        assert latest(store).epochs_done == 1
    assert [str(newest) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("found", ["at the start", "when the next one is written"])
def test_a_damaged_checkpoint_does_not_count_as_kept_and_is_reported_once(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, found: str
) -> None:
    store.save(state(1))
    store.save(state(2))
    newest = store.save(state(3))
    damage(newest)
    with caplog.at_level(logging.WARNING):
        after = new_store(tmp_path)
        if found == "at the start":
            assert latest(after).epochs_done == 2
        after.save(state(4))
        assert steps(after) == [20, 40]
        after.save(state(5))
        after.save(state(6))
    assert steps(after) == [50, 60]
    assert [str(newest) in record.getMessage() for record in caplog.records] == [True]
    assert [path.name for path in store.directory.glob("*.damaged")] == [f"{newest.name}.damaged"]
    after.save(state(7, finished=True))
    assert after.begin() is None
    assert names(after) == []


def renamed(path: Path, content: dict[str, Any]) -> Path:
    """Write other content to a checkpoint, under the matching name."""
    torch.save(content, path)
    return path.rename(path.with_name(f"{path.name[:20]}-{digest_of(path)}.pt"))


class Payload:
    """A hostile pickle: it names a function to be called on loading."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_not_run(store: CheckpointStore, tmp_path: Path) -> None:
    path = store.save(state(1))
    renamed(path, {"format": 4, "fingerprint": Payload(tmp_path / "ran")})
    assert store.begin() is None
    assert not (tmp_path / "ran").exists()


def test_an_unfinished_run_is_resumed(store: CheckpointStore) -> None:
    store.save(state(1))
    store.save(state(2))
    found = store.begin()
    assert found is not None
    assert found.epochs_done == 2
    assert len(names(store)) == 2


def test_an_unfinished_run_of_other_settings_is_moved_aside_and_named(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = store.save(state(1)).name
    with caplog.at_level(logging.WARNING):
        assert new_store(tmp_path, "another run").begin() is None
    aside = store.directory.with_name(f"{store.directory.name}-{RUN[:8]}")
    assert [path.name for path in aside.iterdir()] == [name]
    assert not store.directory.exists()
    assert str(aside) in caplog.text
    assert "1 epochs done" in caplog.text

    aside.replace(store.directory)  # the way back that the message describes
    assert store.begin() is not None


def test_a_finished_run_is_not_resumed(store: CheckpointStore) -> None:
    store.save(state(1))
    store.save(state(2, finished=True))
    (store.directory / "best_0002-0123456789abcdef").mkdir()
    (store.directory / ".checkpoint.x1.part").write_bytes(b"half")
    (store.directory / "notes.txt").write_text("mine")
    assert store.begin() is None
    assert names(store) == ["notes.txt"]


def test_a_finished_run_is_returned_on_request_if_settings_and_data_are_the_same(
    store: CheckpointStore, tmp_path: Path
) -> None:
    best = store.save_best(network(1), ["thing"], 2)
    store.save(state(2, best=best, finished=True))
    found = store.begin(with_finished=True)
    assert found is not None
    assert (found.finished, found.epochs_done, found.best) == (True, 2, best)
    assert CheckpointStore(store.directory, 3, "of other settings").begin(with_finished=True) is None
    assert names(store) == []


def test_a_finished_run_that_has_lost_its_best_weights_searches_for_them_again(store: CheckpointStore) -> None:
    best = store.save_best(network(1), ["thing"], 2)
    store.save(state(2, batches_done=0, best=best, finished=True, history={"steps": [], "epochs": []}))
    damage(store.directory / best / "model.safetensors")
    found = store.begin(with_finished=True)
    assert found is not None
    assert (found.finished, found.validation_due, found.best) == (False, True, "")


def test_a_finished_run_from_the_mirror_is_not_returned(tmp_path: Path) -> None:
    mirror = FolderMirror(tmp_path / "mirror")
    new_store(tmp_path / "one", mirror=mirror).save(state(2, finished=True))
    assert new_store(tmp_path / "other", mirror=mirror).begin(with_finished=True) is None


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_with_fewer_epochs_is_continued(store: CheckpointStore, tmp_path: Path, finished: bool) -> None:
    saved = state(2, finished=finished)
    store.save(saved)
    asked = []

    def allow(fingerprint: str, found: TrainingState) -> str:
        asked.append((fingerprint, found.step))
        return ""

    found = new_store(tmp_path, "with more epochs").begin(extension=allow)
    assert found is not None
    assert_equal(vars(found), vars(saved))
    assert asked == [(RUN, 20)]


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_cannot_have_more_epochs_is_kept_and_the_reason_named(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, finished: bool
) -> None:
    best = store.save_best(network(1), ["thing"], 2)
    store.save(state(2, best=best, finished=finished))
    with caplog.at_level(logging.WARNING):
        assert new_store(tmp_path, "with more epochs").begin(extension=lambda *_: "the rate differs") is None
    assert not store.directory.exists()
    assert "2 epochs done that cannot be continued: the rate differs." in caplog.text
    named = caplog.messages[0].rpartition("model.initial_weights: ")[2]
    assert (Path(named) / "model.safetensors").is_file()
    assert ("move the folder back" in caplog.text) == (not finished)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_differs_in_more_than_its_epochs_is_treated_as_any_other(
    store: CheckpointStore, tmp_path: Path, finished: bool
) -> None:
    store.save(state(2, finished=finished))
    assert new_store(tmp_path, "another run").begin(extension=lambda *_: None) is None
    assert store.directory.exists() == finished  # emptied, or moved aside


def network(seed: int) -> Yolact:
    torch.manual_seed(seed)
    return Yolact(tiny_config(), 1)


def test_best_weights_are_restored(store: CheckpointStore) -> None:
    model = network(0)
    name = store.save_best(model, ["thing"], epochs_done=7)
    assert name.startswith("best_0007-")
    found, classes = store.load_best(name)
    assert classes == ["thing"]
    assert_equal(dict(found.state_dict()), dict(model.state_dict()))
    assert store.save_best(model, ["thing"], epochs_done=7) == name  # again after a kill
    assert names(store) == [name]


def test_best_weights_that_have_changed_are_rejected(store: CheckpointStore) -> None:
    name = store.save_best(network(0), ["thing"], epochs_done=7)
    damage(store.directory / name / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: has changed since it was written"):
        store.load_best(name)


def damage(path: Path) -> None:
    """Change a bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_a_run_whose_best_weights_are_damaged_resumes_from_before_them(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    """The validation that found them is repeated, and writes the same ones in their place."""
    first = store.save_best(network(1), ["thing"], 1)
    store.save(state(2, best=first, validation_due=True))
    second = store.save_best(network(2), ["thing"], 2)
    store.save(state(2, best=second, step=21))
    (store.directory / second / file).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        found = latest(store)
    assert (found.best, found.step, found.validation_due) == (first, 20, True)
    assert str(store.directory / second) in caplog.text
    assert store.save_best(network(2), ["thing"], 2) == second
    assert store.load_best(second)[1] == ["thing"]
    assert latest(store).step == 21


@pytest.mark.parametrize(("batches_done", "due", "left"), [(0, True, [1]), (3, False, [1, 2])])
def test_a_run_that_has_lost_all_best_weights_searches_for_them_again(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, batches_done: int, due: bool, left: list[int]
) -> None:
    best = store.save_best(network(1), ["thing"], 1)
    rows = [{"epoch": epoch, "mask_AP": 0.1} for epoch in (1, 2)]
    for step in (20, 21):
        store.save(state(2, step=step, batches_done=batches_done, best=best, history={"steps": [], "epochs": rows}))
    damage(store.directory / best / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        found = latest(store)
    assert (found.step, found.best, found.best_score, found.validation_due) == (21, "", -1, due)
    assert [row["epoch"] for row in found.history["epochs"]] == left
    assert str(store.directory / best) in caplog.text


def test_best_weights_are_kept_until_a_checkpoint_names_better_ones(store: CheckpointStore) -> None:
    first = store.save_best(network(1), ["thing"], 1)
    store.save(state(1, best=first))
    second = store.save_best(network(2), ["thing"], 2)  # killed here: the checkpoint still names the first
    assert (store.directory / latest(store).best).is_dir()
    store.save(state(2, best=second))
    assert (store.directory / first).is_dir()  # the checkpoint before may still be needed: the newest may be damaged
    store.save(state(3, best=second))
    assert not (store.directory / first).exists()  # no kept checkpoint names it any longer
    assert (store.directory / second).is_dir()


def test_best_weights_named_by_checkpoints_of_an_earlier_process_are_kept(tmp_path: Path) -> None:
    before = new_store(tmp_path)
    first = before.save_best(network(1), ["thing"], 1)
    before.save(state(1, best=first))
    store = new_store(tmp_path)
    store.save(state(2, best=""))
    assert (store.directory / first).is_dir()


def test_checkpoints_are_moved_aside_if_none_can_be_read(store: CheckpointStore) -> None:
    store.save(state(1)).write_bytes(b"damaged")
    assert store.begin() is None
    aside = store.directory.with_name(f"{store.directory.name}-unreadable")
    assert [path.read_bytes() for path in aside.iterdir()] == [b"damaged"]


def test_a_run_of_other_settings_without_a_finished_step_is_not_kept(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(state(0))
    assert new_store(tmp_path, "another run").begin() is None
    assert names(store) == []


def test_a_failed_save_keeps_the_other_checkpoints_and_leaves_no_partial_files(store: CheckpointStore) -> None:
    """A file size limit simulates a full disk."""
    resource = pytest.importorskip("resource")
    store.save(state(1))
    store.save(state(2))
    before = names(store)
    large = state(3, model={"weight": torch.zeros(1_000_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(YolactError, match=r"checkpoint 3 could not be written.*disk full"):
            store.save(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(store) == before
    assert latest(store).epochs_done == 2


class FolderMirror:
    """A mirror in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fetch(self, directory: Path) -> None:
        if self.folder.is_dir():
            shutil.copytree(self.folder, directory, dirs_exist_ok=True)

    def sync(self, directory: Path, checkpoints: list[list[str]]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in itertools.chain(*checkpoints):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / name, self.folder / name)


def test_a_run_resumes_from_its_mirror_on_an_empty_machine(tmp_path: Path) -> None:
    mirror = FolderMirror(tmp_path / "mirror")
    store = new_store(tmp_path / "one", mirror=mirror)
    best = store.save_best(network(1), ["thing"], 1)
    for epoch in (1, 2, 3):
        store.save(state(epoch, best=best))

    other = new_store(tmp_path / "other", mirror=mirror)
    found = other.begin()
    assert found is not None
    assert found.epochs_done == 3
    assert names(other) == names(store)
    assert other.load_best(best)[1] == ["thing"]


def test_the_mirror_receives_the_newest_checkpoint_first_preceded_by_its_best_weights(tmp_path: Path) -> None:
    synced: list[list[list[str]]] = []
    mirror = FolderMirror(tmp_path / "mirror")
    mirror.sync = lambda directory, checkpoints: synced.append(checkpoints)  # type: ignore[method-assign]
    store = new_store(tmp_path, mirror=mirror)
    first = store.save(state(1)).name
    best = store.save_best(network(1), ["thing"], 1)
    second = store.save(state(2, best=best)).name
    of_best = [f"{best}/model.json", f"{best}/model.safetensors"]
    assert synced == [[[first]], [[*of_best, second], [first]]]


def test_local_checkpoints_take_precedence_over_the_mirror(tmp_path: Path) -> None:
    mirror = FolderMirror(tmp_path / "mirror")
    new_store(tmp_path / "one", mirror=mirror).save(state(1))
    store = new_store(tmp_path / "other")
    store.save(state(2))
    found = new_store(tmp_path / "other", mirror=mirror).begin()
    assert found is not None
    assert found.epochs_done == 2
