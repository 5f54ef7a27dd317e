"""Batch norm over the whole batch, however many processes share it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes; on GPUs and CPUs alike (PyTorch's own has no CPU path).

    In evaluation mode it is plain batch norm.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W); the running statistics are updated with those of the global batch."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # unbiased, as PyTorch keeps it
        return output


class _Normalise(torch.autograd.Function):
    """``y = weight * (x - mean) / sqrt(var + eps) + bias`` with mean and variance over all processes.

    The gradient is that of Ioffe and Szegedy 2015, section 3, with its sums taken over all processes. Gradients of
    weight and bias are this process's share; DDP averages them over all processes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float()
        sums = torch.cat([wide.sum(dim=(0, 2, 3)), wide.new_full((1,), x.numel() / x.shape[1])])  # (C + 1,)
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        variance = (wide - _per_channel(mean)).square().sum(dim=(0, 2, 3))
        dist.all_reduce(variance)
        variance = variance / count
        scale = (variance + eps).rsqrt()
        normal = (wide - _per_channel(mean)) * _per_channel(scale)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        output = (normal * _per_channel(weight) + _per_channel(bias)).to(x.dtype)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0].float()
        normal = (x.float() - _per_channel(mean)) * _per_channel(scale)
        for_bias = gradient.sum(dim=(0, 2, 3))
        for_weight = (gradient * normal).sum(dim=(0, 2, 3))
        sums = torch.stack([for_bias, for_weight])
        dist.all_reduce(sums)
        mean_gradient, mean_product = sums / count
        inner = gradient - _per_channel(mean_gradient) - normal * _per_channel(mean_product)
        for_input = inner * _per_channel(weight * scale)
        return for_input.to(x.dtype), for_weight, for_bias, None


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def synchronise_batch_norm(model: nn.Module) -> None:
    """Replace every batch norm with `SyncBatchNorm2d`, keeping parameters and statistics."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                synchronised = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                synchronised.weight, synchronised.bias = child.weight, child.bias
                for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                    setattr(synchronised, buffer, getattr(child, buffer))
                setattr(module, name, synchronised.train(child.training))
