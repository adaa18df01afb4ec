"""LARS as the released code runs it, and the parameter groups it needs; learning rates come from `schedule`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def param_groups(
    model: nn.Module, weight_decay: float, exclusion: Literal["one-dimensional", "official-names"] = "one-dimensional"
) -> list[dict[str, Any]]:
    """Two groups: what is decayed and scaled, and what is neither.

    `one-dimensional` leaves out every one-dimensional parameter [D].  `official-names` leaves out those whose name
    contains "bn" or "bias" [C], and so leaves the gains of the shortcuts' batch norms (`downsample.1.weight`) decayed
    and scaled.  The gains in our heads are numbered; they count as "bn", so that only the shortcuts' are left [D].
    The `adapt` entry is read by `LARS` alone, so the groups fit `torch.optim.SGD` too.
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
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888), momentum after the scaling. [C]

        g <- g + wd p
        g <- g trust |p| / (|g| + eps)     when adapt, |p| > 0 and |g| > 0
        v <- momentum v + g                first v = g
        p <- p - lr v

    The state of a parameter is the one slot `momentum`, v.  No value is read back to the host.

    Args:
        params: parameters or groups; a group may set any option and `adapt` (default True), see `param_groups`.
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
        """One update of every parameter that has a gradient; returns the closure's loss, if there is a closure."""
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
        updates = list(torch._foreach_add(_gradients(params), params, alpha=group["weight_decay"]))
        if group["adapt"]:
            torch._foreach_mul_(updates, _scales(params, updates, group["trust_coefficient"], group["eps"]))
        velocities = [self._velocity(p, update) for p, update in zip(params, updates, strict=True)]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(params, velocities, alpha=-group["lr"])

    def _velocity(self, param: Tensor, update: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            # Zeros, so that the update below makes the first v exactly g.
            state["momentum"] = torch.zeros_like(update)
        velocity: Tensor = state["momentum"]
        return velocity


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _scales(params: list[Tensor], updates: list[Tensor], trust_coefficient: float, eps: float) -> list[Tensor]:
    """Trust |p| / (|g| + eps) per parameter, 1 where a norm is zero, as scalars on the device."""
    param_norms = torch.stack(torch._foreach_norm(params))
    update_norms = torch.stack(torch._foreach_norm(updates))
    scale = trust_coefficient * param_norms / (update_norms + eps)
    return list(torch.where((param_norms > 0) & (update_norms > 0), scale, 1.0).unbind())
