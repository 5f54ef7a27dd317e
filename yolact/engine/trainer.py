"""The training loop."""

from __future__ import annotations

import inspect
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from yolact.data.coco import CocoInstances
from yolact.data.loader import Batch, training_loader
from yolact.devices import check_compiler
from yolact.distributed import World, random_state, restore_random_state
from yolact.engine.advice import (
    BF16_CPU_SIZE,
    batch_size_advice,
    is_out_of_memory,
    learning_rate_advice,
    step_out_of_memory,
    validation_out_of_memory,
)
from yolact.engine.automatic import loader_processes, resolve_train
from yolact.engine.batch_norm import synchronise_batch_norm
from yolact.engine.checkpoint import CheckpointStore, TrainingState
from yolact.engine.ema import Ema
from yolact.engine.freezing import freeze
from yolact.engine.interrupts import InterruptedRunError, Interrupts, dead_workers_reported, stop_message
from yolact.engine.loss_watch import LossWatch
from yolact.engine.micro_batches import split_batch
from yolact.engine.parameter_groups import parameter_groups
from yolact.engine.prefetch import prefetch
from yolact.engine.schedule import learning_rate, warmup_steps
from yolact.engine.speed import SpeedMeter
from yolact.errors import SettingsError
from yolact.inference.network import DTYPES
from yolact.losses.criterion import Losses, YolactLoss, random_priorities
from yolact.losses.matcher import Matches
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import TrainConfig, TrainingParams
from yolact.structures import RawOutputs, Targets
from yolact.transforms import normalize

log = logging.getLogger(__name__)

Metrics = dict[str, float]


class Listener(Protocol):
    """Receives the run's progress, for example a tracker. Only the main process has one."""

    def on_alive(self) -> None:
        """Called after each step and each checkpoint; must be fast."""

    def on_step(self, step: int, row: Metrics) -> None:
        """Called every ``log_every`` steps with the mean loss terms and total, and the learning rate."""

    def on_speed(self, step: int, row: Metrics) -> None:
        """Called right after `on_step` with the metrics that vary between identical runs, see `SpeedMeter`."""

    def on_epoch(self, step: int, row: Metrics) -> None:
        """Called after each validation with the validation metrics and the epoch."""


class SilentListener:
    """For processes that do not track the run, and for untracked runs."""

    def on_alive(self) -> None:
        """Do nothing."""

    def on_step(self, step: int, row: Metrics) -> None:
        """Do nothing."""

    def on_speed(self, step: int, row: Metrics) -> None:
        """Do nothing."""

    def on_epoch(self, step: int, row: Metrics) -> None:
        """Do nothing."""


@dataclass
class TrainingResult:
    """The result of a finished run."""

    history: dict[str, list[Metrics]]
    steps: int
    best_score: float | None
    """Best validation mask AP; None if the validation images have no object to find."""
    seconds_per_step: float
    """Mean over the run of data loading, forward, backward and optimizer, without validation."""


class Trainer:
    """Trains a network on a data set and keeps the weights of the best validation.

    Args:
        model: the network with its initial weights, on its device.
        data: training images; must hold at least one.
        params: the settings; reads ``model``, ``train`` and ``runtime``. What is ``auto`` in ``train`` is chosen by the
            number of images; ``train.fit_anchors`` has to be resolved before (`yolact.engine.automatic.resolve`).
        model_dir: receives the model files at the end, and the batch if loss or gradients are not finite.
        checkpoints: the checkpoint store; only the main process writes.
        validate: evaluates the network; its result must have ``mask_AP``, NaN if that cannot be measured: then the
            weights of the last validation are kept. Every process calls it and gets the same result.
        listener: receives progress.
        extra: stored in checkpoints, see `TrainingState.extra`.
        world: the processes that train together. Their random generators must agree.
        interrupts: requests to stop; None: its own, watched while it trains.
    """

    def __init__(
        self,
        model: Yolact,
        data: CocoInstances,
        params: TrainingParams,
        model_dir: Path,
        checkpoints: CheckpointStore,
        validate: Callable[[Yolact], Metrics],
        listener: Listener,
        extra: dict[str, str],
        world: World | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.world = world or World()
        if params.train.fit_anchors:
            raise SettingsError(
                "train.fit_anchors: true changes the network, which is there already; before you make it: "
                "params = yolact.engine.automatic.resolve(params, data)"
            )
        chosen = resolve_train(params.train, params.model, len(data.images), log_it=self.world.is_main)
        self.params = params = params.model_copy(update={"train": chosen})
        self.config = params.train
        self.runtime = params.runtime
        self.device = next(model.parameters()).device
        # On Apple GPUs, batch norm's backward pass in channels_last was wrong in some releases of PyTorch.
        self.memory_format = torch.contiguous_format if self.device.type == "mps" else torch.channels_last
        _check_precision(params, self.device)
        self.model = model.to(memory_format=self.memory_format).train()
        self.classes, self.category_ids = data.class_names, data.category_ids
        self.model_dir = model_dir
        self.checkpoints = checkpoints
        self.validate = validate
        self.listener = listener
        self.extra = extra
        freeze(self.model, self.config.freeze)
        if self.world.size > 1 and model.config.trains_batch_norm:
            synchronise_batch_norm(self.model)
        self.ema = Ema(self.model, self.config.ema_decay) if self.config.ema_decay else None
        self.criterion = YolactLoss(self.config.loss, self.world.size)
        self.network = self._network()
        self.optimizer, self.rate_factors = build_optimizer(self.model, self.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")
        self.loader, self.sampler = training_loader(
            data,
            self.config,
            params.model.image_size,
            workers=loader_processes(self.runtime.workers),
            pin=self.device.type == "cuda",
            keep_aspect_ratio=params.model.keep_aspect_ratio,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        self.micro_batches = min(self.config.accumulate, max(self.sampler.batch_size // self.world.size, 1))
        self.steps_per_epoch = len(self.sampler)
        self.total_steps = self.config.num_epochs * self.steps_per_epoch
        self.watch = LossWatch(self.device, self.world, model_dir / "diverged")
        self.interrupts = interrupts or Interrupts()
        self.epochs_done = 0
        self.batches_done = 0
        self.step = 0
        self.validation_due = False
        self.seconds = 0.0
        self.finished = False
        self.best_score = -1.0
        self.best = ""
        self.history: dict[str, list[Metrics]] = {"steps": [], "epochs": []}
        if self.world.is_main:
            self._warn()

    def restore(self, state: TrainingState) -> None:
        """Resume from a checkpoint, also of a run with fewer epochs, see `yolact.engine.schedule.why_not_extended`."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        if self.ema:
            self.ema.restore(state.ema)
        restore_random_state(state.random, self.device)
        self.watch.restore(state.terms, self.device)
        self.epochs_done = state.epochs_done
        self.batches_done = state.batches_done
        self.step = state.step
        self.validation_due = state.validation_due
        self.seconds = state.seconds
        epochs = state.settings["train"]["epochs"]
        self.finished = state.finished and epochs == self.config.num_epochs
        self.best_score = state.best_score
        self.best = state.best
        self.history = state.history
        if self.finished and self.world.is_main:
            log.info("this run has already finished; rewriting its outputs")
        elif self.world.is_main:
            within = f" and {self.batches_done} steps" if self.batches_done else ""
            if epochs == self.config.num_epochs:
                log.info("resuming after epoch %d%s of %d", self.epochs_done, within, epochs)
            else:
                done, wanted = self.epochs_done, self.config.num_epochs
                log.info("continuing after epoch %d%s of %d (train.epochs was %d)", done, within, wanted, epochs)

    def fit(self) -> TrainingResult:
        """Train to the end, then write the model with the best validation mask AP to ``model_dir``.

        A finished run can be restored and fitted again: it takes no further step and writes the same files.

        Raises:
            DivergedError: a loss or a gradient is not finite; the last checkpoint predates that step.
            InterruptedRunError: SIGTERM or SIGINT was received; the last checkpoint is of the last step, or an earlier
                one if the signal ended a loader process while it started.
            OutOfMemoryError: a step, its batch or a validation does not fit into memory.
        """
        with self.interrupts.watched(), dead_workers_reported(self.interrupts):
            if self.step == 0:
                self._save()
            while True:
                if self.validation_due:
                    self._validate()
                    self._save()
                if self._is_over():
                    break
                self._train_epoch()
        if self.world.is_main:
            best, classes = self.checkpoints.load_best(self.best)
            save_model(best, classes, self.model_dir, self.category_ids)
        best_score = None if self.best_score < 0 else self.best_score
        return TrainingResult(self.history, self.step, best_score, self.seconds / self.step)

    def finish(self) -> None:
        """Mark the run as finished, once its results are stored, see `CheckpointStore.begin`."""
        if not self.finished:
            self._save(finished=True)

    def _network(self) -> nn.Module:
        """The network with its loss, compiled and distributed as settings and world require."""
        dtype = DTYPES[self.config.precision]
        forward: Callable[[Tensor], RawOutputs] = self.model
        if self.runtime.compile:
            check_compiler(self.device, "runtime.compile")
            forward = torch.compile(self.model)
        network: nn.Module = _NetworkWithLoss(self.model, forward, self.criterion, dtype)
        if self.world.size > 1:
            # Buffers are equal everywhere: batch norm is frozen, or synchronised. PyTorch 2.15 renamed the switch.
            names = inspect.signature(DistributedDataParallel).parameters
            switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
            options: dict[str, Any] = {switch: False, "gradient_as_bucket_view": True}
            network = DistributedDataParallel(network, **options)
        return network

    def _warn(self) -> None:
        if (warmup := warmup_steps(self.total_steps, self.config)) >= self.total_steps:
            log.warning(
                "train.warmup_steps (%d) is not less than the run's %d steps: the learning rate never reaches "
                "train.lr; auto is at most a tenth of the run",
                *(warmup, self.total_steps),
            )
        for advise in (batch_size_advice, learning_rate_advice):
            if advice := advise(self.config, self.sampler.batch_size):
                log.warning("%s", advice)

    def _is_over(self) -> bool:
        """Whether no step is left; a finished run stays finished with another patience."""
        if self.finished or self.epochs_done == self.config.num_epochs:
            return True
        if not self.config.patience or self.best_score < 0:  # no best weights to finish with, or no AP to judge by
            return False
        scores = [row["mask_AP"] for row in self.history["epochs"]]
        waited = len(scores) - 1 - scores.index(max(scores))
        if waited >= self.config.patience and self.world.is_main:
            log.info("stopped early: mask AP has not risen for %d validations (train.patience)", waited)
        return waited >= self.config.patience

    def _train_epoch(self) -> None:
        """Train to the end of the current epoch."""
        self.model.train()
        self.sampler.epoch, self.sampler.start = self.epochs_done, self.batches_done
        speed, whole_epoch = (SpeedMeter(self.device, self.total_steps) for _ in range(2))
        with self._progress() as progress:
            for batch in self._batches(speed):
                start = time.perf_counter()
                with self._memory_advised(batch.images.shape[-1]):
                    self._train_step(batch)
                self.step += 1
                self.batches_done += 1
                for meter in (speed, whole_epoch):
                    meter.count(len(batch.image_ids) * self.world.size)
                if (self.step - 1) % self.config.log_every == 0:
                    self._log_step(self.step - 1, speed, progress)
                progress.update()
                self.seconds += time.perf_counter() - start + speed.last_wait
                self._after_step()
        self.epochs_done += 1
        self.batches_done = 0
        self._log_epoch(whole_epoch)
        last = self.epochs_done == self.config.num_epochs
        self.validation_due = last or self.epochs_done % self.config.validate_every == 0
        if self.validation_due or self.epochs_done % self.runtime.checkpoint_every == 0:
            self._save()

    def _after_step(self) -> None:
        """Say that the run is alive; write a checkpoint within the epoch if one is due; stop if requested."""
        self.listener.on_alive()
        if self.watch.stop_agreed:
            self._save()
            self._stop()
        every = self.runtime.checkpoint_every_steps
        if every and self.step % every == 0 and self.batches_done < self.steps_per_epoch:
            self._save()

    def _stop(self) -> NoReturn:
        self.world.broadcast(None)  # torchrun ends all processes when the first one exits: wait until all is written
        raise InterruptedRunError(stop_message(self.interrupts.requested))

    def _batches(self, speed: SpeedMeter) -> Iterator[Batch]:
        """The rest of the epoch's batches on the device, each copied while the previous one is processed."""
        batches = speed.timed(prefetch(self.loader, self.device))
        while True:
            with self._memory_advised(max(self.sampler.sizes)):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def _memory_advised(self, image_size: int) -> Iterator[None]:
        """If a step does not fit into memory, say which settings reduce it.

        Args:
            image_size: side of the step's network input, pixels.

        Raises:
            OutOfMemoryError: the step does not fit.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise step_out_of_memory(
                self.params,
                image_size,
                self.sampler.batch_size,
                self.world.size,
                on_cpu=self.device.type == "cpu",
                error=error,
            ) from error

    def _train_step(self, batch: Batch) -> None:
        """One optimizer step, without waiting for the device."""
        rate = learning_rate(self.step, self.total_steps, self.config)
        for group, factor in zip(self.optimizer.param_groups, self.rate_factors, strict=True):
            group["lr"] = rate * factor
        levels = self.model.level_sizes(*batch.images.shape[-2:])
        anchors = self.model.anchors(levels, self.device)
        matches = self.criterion.match(batch.targets, anchors, [height * width for height, width in levels])
        # Drawn for the global batch: neither micro-batches nor processes change which masks are chosen.
        priorities = random_priorities(self.sampler.batch_size, len(anchors), self.device)[self.sampler.share]
        parts = split_batch(batch, matches, priorities, self.micro_batches, self.world)
        shares = []
        for number, part in enumerate(parts, start=1):
            with self._without_averaging(number < len(parts)):
                images = normalize(part.batch.images, self.model.backbone.normalization)
                images = images.contiguous(memory_format=self.memory_format)
                losses: Losses = self.network(images, part.batch.targets, part.matches, part.priorities)
                share = losses.scaled(part.shares)
                self.scaler.scale(share.total).backward()
            shares.append(share)
        norm = self._clip_gradients()
        stop = self.interrupts.requested is not None
        self.watch.add(shares, batch, norm, step=self.step, epoch=self.epochs_done + 1, stop=stop)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()

    def _clip_gradients(self) -> Tensor | None:
        """Clip the gradients as the settings require.

        Returns:
            Their norm before clipping, a scalar on the device, finite exactly if they are; None with ``fp16``, whose
            scaler skips the steps with infinite gradients.
        """
        if self.config.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        elif not self.scaler.is_enabled():
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        return None if self.scaler.is_enabled() else norm

    def _without_averaging(self, wanted: bool) -> AbstractContextManager[None]:
        """Do not synchronise the gradients of any micro-batch but the last."""
        if wanted and isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    def _log_step(self, step: int, speed: SpeedMeter, progress: tqdm) -> None:
        terms = self.watch.take_means()
        row = {**terms, "lr": self.optimizer.param_groups[0]["lr"]}
        self.history["steps"].append({"epoch": self.epochs_done + 1, "step": step, **row})
        if not self.world.is_main:
            return
        rates = speed.take(self.step)
        progress.set_postfix_str(speed.describe(rates) + "".join(f", {k} {v:.2f}" for k, v in terms.items()))
        self.listener.on_step(step, row)
        self.listener.on_speed(step, rates)

    def _log_epoch(self, speed: SpeedMeter) -> None:
        """Log a line for the finished epoch if no progress bar has shown it."""
        self.watch.settle()  # in every process: all detect a non-finite loss at the same point
        total = self.watch.take_total()
        if total is None or self._shows_progress or not self.world.is_main:
            return
        metrics = speed.describe(speed.take(self.step))
        log.info("epoch %d of %d: loss %.2f, %s", self.epochs_done, self.config.num_epochs, total, metrics)

    @property
    def _shows_progress(self) -> bool:
        return self.world.is_main and sys.stderr.isatty()

    def _progress(self) -> tqdm:
        return tqdm(
            desc=f"epoch {self.epochs_done + 1}/{self.config.num_epochs}",
            total=self.steps_per_epoch,
            initial=self.batches_done,
            unit="step",
            leave=False,
            disable=not self._shows_progress,
        )

    def _validate(self) -> None:
        """Validate the network and keep its weights if they are the best; a request to stop takes effect at once."""
        if self.watch.stop_agreed:  # agreed by all processes: one stopping alone would leave the others waiting
            self._stop()
        model = self.ema.model if self.ema else self.model
        try:
            with self.interrupts.at_once():
                metrics = self.validate(model)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise validation_out_of_memory(self.params, error) from error
        row = {"epoch": self.epochs_done, "step": self.step, **metrics}
        self.history["epochs"].append(row)
        self.validation_due = False
        is_measured = not math.isnan(metrics["mask_AP"])
        better = not is_measured or metrics["mask_AP"] > self.best_score
        if is_measured and better:
            self.best_score = metrics["mask_AP"]
        if not self.world.is_main:
            return
        if better:
            self.best = self.checkpoints.save_best(model, self.classes, self.epochs_done)
        log.info(
            "epoch %d of %d: %s",
            self.epochs_done,
            self.config.num_epochs,
            ", ".join(f"{name} {'-' if math.isnan(value) else f'{value:.3f}'}" for name, value in metrics.items()),
        )
        self.listener.on_epoch(self.step, row)

    def _save(self, *, finished: bool = False) -> None:
        """Write a checkpoint, once losses and gradients of all steps are known to be finite."""
        self.watch.settle()
        if self.world.is_main:
            self.checkpoints.save(self._state(finished=finished))
            self.listener.on_alive()

    def _state(self, *, finished: bool) -> TrainingState:
        return TrainingState(
            # Not the rest of `params.yaml`, which may have an address with a login.
            settings=self.params.model_dump(mode="json", by_alias=True, include=set(TrainingParams.model_fields)),
            steps_per_epoch=self.steps_per_epoch,
            epochs_done=self.epochs_done,
            batches_done=self.batches_done,
            step=self.step,
            validation_due=self.validation_due,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            ema=self.ema.state() if self.ema else {},
            random=random_state(self.device),
            terms=self.watch.state(),
            best_score=self.best_score,
            best=self.best,
            history=self.history,
            seconds=self.seconds,
            finished=finished,
            extra=self.extra,
        )


class _NetworkWithLoss(nn.Module):
    """The network and its loss in one module: everything with weights is within one forward pass, as DDP requires."""

    def __init__(
        self, model: Yolact, forward: Callable[[Tensor], RawOutputs], criterion: YolactLoss, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.dtype = dtype
        self.run = forward

    def forward(self, images: Tensor, targets: Targets, matches: Matches, priorities: Tensor) -> Losses:
        """The loss terms of (B, 3, S, S) normalised images, see `YolactLoss.forward`; the network runs in ``dtype``."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = self.run(images)
        losses: Losses = self.criterion(outputs, targets, matches, priorities, self.model.maskiou_net)
        return losses


def _check_precision(params: TrainingParams, device: torch.device) -> None:
    """Reject inputs for which oneDNN's results are wrong, see `BF16_CPU_SIZE`."""
    smallest = min(params.train.augment.image_sizes or [params.model.image_size])
    if device.type == "cpu" and params.train.precision == "bf16" and smallest <= BF16_CPU_SIZE:
        raise SettingsError(
            f"train.precision: bf16 on a CPU needs inputs of more than {BF16_CPU_SIZE} pixels (model.image_size, "
            f"train.augment.image_sizes), found {smallest}: on the single cell of P6 PyTorch's gradients are wrong. "
            "Set train.precision: fp32"
        )


def build_optimizer(model: Yolact, config: TrainConfig) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer over all trainable parameters, and each of its groups' factor of the learning rate.

    The groups are those of `parameter_groups`; as published there is one, and weight decay applies to all parameters,
    biases included. Uses one fused kernel for all parameters if PyTorch has it for the device, except for SGD with
        scaled gradients: when the first step is skipped, as happens while the scaler searches its scale, PyTorch's
        fused SGD continues from an uninitialised momentum (seen with 2.15).
    """
    found = parameter_groups(model, config.layer_decay, decay_norms=config.decay_norms)
    groups = [
        {"params": group.parameters, "weight_decay": config.weight_decay if group.decays else 0.0} for group in found
    ]
    device = found[0].parameters[0].device.type
    fused = device in ("cpu", "cuda") and (config.optimizer, config.precision) != (
        "sgd",
        "fp16",
    )
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return optimizer, [group.rate_factor for group in found]
