"""A small training run as a program, for tests that kill it or start several processes of it.

``python -m tests.yolact.engine.runs SETTINGS.json`` trains in the current folder; ``models/`` and ``done.pt`` contain
the results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.coloured_boxes import BLUE, RED, SIZE, write_coloured_boxes
from tests.yolact.losses.dice import DICE
from yolact.data.coco import CocoInstances
from yolact.distributed import World, joined_world
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.interrupts import InterruptedRunError
from yolact.engine.trainer import SilentListener, Trainer
from yolact.errors import YolactError
from yolact.evaluation.evaluator import Validation
from yolact.losses.terms import LOSS_TERMS
from yolact.models.yolact import Yolact
from yolact_ops.settings.params import Params, load_params, parse_params

REPOSITORY = Path(__file__).resolve().parents[3]


def make_images(folder: Path, count: int) -> Path:
    """Generate images with one or two coloured boxes each; returns the path of their annotations."""
    path = folder / "train.json"
    boxes = {
        number: [(RED, (4 + number, 6, 36 + number, 46)), (BLUE, (30, 20, 60 - number, 60))][: 1 + number % 2]
        for number in range(1, count + 1)
    }
    write_coloured_boxes(path, folder, boxes)
    return path


def small_params(model: dict[str, Any] | None = None, loss: dict[str, Any] | None = None, **changes: Any) -> Params:
    """Settings of a run that takes seconds; ``changes`` are keys of ``train`` or ``runtime``."""
    tree = load_params(REPOSITORY / "conf" / "base.yaml").model_dump(mode="json", by_alias=True)
    tree["model"] |= {
        "backbone": "resnet18",
        "backbone_blocks": [1, 1, 1, 1],
        "backbone_weights": "none",
        "image_size": SIZE,
        "fpn_channels": 8,
        "num_prototypes": 4,
        "anchor_scales": [[16], [24], [32], [40], [56]],
    } | (model or {})
    tree["train"] |= {"batch_size": 2, "warmup_steps": 0, "log_every": 1}
    tree["runtime"] |= {"device": "cpu", "workers": 0}
    for name, value in changes.items():
        tree["runtime" if name in tree["runtime"] else "train"][name] = value
    tree["train"]["loss"] |= loss or {}
    return parse_params(tree)


def trainer_on(device: str, folder: Path, **settings: Any) -> Trainer:
    """A trainer on a device, for its steps only; ``settings`` are those of `small_params`."""
    annotations = make_images(folder / "images", 8)
    data = CocoInstances.load(annotations, annotations.parent)
    params = small_params(**settings)
    torch.manual_seed(0)
    model = Yolact(params.model, 2).to(device)
    store = CheckpointStore(folder / "checkpoints", 1, "test run")
    return Trainer(model, data, params, folder / "models", store, lambda _: {"mask_AP": 0.0}, SilentListener(), {})


def train(settings: dict[str, Any], world: World) -> tuple[Trainer, dict[str, Tensor]]:
    """Train in the current folder, from a checkpoint if there is one; the trainer, and its first step's gradients."""
    annotations = make_images(Path(f"images{world.rank}"), settings.pop("images"))
    if "dice" in settings.get("loss", {}).get("weights", {}):
        LOSS_TERMS["dice"] = DICE
    params = small_params(**settings)
    data = CocoInstances.load(annotations, annotations.parent)
    store = CheckpointStore(Path("models/checkpoints"), params.runtime.keep_checkpoints, "test run")
    state = world.broadcast(store.begin() if world.is_main else None)
    torch.manual_seed(0)
    model = Yolact(params.model, 2)
    validate = Validation(data, annotations, batch_size=2, world=world)
    trainer = Trainer(model, data, params, Path("models"), store, validate, SilentListener(), {}, world)
    if state is not None:
        trainer.restore(state)
    gradients: dict[str, Tensor] = {}

    def keep_first(*_: Any) -> None:
        if not gradients:
            found = {name: weight.grad for name, weight in model.named_parameters()}
            gradients.update({name: gradient.clone() for name, gradient in found.items() if gradient is not None})

    trainer.optimizer.register_step_pre_hook(keep_first)
    trainer.fit()
    return trainer, gradients


def main() -> None:
    torch.set_num_threads(1)
    settings = json.loads(Path(sys.argv[1]).read_text())
    try:
        with joined_world("cpu") as world:
            trainer, gradients = train(settings, world)
            if world.is_main:
                outcome = {"weights": trainer.model.state_dict(), "rows": trainer.validate.rows}  # type: ignore[attr-defined]
                torch.save(outcome | {"history": trainer.history, "gradients": gradients}, "done.pt")
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except YolactError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
