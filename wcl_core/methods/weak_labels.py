"""Weak labels: the components of the nearest-neighbour graph of a batch, and measures of their quality.

    u (B, D) ── nearest_neighbours ── nn (B,) ── components ── labels (B,) [── coarser_labels ── labels (B,)]

Everything stays on the device of its inputs: no graph library, no value read back to the host, no gradient.  The loss
that uses the labels is in `losses`.  Five unit rows, of which the first three are close and the last two are close:

    >>> angles = torch.tensor([0.0, 0.1, 0.3, 2.0, 2.2])
    >>> u = torch.stack((angles.cos(), angles.sin()), dim=1)
    >>> nearest_neighbours(u)
    tensor([1, 0, 1, 4, 3])
    >>> components(nearest_neighbours(u))
    tensor([0, 0, 0, 3, 3])
    >>> weak_labels(u)  # both in one
    tensor([0, 0, 0, 3, 3])

The marks [P], [C] and [D] are explained in `wcl_core.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wcl_core.methods.key_masks import ByImage, KeyMask, label_sums
from wcl_core.precision import full_float32

# Number of pairs whose similarities are held at once: all pairs up to B = 4096, tiles of rows above.
MAX_TILE_PAIRS = 4096 * 4096
# On a CPU a tile stays in the cache between the passes over it.
CPU_TILE_PAIRS = 2**20
# For few rows on a CPU the calls cost more than the work; a call of NumPy costs a third of a call of torch.
NUMPY_UP_TO_ROWS = 2048

_Array = TypeVar("_Array", Tensor, "np.ndarray[Any, Any]")
_Operation = Callable[[_Array, _Array], _Array]


def nearest_neighbours(u: Tensor, *, queue: Tensor | None = None, excluded: KeyMask | None = None) -> Tensor:
    """Return the index of the most similar other row of each row, nn(i) = argmax_{j != i} u_i.u_j. [P] [C]

    Similarities are float32 (float64 for float64 input), also under autocast and TF32.  Among equal maxima of a row the
    lowest index wins [D].

    Args:
        u: (B, D) unit rows, B >= 2.
        queue: (Q, D) unit rows of earlier batches, candidates with the indices B ... B + Q - 1 [D].
        excluded: the candidates, of B + Q, that a row cannot choose; a row without any candidate chooses itself [D].

    Returns:
        (B,) int64 indices, nn(i) != i if a candidate is left.

    Raises:
        ValueError: when B < 2.
    """
    return k_nearest_neighbours(u, 1, queue=queue, excluded=excluded).squeeze(1)


@torch.no_grad()
def k_nearest_neighbours(u: Tensor, k: int, *, queue: Tensor | None = None, excluded: KeyMask | None = None) -> Tensor:
    """Return the k most similar other rows of each row, (B, k) int64, nearest first; see `nearest_neighbours`."""
    count = u.shape[0]
    if count < 2:
        raise ValueError(f"u has {count} rows; a nearest-neighbour graph needs at least 2")
    with full_float32(u.device.type):
        u = u if u.dtype == torch.float64 else u.float()
        keys = u if queue is None else torch.cat((u, queue.to(u.dtype)))
        pairs = MAX_TILE_PAIRS if u.is_cuda else min(MAX_TILE_PAIRS, CPU_TILE_PAIRS)
        size = max(1, pairs // len(keys))
        tiles = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        return torch.cat([_nearest(u, keys, k, excluded, rows) for rows in tiles])


def _nearest(u: Tensor, keys: Tensor, k: int, excluded: KeyMask | None, rows: slice) -> Tensor:
    similarity = u[rows] @ keys.T
    similarity.diagonal(rows.start).fill_(-torch.inf)
    if excluded is not None:
        excluded.hide_(similarity, rows)
    own = torch.arange(rows.start, rows.stop, device=u.device)
    index = torch.arange(len(keys), device=u.device, dtype=torch.int32)
    chosen: list[Tensor] = []
    for _ in range(k):
        if chosen:
            similarity.scatter_(1, chosen[-1][:, None], -torch.inf)
        best = similarity.amax(dim=1, keepdim=True)
        # argmax and topk do not define which of several equal maxima they return.
        lowest = torch.where(similarity == best, index, len(keys)).amin(dim=1)
        # A row of NaN has no lowest index; the clamp keeps the index valid until the run reports the NaN.
        lowest = lowest.clamp(max=len(keys) - 1).long()
        chosen.append(torch.where(best.squeeze(1).isneginf(), own, lowest))
    return torch.stack(chosen, dim=1)


def components(nn: Tensor) -> Tensor:
    """Return the connected components of the graph with the edges {i, nn(i)}. [P] [C]

    They are the first partition of FINCH (Sarfraz et al., CVPR 2019, https://arxiv.org/abs/1902.11266), computed by
    pointer doubling [D].  After r rounds, m(i) is the smallest index on the first 2^r edges out of i, and f is nn
    applied 2^r times.  After ceil(log2 B) rounds every f(i) is on the one cycle of its component, which may have any
    length, and m is there the smallest index of that cycle.

    Args:
        nn: (B,) int64, nn(i) in [0, B).

    Returns:
        (B,) int64 labels in [0, B), equal for two rows exactly if they are in one component.
    """
    count = nn.shape[0]
    if nn.device.type == "cpu" and count <= NUMPY_UP_TO_ROWS:
        return torch.from_numpy(_cycle_minima(nn.numpy(), np.arange(count), np.minimum, np.ndarray.take))
    # index_select, because the checks and copies of m[f] take several times as long.
    return _cycle_minima(nn, torch.arange(count, device=nn.device), torch.minimum, lambda m, f: m.index_select(0, f))


def _cycle_minima(f: _Array, own: _Array, minimum: _Operation[_Array], take: _Operation[_Array]) -> _Array:
    m = minimum(own, f)
    for _ in range((len(own) - 1).bit_length()):
        m = minimum(m, take(m, f))
        f = take(f, f)
    return take(m, f)


@torch.no_grad()
def weak_labels(u: Tensor, *, level: int = 1, queue: Tensor | None = None, excluded: KeyMask | None = None) -> Tensor:
    """Return the weak label of each row: the `components` of the `nearest_neighbours`. [P] [C]

    Every component has at least two members.  With a queue, edges lead from the batch to the batch or the queue, and
    each queue row points to itself [D], so that every component still has exactly one cycle.

    Args:
        u: (B, D) unit rows of one view of the global batch.
        level: 1 for these components; 2 for the next partition of FINCH, `coarser_labels` [D].
        queue: (Q, D) unit rows of earlier batches.
        excluded: the rows, of B + Q, that a row cannot choose as its neighbour.

    Returns:
        (B + Q,) int64 labels in [0, B + Q), the batch first.

    Raises:
        ValueError: when B < 2, or for a queue at level 2, which is not defined.
    """
    nn = nearest_neighbours(u, queue=queue, excluded=excluded)
    if queue is not None:
        if level != 1:
            raise ValueError(f"level is {level}, but with a queue only level 1 is defined")
        nn = torch.cat((nn, torch.arange(len(u), len(u) + len(queue), device=u.device)))
    labels = components(nn)
    return labels if level == 1 else coarser_labels(u, labels)


@torch.no_grad()
def coarser_labels(u: Tensor, labels: Tensor) -> Tensor:
    """Return labels one FINCH level higher: the components of the renormalised means of the components. [D]

    The shape is fixed: there is a mean for each of the B possible labels, and a key mask hides the labels that are not
    in use.  A single component stays as it is.

    Args:
        u: (B, D) unit rows.
        labels: (B,) int64 in [0, B).

    Returns:
        (B,) int64 labels in [0, B), constant on every component of `labels`.
    """
    slots = torch.arange(len(u), device=u.device)
    with full_float32(u.device.type):
        total, count = label_sums(slots, u.double(), labels)
        means = F.normalize(total, dim=1).to(u.dtype)
    in_use = torch.where(count > 0, slots, -1)
    # A slot that is not in use chooses a neighbour too, but joins no others, because no slot chooses it.
    nn = nearest_neighbours(means, excluded=ByImage(slots, in_use))
    return components(nn).index_select(0, labels)


@torch.no_grad()
def view_agreement(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Return the adjusted Rand index of two labellings of the same rows (Hubert & Arabie 1985).

    Args:
        labels_a: (B,) integers.
        labels_b: (B,) integers.

    Returns:
        A float64 scalar tensor: 1 for equal partitions, 0 on average for independent ones.
    """
    together_a = _num_same_label(labels_a).sum()
    together_b = _num_same_label(labels_b).sum()
    together = _num_same_label(_joint(labels_a, labels_b)).sum()
    count = labels_a.shape[0]
    expected = together_a * together_b / max(count * (count - 1), 1)
    spread = (together_a + together_b) / 2 - expected
    # Both partitions are trivial in the same way, so they agree.
    return torch.where(spread == 0, 1.0, (together - expected) / spread)


@torch.no_grad()
def pair_precision(labels: Tensor, classes: Tensor) -> Tensor:
    """Return the mean over anchors of the share of the positives P(i) that has i's class.

    Args:
        labels: (B,) weak labels.
        classes: (B,) true classes.

    Returns:
        A float64 scalar tensor in [0, 1]; anchors without a positive do not count.  NaN if no anchor has a positive.
    """
    positives = _num_same_label(labels)
    share = _num_same_label(_joint(labels, classes)) / positives.clamp(min=1)
    return share.sum() / (positives > 0).sum()


@torch.no_grad()
def pair_precision_chance(classes: Tensor) -> Tensor:
    """Return the pair precision of random pairs, sum_c p_c^2.

    Args:
        classes: (B,) true classes.

    Returns:
        A float64 scalar tensor in (0, 1].
    """
    return (_num_same_label(classes) + 1).mean() / classes.shape[0]


@torch.no_grad()
def largest_share(labels: Tensor) -> Tensor:
    """Return the share of the rows that are in the largest component.

    Args:
        labels: (B,) weak labels.

    Returns:
        A float64 scalar tensor in (0, 1].
    """
    return (_num_same_label(labels).max() + 1) / labels.shape[0]


def _num_same_label(labels: Tensor) -> Tensor:
    """Return the number of other rows with each row's label, (B,) float64, exact."""
    ordered = labels.sort().values
    count = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels) - 1
    return count.double()


def _joint(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Return labels of the common refinement of two labellings; using ranks keeps the products within int64."""
    rank_a = torch.searchsorted(labels_a.sort().values, labels_a)
    rank_b = torch.searchsorted(labels_b.sort().values, labels_b)
    return rank_a * labels_a.shape[0] + rank_b
