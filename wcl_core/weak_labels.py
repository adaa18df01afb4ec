"""Weak labels: components of the in-batch nearest-neighbour graph, and how good they are.

    u (B, D) ── nearest_neighbours ── nn (B,) ── components ── labels (B,)

Everything stays on the device of its inputs; no graph library, no value read back to the host, no gradient.
The loss that uses the labels is in `losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Similarities are held for this many pairs at once: all of them up to B = 4096, tiles of rows above.
MAX_TILE_PAIRS = 4096 * 4096


@torch.no_grad()
def nearest_neighbours(u: Tensor) -> Tensor:
    """The most similar other row of each row, nn(i) = argmax_{j != i} u_i.u_j. [C]

    Similarities are float32 (float64 for float64 input) whatever autocast says.  Among equal maxima of a row the
    lowest index wins [D].

    Args:
        u: (B, D) unit rows, B >= 2.

    Returns:
        (B,) int64 indices, nn(i) != i.

    Raises:
        ValueError: when there are fewer than two rows.
    """
    count = u.shape[0]
    if count < 2:
        raise ValueError(f"a nearest-neighbour graph needs at least 2 rows, got {count}")
    rows_per_tile = max(1, MAX_TILE_PAIRS // count)
    with torch.autocast(u.device.type, enabled=False):
        u = u if u.dtype == torch.float64 else u.float()
        tiles = [_nearest(u, start, min(start + rows_per_tile, count)) for start in range(0, count, rows_per_tile)]
    return torch.cat(tiles)


def _nearest(u: Tensor, start: int, stop: int) -> Tensor:
    count = u.shape[0]
    similarity = u[start:stop] @ u.T
    similarity.diagonal(start).fill_(-torch.inf)
    best = similarity.amax(dim=1, keepdim=True)
    # argmax leaves open which of several maxima it returns.
    index = torch.arange(count, device=u.device, dtype=torch.int32)
    lowest = torch.where(similarity == best, index, count).amin(dim=1)
    # A row of NaN equals nothing; the clamp keeps its index legal until the loss reports the NaN.
    return lowest.clamp(max=count - 1).long()


@torch.no_grad()
def components(nn: Tensor) -> Tensor:
    """Connected components of the graph with the edges {i, nn(i)}, by pointer doubling. [C]

    This is the first partition of FINCH (Sarfraz et al., CVPR 2019).  After r rounds m(i) is the smallest index on
    the first 2^r edges out of i and f is nn applied 2^r times; ceil(log2 B) rounds put every f(i) on the one cycle of
    its component, of any length, and m there is the smallest index of that cycle.

    Args:
        nn: (B,) int64, nn(i) in [0, B).

    Returns:
        (B,) int64 labels in [0, B), equal exactly within a component.
    """
    count = nn.shape[0]
    f = nn
    m = torch.minimum(torch.arange(count, device=nn.device), f)
    for _ in range((count - 1).bit_length()):
        # index_select, because m[f] checks and copies several times as long.
        m = torch.minimum(m, m.index_select(0, f))
        f = f.index_select(0, f)
    return m.index_select(0, f)


def weak_labels(u: Tensor) -> Tensor:
    """The weak label of each row: `components` of `nearest_neighbours`, every one with at least two members.

    Args:
        u: (B, D) unit rows of one view of the global batch.

    Returns:
        (B,) int64 labels in [0, B).
    """
    return components(nearest_neighbours(u))


@torch.no_grad()
def view_agreement(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Adjusted Rand index of two labellings of the same rows (Hubert & Arabie 1985).

    Args:
        labels_a: (B,) integers.
        labels_b: (B,) integers.

    Returns:
        A float64 scalar tensor: 1 for equal partitions, 0 on average for independent ones.
    """
    together_a = _num_mates(labels_a).sum()
    together_b = _num_mates(labels_b).sum()
    together = _num_mates(_joint(labels_a, labels_b)).sum()
    count = labels_a.shape[0]
    expected = together_a * together_b / max(count * (count - 1), 1)
    spread = (together_a + together_b) / 2 - expected
    # Both partitions trivial in the same way: nothing can disagree.
    return torch.where(spread == 0, 1.0, (together - expected) / spread)


@torch.no_grad()
def pair_precision(labels: Tensor, classes: Tensor) -> Tensor:
    """Mean over anchors of the share of P(i) that has i's class: exactly the pairs the loss pulls together.

    Args:
        labels: (B,) weak labels.
        classes: (B,) true classes.

    Returns:
        A float64 scalar tensor in [0, 1]; anchors without a positive do not count, NaN when none has one.
    """
    mates = _num_mates(labels)
    share = _num_mates(_joint(labels, classes)) / mates.clamp(min=1)
    return share.sum() / (mates > 0).sum()


@torch.no_grad()
def pair_precision_chance(classes: Tensor) -> Tensor:
    """The pair precision of random pairs, sum_c p_c^2.

    Args:
        classes: (B,) true classes.

    Returns:
        A float64 scalar tensor in (0, 1].
    """
    return (_num_mates(classes) + 1).mean() / classes.shape[0]


def _num_mates(labels: Tensor) -> Tensor:
    """For each row, how many other rows share its label; (B,) float64, exact."""
    ordered = labels.sort().values
    mates = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels) - 1
    return mates.double()


def _joint(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Labels of the common refinement of two labellings; ranks keep the products within int64."""
    rank_a = torch.searchsorted(labels_a.sort().values, labels_a)
    rank_b = torch.searchsorted(labels_b.sort().values, labels_b)
    return rank_a * labels_a.shape[0] + rank_b
