"""The optimisers: LARS as the released code runs it, the parameter groups, and the state that a checkpoint keeps.

    optimizer/<parameter>/momentum                      LARS and SGD
    optimizer/<parameter>/{step,exp_avg,exp_avg_sq}     AdamW

Learning rates come from `schedule`.  One step of LARS on a quadratic, whose gradient at weight p is p:

    >>> weight = nn.Parameter(torch.full((2, 2), 4.0))
    >>> optimizer = LARS([weight], lr=100.0, weight_decay=0.0, trust_coefficient=1e-3)
    >>> (weight.square().sum() / 2).backward()
    >>> optimizer.step()  # each weight moves by lr * trust_coefficient * |p| / |g| * g = 0.1 * 4
    >>> weight.data
    tensor([[3.6000, 3.6000],
            [3.6000, 3.6000]])

The marks [C] and [D] are explained in `wcl_core.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wcl_core.config import PretrainSpec, is_transformer


def param_groups(
    model: nn.Module, weight_decay: float, exclusion: Literal["one-dimensional", "official-names"] = "one-dimensional"
) -> list[dict[str, Any]]:
    """Return two groups: parameters with weight decay and adaptive rate, and parameters with neither.

    The second group is, by `exclusion`,

    - `one-dimensional`: every parameter of at most one dimension [D];
    - `official-names`: every parameter whose name contains "bn" or "bias" [C].  The gains of the shortcuts' batch norms
      (`downsample.1.weight`) then keep both.  The gains in the heads have numbers for names; they are treated like
      "bn", so that the shortcuts' gains are the only ones [D].

    Only `LARS` reads the entry `adapt`, so the groups work with `torch.optim.SGD` too.

    Args:
        model: its parameters that require a gradient are grouped.
        weight_decay: weight decay of the first group, >= 0.
        exclusion: the rule for the second group.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if exclusion == "official-names":
        left_out = ["bn" in name or "bias" in name or ("_head." in name and p.ndim <= 1) for name, p in named]
    else:
        left_out = [p.ndim <= 1 for _, p in named]
    pairs = list(zip(named, left_out, strict=True))
    groups = [
        {"params": [p for (_, p), out in pairs if not out], "weight_decay": weight_decay, "adapt": True},
        {"params": [p for (_, p), out in pairs if out], "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, with momentum after the scaling. [C]

    You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", https://arxiv.org/abs/1708.03888

        g <- g + wd p
        g <- g trust |p| / (|g| + eps)     when adapt, |p| > 0 and |g| > 0
        v <- momentum v + g                first v = g
        p <- p - lr v

    The state of a parameter is one slot, `momentum`, which holds v.  No value is read back to the host.

    Args:
        params: parameters or groups; a group may set any option, and `adapt` (default True); see `param_groups`.
        lr: learning rate, >= 0.
        momentum: in [0, 1).
        weight_decay: wd, >= 0.
        trust_coefficient: > 0.
        eps: added to |g|, >= 0.

    Raises:
        ValueError: when an option lies outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
    ) -> None:
        if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0 and trust_coefficient > 0 and eps >= 0):
            raise ValueError(
                f"LARS got lr={lr}, momentum={momentum}, weight_decay={weight_decay}, "
                f"trust_coefficient={trust_coefficient}, eps={eps}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return the closure's loss if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        updates = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            torch._foreach_mul_(updates, _scales(params, updates, group["trust_coefficient"], group["eps"]))
        velocities = [self._velocity(p, update) for p, update in zip(params, updates, strict=True)]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        if isinstance(rate := group["lr"], Tensor):
            torch._foreach_sub_(params, torch._foreach_mul(velocities, rate))
        else:
            torch._foreach_add_(params, velocities, alpha=-rate)

    def _velocity(self, param: Tensor, update: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            # Zeros make the first v exactly g in the update below.
            state["momentum"] = torch.zeros_like(update)
        velocity: Tensor = state["momentum"]
        return velocity


def _scales(params: list[Tensor], updates: list[Tensor], trust_coefficient: float, eps: float) -> list[Tensor]:
    """Return trust |p| / (|g| + eps) of each parameter, or 1 where a norm is zero, as scalars on the device."""
    param_norms = torch.stack(torch._foreach_norm(params))
    update_norms = torch.stack(torch._foreach_norm(updates))
    scale = trust_coefficient * param_norms / (update_norms + eps)
    return list(torch.where((param_norms > 0) & (update_norms > 0), scale, 1.0).unbind())


_SLOTS: dict[type[Optimizer], tuple[str, ...]] = {
    LARS: ("momentum",),
    torch.optim.SGD: ("momentum",),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}


def build_optimizer(config: PretrainSpec, model: nn.Module) -> Optimizer:
    """Return LARS [C], SGD or AdamW [D] as the spec chooses, with a learning rate of 0 until one is set.

    AdamW (Loshchilov & Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101) decouples the decay from the gradient:
    p <- p - lr wd p.  On CUDA it runs fused, which keeps the step counter on the device, so that neither a step nor a
    checkpoint waits for the host.
    """
    options = config.optimizer
    groups = param_groups(model, options.weight_decay, options.lars_exclusion)
    if options.name == "lars":
        return LARS(
            groups,
            lr=0.0,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            trust_coefficient=options.trust_coefficient,
        )
    if options.name == "adamw":
        is_cuda = next(model.parameters()).is_cuda
        return torch.optim.AdamW(groups, lr=0.0, betas=options.betas, fused=True if is_cuda else None)
    return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum)


def make_capturable(optimizer: Optimizer) -> None:
    """Let the optimiser run in a CUDA graph, with a scalar float32 tensor as its rate.

    Of torch's optimisers only the fused forms take such a rate without reading it back to the host.
    """
    for group in optimizer.param_groups:
        group.update({name: True for name in ("fused", "capturable") if name in group})


def warning_of(config: PretrainSpec) -> str | None:
    """Return a warning about an unusual choice of the optimiser, if there is one."""
    if config.optimizer.name == "lars" and is_transformer(config.backbone.name):
        name = config.backbone.name
        return f"optimizer.name is lars, but {name} is usually trained with adamw"
    return None


def state_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return every slot of the optimiser's state by `<parameter>/<slot>`; none before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for slot in _SLOTS[type(optimizer)]:
            if (tensor := optimizer.state[parameter].get(_torch_name(optimizer, slot))) is not None:
                tensors[f"{name}/{slot}"] = tensor
    return tensors


def load_state(
    optimizer: Optimizer, model: nn.Module, slots: dict[str, Tensor], memory_format: torch.memory_format
) -> None:
    """Restore the state that `state_of` returned; slots of convolution kernels get the kernels' memory format."""
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        for slot in _SLOTS[type(optimizer)]:
            if (tensor := slots.get(f"{name}/{slot}")) is None:
                continue
            # Only the fused form takes a step counter on a GPU; the plain one would read it back at each step.
            placed = tensor.clone() if slot == "step" and not is_fused else tensor.to(parameter.device)
            if parameter.ndim == 4 and slot != "step":
                placed = placed.contiguous(memory_format=memory_format)
            optimizer.state[parameter][_torch_name(optimizer, slot)] = placed


def _torch_name(optimizer: Optimizer, slot: str) -> str:
    return "momentum_buffer" if isinstance(optimizer, torch.optim.SGD) else slot
