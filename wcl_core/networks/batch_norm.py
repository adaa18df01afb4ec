"""Batch normalisation whose statistics span all ranks of `wcl_core.distributed`.

On GPUs this is torch's own SyncBatchNorm.  That class refuses CPUs, so this module implements it for them.  Both give
the numbers of one process that normalises the whole global batch.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wcl_core.distributed import Ranks, global_sum

M = TypeVar("M", bound=nn.Module)


def sync_batch_norm(model: M, ranks: Ranks, device: torch.device) -> M:
    """Return the model with every batch norm synchronised over all ranks; names, weights and buffers stay the same.

    With one rank the model is unchanged.

    Args:
        model: changed in place.
        ranks: the ranks; their local batches have equal sizes.
        device: the device that the model will run on.
    """
    if ranks.size == 1:
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, because no model here is itself a batch norm
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                module.add_module(name, CpuSyncBatchNorm.like(child, ranks))
    return model


class CpuSyncBatchNorm(_BatchNorm):
    """Batch norm over all ranks, for CPUs; in eval mode it is the ordinary one, without communication.

    Args:
        num_features: number of channels.
    """

    def __init__(self, num_features: int, ranks: Ranks, **options: Any) -> None:
        super().__init__(num_features, **options)
        self._ranks = ranks

    @classmethod
    def like(cls, other: _BatchNorm, ranks: Ranks) -> CpuSyncBatchNorm:
        """Return a synchronised layer that shares the other's parameters and buffers."""
        assert other.affine
        assert other.track_running_stats
        assert other.momentum is not None
        layer = cls(other.num_features, ranks, eps=other.eps, momentum=other.momentum)
        layer._parameters, layer._buffers, layer.training = other._parameters, other._buffers, other.training
        return layer

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Return (N, C, ...) normalised per channel over the samples of all ranks; update the running statistics."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output: Tensor
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, self._ranks.size)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        return output


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with moments over all ranks.

    The forward pass has one all-reduce of 2 C moments, the backward pass one of sum dy and sum dy xhat.  Gradients of
    weight and bias stay this rank's own part, because all parameters' gradients are summed over ranks later.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, num_ranks: int
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        over = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = num_ranks * (x.numel() // x.shape[1])
        # The parts have equal sizes, so the moments are plain means of the parts' moments. They are float64, because
        # in float32 the square of a mean that is much larger than the deviation would round the deviation away.
        variance, mean = (moment.double() for moment in torch.var_mean(x, dim=over, correction=0))
        moments = global_sum(torch.stack((mean, variance + mean.square()))) / num_ranks
        mean, variance = moments[0], (moments[1] - moments[0].square()).clamp_min(0)
        scale = (variance + eps).rsqrt().to(x.dtype).view(shape)
        normalised = (x - mean.to(x.dtype).view(shape)) * scale
        ctx.save_for_backward(normalised, weight, scale)
        ctx.over, ctx.count = over, count
        ctx.mark_non_differentiable(mean, variance)
        return normalised * weight.to(x.dtype).view(shape) + bias.to(x.dtype).view(shape), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        normalised, weight, scale = ctx.saved_tensors
        dy: Tensor = gradients[0]
        own = torch.stack((dy.sum(ctx.over, dtype=torch.float64), (dy * normalised).sum(ctx.over, dtype=torch.float64)))
        grad_bias, grad_weight = own.to(weight.dtype).clone()
        means = (global_sum(own) / ctx.count).to(dy.dtype)
        mean_dy, mean_dy_xhat = (part.view_as(scale) for part in means)
        dx = (dy - mean_dy - normalised * mean_dy_xhat) * (scale * weight.to(dy.dtype).view_as(scale))
        return dx, grad_weight, grad_bias, None, None
