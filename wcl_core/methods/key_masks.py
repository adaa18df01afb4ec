"""Which keys an anchor may not see, in a form that never needs a whole anchors x keys mask.

    Exclusion ── ByIndex    some keys of each anchor by their positions: itself, its other view
              ├─ ByName     all keys of the anchor's own name (an image, a component), and all empty keys
              └─ ByMask     anything, as a mask given by the caller

Losses and neighbour searches ask for one tile of rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Names and labels below this can be packed in pairs into one int64.
_PACK = 2**32


class Exclusion(Protocol):
    """Keys that are neither neighbour, positive nor part of a denominator."""

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        """Set the excluded entries of `values`, (rows, K) of these anchor rows, to -inf in place."""
        ...

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of the excluded keys that carry their anchor's label the sum, (B, D), and the number, (B,)."""
        ...


@dataclass(frozen=True)
class ByIndex:
    """Keys by position: index (B, m) int64, different within a row."""

    index: Tensor

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        return values.scatter_(1, self.index[rows], -torch.inf)

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        total = keys.new_zeros(len(labels), keys.shape[1])
        count = torch.zeros_like(labels)
        for index in self.index.unbind(1):
            same = key_labels[index] == labels
            total = total + torch.where(same[:, None], keys[index], 0.0)
            count = count + same.long()
        return total, count


@dataclass(frozen=True)
class ByMask:
    """Keys by a (B, K) bool mask, True where excluded."""

    mask: Tensor

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        return values.masked_fill_(self.mask[rows], -torch.inf)

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        mates = self.mask & (key_labels == labels[:, None])
        return mates.to(keys.dtype) @ keys, mates.sum(1)


@dataclass(frozen=True)
class ByName:
    """Keys of the anchor's own name.

    Attributes:
        names: (B,) int64 in [0, 2^31), the anchors' names.
        key_names: (K,) int64 in [-1, 2^31); -1 is an empty key, which nobody sees.
        kept: (B,) int64 or None, one key of each anchor that stays whatever its name.
    """

    names: Tensor
    key_names: Tensor
    kept: Tensor | None = None

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        mask = (self.names[rows, None] == self.key_names) | (self.key_names < 0)
        if self.kept is not None:
            mask.scatter_(1, self.kept[rows, None], False)
        return values.masked_fill_(mask, -torch.inf)

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        assert self.kept is None, "a key that is kept is no exclusion among positives"
        # Empty keys have labels nobody else carries, so only the anchor's own name counts.
        return label_sums(labels * _PACK + self.names, keys, key_labels * _PACK + self.key_names)


def label_sums(labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum, (B, D), and number, (B,), of the keys that carry each anchor's label, without a B x K mask.

    Keys are sorted by label (stable) and summed segment by segment, which is deterministic, unlike float atomics.

    Args:
        labels: (B,) int64.
        keys: (K, D) floats; gradient flows.
        key_labels: (K,) int64.
    """
    ordered, order = key_labels.sort(stable=True)
    segment = torch.searchsorted(ordered, ordered)  # position of the first key of the same label
    position = torch.arange(len(ordered) + 1, device=keys.device)
    # A segment for every position keeps shapes known to the host; only those that begin a label are not empty.
    offsets = torch.searchsorted(segment, position)
    # Unsafe only skips checks of the offsets that would read them back to the host.
    sums = torch.segment_reduce(keys[order], "sum", offsets=offsets, unsafe=True)
    first = torch.searchsorted(ordered, labels)
    count = torch.searchsorted(ordered, labels, right=True) - first
    return torch.where((count > 0)[:, None], sums[first.clamp(max=len(ordered) - 1)], 0.0), count
