"""Which images make which step: functions of (seed, epoch, index) alone, so that no loader has a state to save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0..size-1, a function of (seed, epoch) alone: (size,) int64 on the CPU."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


def epoch_batches(size: int, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Tensor]:
    """The epoch's global batches from number `start` on; the last incomplete one is dropped."""
    order = epoch_order(size, seed, epoch)
    for index in range(start, size // batch_size):
        yield order[index * batch_size : (index + 1) * batch_size]


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed of its own for each purpose, so that streams of random numbers never overlap."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
