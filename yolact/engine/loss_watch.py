"""Loss terms and gradients of each step: summed on the device, read one step late, checked to be finite.

Reading a number from a GPU makes the host wait until everything before it is computed, and the GPU then waits for the
host. So each step's terms are copied to the host asynchronously and checked one step later, when they have long
arrived; so is the norm of its gradients, which shows whether they are finite. A step that is not finite is thus
detected after the next one has been queued on the GPU; no checkpoint is written in between, since every checkpoint
first checks all pending steps. On a CPU, where reading costs nothing, a step is checked before it changes a weight.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from yolact.data.loader import Batch
from yolact.distributed import World
from yolact.errors import YolactError
from yolact.files import replaced_file
from yolact.losses.criterion import Losses


class DivergedError(YolactError):
    """A loss term or a gradient became infinite or not a number; names the terms, the step and the images."""


@dataclass
class _Step:
    """A step whose numbers are being copied to the host."""

    number: int
    epoch: int
    batch: Batch
    names: list[str]
    values: Tensor
    """(2 T + 2,) float32 on the host: this process's terms, the global ones, how many processes want to stop, and the
    norm of the global gradients."""
    arrived: torch.cuda.Event | None


class LossWatch:
    """The unweighted loss terms of a run, their weighted total, and whether they are finite.

    Args:
        device: where the losses are computed.
        world: the processes; terms are means over them, which with global normalisers are those of the whole batch.
        dump_dir: gets the batch whose loss or gradients are not finite.
    """

    def __init__(self, device: torch.device, world: World, dump_dir: Path) -> None:
        self.world = world
        self.dump_dir = dump_dir
        self._delay = 0 if device.type == "cpu" else 1
        self._on_the_way: deque[_Step] = deque()
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._count = 0
        self._totals: list[float] = []
        self.stop_agreed = False
        """Whether some process wants to stop; every process learns it at the same step."""

    def add(
        self, parts: list[Losses], batch: Batch, gradient_norm: Tensor | None, *, step: int, epoch: int, stop: bool
    ) -> None:
        """Add the terms of a step and the norm of its gradients.

        Args:
            parts: the losses of its micro-batches; they add up.
            batch: on the device; kept until its terms are checked.
            gradient_norm: scalar on the device, of the gradients averaged over all processes; None if gradients may be
                infinite.
            epoch: from 1, for messages.
            stop: whether this process wants to stop.

        Raises:
            DivergedError: loss or gradients of this step, or of the one before, are not finite. Raised in every
                process.
        """
        terms = [part.terms | {"total": part.total} for part in parts]
        self._names = list(terms[0])
        local = torch.stack([torch.stack(list(part.values())) for part in terms]).detach().float().sum(dim=0)  # (T,)
        shared = torch.cat([local, local.new_full((1,), float(stop))])
        if self.world.size > 1:
            dist.all_reduce(shared)
            shared[:-1] /= self.world.size
        self._sums = shared[:-1].clone() if self._sums is None else self._sums + shared[:-1]
        self._count += 1
        norm = local.new_zeros(1) if gradient_norm is None else gradient_norm.detach().float().reshape(1)
        values = torch.cat([local, shared, norm]).to("cpu", non_blocking=True)
        arrived = None
        if local.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._on_the_way.append(_Step(step, epoch, batch, self._names, values, arrived))
        self._look(self._delay)

    def settle(self) -> None:
        """Check all pending steps; waits for them.

        Raises:
            DivergedError: see `add`.
        """
        self._look(0)

    def take_means(self) -> dict[str, float]:
        """Mean of each term over the steps since the last call, by name; waits for the device."""
        assert self._sums is not None
        means = (self._sums / self._count).tolist()
        self._sums, self._count = None, 0
        return dict(zip(self._names, means, strict=True))

    def take_total(self) -> float | None:
        """Mean total loss of the steps checked since the last call; None if there are none. Does not wait."""
        mean = fmean(self._totals) if self._totals else None
        self._totals.clear()
        return mean

    def state(self) -> dict[str, Any]:
        """State for `restore`."""
        sums = None if self._sums is None else self._sums.cpu()
        return {"names": self._names, "sums": sums, "count": self._count}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a `state`."""
        self._names, self._count = state["names"], state["count"]
        self._sums = None if state["sums"] is None else state["sums"].to(device, copy=True)

    def _look(self, leave: int) -> None:
        while len(self._on_the_way) > leave:
            step = self._on_the_way.popleft()
            if step.arrived is not None:
                step.arrived.synchronize()
            if not step.values.isfinite().all():
                self._raise(step)
            self._totals.append(float(step.values[-3]))
            self.stop_agreed |= bool(step.values[-2] > 0)

    def _raise(self, step: _Step) -> None:
        count = len(step.names)
        local, shared, norm = step.values[:count], step.values[count:-2], float(step.values[-1])
        terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(step.names[:-1], shared.tolist(), strict=False))
        at = f"at step {step.number} (epoch {step.epoch})"
        if shared.isfinite().all():
            where = (
                f"the gradients are not finite {at}: their norm is {norm:.4g}, though the loss is finite ({terms}). "
            )
        else:
            where = f"the loss is not finite {at}: {terms}. "
            if local.isfinite().all():
                raise DivergedError(f"{where}The images belong to another process, whose message names them.")
        raise DivergedError(
            f"{where}Images of the batch, by id: {', '.join(map(str, step.batch.image_ids))}. "
            f"The batch is in {self._dump(step)}. Try a smaller train.lr, a longer train.warmup_steps, "
            "or train.max_grad_norm: 10."
        )

    def _dump(self, step: _Step) -> Path:
        """Write the batch; ``torch.load(path, weights_only=True)`` reads it."""
        suffix = f"-rank{self.world.rank}" if self.world.size > 1 else ""
        path = self.dump_dir / f"step_{step.number:08d}{suffix}.pt"
        terms = dict(zip(step.names, step.values.tolist(), strict=False))
        terms["gradient_norm"] = float(step.values[-1])
        with replaced_file(path) as temporary:
            torch.save({"step": step.number, "epoch": step.epoch, "terms": terms, **asdict(step.batch)}, temporary)
        return path
