"""The training loop."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from yolact.config import Params, TrainConfig
from yolact.data.coco import CocoInstances
from yolact.data.loader import Batch, training_loader
from yolact.data.transforms import normalize
from yolact.engine.checkpoint import CheckpointStore, TrainingState
from yolact.engine.schedule import learning_rate
from yolact.errors import YolactError
from yolact.losses import Losses, YolactLoss
from yolact.models.weights import load_model, save_model
from yolact.models.yolact import Yolact

log = logging.getLogger(__name__)

Metrics = dict[str, float]


class DivergedError(YolactError):
    """A loss term became infinite or not a number; names the terms, the step and the photos."""


class Listener(Protocol):
    """Told about the run while it goes on: a tracker, a file, a test."""

    def on_step(self, step: int, row: Metrics) -> None:
        """Called every ``log_every`` steps with loss terms, total and learning rate."""

    def on_epoch(self, step: int, row: Metrics) -> None:
        """Called after each validation with the validation metrics and the epoch."""


@dataclass
class TrainingResult:
    """What a finished run leaves."""

    history: dict[str, list[Metrics]]
    steps: int
    best_score: float
    seconds_per_step: float
    """Data, forward, backward and optimizer, without validation; mean over the run."""


class Trainer:
    """Trains a network on a data set and keeps the best weights of its validations.

    Args:
        model: on ``device``, with its initial weights.
        data: training photos; must hold at least one.
        params: settings; ``model``, ``train`` and ``runtime`` are read.
        model_dir: where ``checkpoints/`` and, at the end, the model files are written.
        fingerprint: digest of everything that the result depends on; checkpoints with another one are not used.
        validate: measures the network; its result must have ``mask_AP``.
        listener: told about progress.
        extra: kept in checkpoints, see `TrainingState.extra`.
    """

    def __init__(
        self,
        model: Yolact,
        data: CocoInstances,
        params: Params,
        model_dir: Path,
        fingerprint: str,
        validate: Callable[[Yolact], Metrics],
        listener: Listener,
        extra: dict[str, str],
    ) -> None:
        self.config = params.train
        self.runtime = params.runtime
        self.device = next(model.parameters()).device
        # On Apple GPUs, batch norm's backward pass in channels_last was wrong in some releases of PyTorch.
        self.memory_format = torch.contiguous_format if self.device.type == "mps" else torch.channels_last
        self.model = model.to(memory_format=self.memory_format)
        self.classes = data.class_names
        self.model_dir = model_dir
        self.fingerprint = fingerprint
        self.validate = validate
        self.listener = listener
        self.extra = extra
        self.criterion = YolactLoss(self.config.loss)
        self.loader, self.sampler = training_loader(
            data,
            self.config,
            params.model.image_size,
            workers=self.runtime.workers,
            pin=self.device.type == "cuda",
        )
        self.optimizer = build_optimizer(model.train(), self.config)
        self.checkpoints = checkpoint_store(model_dir, self.runtime.keep_checkpoints)
        self.total_steps = self.config.epochs * len(self.sampler)
        if self.config.warmup_steps >= self.total_steps:
            log.warning(
                "train.warmup_steps (%d) is no less than the run's %d steps: the learning rate never reaches train.lr",
                self.config.warmup_steps,
                self.total_steps,
            )
        self.epochs_done = 0
        self.step = 0
        self.seconds = 0.0
        self.best_score = -1.0
        self.best_epoch = 0
        self.history: dict[str, list[Metrics]] = {"steps": [], "epochs": []}

    def restore(self, state: TrainingState) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.torch_rng)
        self.epochs_done = state.epochs_done
        self.step = state.step
        self.seconds = state.seconds
        self.best_score = state.best_score
        self.best_epoch = state.best_epoch
        self.history = state.history
        log.info("going on after epoch %d of %d", self.epochs_done, self.config.epochs)

    def fit(self) -> TrainingResult:
        """Train to the last epoch, then write the model with the best validation mask AP to ``model_dir``.

        Until `finish` is called, the run can be restored and fitted again, which then takes no further step.

        Raises:
            DivergedError: a loss is not finite; the last checkpoint is from before.
        """
        if self.step == 0:
            self.checkpoints.save(self._state(finished=False))
        while self.epochs_done < self.config.epochs:
            start = time.perf_counter()
            self._train_epoch()
            self.seconds += time.perf_counter() - start
            self.epochs_done += 1
            last = self.epochs_done == self.config.epochs
            if last or self.epochs_done % self.config.validate_every == 0:
                self._validate()
            if last or self.epochs_done % self.runtime.checkpoint_every == 0:
                self.checkpoints.save(self._state(finished=False))
        best, classes = load_model(self.checkpoints.best_dir(self.best_epoch))
        save_model(best, classes, self.model_dir)
        return TrainingResult(self.history, self.step, self.best_score, self.seconds / self.step)

    def finish(self) -> None:
        """Mark the run as finished, once its results are safe: the next one with these settings begins anew."""
        self.checkpoints.save(self._state(finished=True))

    def _train_epoch(self) -> None:
        self.model.train()
        self.sampler.epoch = self.epochs_done
        title = f"epoch {self.epochs_done + 1}/{self.config.epochs}"
        with tqdm(self.loader, desc=title, unit="batch", leave=False, disable=not sys.stderr.isatty()) as progress:
            for batch in progress:
                losses = self._train_step(batch)
                terms = {name: value.item() for name, value in losses.as_dict().items()}
                progress.set_postfix({name: f"{value:.2f}" for name, value in terms.items()})
                if self.step % self.config.log_every == 0:
                    row = {**terms, "total": losses.total.item(), "lr": self.optimizer.param_groups[0]["lr"]}
                    self.history["steps"].append({"epoch": self.epochs_done + 1, "step": self.step, **row})
                    self.listener.on_step(self.step, row)
                self.step += 1

    def _train_step(self, batch: Batch) -> Losses:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.total_steps, self.config)
        images = normalize(batch.images.to(self.device, non_blocking=True), self.model.config.backbone)
        outputs = self.model(images.contiguous(memory_format=self.memory_format))
        losses: Losses = self.criterion(outputs, batch.targets.to(self.device), self.model.maskiou_net)
        if not torch.isfinite(losses.total):
            self._raise_diverged(losses, batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return losses

    def _raise_diverged(self, losses: Losses, batch: Batch) -> None:
        terms = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.as_dict().items())
        raise DivergedError(
            f"the loss is not finite at step {self.step} (epoch {self.epochs_done + 1}): {terms}. "
            f"Photos of the batch, by id: {', '.join(map(str, batch.image_ids))}. Try a smaller train.lr, "
            "a longer train.warmup_steps, or train.max_grad_norm: 10."
        )

    def _validate(self) -> None:
        metrics = self.validate(self.model)
        row = {"epoch": self.epochs_done, "step": self.step, **metrics}
        self.history["epochs"].append(row)
        log.info(
            "epoch %d of %d: %s",
            self.epochs_done,
            self.config.epochs,
            ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()),
        )
        if metrics["mask_AP"] > self.best_score:
            self.best_score = metrics["mask_AP"]
            self.best_epoch = self.epochs_done
            save_model(self.model, self.classes, self.checkpoints.best_dir(self.best_epoch))
        self.listener.on_epoch(self.step, row)

    def _state(self, *, finished: bool) -> TrainingState:
        return TrainingState(
            fingerprint=self.fingerprint,
            epochs_done=self.epochs_done,
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            torch_rng=torch.get_rng_state(),
            best_score=self.best_score,
            best_epoch=self.best_epoch,
            history=self.history,
            seconds=self.seconds,
            finished=finished,
            extra=self.extra,
        )


def build_optimizer(model: Yolact, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters; weight decay is on everything, biases too, as published."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def checkpoint_store(model_dir: Path, keep: int) -> CheckpointStore:
    """Where a run in ``model_dir`` keeps its checkpoints."""
    return CheckpointStore(model_dir / "checkpoints", keep)
