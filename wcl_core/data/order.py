"""The order of the images: a function of (seed, epoch, index) only, so no loader has a state to save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of 0..size-1, a function of (seed, epoch) only: (size,) int64 on the CPU."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


def epoch_batches(size: int, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Tensor]:
    """Yield the global batches of an epoch from number `start` on; an incomplete last batch is dropped."""
    order = epoch_order(size, seed, epoch)
    for index in range(start, size // batch_size):
        yield order[index * batch_size : (index + 1) * batch_size]


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a separate 63-bit seed for each purpose, so that streams of random numbers never overlap."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
