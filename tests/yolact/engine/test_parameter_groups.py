"""Learning rates of the backbone's stages, and what weight decay leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.yolact.engine.runs import small_params, trainer_on
from yolact.engine.freezing import freeze
from yolact.engine.parameter_groups import parameter_groups
from yolact.engine.schedule import learning_rate
from yolact.models.yolact import Yolact


@pytest.fixture
def model() -> Yolact:
    return Yolact(small_params().model, 2)


def test_without_switches_all_parameters_are_one_group_in_their_order(model: Yolact) -> None:
    (group,) = parameter_groups(model, 1.0, decay_norms=True)
    assert [id(p) for p in group.parameters] == [id(p) for p in model.parameters()]
    assert (group.rate_factor, group.decays) == (1.0, True)


def test_each_earlier_stage_has_the_next_power(model: Yolact) -> None:
    """Four stages: 0.5 in the last, 0.25, 0.125 and 0.0625 in the first, 0.03125 in the stem."""
    groups = parameter_groups(model, 0.5, decay_norms=True)
    factor_of = {parameter: group.rate_factor for group in groups for parameter in group.parameters}
    assert [group.rate_factor for group in groups] == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    for stage, expected in zip(model.backbone.stage_modules(), [0.0625, 0.125, 0.25, 0.5], strict=True):
        assert {factor_of[parameter] for parameter in stage.parameters()} == {expected}
    stem = [parameter for module in model.backbone.stem_modules() for parameter in module.parameters()]
    assert {factor_of[parameter] for parameter in stem} == {0.03125}
    assert {factor_of[p] for p in (*model.fpn.parameters(), *model.proto_net.parameters())} == {1.0}
    assert len(factor_of) == len(list(model.parameters()))


def test_biases_and_norms_are_left_out_of_weight_decay(model: Yolact) -> None:
    decayed, kept = parameter_groups(model, 1.0, decay_norms=False)
    assert (decayed.decays, kept.decays) == (True, False)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert {id(p) for p in decayed.parameters} == {id(convolution.weight) for convolution in convolutions}
    assert len(decayed.parameters) + len(kept.parameters) == len(list(model.parameters()))


def test_frozen_layers_are_in_no_group(model: Yolact) -> None:
    freeze(model, "stage2")
    groups = parameter_groups(model, 0.5, decay_norms=True)
    assert [group.rate_factor for group in groups] == [1, 0.5, 0.25]


def test_the_optimizer_takes_steps_with_these_rates(tmp_path: Path) -> None:
    settings = {"layer_decay": 0.5, "decay_norms": False, "optimizer": "adamw", "weight_decay": 0.1}
    learner = trainer_on("cpu", tmp_path, model={"backbone_weights": "imagenet"}, **settings)
    batch = next(iter(learner.loader))
    learner._train_step(batch)
    peak = learning_rate(0, learner.total_steps, learner.config)
    rates = [group["lr"] / peak for group in learner.optimizer.param_groups]
    assert sorted(set(rates), reverse=True) == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert rates[0] == 1  # the one that is logged
    assert {group["weight_decay"] for group in learner.optimizer.param_groups} == {0.0, 0.1}
