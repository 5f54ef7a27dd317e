"""Groups of parameters with a learning rate or a weight decay of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from yolact.models.yolact import Yolact


@dataclass
class ParameterGroup:
    """Parameters that the optimizer treats alike."""

    rate_factor: float
    """Multiplies the learning rate."""
    decays: bool
    """Whether weight decay applies."""
    parameters: list[nn.Parameter] = field(default_factory=list)


def parameter_groups(model: Yolact, layer_decay: float, *, decay_norms: bool) -> list[ParameterGroup]:
    """The trainable parameters in groups, those with the whole learning rate first; each group has some.

    Args:
        layer_decay: the learning rate of a backbone with n stages is multiplied by ``layer_decay`` ** (n + 1 - k) in
            stage k, from 1, and by its power n + 1 in what comes before the stages (Bao et al. 2021, "BEiT").
        decay_norms: False: no weight decay for parameters of at most one dimension, which are biases and the weights of
            normalisation layers.
    """
    stages = model.backbone.stage_modules()
    stage_of = {parameter: number for number, stage in enumerate(stages, 1) for parameter in stage.parameters()}
    in_backbone = set(model.backbone.parameters())
    groups: dict[tuple[float, bool], ParameterGroup] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        depth = len(stages) + 1 - stage_of.get(parameter, 0) if parameter in in_backbone else 0
        factor, decays = layer_decay**depth, decay_norms or parameter.ndim > 1
        groups.setdefault((factor, decays), ParameterGroup(factor, decays)).parameters.append(parameter)
    return sorted(groups.values(), key=lambda group: (-group.rate_factor, not group.decays))
