"""A whole training step on a GPU: not once does the host wait for the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.yolact.engine.runs import trainer_on
from yolact.engine.prefetch import prefetch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_step_does_not_wait_for_the_device(accumulate: int, precision: str, tmp_path: Path) -> None:
    learner = trainer_on(
        "cuda",
        tmp_path,
        batch_size=2,
        accumulate=accumulate,
        precision=precision,
        ema_decay=0.9,
        max_grad_norm=10.0,
        model={"image_size": 96},
    )
    batches = list(prefetch(learner.loader, learner.device))
    for batch in batches[:2]:  # libraries are loaded, constants and momenta made
        learner._train_step(batch)
        learner.step += 1
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[2:]:
            learner._train_step(batch)
            learner.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    learner.watch.settle()
    assert learner.step == 4
    assert all(0 < value < float("inf") for value in learner.watch.take_means().values())
