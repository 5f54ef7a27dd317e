"""The training loop on two images: it learns, resumes exactly where it was stopped, and keeps the best weights."""

from __future__ import annotations

import copy
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.coloured_boxes import BLUE, RED, SIZE, Box, write_coloured_boxes
from tests.interop.packages import needed
from yolact.backbone_registry import backbones
from yolact.data.coco import CocoInstances
from yolact.data.loader import training_loader
from yolact.engine.checkpoint import CheckpointStore, TrainingState
from yolact.engine.loss_watch import DivergedError
from yolact.engine.schedule import learning_rate
from yolact.engine.trainer import Metrics, Trainer, TrainingResult, build_optimizer
from yolact.errors import SettingsError
from yolact.evaluation.evaluator import Validation
from yolact.models.weights import load_model
from yolact.models.yolact import Yolact
from yolact.settings import PUBLISHED_AUGMENTATION
from yolact.transforms import IMAGENET, normalize
from yolact_ops.settings.params import Params, load_params, parse_params

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES: dict[int, list[Box]] = {
    10: [(RED, (8, 8, 40, 48)), (BLUE, (44, 30, 62, 60))],
    11: [(BLUE, (4, 20, 34, 60)), (RED, (30, 4, 60, 24))],
}
"""Objects by image: category, xyxy."""

SMALL_MODEL = {
    "backbone": "resnet18",
    "backbone_blocks": [1, 1, 1, 1],
    "backbone_weights": "none",
    "image_size": SIZE,
    "fpn_channels": 16,
    "num_prototypes": 8,
    "anchor_scales": [[16], [24], [32], [40], [56]],
}
SHORT_RUN = {
    "epochs": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "validate_every": 1,
    "checkpoint_every": 1,
    "log_every": 1,
}
CLASSIFIERS = [spec.name for spec in backbones() if not spec.name.startswith(("resnet", "darknet"))]
TIMM = "timm/mobilenetv4_conv_small"
SWITCHES = ("photometric", "expand", "random_crop", "mirror")
PLAIN: dict[str, Any] = PUBLISHED_AUGMENTATION.model_dump() | dict.fromkeys(SWITCHES, False)
ALL_ON = PLAIN | dict.fromkeys(SWITCHES, True)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_coloured_boxes(folder / "train.json", folder, IMAGES)
    return folder / "train.json"


@pytest.fixture(scope="module")
def data(annotations: Path) -> CocoInstances:
    return CocoInstances.load(annotations, annotations.parent)


@pytest.fixture(scope="module")
def params(repository: Path) -> Callable[..., Params]:
    base = load_params(repository / "conf" / "base.yaml").model_dump(mode="json", by_alias=True)

    def with_changes(
        *, model: dict[str, Any] | None = None, loss: dict[str, Any] | None = None, **train: Any
    ) -> Params:
        tree = copy.deepcopy(base)
        tree["model"] |= SMALL_MODEL | (model or {})
        tree["runtime"] |= {"device": "cpu", "workers": 0}
        changes = SHORT_RUN | {"augment": PLAIN} | train
        for name, value in changes.items():
            tree["runtime" if name in tree["runtime"] else "train"][name] = value
        tree["train"]["loss"] |= loss or {}
        return parse_params(tree)

    return with_changes


class Notes:
    """A listener that records everything."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Metrics]] = []
        self.speeds: list[tuple[int, Metrics]] = []
        self.epochs: list[tuple[int, Metrics]] = []
        self.alive = 0

    def on_alive(self) -> None:
        self.alive += 1

    def on_step(self, step: int, row: Metrics) -> None:
        self.steps.append((step, dict(row)))

    def on_speed(self, step: int, row: Metrics) -> None:
        self.speeds.append((step, dict(row)))

    def on_epoch(self, step: int, row: Metrics) -> None:
        self.epochs.append((step, dict(row)))


class Scores:
    """Returns the scores in turn and keeps a copy of the weights that it receives."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self, model: Yolact) -> Metrics:
        self.weights.append(weights(model))
        return {"mask_AP": self.scores.pop(0) if self.scores else 0.0}


@pytest.fixture
def trainer(data: CocoInstances, params: Callable[..., Params], tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    def make(
        *,
        validate: Callable[[Yolact], Metrics] | None = None,
        listener: Any = None,
        name: str = "models",
        seed: int = 0,
        **changes: Any,
    ) -> Trainer:
        settings = params(**changes)
        torch.manual_seed(seed)
        model = Yolact(settings.model, 2)
        store = CheckpointStore(tmp_path / name / "checkpoints", settings.runtime.keep_checkpoints, "print")
        return Trainer(
            model, data, settings, tmp_path / name, store, validate or Scores(), listener or Notes(), {"run_id": "r1"}
        )

    yield make
    shutil.rmtree(tmp_path)  # checkpoints are large, and pytest keeps the folders of three sessions


def weights(model: Yolact) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def momenta(trainer: Trainer) -> list[Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return [tensor for parameter in state.values() for tensor in parameter.values()]


def latest(trainer: Trainer) -> TrainingState:
    found = trainer.checkpoints.begin()
    assert found is not None
    return found


# --- Learning


def test_each_step_validation_batch_and_checkpoint_is_a_sign_of_life(
    trainer: Callable[..., Trainer], data: CocoInstances, annotations: Path
) -> None:
    notes, batches = Notes(), Notes()
    validation = Validation(data, annotations, 1, on_batch=batches.on_alive)
    trainer(validate=validation, listener=notes, epochs=2, batch_size=1, validate_every=2).fit()
    images = len(data.images)
    checkpoints = 1 + 2 + 1  # before the first step, after each epoch, after the validation
    assert notes.alive == 2 * images + checkpoints
    assert batches.alive == images


def test_two_images_are_overfitted(trainer: Callable[..., Trainer], data: CocoInstances, annotations: Path) -> None:
    learner = trainer(
        validate=Validation(data, annotations, 2),
        epochs=40,
        batch_size=2,
        optimizer="adamw",
        lr=5e-3,
        schedule="cosine",
        warmup_steps=5,
        validate_every=100,
        checkpoint_every=100,
    )
    result = learner.fit()
    first, last = result.history["steps"][0], result.history["steps"][-1]
    assert last["total"] < 0.15 * first["total"]
    weights = {"classification": 1.0, "box": 1.5, "mask": 6.125, "semantic": 1.0}  # published
    for term in weights:
        assert last[term] < 0.4 * first[term]
    assert first["total"] == pytest.approx(sum(weight * first[term] for term, weight in weights.items()))
    (measured,) = result.history["epochs"]
    assert measured["mask_AP50"] > 0.75
    assert measured["box_AP50"] > 0.75
    assert result.best_score == measured["mask_AP"]
    assert result.steps == 40
    assert result.seconds_per_step > 0


FEW_STEPS = {
    "epochs": 5,
    "batch_size": 2,
    "optimizer": "adamw",
    "lr": 1e-4,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "validate_every": 100,
    "checkpoint_every": 100,
}


def test_yolact_plus_plus_learns_offsets_and_rescoring(trainer: Callable[..., Trainer]) -> None:
    """249 pixels are the minimum for mask re-scoring. Offsets start from zero, so only gradients move them."""
    learner = trainer(
        model={
            "backbone": "resnet50",
            "deformable_blocks": [[], [0], [], [0]],
            "image_size": 249,
            "fpn_channels": 8,
            "anchor_scales": [[64], [96], [128], [160], [220]],
            "mask_rescoring": True,
        },
        **FEW_STEPS,
    )
    before = weights(learner.model)
    result = learner.fit()
    first, last = result.history["steps"][0], result.history["steps"][-1]
    assert last["total"] < 0.9 * first["total"]
    weights_by_term = {"classification": 1, "box": 1.5, "mask": 6.125, "semantic": 1, "mask_iou": 25}
    for row in (first, last):
        expected = sum(weight * row[term] for term, weight in weights_by_term.items())
        assert row["total"] == pytest.approx(expected, rel=1e-5)
    assert all(row["mask_iou"] > 0 for row in result.history["steps"])
    after = weights(learner.model)
    for stage in (1, 3):
        moved = after[f"backbone.layers.{stage}.0.conv2.conv_offset_mask.weight"]
        assert all(kernel.any() for kernel in moved)  # offsets and modulation of each of the nine points
    rescoring = {key for key in after if key.startswith("maskiou_net.") and key.endswith(".weight")}
    assert len(rescoring) == 6
    assert not any(torch.equal(before[key], after[key]) for key in rescoring)
    exported, _ = load_model(learner.model_dir)
    assert equal(weights(exported), after)


def test_a_network_without_rescoring_logs_no_term_for_it(trainer: Callable[..., Trainer]) -> None:
    result = trainer().fit()
    assert set(result.history["steps"][0]) == {
        "epoch", "step", "lr", "total", "classification", "box", "mask", "semantic",
    }  # fmt: skip


def test_darknet_learns_from_images_between_0_and_1(trainer: Callable[..., Trainer]) -> None:
    learner = trainer(model={"backbone": "darknet53", "backbone_blocks": [1] * 5, "fpn_channels": 8}, **FEW_STEPS)
    seen: list[Tensor] = []
    learner.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    result = learner.fit()
    first, last = result.history["steps"][0], result.history["steps"][-1]
    assert last["total"] < 0.9 * first["total"]
    assert len(seen) == 5
    assert all(0 <= images.min() < 0.2 and 0.8 < images.max() <= 1 for images in seen)


def test_the_gradient_is_clipped_to_the_given_norm(trainer: Callable[..., Trainer]) -> None:
    """One plain SGD step moves all weights together by lr times the gradient's norm."""
    moved = {}
    for limit in (0, 0.5):
        learner = trainer(
            name=f"limit {limit}", batch_size=2, lr=0.01, momentum=0.0, weight_decay=0.0, max_grad_norm=limit
        )
        before = [parameter.detach().clone() for parameter in learner.model.parameters()]
        learner.fit()
        after = learner.model.parameters()
        moved[limit] = torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)]).detach()
    assert moved[0.5].norm() == pytest.approx(0.01 * 0.5, rel=1e-2)
    assert moved[0].norm() > 0.01 * 1
    direction = torch.nn.functional.cosine_similarity(moved[0].double(), moved[0.5].double(), dim=0)
    assert direction == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_scaled_gradients_survive_skipped_first_steps(trainer: Callable[..., Trainer], optimizer: str) -> None:
    """The first scales are too large: the steps are skipped and leave no trace in the momenta."""
    learner = trainer(epochs=4, precision="fp16", optimizer=optimizer)
    scale = learner.scaler.get_scale()
    learner.fit()
    assert learner.scaler.get_scale() < scale
    assert all(tensor.isfinite().all() for tensor in weights(learner.model).values())


def test_a_precision_that_the_device_computes_wrongly_is_rejected(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(SettingsError, match=r"train\.precision: bf16 on a CPU needs inputs of more than 64 pixels"):
        trainer(precision="bf16")


def test_weight_decay_applies_to_every_parameter(params: Callable[..., Params]) -> None:
    settings = params(weight_decay=0.02, momentum=0.8)
    model = Yolact(settings.model, 2).train()
    for name in ("sgd", "adamw"):
        optimizer, factors = build_optimizer(model, settings.train.model_copy(update={"optimizer": name}))
        (group,) = optimizer.param_groups
        assert factors == [1.0]
        assert group["weight_decay"] == 0.02
        assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
        assert group["betas"] == (0.8, 0.999) if name == "adamw" else group["momentum"] == 0.8


def test_batch_norm_of_a_pretrained_backbone_is_frozen(trainer: Callable[..., Trainer]) -> None:
    learner = trainer(model={"backbone_weights": "imagenet"})  # nothing is downloaded: the caller loads weights
    before = weights(learner.model)
    learner.fit()
    norms = {
        f"{name}.{key}"
        for name, module in learner.model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for key in module.state_dict()
    }
    after = weights(learner.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert norms
    assert not changed & norms
    assert "backbone.conv1.weight" in changed
    (group,) = learner.optimizer.param_groups
    frozen = {id(p) for name, p in learner.model.named_parameters() if name in norms}
    assert not frozen & {id(p) for p in group["params"]}


def test_batch_norm_from_scratch_is_trained(trainer: Callable[..., Trainer]) -> None:
    learner = trainer()
    before = weights(learner.model)
    learner.fit()
    after = weights(learner.model)
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert not torch.equal(before[f"backbone.bn1.{key}"], after[f"backbone.bn1.{key}"])


# --- What is measured, kept and reported


@pytest.fixture
def finished(trainer: Callable[..., Trainer]) -> tuple[Trainer, Scores, Notes, TrainingResult]:
    """Seven epochs of two steps, validated after 2, 4, 6 and 7."""
    scores, notes = Scores(0.1, 0.3, 0.3, 0.2), Notes()
    learner = trainer(
        validate=scores,
        listener=notes,
        epochs=7,
        validate_every=2,
        checkpoint_every=3,
        keep_checkpoints=99,
        log_every=4,
        warmup_steps=4,
        momentum=0.0,
    )
    return learner, scores, notes, learner.fit()


def test_a_run_follows_its_settings(
    finished: tuple[Trainer, Scores, Notes, TrainingResult], params: Callable[..., Params]
) -> None:
    learner, scores, notes, result = finished

    # Validations: every second epoch, and the last
    assert [(row["epoch"], row["step"]) for _, row in notes.epochs] == [(2, 4), (4, 8), (6, 12), (7, 14)]
    assert [step for step, _ in notes.epochs] == [4, 8, 12, 14]
    assert [row["mask_AP"] for row in result.history["epochs"]] == [0.1, 0.3, 0.3, 0.2]

    # The best weights are the first of the two validations with 0.3
    assert result.best_score == 0.3
    exported, classes = load_model(learner.model_dir)
    assert equal(weights(exported), scores.weights[1])
    assert not equal(weights(exported), scores.weights[2])
    assert not equal(weights(exported), weights(learner.model))
    assert classes == ["red", "blue"]
    assert not exported.training

    # Logged steps
    assert [step for step, _ in notes.steps] == [0, 4, 8, 12]
    assert result.history["steps"] == [{"epoch": step // 2 + 1, "step": step, **row} for (step, row) in notes.steps]
    settings = params(epochs=7, warmup_steps=4).train
    assert [row["lr"] for _, row in notes.steps] == [learning_rate(step, 14, settings) for step in (0, 4, 8, 12)]
    assert len({row["lr"] for _, row in notes.steps}) > 2

    # Checkpoints: the start, every third epoch, before and after each validation
    names = sorted(path.name for path in learner.checkpoints.directory.glob("*.pt"))
    assert [int(name[12:20]) for name in names] == [0, 4, 4, 6, 8, 8, 12, 12, 14, 14]
    state = latest(learner)
    assert (state.epochs_done, state.step, state.best_score, state.extra) == (7, 14, 0.3, {"run_id": "r1"})
    assert result.steps == 14
    assert result.seconds_per_step == state.seconds / 14 > 0


def test_a_run_stays_resumable_until_its_results_are_stored(
    trainer: Callable[..., Trainer], finished: tuple[Trainer, Scores, Notes, TrainingResult]
) -> None:
    """Otherwise a tracking server that is unavailable at the end would cost the whole training."""
    learner, _, _, result = finished
    (learner.model_dir / "model.safetensors").unlink()
    again = trainer(epochs=7, log_every=4, keep_checkpoints=99)
    again.restore(latest(again))
    assert again.fit() == result
    assert (learner.model_dir / "model.safetensors").exists()
    again.finish()
    assert again.checkpoints.begin() is None


def test_a_run_that_loses_its_best_weights_at_the_very_end_can_be_finished(trainer: Callable[..., Trainer]) -> None:
    """The command that the message suggests validates again and produces the model."""
    learner = trainer(validate=Scores(0.4), keep_checkpoints=1)
    learner.fit()
    (learner.checkpoints.directory / learner.best / "model.safetensors").write_bytes(b"damaged")
    again = trainer(validate=Scores(0.4), keep_checkpoints=1)
    again.restore(latest(again))
    result = again.fit()
    assert (result.best_score, result.steps, len(result.history["epochs"])) == (0.4, 2, 1)
    assert equal(weights(load_model(again.model_dir)[0]), weights(learner.model))


def test_a_score_of_zero_still_produces_a_model(trainer: Callable[..., Trainer]) -> None:
    scores = Scores(0.0)
    learner = trainer(validate=scores)
    assert learner.fit().best_score == 0
    exported, _ = load_model(learner.model_dir)
    assert equal(weights(exported), scores.weights[0])


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_progress_bar_each_epoch_logs_a_line(
    trainer: Callable[..., Trainer], terminal: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is the mean over its steps, independent of ``log_every``; a validation adds a separate line."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    learner = trainer(validate=Scores(0.25), epochs=3, validate_every=3, lr=1e-2)
    losses = [row["total"] for row in learner.fit().history["steps"]]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        trainer(name="again", validate=Scores(0.25), epochs=3, validate_every=3, lr=1e-2, log_every=4).fit()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch ")]
    assert lines.pop() == "epoch 3 of 3: mask_AP 0.250"
    assert len(lines) == (0 if terminal else 3)
    for number, line in enumerate(lines):
        mean = (losses[2 * number] + losses[2 * number + 1]) / 2
        start = f"epoch {number + 1} of 3: loss {mean:.2f}, "
        assert re.fullmatch(re.escape(start) + r"\d+\.\d img/s, \d+:\d\d:\d\d left, \d+\.\d GiB", line), line
    assert not lines or ", 0:00:00 left, " in lines[-1]


# --- Going on


class Killed(BaseException):
    """Ends a run as a kill does: none of our code runs after it."""


class KillIn:
    """Forwards validations, and ends the run in the one with this number."""

    def __init__(self, validation: int, validate: Callable[[Yolact], Metrics]) -> None:
        self.left = validation
        self.validate = validate

    def __call__(self, model: Yolact) -> Metrics:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return self.validate(model)


class KillAfter(Notes):
    """Ends the run when the losses of this step are logged, before a checkpoint of it can be written."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.last = step

    def on_step(self, step: int, row: Metrics) -> None:
        super().on_step(step, row)
        if step >= self.last:
            raise Killed


RANDOM_RUN: dict[str, Any] = {
    "epochs": 4,
    "schedule": "cosine",
    "augment": ALL_ON,
    "loss": {"max_masks_per_image": 1, "positive_iou": 0.2, "negative_iou": 0.1},
    "lr": 1e-3,
}
"""All that is random is on, and of many positives so few enter the mask loss that it draws them."""


MODERN: dict[str, Any] = {
    "optimizer": "adamw",
    "layer_decay": 0.7,
    "model": {"backbone_weights": "imagenet"},
    "decay_norms": False,
    "ema_decay": 0.9,
    "augment": PLAIN
    | {"mirror": True, "scale_jitter": [0.5, 2.0], "copy_paste": 0.8, "mosaic": 0.5, "mosaic_until": 0.75},
    "loss": {
        "max_masks_per_image": 2,
        "assignment": "atss",
        "class_targets": "iou",
        "box": "ciou",
        "mask_dice": 1.0,
        "mask_upsampling": 2,
    },
}
"""The whole modern recipe."""


def assert_same_end(found: Trainer, expected: Trainer) -> None:
    """Weights, momenta, averages and the exported model are equal bit for bit."""
    assert equal(weights(found.model), weights(expected.model))
    assert momenta(found)
    assert all(map(torch.equal, momenta(found), momenta(expected)))
    assert equal(weights(load_model(found.model_dir)[0]), weights(load_model(expected.model_dir)[0]))
    if expected.ema is not None:
        assert found.ema is not None
        assert equal(weights(found.ema.model), weights(expected.ema.model))


@pytest.mark.parametrize(
    ("settings", "kill", "position"),
    [
        ({"optimizer": "sgd", "workers": 1}, "validation", (4, 0, 8)),
        ({"optimizer": "adamw", "ema_decay": 0.9}, "step 5", (2, 1, 5)),
        ({"optimizer": "sgd", "log_every": 4, "precision": "bf16", "model": {"image_size": 96}}, "step 4", (2, 0, 4)),
        ({"optimizer": "sgd", "precision": "fp16", "log_every": 1}, "step 3", (1, 1, 3)),
        (MODERN, "step 5", (2, 1, 5)),
        # Stochastic depth, which some of these have in torchvision, is off.
        *(
            pytest.param(
                {"optimizer": "adamw", "model": {"backbone": name, "backbone_blocks": None, "separable_convs": True}},
                *("step 5", (2, 1, 5)),
                marks={"efficientnet_b0": [], TIMM: [pytest.mark.interop]}.get(name, [pytest.mark.slow]),
                id=name,
            )
            for name in (*CLASSIFIERS, TIMM)
        ),
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    trainer: Callable[..., Trainer], settings: dict[str, Any], kill: str, position: tuple[int, int, int]
) -> None:
    if settings.get("model", {}).get("backbone") == TIMM:
        needed("timm")
    settings = RANDOM_RUN | {"checkpoint_every_steps": 1} | settings
    scores = (0.1, 0.5, 0.2, 0.3)
    straight = trainer(name="straight", validate=Scores(*scores), **settings | {"workers": 0})
    expected = straight.fit()

    if kill == "validation":
        killed = trainer(name="killed", validate=KillIn(4, Scores(*scores)), **settings)
    else:
        listener = KillAfter(int(kill.removeprefix("step ")))
        killed = trainer(name="killed", validate=Scores(*scores), listener=listener, **settings)
    with pytest.raises(Killed):
        killed.fit()
    assert not (killed.model_dir / "model.safetensors").exists()

    state = latest(killed)
    assert (state.epochs_done, state.batches_done, state.step) == position
    resumed = trainer(name="killed", validate=Scores(*scores[len(state.history["epochs"]) :]), seed=99, **settings)
    resumed.restore(state)
    found = resumed.fit()
    assert found.history == expected.history
    assert found.best_score == expected.best_score == 0.5
    assert found.steps == expected.steps == 8
    assert_same_end(resumed, straight)


def test_every_epoch_augments_the_images_differently(
    trainer: Callable[..., Trainer], data: CocoInstances, params: Callable[..., Params]
) -> None:
    learner = trainer(epochs=2, augment=ALL_ON)
    seen: list[Tensor] = []
    learner.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    learner.fit()

    config = params(augment=ALL_ON).train
    loader, sampler = training_loader(data, config, SIZE, workers=0, pin=False)
    expected = []
    for sampler.epoch in (0, 1):
        expected += [normalize(batch.images, IMAGENET) for batch in loader]
    assert len(seen) == len(expected) == 4
    assert all(map(torch.equal, seen, expected))
    assert not any(torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("keep", [False, True])
def test_images_keep_their_aspect_ratio_if_the_network_requires_it(trainer: Callable[..., Trainer], keep: bool) -> None:
    learner = trainer(model={"keep_aspect_ratio": keep})
    assert learner.loader.dataset.keep_aspect_ratio is keep


def test_another_seed_gives_other_weights(trainer: Callable[..., Trainer]) -> None:
    """Otherwise the equality above would not cover the order of images and their augmentation."""
    ends = []
    for number, seed in enumerate((0, 0, 1)):
        learner = trainer(name=f"run {number}", augment=ALL_ON)  # the first weights are the same in all three
        learner.loader.dataset.seed = learner.sampler.seed = seed
        learner.fit()
        ends.append(weights(learner.model))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


# --- Divergence


class Poison(Notes):
    """Makes a term of the loss infinite after a step."""

    def __init__(self, after_step: int) -> None:
        super().__init__()
        self.after_step = after_step
        self.trainer: Trainer | None = None
        self.weights: dict[str, Tensor] = {}

    def on_step(self, step: int, row: Metrics) -> None:
        super().on_step(step, row)
        if step == self.after_step and self.trainer is not None:
            bias = self.trainer.model.semantic_seg_conv.bias
            assert bias is not None
            bias.data.fill_(float("inf"))
            self.weights = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}


def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_a_weight(
    trainer: Callable[..., Trainer], data: CocoInstances
) -> None:
    poison = Poison(after_step=2)
    learner = trainer(listener=poison, epochs=3)
    poison.trainer = learner
    with pytest.raises(DivergedError) as caught:
        learner.fit()
    message = str(caught.value)
    assert "not finite at step 3 (epoch 2)" in message
    assert "semantic inf" in message or "semantic nan" in message
    learner.sampler.epoch = 1
    _, (key,) = learner.sampler  # its second batch, of one image
    assert f"Images of the batch, by id: {data.images[key.image].id}." in message
    assert "train.lr" in message

    after = dict(learner.model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in poison.weights.items())
    state = latest(learner)
    assert (state.epochs_done, state.step) == (1, 2)
    assert all(tensor.isfinite().all() for tensor in state.model.values())
    assert not (learner.model_dir / "model.safetensors").exists()
