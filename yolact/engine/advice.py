"""What a run tells about settings that are likely to be mistakes, or that made it fail."""

from __future__ import annotations

import logging

from yolact.config import MIN_RESCORING_SIZE, Params, TrainConfig
from yolact.errors import YolactError

log = logging.getLogger(__name__)

PUBLISHED_LR, PUBLISHED_BATCH = 1e-3, 8
"""SGD of the published YOLACT (dbolya/yolact, ``coco_base_config``)."""
LR_MARGIN = 4.0
"""A learning rate within this factor of the scaled published one is nobody's mistake."""


MIN_IMAGE_SIZE = 64
"""Of `yolact.config.ImageSize`, pixels."""
BF16_CPU_SIZE = 64
"""Largest input, pixels, for which oneDNN computes bf16 wrongly: the weight gradient of a strided convolution on a
single cell, which P6 is up to there, reads memory that nobody has written (seen with PyTorch 2.15)."""


class OutOfMemoryError(YolactError):
    """A training step or a validation does not fit into memory; says which settings make it smaller."""


def learning_rate_advice(config: TrainConfig) -> str | None:
    """A warning where SGD's peak rate is far off the published one, scaled linearly with the batch; None if not.

    Linear scaling: Goyal et al. 2017, section 2.1. The published code does the same. There is no such rule for AdamW: a
    rate for YOLACT is not published, and the scale of its steps does not follow from that of SGD's.
    """
    if config.optimizer != "sgd":
        return None
    scaled = PUBLISHED_LR * config.batch_size / PUBLISHED_BATCH
    ratio = config.lr / scaled
    if 1 / LR_MARGIN <= ratio <= LR_MARGIN:
        return None
    relation = f"{ratio:.3g} times" if ratio > 1 else f"only {ratio:.2g} times"
    return (
        f"train.lr is {config.lr:g}, {relation} what SGD takes for batches of {config.batch_size} by linear scaling "
        f"({scaled:.3g}, from the published {PUBLISHED_LR:g} for {PUBLISHED_BATCH}). If that is not meant, set train.lr"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch failed because a GPU, or the machine, has too little memory."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError)
        and any(part in str(error) for part in ("out of memory", "can't allocate memory"))
    )


def step_out_of_memory(
    params: Params, image_size: int, batch_size: int, processes: int, *, on_cpu: bool, error: BaseException
) -> OutOfMemoryError:
    """The message about a training step that does not fit into memory; what it proposes, the settings accept.

    Args:
        image_size: side of that step's network input, pixels.
        batch_size: of that step; less than ``train.batch_size`` where an epoch has fewer photos.
        processes: that share a batch.
        on_cpu: where bf16 needs inputs of more than `BF16_CPU_SIZE` pixels.
    """
    config = params.train
    most = max(batch_size // processes, 1)
    at_once = -(-batch_size // (processes * min(config.accumulate, most)))
    ways = _smaller_batches(config, batch_size, processes, most) if at_once > 1 else []
    smallest = min(config.augment.image_sizes or [params.model.image_size])
    if config.precision == "fp32" and not (on_cpu and smallest <= BF16_CPU_SIZE):
        ways.append("train.precision: bf16")
    least = BF16_CPU_SIZE + 1 if on_cpu and config.precision == "bf16" else 0
    ways += _smaller_images(params, image_size, least)
    what = f"{at_once} photos of {image_size} px at once in {config.precision}"
    return _out_of_memory(what, ways, error)


def validation_out_of_memory(params: Params, error: BaseException) -> OutOfMemoryError:
    """The message about a validation that does not fit into memory; what it proposes, the settings accept.

    Each process shows the network ``evaluate.batch_size`` photos at once, at most.
    """
    at_once, size = params.evaluate.batch_size, params.model.image_size
    ways = [f"evaluate.batch_size: {at_once // 2}"] if at_once > 1 else []
    if not params.train.augment.image_sizes:
        ways += _smaller_images(params, size, BF16_CPU_SIZE + 1 if params.train.precision == "bf16" else 0)
    return _out_of_memory(f"{at_once} photos of {size} px at once in a validation", ways, error)


def _smaller_batches(config: TrainConfig, batch_size: int, processes: int, most: int) -> list[str]:
    """More passes, ``most`` at most and equally long; half the batch."""
    ways = []
    passes = range(2 * config.accumulate, most + 1)
    more = next((n for n in passes if config.batch_size % n == 0), None)
    if more:
        ways.append(f"train.accumulate: {more} (the same result with less memory, in {more} passes a step)")
    half = batch_size // 2 // config.accumulate * config.accumulate
    if half >= processes and half:
        ways.append(f"train.batch_size: {half} (and train.lr in proportion)")
    return ways


def _smaller_images(params: Params, image_size: int, least: int) -> list[str]:
    """Three quarters of the side, but no less than ``least`` and what the settings accept."""
    least = max(least, MIN_RESCORING_SIZE if params.model.mask_rescoring else MIN_IMAGE_SIZE)
    smaller = max(image_size * 3 // 4, least)
    if smaller >= image_size:
        return []
    sizes = params.train.augment.image_sizes
    if sizes:
        return [f"train.augment.image_sizes: {[size for size in sizes if size < image_size] or [smaller]}"]
    return [f"model.image_size: {smaller}"]


def _out_of_memory(what: str, ways: list[str], error: BaseException) -> OutOfMemoryError:
    reason = str(error).partition("\n")[0]
    advice = f"Try one of these: {'; '.join(ways)}" if ways else "Take a smaller model.backbone, or more memory"
    return OutOfMemoryError(f"out of memory with {what}. {advice}. ({reason})")
