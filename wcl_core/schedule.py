"""Schedules: the learning rate and the weight of the weak-label loss at a step, as pure functions of numbers.

>>> [round(learning_rate(step, total_steps=8, warmup_steps=4, base=0.4), 4) for step in range(9)]
[0.0, 0.1, 0.2, 0.3, 0.4, 0.3414, 0.2, 0.0586, 0.0]
>>> [weak_weight(step, total_steps=8, weight=5.0, ramp_fraction=0.5) for step in range(9)]
[0.0, 1.25, 2.5, 3.75, 5.0, 5.0, 5.0, 5.0, 5.0]
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from wcl_core.config import OptimizerConfig, PretrainSpec


def base_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Return the learning rate at the end of the warm-up, for a global batch of `batch_size` images.

    By the spec's `scaling`: `sqrt` is rate sqrt(B), with 0.075 in the released recipe [C]; `linear` is rate B / 256;
    `none` is the rate itself.
    """
    if config.scaling == "sqrt":
        return config.learning_rate * math.sqrt(batch_size)
    if config.scaling == "linear":
        return config.learning_rate * batch_size / 256
    return config.learning_rate


def learning_rate(step: int, total_steps: int, warmup_steps: float, base: float) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to 0. [C]

        lr(s) = base s/W                                         for s < W
        lr(s) = base/2 (1 + cos(pi (s - W)/(N - W)))             from W on

    Args:
        step: s, number of updates before this one, 0 <= s <= N.
        total_steps: N, number of updates of the run.
        warmup_steps: W, 0 <= W < N.
        base: learning rate at the end of the warm-up.

    Raises:
        ValueError: when the warm-up does not end before the last step, or the step is outside of the run.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps:g}; expected at least 0 and less than total_steps = {total_steps}"
        )
    if not 0 <= step <= total_steps:
        raise ValueError(f"step is {step}; expected 0 to {total_steps} (total_steps)")
    if step < warmup_steps:
        return base * step / warmup_steps
    return base / 2 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def restarted_rate(config: PretrainSpec, step: int, steps_per_epoch: int, base: float) -> float:
    """Return the learning rate of a step of a run, with the restarts of its spec. [D]

    Each part, up to a restart or the end, is a `learning_rate` of its own.  The warm-up of a later part has as many
    epochs as the first one, but at most a tenth of the part.

    Args:
        config: the spec.
        step: number of updates before this one.
        steps_per_epoch: of the run.
        base: learning rate at the end of each warm-up.
    """
    place = bisect_right(config.restarts, step // steps_per_epoch)
    start, end = (0, *config.restarts)[place], config.ends[place]
    warmup_epochs = min(config.warmup_epochs, (end - start) / 10) if place else config.warmup_epochs
    begun = start * steps_per_epoch
    return learning_rate(step - begun, end * steps_per_epoch - begun, warmup_epochs * steps_per_epoch, base)


def schedule_of(spec: Mapping[str, Any]) -> str | None:
    """Return the form of the learning rate of a resolved spec, for people; None for an evaluation.

    >>> schedule_of({"epochs": 300, "warmup_epochs": 10, "restarts": [100]})
    'linear warm-up over 10 epochs, cosine to 0 at epoch 100; again: warm-up over 10 epochs, cosine to 0 at epoch 300'
    """
    if "warmup_epochs" not in spec:
        return None
    ends = [*spec.get("restarts", ()), spec["epochs"]]
    parts, start = [], 0
    for end in ends:
        warmup_epochs = min(spec["warmup_epochs"], (end - start) / 10) if start else spec["warmup_epochs"]
        begins = "again: warm-up" if start else "linear warm-up"
        parts.append(f"{begins} over {warmup_epochs:g} epochs, cosine to 0 at epoch {end}")
        start = end
    return "; ".join(parts)


def weak_weight(step: int, total_steps: int, weight: float, ramp_fraction: float) -> float:
    """Return beta at a step: constant [C], or rising linearly from 0 over a share of all steps [D].

    Args:
        step: number of updates before this one.
        total_steps: number of updates of the run.
        weight: beta after the ramp.
        ramp_fraction: share of all steps that the ramp takes, in [0, 1]; 0 is no ramp.
    """
    ramp_steps = ramp_fraction * total_steps
    return weight * step / ramp_steps if step < ramp_steps else weight
