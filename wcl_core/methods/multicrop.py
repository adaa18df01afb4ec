"""KNN multi-crop: the loss that pulls small crops to their image and to its nearest neighbours. [D]

    small crop v of image i ─┬─ instance head ── g(h_v) ──► z^a_i                         own image, a = 1, 2
                             └─ weak head ────── phi(h_v) ─► u^a_i, u^a_p, p in P_K(i)    P_K by u^b, b != a

The abstract of WCL (https://arxiv.org/abs/2110.04770) names such a strategy.  Its details were not available to this
project, so this module defines them itself.  Small crops beside full views come from SwAV's multi-crop
(Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882).

These are pure functions of embeddings; `wcl_core.training.view_maker` makes the crops.  One crop of each of three
images, whose nearest neighbours are the next image:

    >>> u = torch.eye(3)
    >>> by = Positives(torch.tensor([[1], [2], [0]]), torch.ones(3, 1, dtype=torch.float64))
    >>> instance_crop_loss(u[:, None], (u, u), temperature=1.0)
    tensor(0.5514)
    >>> weak_crop_loss(u[:, None], (u, u), (by, by), temperature=1.0, own_weight=0.5, neighbour_weight=0.5)
    tensor(1.0514)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wcl_core.methods.key_masks import ByImage, KeyMask
from wcl_core.methods.log_sum_exp import tiled_log_sum_exp
from wcl_core.methods.losses import as_output
from wcl_core.methods.weak_labels import k_nearest_neighbours
from wcl_core.precision import full_float32


@dataclass(frozen=True)
class Positives:
    """The nearest neighbours of each image by one view.

    Attributes:
        index: (B, K) int64, rows of the batch followed by the queue.
        share: (B, K) float64, the weight of each; rows sum to 1.
    """

    index: Tensor
    share: Tensor


@torch.no_grad()
def nearest_positives(
    u: Tensor, k: int, *, queue: Tensor | None = None, excluded: KeyMask | None = None, labels: Tensor | None = None
) -> Positives:
    """Return P_K(i), the k nearest neighbours of each image i by the embeddings of one view. [D]

    Args:
        u: (B, D) unit rows, B > k.
        k: K, >= 1.
        queue: (Q, D) unit rows of earlier batches.
        excluded: the rows, of the B + Q, that cannot be a neighbour of a row.
        labels: (B + Q,) int64; with them, only those of the k nearest count that are in i's component.  The nearest one
            always is.
    """
    index = k_nearest_neighbours(u, k, queue=queue, excluded=excluded)
    counts = torch.ones_like(index, dtype=torch.bool)
    if labels is not None:
        counts = labels[index] == labels[: len(u), None]
    share = counts.double()
    return Positives(index, share / share.sum(1, keepdim=True))


def instance_crop_loss(crops: Tensor, keys: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Return the mean of -log softmax_i( g(h_v).z^a/t ) over images, crops v and views a. [D]

    Args:
        crops: (B, V, D) unit rows g(h_v).
        keys: z^1 and z^2, (B, D) unit rows each; they carry no gradient.
        temperature: t > 0.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    weight = torch.ones((), dtype=torch.float64, device=crops.device)
    terms = [_crop_loss(crops, k, k.double(), weight, None, temperature) for k in keys]
    return as_output(torch.stack(terms).mean(), crops)


def weak_crop_loss(
    crops: Tensor,
    keys: tuple[Tensor, Tensor],
    positives: tuple[Positives, Positives],
    temperature: float,
    *,
    own_weight: float,
    neighbour_weight: float | Tensor,
    images: Tensor | None = None,
) -> Tensor:
    """Return the weak head's part of the multi-crop loss. [D]

    It is the mean, over images i, crops v and ordered pairs of views (a, b), of

        - own log softmax_i( phi(h_v).u^a/t )  -  neighbour sum_{p in P_K(i)} share_p log softmax_p( phi(h_v).u^a/t )

    with P_K by u^b.

    Args:
        crops: (B, V, D) unit rows phi(h_v).
        keys: u^1 and u^2, (B + Q, D) unit rows each, the queue's last; they carry no gradient.
        positives: P_K by u^1 and by u^2.
        temperature: t > 0.
        own_weight: weight of the own image, w in [0, 1].
        neighbour_weight: weight of the neighbours, which rises to 1 - w along the ramp.
        images: (B + Q,) int64 image indices, -1 for empty rows; needed with a queue.  They hide the queue's rows of the
            anchor's own image.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    count, num_crops = crops.shape[:2]
    excluded = None
    if images is not None:
        own = torch.arange(count, device=crops.device).repeat_interleave(num_crops)
        excluded = ByImage(images[own], images, kept=own)
    terms = []
    # The neighbours are by one view, the keys of the other.
    for view, by in zip(keys, reversed(positives), strict=True):
        rows = view.detach().double()
        neighbours = (rows[by.index] * by.share[:, :, None]).sum(1)
        target = own_weight * rows[:count] + neighbour_weight * neighbours
        weight = torch.full((), own_weight, dtype=torch.float64, device=crops.device) + neighbour_weight
        terms.append(_crop_loss(crops, view, target, weight, excluded, temperature))
    return as_output(torch.stack(terms).mean(), crops)


def _crop_loss(
    crops: Tensor, keys: Tensor, target: Tensor, weight: Tensor, excluded: KeyMask | None, temperature: float
) -> Tensor:
    """Return the mean of weight logsumexp_k(c.k/t) - c.target_i/t over all crops c, a soft-target cross-entropy."""
    with full_float32(crops.device.type):
        anchors = crops.flatten(0, 1).double()
        normaliser = tiled_log_sum_exp(
            anchors, keys.detach().double(), excluded, temperature, is_exact=crops.dtype == torch.float64
        )
        matched = (anchors.view(*crops.shape) * target.detach()[:, None]).sum(2).flatten()
        return (weight * normaliser - matched / temperature).mean()
