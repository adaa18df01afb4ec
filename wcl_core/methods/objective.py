"""The whole loss of a step, from the embeddings of the global batch.

    L = L_NCE + beta L_swap + gamma L_mc        L_NCE, L_swap, beta [P] [C]; L_mc, gamma [D]

    u^b of the keys (and queue) ── weak_labels ── y^b ─┬─ L_swap of the other view
                                                       ├─ same-label images out of L_NCE's keys [D]
                                                       └─ P_K restricted to components [D]

This module decides which embeddings are anchors and which are keys; the terms are in `losses` and `multicrop`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wcl_core.config import PretrainSpec
from wcl_core.methods.key_masks import ByImage, ByIndex, KeyMask
from wcl_core.methods.losses import nt_xent, swapped_weak_label_loss
from wcl_core.methods.multicrop import instance_crop_loss, nearest_positives, weak_crop_loss
from wcl_core.methods.neighbour_queue import NeighbourQueue
from wcl_core.methods.views import Embedded, Embeddings
from wcl_core.methods.weak_labels import weak_labels
from wcl_core.schedule import weak_weight

# The names of the heads that give z and u.
INSTANCE, WEAK = "instance_head", "weak_head"


@dataclass(frozen=True)
class Weights:
    """The weights of the terms at one step, after their ramps.

    They are scalar tensors if the step is one, as in a CUDA graph, which keeps numbers of the host as they were.

    Attributes:
        weak: beta.
        neighbours: weight of the neighbours in the weak multi-crop term.
        is_ramped: whether beta has reached its final value; only then are same-label images masked among the keys.
    """

    weak: float | Tensor
    neighbours: float | Tensor
    is_ramped: bool | Tensor

    @staticmethod
    def at(config: PretrainSpec, step: int | Tensor, total_steps: int) -> Weights:
        """Return the weights of the step after `step` updates."""
        loss, crops = config.loss, config.multi_crop
        ramp_steps = loss.weak_ramp_fraction * total_steps
        return Weights(
            weak=_ramped(step, total_steps, loss.weak_weight, loss.weak_ramp_fraction),
            neighbours=_ramped(step, total_steps, 1 - crops.own_share, crops.ramp_fraction),
            is_ramped=step >= ramp_steps if ramp_steps else True,
        )


def _ramped(step: int | Tensor, total_steps: int, weight: float, ramp_fraction: float) -> float | Tensor:
    """Return `weak_weight` of a step, as a scalar tensor for one that is a tensor and if there is a ramp."""
    if not isinstance(step, Tensor):
        return weak_weight(step, total_steps, weight, ramp_fraction)
    ramp_steps = ramp_fraction * total_steps
    return (weight * step.double() / ramp_steps).clamp(max=weight) if ramp_steps else weight


@dataclass(frozen=True)
class Objective:
    """The loss of a step and its terms.

    Attributes:
        total: L, a scalar float32 with its graph.
        instance, weak, multi_crop: the terms without their weights, detached; 0 for a term that the spec leaves out.
        labels: y^1 and y^2 of the batch, (B,) int64 each; None without a weak head.
    """

    total: Tensor
    instance: Tensor
    weak: Tensor
    multi_crop: Tensor
    labels: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class _Neighbourhood:
    """The keys of the weak head: the batch, then the queue if there is one.

    Attributes:
        batch: (B, D) rows of each view.
        queue: (Q, D) rows of each view; None without a queue.
        labels: (B + Q,) int64 weak labels by each view.
        images: (B + Q,) int64 image indices, -1 for empty rows; None without a queue.
        excluded: the keys that an anchor does not see; None for only its own row.
    """

    batch: tuple[Tensor, Tensor]
    queue: tuple[Tensor, Tensor] | None
    labels: tuple[Tensor, Tensor]
    images: Tensor | None
    excluded: KeyMask | None

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The (B + Q, D) rows of each view."""
        if self.queue is None:
            return self.batch
        return torch.cat((self.batch[0], self.queue[0])), torch.cat((self.batch[1], self.queue[1]))

    def queue_of(self, view: int) -> Tensor | None:
        return None if self.queue is None else self.queue[view]


def objective(
    embedded: Embedded,
    config: PretrainSpec,
    weights: Weights,
    images: Tensor,
    *,
    keys: Embedded | None = None,
    queue: NeighbourQueue | None = None,
) -> Objective:
    """Return the loss of one global batch.

    Args:
        embedded: embeddings by the trained network, in global order.
        config: the spec, which selects the terms and their options.
        weights: `Weights.at` this step.
        images: (B,) int64 index of each image in the train split.
        keys: embeddings of both views by the momentum encoder, without gradient [D]; None without one.
        queue: embeddings of past steps [D]; read here, and filled by the caller after the step.
    """
    a, b = embedded.first, embedded.second
    key_a, key_b = (a, b) if keys is None else (keys.first, keys.second)
    around = _neighbourhood(key_a, key_b, config, images, queue)
    labels = None if around is None else (around.labels[0][: len(images)], around.labels[1][: len(images)])
    instance = nt_xent(
        a[INSTANCE],
        b[INSTANCE],
        config.loss.temperature,
        decoupled=config.loss.decoupled,
        mask_labels=_mask_labels(labels, weights.is_ramped) if config.loss.exclude_mates else None,
        keys=None if keys is None else (key_a[INSTANCE], key_b[INSTANCE]),
    )
    total, weak, crops = instance, torch.zeros_like(instance), torch.zeros_like(instance)
    if around is not None:
        weak = _weak_loss(a, b, around, config, has_own_keys=keys is not None or queue is not None)
        total = total + (weights.weak * weak).to(weak.dtype)
    if embedded.crops is not None:
        crops = _multi_crop_loss(embedded.crops, (key_a[INSTANCE], key_b[INSTANCE]), around, config, weights)
        total = total + config.multi_crop.weight * crops
    return Objective(total, instance.detach(), weak.detach(), crops.detach(), labels)


def _mask_labels(labels: tuple[Tensor, Tensor] | None, is_ramped: bool | Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the labels once beta has reached its final value; before, none, or for a tensor labels without a pair."""
    if labels is None or not isinstance(is_ramped, Tensor):
        return labels if is_ramped else None
    first, second = (torch.where(is_ramped, y, torch.arange(len(y), device=y.device)) for y in labels)
    return first, second


def _neighbourhood(
    a: Embeddings, b: Embeddings, config: PretrainSpec, images: Tensor, queue: NeighbourQueue | None
) -> _Neighbourhood | None:
    if WEAK not in a:
        return None
    batch = (a[WEAK], b[WEAK])
    if queue is None:
        y1, y2 = (weak_labels(u, level=config.loss.finch_level) for u in batch)
        return _Neighbourhood(batch, None, (y1, y2), None, None)
    key_images = torch.cat((images, queue.images))
    excluded = ByImage(images, key_images)
    rows = (queue.u[0], queue.u[1])
    y1, y2 = (weak_labels(u, queue=more, excluded=excluded) for u, more in zip(batch, rows, strict=True))
    return _Neighbourhood(batch, rows, (y1, y2), key_images, excluded)


def _weak_loss(
    a: Embeddings, b: Embeddings, around: _Neighbourhood, config: PretrainSpec, *, has_own_keys: bool
) -> Tensor:
    u1, u2 = a[WEAK], b[WEAK]
    own = ByIndex(torch.arange(len(u1), device=u1.device)[:, None])
    return swapped_weak_label_loss(
        u1,
        u2,
        config.loss.weak_temperature,
        config.loss.detach_keys,
        labels=around.labels,
        keys=around.rows if has_own_keys else None,
        excluded=around.excluded or own,
    )


def _multi_crop_loss(
    crops: Embeddings,
    z_keys: tuple[Tensor, Tensor],
    around: _Neighbourhood | None,
    config: PretrainSpec,
    weights: Weights,
) -> Tensor:
    """Return L_mc, the mean over the heads; SimCLR has the instance head's part only. [D]"""
    options = config.multi_crop
    instance = instance_crop_loss(_rows(crops[INSTANCE], options.crops), z_keys, config.loss.temperature)
    if around is None:
        return instance
    by1, by2 = (
        nearest_positives(
            around.batch[view],
            options.neighbours,
            queue=around.queue_of(view),
            excluded=around.excluded,
            labels=around.labels[view] if options.restrict_to_component else None,
        )
        for view in (0, 1)
    )
    weak = weak_crop_loss(
        _rows(crops[WEAK], options.crops),
        around.rows,
        (by1, by2),
        config.loss.weak_temperature,
        own_weight=options.own_share,
        neighbour_weight=weights.neighbours,
        images=around.images,
    )
    return (instance + weak) / 2


def _rows(flat: Tensor, num_crops: int) -> Tensor:
    return flat.view(len(flat), num_crops, -1)
