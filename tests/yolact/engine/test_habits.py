"""Averaged weights, frozen layers, early stopping, micro-batches, and warnings about settings."""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from tests.small_networks import tiny_config
from tests.yolact.engine.runs import make_images, small_params
from yolact.data.coco import CocoInstances
from yolact.devices import peak_resident
from yolact.distributed import World
from yolact.engine import prefetch
from yolact.engine.advice import OutOfMemoryError, is_out_of_memory, learning_rate_advice, step_out_of_memory
from yolact.engine.batch_norm import SyncBatchNorm2d, synchronise_batch_norm
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.ema import Ema
from yolact.engine.freezing import frozen_parts
from yolact.engine.interrupts import InterruptedRunError, Interrupts
from yolact.engine.loss_watch import DivergedError
from yolact.engine.micro_batches import split_batch
from yolact.engine.speed import SpeedMeter
from yolact.engine.trainer import SilentListener, Trainer
from yolact.errors import SettingsError
from yolact.inference.network import fold_batch_norm
from yolact.models.yolact import Yolact
from yolact.structures import Targets
from yolact_ops.settings.params import Params, parse_params

pytestmark = pytest.mark.usefixtures("one_thread")

FROZEN_NORM = {"backbone_weights": "imagenet"}
"""The caller loads weights, so nothing is downloaded; batch norm is frozen."""


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    annotations = make_images(tmp_path / "images", 4)
    data = CocoInstances.load(annotations, annotations.parent)

    def make(name: str = "models", scores: list[float] | None = None, **settings: Any) -> Trainer:
        params = small_params(**settings)
        torch.manual_seed(0)
        model = Yolact(params.model, 2)
        left = list(scores or [])
        store = CheckpointStore(tmp_path / name / "checkpoints", 2, "run")

        def validate(_: Yolact) -> dict[str, float]:
            return {"mask_AP": left.pop(0) if left else 0.0}

        return Trainer(model, data, params, tmp_path / name, store, validate, SilentListener(), {})

    return make


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# --- Gradient accumulation


@pytest.mark.parametrize(("passes", "max_masks"), [(2, 100), (4, 1)])
def test_micro_batches_have_the_gradients_of_the_whole_batch(
    trainer: Callable[..., Trainer], passes: int, max_masks: int
) -> None:
    """Images have one or two objects, so micro-batches differ in their positives; with at most one mask for each image,
    it is drawn at random."""
    loss = {"max_masks_per_image": max_masks, "positive_iou": 0.2, "negative_iou": 0.1}
    settings: dict[str, Any] = {"batch_size": 4, "epochs": 3, "lr": 1e-2, "model": FROZEN_NORM, "loss": loss}
    whole, parts = trainer("whole", **settings), trainer("parts", accumulate=passes, **settings)
    torch.manual_seed(5)
    first = whole.fit()
    torch.manual_seed(5)
    second = parts.fit()
    for row, expected in zip(second.history["steps"], first.history["steps"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    found = weights(parts.model)
    for name, expected in weights(whole.model).items():
        assert torch.allclose(found[name], expected, rtol=1e-5, atol=1e-6), name


def test_a_run_resumed_with_more_micro_batches_and_other_validations_has_the_same_weights(
    trainer: Callable[..., Trainer],
) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "epochs": 4, "lr": 1e-2, "model": FROZEN_NORM}
    torch.manual_seed(5)
    whole = trainer("whole", scores=[0.5, 0.3], validate_every=2, **settings)
    whole.fit()
    torch.manual_seed(5)
    first = trainer("changed", scores=[0.5], validate_every=2, **settings)
    train_epoch = first._train_epoch

    def two_epochs() -> None:
        if first.epochs_done == 2:
            raise InterruptedRunError("stopped")
        train_epoch()

    first._train_epoch = two_epochs  # type: ignore[method-assign]
    with pytest.raises(InterruptedRunError):
        first.fit()
    state = first.checkpoints.begin()
    assert state is not None
    torch.manual_seed(99)  # the checkpoint's value is used
    second = trainer("changed", scores=[0.1, 0.2], validate_every=1, patience=3, accumulate=2, **settings)
    second.restore(state)
    result = second.fit()
    assert [row["epoch"] for row in result.history["epochs"]] == [2, 3, 4]
    assert (result.best_score, second.best) == (0.5, first.best)
    found = weights(second.model)
    for name, expected in weights(whole.model).items():
        assert torch.allclose(found[name], expected, rtol=1e-5, atol=1e-6), name


def test_micro_batches_are_the_batchs_images_with_their_objects_and_matches(trainer: Callable[..., Trainer]) -> None:
    """Matches equal those of each micro-batch alone, index for index, although computed once for the batch."""
    learner = trainer(batch_size=4)
    batch = next(iter(learner.loader))
    anchors = learner.model.anchors(learner.model.level_sizes(64, 64), torch.device("cpu"))
    matches = learner.criterion.match(batch.targets, anchors)
    priorities = torch.rand(4, len(anchors))
    parts = split_batch(batch, matches, priorities, 2, World())
    assert torch.equal(torch.cat([part.priorities for part in parts]), priorities)
    assert [part.batch.image_ids for part in parts] == [batch.image_ids[:2], batch.image_ids[2:]]
    positives = (matches.classes > 0).sum(dim=1)
    assert [float(part.shares["positives"]) for part in parts] == pytest.approx(
        [float(positives[:2].sum() / positives.sum()), float(positives[2:].sum() / positives.sum())]
    )
    assert [float(part.shares["images"]) for part in parts] == [0.5, 0.5]
    for part in split_batch(batch, matches, priorities, 4, World()):
        alone = learner.criterion.match(part.batch.targets, anchors)
        assert torch.equal(part.matches.classes, alone.classes)
        assert torch.equal(part.matches.objects, alone.objects)


def test_targets_of_single_images_together_are_those_of_the_batch(trainer: Callable[..., Trainer]) -> None:
    targets = next(iter(trainer(batch_size=4).loader)).targets
    single = [targets.rows(image, image + 1) for image in range(4)]
    joined = Targets.cat(single)
    for field in fields(Targets):
        found, expected = getattr(joined, field.name), getattr(targets, field.name)
        assert torch.equal(found, expected) if isinstance(expected, Tensor) else found == expected, field.name
    assert all(part.counts == [len(part.boxes)] for part in single)
    assert all(not part.images.any() for part in single)


# --- Averages, frozen layers, early stopping


def test_averaged_weights_by_hand() -> None:
    torch.manual_seed(0)
    model = Yolact(tiny_config(), 1)
    ema = Ema(model, decay=0.15)
    expected = model.proto_net[0].weight.detach().double().clone()
    for update in (1, 2, 3):
        with torch.no_grad():
            model.proto_net[0].weight.add_(1)
            model.backbone.bn1.num_batches_tracked.add_(1)
        ema.update()
        decay = min(0.15, (1 + update) / (10 + update))  # 2/11 is above, so 0.15 at once
        expected = decay * expected + (1 - decay) * model.proto_net[0].weight.detach().double()
    assert torch.allclose(ema.model.proto_net[0].weight.double(), expected, atol=1e-6)
    assert ema.model.backbone.bn1.num_batches_tracked == 3
    slow = Ema(model, decay=0.999)
    before = model.proto_net[0].weight.detach().clone()
    with torch.no_grad():
        model.proto_net[0].weight.add_(1)
    slow.update()
    assert torch.allclose(slow.model.proto_net[0].weight, before + 9 / 11, atol=1e-5)  # the decay rises from 2/11


def test_averaged_weights_are_validated_and_kept(trainer: Callable[..., Trainer]) -> None:
    learner = trainer(epochs=1, ema_decay=0.9)
    shown: list[dict[str, torch.Tensor]] = []

    def validate(model: Yolact) -> dict[str, float]:
        shown.append(weights(model))
        return {"mask_AP": 0.5}

    learner.validate = validate
    learner.fit()
    assert learner.ema is not None
    kept, _ = learner.checkpoints.load_best(learner.best)
    for name, tensor in weights(kept).items():
        assert torch.equal(tensor, shown[0][name])
        assert torch.equal(tensor, learner.ema.model.state_dict()[name])
    assert not torch.equal(kept.proto_net[0].weight, learner.model.proto_net[0].weight)


@pytest.mark.parametrize(
    ("up_to", "frozen"),
    [
        ("stem", ["backbone.conv1"]),
        ("stage2", ["backbone.conv1", "backbone.layers.0", "backbone.layers.1"]),
        ("backbone", ["backbone."]),
    ],
)
def test_frozen_layers_do_not_change_and_the_others_learn(
    trainer: Callable[..., Trainer], up_to: str, frozen: list[str]
) -> None:
    learner = trainer(epochs=1, freeze=up_to, model=FROZEN_NORM)
    before = weights(learner.model)
    learner.fit()
    moved = {name for name, tensor in weights(learner.model).items() if not torch.equal(tensor, before[name])}
    convolutions = {
        f"{name}.weight" for name, part in learner.model.named_modules() if isinstance(part, nn.Conv2d)
    }  # batch norm is frozen everywhere
    kept = {name for name in convolutions if any(name.startswith(start) for start in frozen)}
    assert kept
    assert convolutions - moved == kept


def test_the_stem_of_darknet_is_everything_before_its_stages() -> None:
    model = Yolact(tiny_config(backbone="darknet53", backbone_blocks=[1] * 5), 1)
    assert frozen_parts(model.backbone, "stem") == [model.backbone._preconv]
    assert frozen_parts(model.backbone, "stage1") == [model.backbone._preconv, model.backbone.layers[0]]
    assert frozen_parts(model.backbone, "backbone") == [model.backbone]
    assert frozen_parts(model.backbone, "none") == []


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.5], 2, 4),  # equal is not better
        ([0.1, 0.3, 0.2, 0.4, 0.3, 0.2], 2, 6),
        ([0.3, 0.2, 0.1, 0.1, 0.1, 0.1], 0, 6),
    ],
)
def test_a_run_stops_when_it_no_longer_improves(
    trainer: Callable[..., Trainer], scores: list[float], patience: int, epochs: int
) -> None:
    result = trainer(scores=scores, epochs=6, validate_every=1, patience=patience, batch_size=4).fit()
    assert len(result.history["epochs"]) == epochs
    assert result.best_score == max(scores[:epochs])


def test_without_a_measured_score_the_last_weights_are_kept_and_patience_does_not_count(
    trainer: Callable[..., Trainer],
) -> None:
    learner = trainer(scores=[float("nan")] * 4, epochs=4, validate_every=1, patience=1, batch_size=4)
    result = learner.fit()
    assert (result.steps, result.best_score) == (4, None)
    assert learner.best.startswith("best_0004-")


def test_patience_set_later_counts_past_validations(trainer: Callable[..., Trainer]) -> None:
    first = trainer(scores=[0.3, 0.2, 0.1], epochs=3, validate_every=1, batch_size=4)
    first.fit()
    state = first.checkpoints.begin()
    assert state is not None
    second = trainer(epochs=6, validate_every=1, patience=2, batch_size=4)
    second.restore(state)
    result = second.fit()
    assert (result.steps, result.best_score, second.best) == (3, 0.3, first.best)
    assert (second.model_dir / "model.safetensors").is_file()


def test_a_run_that_has_finished_takes_no_step_with_more_patience(trainer: Callable[..., Trainer]) -> None:
    first = trainer(scores=[0.3, 0.2], epochs=6, validate_every=1, patience=1, batch_size=4)
    first.fit()
    first.finish()
    state = first.checkpoints.begin(with_finished=True)
    assert state is not None
    second = trainer(epochs=6, validate_every=1, patience=5, batch_size=4)
    second.restore(state)
    assert second.fit().steps == 2


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_continued_with_more_epochs_ends_as_one_that_had_them_from_the_start(
    trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture, finished: bool
) -> None:
    caplog.set_level(logging.INFO)
    settings: dict[str, Any] = {
        "validate_every": 4,
        "lr_milestones": [],
        "warmup_steps": 3,
        "ema_decay": 0.9,
        "loss": {"max_masks_per_image": 1},  # drawn at random
    }
    torch.manual_seed(5)
    whole = trainer("whole", epochs=4, **settings)
    whole.fit()
    torch.manual_seed(5)
    first = trainer("extended", epochs=2, **settings)
    first.fit()  # validates once more, at its end
    if finished:
        first.finish()
    state = first.checkpoints.begin(with_finished=True)
    assert state is not None
    assert state.finished == finished
    torch.manual_seed(99)  # the checkpoint's value is used
    second = trainer("extended", epochs=4, **settings)
    second.restore(state)
    result = second.fit()
    assert "continuing after epoch 2 of 4 (train.epochs was 2)" in caplog.text
    assert result.steps == whole.step == 8
    assert result.history["steps"] == whole.history["steps"]
    assert [row["epoch"] for row in result.history["epochs"]] == [2, 4]
    for found, expected in ((second.model, whole.model), (second.ema.model, whole.ema.model)):  # type: ignore[union-attr]
        assert all(torch.equal(weights(found)[name], tensor) for name, tensor in weights(expected).items())
    second.finish()
    again = second.checkpoints.begin(with_finished=True)
    assert again is not None
    assert (again.finished, again.settings["train"]["epochs"]) == (True, 4)


# --- Settings


def changed(params: Params, section: str, **values: Any) -> Params:
    tree = params.model_dump(mode="json", by_alias=True)
    tree[section] |= values
    return parse_params(tree)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("train", {"accumulate": 3}, r"accumulate \(3\) must divide batch_size \(2\)"),
        ("train", {"freeze": "stage1"}, "there are no weights to keep"),
        ("train", {"freeze": "layer1"}, "train.freeze"),
        ("runtime", {"checkpoint_mirror": "gs://bucket"}, "runtime.checkpoint_mirror"),
    ],
)
def test_invalid_settings_are_rejected(section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        changed(small_params(), section, **values)


def test_a_stage_that_the_backbone_does_not_have_cannot_be_frozen() -> None:
    with pytest.raises(SettingsError, match=r"train\.freeze: is stage5, but resnet18 has 4 stages"):
        small_params(model=FROZEN_NORM, freeze="stage5")


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "lr", "warned"),
    [
        ("sgd", 8, 1e-3, False),
        ("sgd", 8, 1e-2, True),
        ("sgd", 64, 8e-3, False),
        ("sgd", 64, 1e-3, True),
        ("adamw", 8, 1e-2, False),
    ],
)
def test_a_learning_rate_unsuitable_for_the_batch_size_is_reported(
    optimizer: str, batch_size: int, lr: float, warned: bool
) -> None:
    advice = learning_rate_advice(small_params(optimizer=optimizer, lr=lr).train, batch_size)
    assert (advice is not None) == warned
    if advice:
        assert f"train.lr is {lr:g}" in advice
        assert f"({1e-3 * batch_size / 8:.3g}, from the published 0.001 for 8)" in advice


def test_a_learning_rate_is_judged_by_the_actual_batch_size(
    trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    """With four images, a rate for batches of 64 is 16 times too high."""
    trainer(batch_size=64, lr=8e-3)
    reduced, rate = (record.getMessage() for record in caplog.records)
    assert reduced.startswith("train.batch_size is 64, but an epoch has 4 images: each step takes all 4. Set ")
    assert rate.startswith("train.lr is 0.008, 16 times what SGD takes for batches of 4 by linear scaling (0.0005, ")


def test_a_step_that_does_not_fit_into_memory_says_what_to_try(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = trainer(batch_size=4, epochs=1)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(learner.network, "forward", fail)
    with pytest.raises(Exception, match="out of memory with 4 images of 64 px at once in fp32") as caught:
        learner.fit()
    message = str(caught.value)
    assert (
        "train.accumulate: 2 (less memory, in 2 gradient-accumulation steps; trained batch norm sees fewer" in message
    )
    assert "(and train.lr in proportion). The run then starts over." in message
    assert "train.batch_size: 2 (" in message
    assert "image_size: " not in message  # 64 pixels are the minimum
    assert "bf16" not in message  # and a CPU does not compute that with so few pixels
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], r"4 images of 64 px at once in fp32\. Try one of these: train\.accumulate: 2 \("),
        ([96, 128], r"4 images of 128 px at once in fp32\. .*; train\.augment\.image_sizes: \[96\]"),
    ],
)
def test_a_batch_that_does_not_fit_into_memory_says_what_to_try(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, sizes: list[int], message: str
) -> None:
    """It is copied to the device before the step. Its size is not yet known: it may be the largest."""
    augment = small_params().train.augment.model_dump() | {"image_sizes": sizes}
    learner = trainer(batch_size=4, epochs=1, augment=augment)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(prefetch, "_moved", fail)
    with pytest.raises(OutOfMemoryError, match=message):
        learner.fit()


def test_the_memory_line_of_a_long_error_is_reported(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader process passes on its errors like this."""
    learner = trainer(batch_size=4, epochs=1)

    def fail(*_: Any) -> None:
        raise RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nTraceback:\nE: can't allocate memory\n"
        )

    monkeypatch.setattr(prefetch, "_moved", fail)
    with pytest.raises(OutOfMemoryError, match=r"\(E: can't allocate memory\)$"):
        learner.fit()


def test_more_gradient_accumulation_is_advised_as_resumable_if_batch_norm_is_frozen() -> None:
    params = small_params(batch_size=4, model=FROZEN_NORM)
    message = str(step_out_of_memory(params, 64, 4, 1, on_cpu=True, error=RuntimeError("out of memory")))
    assert (
        "train.accumulate: 2 (the same result with less memory, in 2 gradient-accumulation steps; the run resumes"
        in message
    )
    assert "(and train.lr in proportion). Any other starts it over." in message


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("sizes", [[], [256, 280], [330, 400]])
@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes"), [(8, 1, 1), (8, 2, 4), (6, 2, 1), (6, 3, 2), (1, 1, 1)]
)
@pytest.mark.parametrize(
    ("side", "rescoring", "precision"), [(64, False, "fp32"), (70, False, "bf16"), (300, True, "fp32")]
)
def test_the_settings_accept_the_advice_of_a_step_that_is_out_of_memory(
    batch_size: int,
    accumulate: int,
    processes: int,
    sizes: list[int],
    side: int,
    rescoring: bool,
    precision: str,
    on_cpu: bool,
) -> None:
    params = small_params(batch_size=batch_size, accumulate=accumulate, precision=precision)
    tree = params.model_dump(mode="json", by_alias=True)
    tree["model"] |= {"image_size": side, "mask_rescoring": rescoring}
    tree["train"]["augment"]["image_sizes"] = sizes
    params, failed = parse_params(tree), max(sizes or [side])
    error = RuntimeError("out of memory")
    message = str(step_out_of_memory(params, failed, batch_size, processes, on_cpu=on_cpu, error=error))
    assert len(sizes) == 0 or "model.image_size" not in message
    ways = re.findall(r"([a-z]+)\.([a-z_.]+): (\[.*?\]|\w+)", message)
    assert ways or message.endswith("Take a smaller model.backbone, or more memory. (out of memory)")
    for section, key, value in ways:
        changed_tree = copy.deepcopy(tree)
        *path, name = [section, *key.split(".")]
        inner = changed_tree
        for part in path:
            inner = inner[part]
        before, inner[name] = inner[name], yaml.safe_load(value)
        found = parse_params(changed_tree)
        smallest = min(found.train.augment.image_sizes or [found.model.image_size])
        assert not (on_cpu and found.train.precision == "bf16" and smallest <= 64)
        if name == "accumulate":
            assert before < found.train.accumulate <= batch_size // processes
        elif name == "batch_size":
            assert processes <= found.train.batch_size < before
        elif name != "precision":
            assert max(found.train.augment.image_sizes or [found.model.image_size]) < failed


def test_a_validation_that_does_not_fit_into_memory_says_what_to_try(trainer: Callable[..., Trainer]) -> None:
    learner = trainer(batch_size=4, epochs=1)
    assert learner.params.evaluate.batch_size == 8

    def fail(_: Yolact) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    learner.validate = fail
    expected = (
        r"8 images of 64 px at once in a validation.*: evaluate\.batch_size: 4 \(the run resumes from .*\)\. \(CUDA"
    )
    with pytest.raises(OutOfMemoryError, match=expected):
        learner.fit()


# --- Divergence and being asked to stop


def test_the_batch_whose_loss_is_not_finite_can_be_read(trainer: Callable[..., Trainer]) -> None:
    learner = trainer(batch_size=4)
    with torch.no_grad():
        learner.model.semantic_seg_conv.bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match="The batch is in") as caught:
        learner.fit()
    (path,) = (learner.model_dir / "diverged").iterdir()
    assert str(path) in str(caught.value)
    content = torch.load(path, weights_only=True)
    batch = next(iter(learner.loader))
    assert content["image_ids"] == batch.image_ids
    assert torch.equal(content["images"], batch.images)
    assert torch.equal(content["targets"]["masks"], batch.targets.masks)
    assert content["step"] == 0
    assert content["terms"]["semantic"] != content["terms"]["semantic"]


@pytest.mark.parametrize("limit", [0, 10])
def test_a_gradient_that_is_not_finite_ends_the_run_before_it_spoils_a_weight(
    trainer: Callable[..., Trainer], limit: float
) -> None:
    """The loss of that step is finite; the batches of an epoch are its two halves."""
    learner = trainer(batch_size=2, epochs=2, checkpoint_every_steps=1, max_grad_norm=limit)
    weight = learner.model.proto_net[0].weight
    weight.register_hook(lambda gradient: gradient * (float("inf") if learner.step == 1 else 1))
    ids = list(learner.loader)[1].image_ids
    with pytest.raises(
        DivergedError, match=r"the gradients are not finite at step 1 \(epoch 1\).*loss is finite"
    ) as caught:
        learner.fit()
    assert f"by id: {ids[0]}, {ids[1]}." in str(caught.value)
    (path,) = (learner.model_dir / "diverged").iterdir()
    assert torch.load(path, weights_only=True)["image_ids"] == ids
    assert all(tensor.isfinite().all() for tensor in weights(learner.model).values())
    states = [torch.load(path, weights_only=True) for path in learner.checkpoints.directory.glob("*.pt")]
    assert max(state["step"] for state in states) == 1
    assert all(tensor.isfinite().all() for state in states for tensor in state["model"].values())


@pytest.fixture
def sigterm_restored() -> Iterator[None]:
    """After a request, SIGTERM is ignored until the process ends."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_no_process_validates_when_another_was_asked_to_stop(trainer: Callable[..., Trainer]) -> None:
    """The process that was asked ends at once, and the others would wait forever for its share of the validation."""
    learner = trainer(epochs=2)
    learner.validate = lambda model: pytest.fail("must not validate")  # type: ignore[method-assign, assignment]
    learner.watch.stop_agreed = True  # as after the epoch's last step; no signal came to this process
    with pytest.raises(InterruptedRunError, match="stopped by a signal to another process"):
        learner._validate()


@pytest.mark.usefixtures("sigterm_restored")
def test_a_request_to_stop_ends_a_validation_at_once(trainer: Callable[..., Trainer]) -> None:
    learner = trainer(epochs=1)

    def validate(_: Yolact) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the validation continues")

    learner.validate = validate
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"):
        learner.fit()
    state = learner.checkpoints.begin()
    assert state is not None
    assert (state.epochs_done, state.validation_due) == (1, True)


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    interrupts = Interrupts()
    with interrupts.watched():
        assert signal.getsignal(signal.SIGTERM) == interrupts._note
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# --- Parts


def test_synchronised_batch_norm_replaces_every_batch_norm_and_can_be_folded() -> None:
    torch.manual_seed(0)
    model = Yolact(tiny_config(), 1).eval()
    images = torch.rand(1, 3, 64, 64)
    before = weights(model)
    with torch.no_grad():
        expected = model(images).boxes
        synchronise_batch_norm(model)
        assert all(type(part) is SyncBatchNorm2d for part in model.modules() if isinstance(part, nn.BatchNorm2d))
        assert list(weights(model)) == list(before)
        assert torch.equal(model(images).boxes, expected)
        fold_batch_norm(model)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
        assert torch.allclose(model(images).boxes, expected, atol=1e-4)


def test_progress_on_a_cpu_reports_the_memory_of_the_process() -> None:
    meter = SpeedMeter(torch.device("cpu"), total_steps=10)
    meter.count(images=4)
    metrics = meter.take(steps_done=1)
    assert metrics["resident_memory_gib"] == pytest.approx(peak_resident() / 2**30, rel=0.01)
    assert meter.describe(metrics).endswith(f" left, {metrics['resident_memory_gib']:.1f} GiB")


def test_no_warning_without_reason(trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer(batch_size=4, lr=5e-4)
    assert not caplog.records
