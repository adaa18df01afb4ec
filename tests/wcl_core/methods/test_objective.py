"""The loss of a step under every option against float64 loops written from the definitions: value and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.wcl_core import small
from wcl_core.config import PretrainSpec
from wcl_core.methods.neighbour_queue import NeighbourQueue
from wcl_core.methods.objective import INSTANCE, WEAK, Objective, Weights, objective
from wcl_core.methods.views import Embedded

torch.set_num_threads(1)

B, D, V, Q = 8, 8, 2, 16


def unit(shape: tuple[int, ...], seed: int) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def embedded(seed: int, has_weak: bool, has_crops: bool) -> Embedded:
    z1, z2, u1, u2 = (unit((B, D), seed + n) for n in range(4))
    crops = unit((B, V, D), seed + 4).flatten(1), unit((B, V, D), seed + 5).flatten(1)
    heads = (INSTANCE, WEAK) if has_weak else (INSTANCE,)
    first, second, small_ones = (dict(zip(heads, rows, strict=False)) for rows in ((z1, u1), (z2, u2), crops))
    return Embedded(first, second, small_ones if has_crops else None)


def filled_queue(images: Tensor, seed: int) -> NeighbourQueue:
    """Return a half-full queue with other images of the train split and some images of the batch."""
    queue = NeighbourQueue(Q, D, torch.device("cpu"))
    others = torch.cat((images[:3], 100 + torch.arange(B - 3)))
    queue.push(unit((B, D), seed + 30), unit((B, D), seed + 31), others, step=1)
    return queue


# --- the definitions, in plain loops ---------------------------------------------------------------------------------


def log_share(anchor: Tensor, keys: list[Tensor], chosen: Tensor, t: float) -> Tensor:
    return (anchor @ chosen) / t - torch.logsumexp(torch.stack([anchor @ k / t for k in keys]), 0)


def plain_labels(rows: Tensor, names: list[int], count: int) -> list[int]:
    """Return the smallest member of each component; labels spread along edges until no label changes."""
    label = list(range(len(rows)))
    edges = []
    for i in range(count):
        allowed = [j for j in range(len(rows)) if names[j] not in (-1, names[i])]
        edges.append((i, max(allowed, key=lambda j, i=i: float(rows[i] @ rows[j]))))
    for _ in rows:
        for i, j in edges:
            label[i] = label[j] = min(label[i], label[j])
    return label


def plain_level_two(u: Tensor, labels: list[int]) -> list[int]:
    groups = sorted(set(labels))
    if len(groups) == 1:
        return labels
    means = [F.normalize(sum(u[i] for i in range(B) if labels[i] == g), dim=0) for g in groups]
    merged = plain_labels(torch.stack(means), list(range(len(groups))), len(groups))
    return [merged[groups.index(y)] for y in labels]


def plain_objective(
    e: Embedded, spec: PretrainSpec, w: Weights, images: Tensor, keys: Embedded | None, queue: NeighbourQueue | None
) -> Tensor:
    loss, crop_options = spec.loss, spec.multi_crop
    k = e if keys is None else keys
    z, kz = [*e.first[INSTANCE], *e.second[INSTANCE]], [*k.first[INSTANCE], *k.second[INSTANCE]]
    names = images.tolist() + ([] if queue is None else queue.images.tolist())
    y: list[list[int]] = []
    rows: list[Tensor] = []
    if WEAK in e.first:
        for view, u in enumerate((k.first[WEAK], k.second[WEAK])):
            rows.append(u.detach() if queue is None else torch.cat((u.detach(), queue.u[view].double())))
            labels = plain_labels(rows[view], names, B)
            y.append(labels if loss.finch_level == 1 else plain_level_two(rows[view], labels))
    total = 0 * sum(part.sum() for part in e.parts())
    for i in range(2 * B):
        p = (i + B) % (2 * B)
        allowed = [j for j in range(2 * B) if j != i and not (loss.decoupled and j == p)]
        if loss.exclude_mates and w.is_ramped:
            other = y[1] if i < B else y[0]
            allowed = [j for j in allowed if j == p or other[j % B] != other[i % B]]
        if allowed:
            total = total - log_share(z[i], [kz[j] for j in allowed], kz[p], loss.temperature) / (2 * B)
    for a, u in enumerate((e.first[WEAK], e.second[WEAK]) if rows else ()):
        for i in range(B):
            allowed = [j for j in range(len(names)) if names[j] not in (-1, names[i])]
            positives = [j for j in allowed if y[1 - a][j] == y[1 - a][i]]
            for j in positives:
                share = log_share(u[i], [rows[a][n] for n in allowed], rows[a][j], loss.weak_temperature)
                total = total - w.weak * share / len(positives) / (2 * B)
    if e.crops is None:
        return total
    cz = e.crops[INSTANCE].view(B, V, D)
    gamma = crop_options.weight * (0.5 if rows else 1)
    for i in range(B):
        for v in range(V):
            for a in (0, 1):
                scale = gamma / (B * V * 2)
                kz_a = list((k.first[INSTANCE] if a == 0 else k.second[INSTANCE]).detach())
                total = total - scale * log_share(cz[i, v], kz_a, kz_a[i], loss.temperature)
                if not rows or WEAK not in e.crops:
                    continue
                c = e.crops[WEAK].view(B, V, D)[i, v]
                by = rows[1 - a]
                others = [j for j in range(len(names)) if names[j] not in (-1, names[i])]
                nearest = sorted(others, key=lambda j, i=i, by=by: -float(by[i] @ by[j]))[: crop_options.neighbours]
                if crop_options.restrict_to_component:
                    nearest = [j for j in nearest if y[1 - a][j] == y[1 - a][i]]
                keys = [rows[a][j] for j in [i, *others]]
                total = total - scale * crop_options.own_share * log_share(c, keys, rows[a][i], loss.weak_temperature)
                for j in nearest:
                    part = log_share(c, keys, rows[a][j], loss.weak_temperature)
                    total = total - scale * w.neighbours * part / len(nearest)
    return total


# --- the comparison --------------------------------------------------------------------------------------------------


def both(
    spec: PretrainSpec, seed: int, step: int, total_steps: int = 10
) -> tuple[Objective, Tensor, list[Tensor], list[Tensor]]:
    images = torch.arange(B) + 10
    e = embedded(seed, spec.method == "wcl", spec.multi_crop.crops > 0).map(lambda x: x.requires_grad_())
    keys = embedded(seed + 10, spec.method == "wcl", False) if spec.momentum_decay is not None else None
    queue = filled_queue(images, seed) if spec.queue_size else None
    weights = Weights.at(spec, step, total_steps)
    result = objective(e, spec, weights, images, keys=keys, queue=queue)
    double = e.map(lambda x: x.detach().double().requires_grad_())
    double_keys = None if keys is None else keys.map(lambda x: x.double())
    expected = plain_objective(double, spec, weights, images, double_keys, queue)
    gradients = torch.autograd.grad(result.total, e.parts())
    return result, expected, list(gradients), list(torch.autograd.grad(expected, double.parts()))


def make(**changes: Any) -> PretrainSpec:
    return small.spec(**{"batch_size": B, "heads": {"hidden_dim": 4, "output_dim": D}, **changes})


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 999),
    step=st.sampled_from([0, 1, 2, 9]),
    method=st.sampled_from(["wcl", "wcl", "simclr"]),
    decoupled=st.booleans(),
    exclude_mates=st.booleans(),
    finch_level=st.sampled_from([1, 2]),
    queue=st.booleans(),
    momentum=st.booleans(),
    crops=st.booleans(),
    own_share=st.sampled_from([0.0, 0.3, 1.0]),
    restrict=st.booleans(),
    k=st.integers(1, B - 1),
)
def test_every_combination_is_its_definition(
    seed: int,
    step: int,
    method: str,
    decoupled: bool,
    exclude_mates: bool,
    finch_level: int,
    queue: bool,
    momentum: bool,
    crops: bool,
    own_share: float,
    restrict: bool,
    k: int,
) -> None:
    is_wcl = method == "wcl"
    queue = queue and is_wcl and finch_level == 1
    spec = make(
        method=method,
        loss={
            "temperature": 0.2,
            "weak_temperature": 0.1,
            "weak_weight": 0.7,
            "weak_ramp_fraction": 0.2,
            "decoupled": decoupled,
            "exclude_mates": exclude_mates and is_wcl,
            "finch_level": finch_level if is_wcl else 1,
        },
        queue_size=Q if queue else 0,
        momentum_decay=0.9 if momentum else None,
        multi_crop={
            "crops": V if crops else 0,
            "neighbours": k,
            "own_share": own_share,
            "weight": 1.5,
            "ramp_fraction": 0.4,
            "restrict_to_component": restrict and is_wcl,
        },
    )
    result, expected, gradients, expected_gradients = both(spec, seed, step)
    torch.testing.assert_close(result.total.double(), expected, rtol=1e-5, atol=1e-7)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-7)


def test_ramps() -> None:
    spec = make(
        loss={"weak_weight": 2.0, "weak_ramp_fraction": 0.5}, multi_crop={"own_share": 0.25, "ramp_fraction": 0.2}
    )
    assert Weights.at(spec, 0, 20) == Weights(weak=0.0, neighbours=0.0, is_ramped=False)
    half = Weights.at(spec, 2, 20)
    assert (half.weak, half.neighbours) == pytest.approx((0.4, 0.375))
    assert not Weights.at(spec, 9, 20).is_ramped
    assert Weights.at(spec, 10, 20) == Weights(weak=2.0, neighbours=0.75, is_ramped=True)
    assert Weights.at(make(), 0, 20).is_ramped


def test_terms_are_reported_without_their_weights() -> None:
    result, _, _, _ = both(make(multi_crop={"crops": V, "weight": 0.5}, loss={"weak_weight": 3.0}), 0, 9)
    total = result.instance + 3 * result.weak + 0.5 * result.multi_crop
    torch.testing.assert_close(result.total, total)
    assert not any(term.requires_grad for term in (result.instance, result.weak, result.multi_crop))
    assert result.labels is not None
    assert [labels.shape for labels in result.labels] == [(B,), (B,)]
    simclr, _, _, _ = both(make(method="simclr"), 0, 9)
    assert simclr.labels is None
    assert simclr.weak == simclr.multi_crop == 0


def test_full_gradient_through_the_keys_of_the_batch_beside_a_queue() -> None:
    """The queue's rows stay constants."""
    images = torch.arange(B)
    e = embedded(0, True, False).map(lambda x: x.requires_grad_())
    queue = filled_queue(images, 0)
    grads = []
    for detach in (True, False):
        spec = make(queue_size=Q, loss={"detach_keys": detach})
        result = objective(e, spec, Weights.at(spec, 9, 10), images, queue=queue)
        grads.append(torch.autograd.grad(result.total, e.first[WEAK])[0])
    assert not torch.allclose(grads[0], grads[1])
    assert not queue.u.requires_grad
