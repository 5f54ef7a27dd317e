"""Distributed training, on one machine or several: ranks and communication.

``torchrun`` starts the processes and sets each one's rank in its environment. DistributedDataParallel averages the
gradients; since the losses' normalisers are global, N processes compute what one would with the whole batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from yolact.errors import EX_SOFTWARE, SettingsError, YolactError

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: one process alone computes the validation AP or a first compilation."""


class PeerError(YolactError):
    """Another process of the same run has failed; that process's own message says why."""

    exit_code = EX_SOFTWARE
    """As of a crash: a supervisor starts the training again."""


@dataclass(frozen=True)
class World:
    """The processes of a run. ``World()`` is a single process."""

    rank: int = 0
    """Rank of this process, from 0."""
    size: int = 1
    local_rank: int = 0
    """Rank of this process on its machine, which is also the index of its GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and tracks the run."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The main process's ``value``, in every process."""
        if self.size == 1:
            return value
        box = [value]
        with _peers_reported():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _peers_reported():
            dist.all_gather_object(values, value)
        return values


@contextmanager
def joined_world(device_name: str) -> Iterator[World]:
    """Join the process group that ``torchrun`` started, and leave it at the end; a no-op for a single process.

    Args:
        device_name: the setting ``runtime.device``; GPUs communicate through NCCL, CPUs through Gloo.

    Raises:
        SettingsError: the setting names one GPU for all processes, this machine has fewer GPUs than processes, or the
            environment is incomplete.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    world = World(_number("RANK"), size, _number("LOCAL_RANK"))
    on_gpus = torch.cuda.is_available() and device_name in ("auto", "cuda")
    if device_name.startswith(("cuda:", "mps")):
        raise SettingsError(
            f"runtime.device: {device_name} is one GPU, but {size} processes train; set runtime.processes: 1, or "
            "runtime.device: cuda, with which each process takes the GPU of its own number"
        )
    if on_gpus:
        _check_gpu(world)
        torch.cuda.set_device(world.local_rank)
    with _peers_reported():
        dist.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
        try:
            yield world
        finally:
            dist.destroy_process_group()


def own_device_name(device_name: str, world: World) -> str:
    """The setting ``runtime.device`` for this process: with several, each uses the GPU of its local rank."""
    if world.size > 1 and device_name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{world.local_rank}"
    return device_name


def random_state(device: torch.device) -> dict[str, Any]:
    """State of this process's PyTorch random generators: the CPU's and, on a GPU, the device's."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the random generators; states of device types not used here are ignored."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _check_gpu(world: World) -> None:
    """Check that this process has a GPU of its own, see `joined_world`."""
    gpus = torch.cuda.device_count()
    if world.local_rank >= gpus:
        here = os.environ.get("LOCAL_WORLD_SIZE", f"at least {world.local_rank + 1}")
        raise SettingsError(
            f"{here} processes were started on this machine, but it has {gpus} CUDA GPUs, and each process needs one "
            f"of its own: set runtime.processes: auto (for torchrun, --nproc-per-node {gpus}), or runtime.device: cpu"
        )


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        raise SettingsError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is {os.environ.get(name)!r}: start several "
            "processes with torchrun, or unset WORLD_SIZE"
        ) from None


@contextmanager
def _peers_reported() -> Iterator[None]:
    """Turn the process group's error, raised when another process is gone, into a message that says where to look."""
    try:
        yield
    except dist.DistError as error:
        raise PeerError(f"another process of this run has failed or is gone; its message says why ({error})") from error
    except RuntimeError as error:
        if isinstance(error, YolactError) or not any(word in str(error) for word in ("gloo", "Gloo", "NCCL")):
            raise
        raise PeerError(f"another process of this run has failed or is gone; its message says why ({error})") from error
