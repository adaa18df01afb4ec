"""Key masks: which keys an anchor does not see, in a form that never needs a whole anchors x keys mask.

    KeyMask ── ByIndex    some keys of each anchor by their positions: itself, its other view
            ├─ ByImage    all keys that share the anchor's image (or another id, such as its label), and all empty keys
            └─ ByMask     any keys, as a bool mask given by the caller

Losses and neighbour searches apply a mask to one tile of rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Ids and labels below this can be packed in pairs into one int64.
_PACK = 2**32


class KeyMask(Protocol):
    """Hidden keys: they are neither neighbour nor positive, nor part of a denominator."""

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        """Set the hidden entries of `values`, (R, K) for these R anchor rows, to -inf in place."""
        ...

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum, (B, D), and number, (B,), of each anchor's hidden keys that carry its label."""
        ...


@dataclass(frozen=True)
class ByIndex:
    """Keys by position: index (B, m) int64, different within a row."""

    index: Tensor

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        return values.scatter_(1, self.index[rows], -torch.inf)

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        same = key_labels[self.index] == labels[:, None]
        total = torch.where(same[..., None], keys[self.index], 0.0).sum(1)
        return total, same.sum(1)


@dataclass(frozen=True)
class ByMask:
    """Keys by a (B, K) bool mask, True where hidden."""

    mask: Tensor

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        return values.masked_fill_(self.mask[rows], -torch.inf)

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.mask & (key_labels == labels[:, None])
        return hidden.to(keys.dtype) @ keys, hidden.sum(1)


@dataclass(frozen=True)
class ByImage:
    """Keys with the anchor's own id: its image index, or any other integer that groups keys.

    Attributes:
        ids: (B,) int64 in [0, 2^31), of the anchors.
        key_ids: (K,) int64 in [-1, 2^31); -1 is an empty key, which is hidden from every anchor.
        kept: (B,) int64 or None, one key of each anchor that is visible even if its id is the anchor's.
    """

    ids: Tensor
    key_ids: Tensor
    kept: Tensor | None = None

    def hide_(self, values: Tensor, rows: slice) -> Tensor:
        mask = (self.ids[rows, None] == self.key_ids) | (self.key_ids < 0)
        if self.kept is not None:
            mask.scatter_(1, self.kept[rows, None], False)
        return values.masked_fill_(mask, -torch.inf)

    def positives(self, labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
        assert self.kept is None, "a mask with a kept key cannot be taken out of the positives"
        # The labels of empty keys occur nowhere else, so only the anchor's own id counts.
        return label_sums(labels * _PACK + self.ids, keys, key_labels * _PACK + self.key_ids)


def label_sums(labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum, (B, D), and number, (B,), of the keys that carry each anchor's label, without a B x K mask.

    Keys are sorted by label (stable) and summed segment by segment, which is deterministic, unlike float atomics.

    Args:
        labels: (B,) int64.
        keys: (K, D) floats; gradient flows.
        key_labels: (K,) int64.
    """
    ordered, order = key_labels.sort(stable=True)
    segment = torch.searchsorted(ordered, ordered)  # position of the first key of the same label
    position = torch.arange(len(ordered) + 1, device=keys.device)
    # One segment per position keeps the shapes known to the host; only those that begin a label are not empty.
    offsets = torch.searchsorted(segment, position)
    # `unsafe` only skips checks of the offsets, which would read them back to the host.
    sums = torch.segment_reduce(keys[order], "sum", offsets=offsets, unsafe=True)
    first = torch.searchsorted(ordered, labels)
    count = torch.searchsorted(ordered, labels, right=True) - first
    return torch.where((count > 0)[:, None], sums[first.clamp(max=len(ordered) - 1)], 0.0), count
