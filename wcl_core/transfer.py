"""Copies from the host to a device that the host does not wait for.

A copy from pageable memory waits until the GPU has ended all earlier work, so each such copy stops a training step.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return the values on the device, without waiting for it; a GPU gets them through pinned memory."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return a vector of numbers with the type and device of `like`; it is kept, so callers must not change it.

    A compiled function makes it anew on the device, because it would trace the copy from the host too.
    """
    if torch.compiler.is_compiling():
        return torch.stack([torch.full((), value, dtype=like.dtype, device=like.device) for value in values])
    return _constant(values, like.dtype, like.device)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return send(torch.tensor(values, dtype=dtype), device)
