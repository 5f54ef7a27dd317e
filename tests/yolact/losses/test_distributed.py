"""Processes that share a batch: the mean of their gradients is the gradient of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.yolact.losses.loss_processes import gradients, results, shared_results


@pytest.mark.parametrize("counts", [[1, 4, 0, 6], [3, 5, 0, 0]], ids=["uneven", "one process without objects"])
def test_two_processes_with_half_the_batch_have_the_gradients_of_one(counts: list[int], tmp_path: Path) -> None:
    """Masks are drawn at random in some of the images; all processes begin with the same random state."""
    whole = results(slice(None), counts)
    parts = shared_results(results, 2, counts, tmp_path)
    assert whole.keys() == parts[0].keys() == parts[1].keys()
    for name, expected in whole.items():
        first, second = (part[name] / 2 for part in parts)
        found = torch.cat([first, second]) if name.startswith("output") else first + second
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
    assert all(whole[name].abs().max() > 0 for name in whole)


@pytest.mark.parametrize("counts", [[1, 4, 0, 6, 2, 1, 3, 1], [3, 5, 2, 1, 0, 0, 0, 0]], ids=["uneven", "one without"])
def test_two_processes_with_batch_4_have_the_networks_gradients_of_one_with_batch_8(
    counts: list[int], tmp_path: Path
) -> None:
    whole = gradients(slice(None), counts)
    first, second = shared_results(gradients, 2, counts, tmp_path)
    assert {name.partition(".")[0] for name, gradient in whole.items() if gradient.any()} == {
        *("backbone", "fpn", "proto_net", "prediction_layers", "semantic_seg_conv")
    }
    for name, expected in whole.items():
        found = (first[name] + second[name]) / 2
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
