"""What changes with the step: the learning rate and the weight of the weak-label loss.  Pure functions of numbers."""

from __future__ import annotations

import math

from wcl_core.config import OptimizerConfig


def base_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """The rate at the end of the warm-up for a global batch of `batch_size` images.

    `sqrt` is the released recipe, 0.075 sqrt(B) [C]; `linear` is rate * B / 256; `none` is the rate itself.
    """
    if config.scaling == "sqrt":
        return config.learning_rate * math.sqrt(batch_size)
    if config.scaling == "linear":
        return config.learning_rate * batch_size / 256
    return config.learning_rate


def learning_rate(step: int, total_steps: int, warmup_steps: float, base: float) -> float:
    """Linear warm-up, then half a cosine down to 0. [C]

    lr(s) = base s/W for s < W, then base/2 (1 + cos(pi (s - W)/(N - W))).

    Args:
        step: s, updates done before this one, 0 <= s <= N.
        total_steps: N.
        warmup_steps: W, 0 <= W < N.
        base: rate at the end of the warm-up.

    Raises:
        ValueError: when the warm-up does not end before the last step, or the step lies outside the run.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps ({warmup_steps:g}) must lie in [0, total_steps={total_steps})")
    if not 0 <= step <= total_steps:
        raise ValueError(f"step ({step}) must lie in [0, total_steps={total_steps}]")
    if step < warmup_steps:
        return base * step / warmup_steps
    return base / 2 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def weak_weight(step: int, total_steps: int, weight: float, ramp_fraction: float) -> float:
    """Beta at a step: constant from the first step [C], or rising linearly from 0 over a share of all steps [D].

    Args:
        step: s, updates done before this one.
        total_steps: N.
        weight: beta after the ramp.
        ramp_fraction: share of N the ramp takes; 0 is no ramp.
    """
    ramp_steps = ramp_fraction * total_steps
    return weight * step / ramp_steps if step < ramp_steps else weight
