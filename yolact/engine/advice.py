"""Warnings about settings that are likely mistakes, and advice when a run is out of memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from yolact.errors import YolactError
from yolact.settings import MIN_RESCORING_SIZE, TrainConfig, TrainingParams

log = logging.getLogger(__name__)

PUBLISHED_LR, PUBLISHED_BATCH = 1e-3, 8
"""SGD of the published YOLACT (dbolya/yolact, ``coco_base_config``)."""
LR_MARGIN = 4.0
"""A learning rate within this factor of the scaled published rate is not reported."""


MIN_IMAGE_SIZE = 64
"""Smallest value of `yolact.settings.ImageSize`, pixels."""
BF16_CPU_SIZE = 64
"""Largest input, pixels, for which oneDNN computes bf16 wrongly: up to this size P6 is a single cell, on which the
weight gradient of a strided convolution reads uninitialised memory (seen with PyTorch 2.15)."""


RESUMES = "the run resumes from its last checkpoint"
"""Holds after a change of the gradient-accumulation steps (unless it changes the result), of the GPU or of
``evaluate.batch_size``."""


class OutOfMemoryError(YolactError):
    """A network, a training step or a validation does not fit into memory; says which settings reduce it."""


def batch_size_advice(config: TrainConfig, batch_size: int) -> str | None:
    """A warning if an epoch has fewer images (``batch_size``) than ``train.batch_size``; else None."""
    if batch_size == config.batch_size:
        return None
    return (
        f"train.batch_size is {config.batch_size}, but an epoch has {batch_size} images: each step takes all "
        f"{batch_size}. Set train.batch_size: {batch_size} or less"
    )


def learning_rate_advice(config: TrainConfig, batch_size: int) -> str | None:
    """A warning if SGD's peak rate is far from the published rate scaled linearly with the batch; else None.

    Linear scaling: Goyal et al. 2017, section 2.1. The published code does the same. AdamW has no such rule: no rate
        for YOLACT is published, and the scale of its steps cannot be derived from SGD's.

    Args:
        batch_size: of each step; less than ``train.batch_size`` where an epoch has fewer images.
    """
    if config.optimizer != "sgd":
        return None
    scaled = PUBLISHED_LR * batch_size / PUBLISHED_BATCH
    ratio = config.lr / scaled
    if 1 / LR_MARGIN <= ratio <= LR_MARGIN:
        return None
    relation = f"{ratio:.3g} times" if ratio > 1 else f"only {ratio:.2g} times"
    return (
        f"train.lr is {config.lr:g}, {relation} what SGD takes for batches of {batch_size} by linear scaling "
        f"({scaled:.3g}, from the published {PUBLISHED_LR:g} for {PUBLISHED_BATCH}). If that is not meant, set train.lr"
    )


OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""Phrases in the messages of PyTorch's errors, not all of which have a type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch failed because the GPU or the machine is out of memory."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY)
    )


@contextmanager
def start_advised(params: TrainingParams, device: torch.device) -> Iterator[None]:
    """Context in which a network, its averaged weights and the optimizer's state are moved to the device.

    Raises:
        OutOfMemoryError: they do not fit into its memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        ways = ["train.ema_decay: 0 (no second network of averaged weights)"] if params.train.ema_decay else []
        ways.append("a smaller model.backbone")
        if device.type == "cuda":
            ways.append(f"a GPU that no other process uses (nvidia-smi lists them; {RESUMES})")
        raise _out_of_memory(f"the network alone on {device}", ways, error) from error


def step_out_of_memory(
    params: TrainingParams, image_size: int, batch_size: int, processes: int, *, on_cpu: bool, error: BaseException
) -> OutOfMemoryError:
    """The error for a training step that does not fit into memory; it proposes only values that the settings accept.

    Args:
        image_size: side of the step's network input, pixels.
        batch_size: of that step; less than ``train.batch_size`` where an epoch has fewer images.
        processes: processes that share a batch.
        on_cpu: whether it ran on a CPU, where bf16 needs inputs of more than `BF16_CPU_SIZE` pixels.
    """
    config = params.train
    most = max(batch_size // processes, 1)
    at_once = -(-batch_size // (processes * min(config.accumulate, most)))
    ways = _smaller_batches(params, batch_size, processes, most) if at_once > 1 else []
    smallest = min(config.augment.image_sizes or [params.model.image_size])
    if config.precision == "fp32" and not (on_cpu and smallest <= BF16_CPU_SIZE):
        ways.append("train.precision: bf16")
    least = BF16_CPU_SIZE + 1 if on_cpu and config.precision == "bf16" else 0
    ways += _smaller_images(params, image_size, least)
    what = f"{at_once} images of {image_size} px at once in {config.precision}"
    return _out_of_memory(what, ways, error)


def validation_out_of_memory(params: TrainingParams, error: BaseException) -> OutOfMemoryError:
    """The error for a validation that does not fit into memory; it proposes only values that the settings accept.

    Each process passes at most ``evaluate.batch_size`` images at once to the network.
    """
    at_once, size = params.evaluate.batch_size, params.model.image_size
    ways = [f"evaluate.batch_size: {at_once // 2} ({RESUMES})"] if at_once > 1 else []
    if not params.train.augment.image_sizes:
        ways += _smaller_images(params, size, BF16_CPU_SIZE + 1 if params.train.precision == "bf16" else 0)
    return _out_of_memory(f"{at_once} images of {size} px at once in a validation", ways, error)


def _smaller_batches(params: TrainingParams, batch_size: int, processes: int, most: int) -> list[str]:
    """More, equally large gradient-accumulation steps (at most ``most``), and half the batch size."""
    config, ways = params.train, []
    counts = range(2 * config.accumulate, most + 1)
    more = next((n for n in counts if config.batch_size % n == 0), None)
    if more:
        effect = f"the same result with less memory, in {more} gradient-accumulation steps; {RESUMES}"
        if params.model.trains_batch_norm:
            effect = f"less memory, in {more} gradient-accumulation steps; trained batch norm sees fewer images at once"
        ways.append(f"train.accumulate: {more} ({effect})")
    half = batch_size // 2 // config.accumulate * config.accumulate
    if half >= processes and half:
        ways.append(f"train.batch_size: {half} (and train.lr in proportion)")
    return ways


def _smaller_images(params: TrainingParams, image_size: int, least: int) -> list[str]:
    """Three quarters of the side, but not below ``least`` and the settings' minimum."""
    least = max(least, MIN_RESCORING_SIZE if params.model.mask_rescoring else MIN_IMAGE_SIZE)
    smaller = max(image_size * 3 // 4, least)
    if smaller >= image_size:
        return []
    sizes = params.train.augment.image_sizes
    if sizes:
        return [f"train.augment.image_sizes: {[size for size in sizes if size < image_size] or [smaller]}"]
    return [f"model.image_size: {smaller}"]


def _out_of_memory(what: str, ways: list[str], error: BaseException) -> OutOfMemoryError:
    lines = str(error).splitlines()
    reason = next((line for line in lines if any(part in line for part in OUT_OF_MEMORY)), "".join(lines[:1]))
    advice = f"Try one of these: {'; '.join(ways)}" if ways else "Take a smaller model.backbone, or more memory"
    others = sum(RESUMES not in way for way in ways)
    if others:
        advice += ". Any other starts it over" if others < len(ways) else ". The run then starts over"
    return OutOfMemoryError(f"out of memory with {what}. {advice}. ({reason})")
