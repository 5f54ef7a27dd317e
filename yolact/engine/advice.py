"""What a run tells about settings that are likely to be mistakes, or that made it fail."""

from __future__ import annotations

import logging

from yolact.config import TrainConfig
from yolact.errors import YolactError

log = logging.getLogger(__name__)

PUBLISHED_LR, PUBLISHED_BATCH = 1e-3, 8
"""SGD of the published YOLACT (dbolya/yolact, ``coco_base_config``)."""
LR_MARGIN = 4.0
"""A learning rate within this factor of the scaled published one is nobody's mistake."""


class OutOfMemoryError(YolactError):
    """A training step does not fit into memory; says which settings make it smaller."""


def learning_rate_advice(config: TrainConfig) -> str | None:
    """A warning where SGD's peak rate is far off the published one, scaled linearly with the batch; None if not.

    Linear scaling: Goyal et al. 2017, section 2.1. The published code does the same.
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


def out_of_memory(config: TrainConfig, image_size: int, processes: int, error: BaseException) -> OutOfMemoryError:
    """The message about a step that does not fit into memory.

    Args:
        image_size: side of the network input, pixels.
        processes: that share a batch.
    """
    at_once = -(-config.batch_size // (processes * config.accumulate))
    ways = []
    if at_once > 1:
        # Equal parts: twice the number of passes, or more where that does not divide the batch.
        more = next(n for n in range(2 * config.accumulate, config.batch_size + 1) if config.batch_size % n == 0)
        ways.append(f"train.accumulate: {more} (the same result with less memory, in {more} passes a step)")
        ways.append(f"train.batch_size: {max(config.batch_size // 2, 1)} (and train.lr in proportion)")
    if config.precision == "fp32":
        ways.append("train.precision: bf16")
    ways.append(f"model.image_size: {image_size * 3 // 4}")
    reason = str(error).partition("\n")[0]
    return OutOfMemoryError(
        f"out of memory with {at_once} photos of {image_size} px at once in {config.precision}. Try one of these: "
        f"{'; '.join(ways)}. ({reason})"
    )
