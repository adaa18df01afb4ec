"""Losses against float64 loops written from the formulas: values and gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wcl_core.methods import log_sum_exp, losses, weak_labels
from wcl_core.methods.key_masks import ByImage, ByIndex, ByMask, KeyMask
from wcl_core.methods.losses import (
    dense_positive_mean,
    nt_xent,
    segment_positive_mean,
    swapped_weak_label_loss,
    weak_label_loss,
)

torch.set_num_threads(1)


def rows(count: int, dim: int, seed: int, kind: str = "random") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(count, dim, generator=generator)
    if kind == "near":
        u = u[:1] + 1e-3 * u
    elif kind == "duplicates":
        u = u[torch.randint(max(1, count // 3), (count,), generator=generator)]
    return F.normalize(u, dim=1)


def log_share(anchor: Tensor, keys: list[Tensor], chosen: Tensor, t: float) -> Tensor:
    logits = torch.stack([torch.dot(anchor, k) / t for k in keys])
    peak = logits.max().detach()
    return torch.dot(anchor, chosen) / t - peak - torch.log(torch.exp(logits - peak).sum())


def naive_nt_xent(
    z1: Tensor,
    z2: Tensor,
    t: float,
    decoupled: bool = False,
    mask_labels: tuple[list[int], list[int]] | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    z, size = [*z1.unbind(), *z2.unbind()], len(z1)
    k = z if keys is None else [*keys[0].unbind(), *keys[1].unbind()]
    total = 0 * (z1.sum() + z2.sum())  # has a gradient even if no anchor has a key
    for i, anchor in enumerate(z):
        p = (i + size) % (2 * size)
        allowed = [j for j in range(2 * size) if j != i and not (decoupled and j == p)]
        if mask_labels is not None:
            y = mask_labels[1] if i < size else mask_labels[0]
            allowed = [j for j in allowed if j == p or y[j % size] != y[i % size]]
        if allowed:
            total = total - log_share(anchor, [k[j] for j in allowed], k[p], t)
    return total / (2 * size)


def naive_weak(
    u: Tensor, labels: list[int], keys: Tensor, key_labels: list[int], excluded: list[set[int]], t: float
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, anchor in enumerate(u.unbind()):
        allowed = [k for k in range(len(keys)) if k not in excluded[i]]
        positives = [k for k in allowed if key_labels[k] == labels[i]]
        for j in positives:
            total = total - log_share(anchor, [keys[k] for k in allowed], keys[j], t) / len(positives)
    return total / len(u)


def naive_swapped(u1: Tensor, u2: Tensor, t: float, detach: bool) -> Tensor:
    own = [{i} for i in range(len(u1))]
    total = torch.zeros((), dtype=torch.float64)
    for a, b in ((u1, u2), (u2, u1)):
        y = weak_labels.weak_labels(b.detach().float()).tolist()
        total = total + naive_weak(a, y, a.detach() if detach else a, y, own, t) / 2
    return total


def assert_matches(fast: Callable[..., Tensor], naive: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Check value and gradients: |a - b| <= 1e-5 |b| + 1e-7, for b in float64 from the same float32 inputs."""
    single = [x.clone().requires_grad_() for x in inputs]
    double = [x.double().requires_grad_() for x in inputs]
    value, expected = fast(*single), naive(*double)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    gradients = torch.autograd.grad(value, single)
    expected_gradients = torch.autograd.grad(expected, double)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-7)


KINDS = st.sampled_from(["random", "near", "duplicates"])
TEMPERATURES = st.sampled_from([0.01, 0.05, 0.1, 1.0])


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 14), dim=st.integers(1, 9), seed=st.integers(0, 999), kind=KINDS, t=TEMPERATURES)
def test_nt_xent_is_the_formula(count: int, dim: int, seed: int, kind: str, t: float) -> None:
    z1, z2 = rows(count, dim, seed, kind), rows(count, dim, seed + 1, kind)
    assert_matches(lambda a, b: nt_xent(a, b, t), lambda a, b: naive_nt_xent(a, b, t), z1, z2)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 11),
    seed=st.integers(0, 999),
    kind=KINDS,
    t=TEMPERATURES,
    decoupled=st.booleans(),
    num_labels=st.sampled_from([None, 1, 2, 4, 30]),
    has_keys=st.booleans(),
)
def test_options_of_nt_xent_are_the_formula(
    count: int, seed: int, kind: str, t: float, decoupled: bool, num_labels: int | None, has_keys: bool
) -> None:
    """One label leaves an anchor of a decoupled loss without any key; then it adds 0."""
    z1, z2 = rows(count, 5, seed, kind), rows(count, 5, seed + 1, kind)
    keys = (rows(count, 5, seed + 2, kind), rows(count, 5, seed + 3, kind)) if has_keys else None
    y = torch.randint(num_labels or 1, (2, count), generator=torch.Generator().manual_seed(seed))
    mask_labels = None if num_labels is None else (y[0], y[1])
    lists = None if num_labels is None else (y[0].tolist(), y[1].tolist())
    double_keys = None if keys is None else (keys[0].double(), keys[1].double())
    options = {"decoupled": decoupled, "mask_labels": mask_labels, "keys": keys}
    assert_matches(
        lambda a, b: nt_xent(a, b, t, **options),
        lambda a, b: naive_nt_xent(a, b, t, decoupled, lists, double_keys),
        z1,
        z2,
    )


def test_keys_of_a_momentum_encoder_get_no_gradient() -> None:
    z = [rows(4, 3, seed).requires_grad_() for seed in range(4)]
    nt_xent(z[0], z[1], 0.1, keys=(z[2], z[3])).backward()
    assert z[0].grad is not None
    assert z[2].grad is None
    assert z[3].grad is None


@pytest.mark.parametrize("detach", [True, False])
def test_a_mask_by_image_hides_the_same_keys_as_a_bool_mask(detach: bool) -> None:
    """Keys of the anchor's own image, with its label or not, once or several times, and empty keys."""
    generator = torch.Generator().manual_seed(5)
    u, keys = rows(9, 4, 0), rows(40, 4, 1)
    labels, names = torch.arange(9) % 3, torch.arange(9)
    key_labels = torch.randint(3, (40,), generator=generator)
    key_names = torch.randint(9, (40,), generator=generator)
    key_names[30:] = -1
    key_labels[30:] = 100 + torch.arange(10)
    sets = [{k for k in range(40) if key_names[k] in (-1, i)} for i in range(9)]
    assert_matches(
        lambda a, k: (
            weak_label_loss(
                a, labels, 0.1, keys=k, key_labels=key_labels, excluded=ByImage(names, key_names), detach_keys=detach
            )
            + 0 * k.sum()
        ),
        lambda a, k: (
            naive_weak(a, labels.tolist(), k.detach() if detach else k, key_labels.tolist(), sets, 0.1) + 0 * k.sum()
        ),
        u,
        keys,
    )


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 14),
    dim=st.integers(1, 9),
    seed=st.integers(0, 999),
    kind=KINDS,
    t=TEMPERATURES,
    detach=st.booleans(),
)
def test_swapped_loss_is_the_formula(count: int, dim: int, seed: int, kind: str, t: float, detach: bool) -> None:
    u1, u2 = rows(count, dim, seed, kind), rows(count, dim, seed + 1, kind)
    assert_matches(
        lambda a, b: swapped_weak_label_loss(a, b, t, detach), lambda a, b: naive_swapped(a, b, t, detach), u1, u2
    )


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 8), num_keys=st.integers(1, 12), seed=st.integers(0, 999), as_mask=st.booleans())
def test_separate_keys_and_key_masks(count: int, num_keys: int, seed: int, as_mask: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, keys = rows(count, 4, seed), rows(num_keys, 4, seed + 1)
    labels = torch.randint(-2, 3, (count,), generator=generator)
    key_labels = torch.randint(-2, 3, (num_keys,), generator=generator)
    if as_mask:
        excluded = torch.rand(count, num_keys, generator=generator) < 0.4
        sets = [set(row.nonzero().flatten().tolist()) for row in excluded]
    else:
        excluded = torch.randint(num_keys, (count,), generator=generator)
        sets = [{int(k)} for k in excluded]
    y, key_y = labels.tolist(), key_labels.tolist()
    if not any(key_y[k] == y[i] for i in range(count) for k in range(num_keys) if k not in sets[i]):
        loss = weak_label_loss(u, labels, 0.1, keys=keys, key_labels=key_labels, excluded=excluded)
        assert loss == 0
        return
    assert_matches(
        lambda a, k: weak_label_loss(
            a, labels, 0.1, keys=k, key_labels=key_labels, excluded=excluded, detach_keys=False
        ),
        lambda a, k: naive_weak(a, y, k, key_y, sets, 0.1),
        u,
        keys,
    )


@pytest.mark.parametrize(
    "excluded",
    [
        None,
        ByIndex(torch.stack((torch.arange(40), torch.arange(20, 60)), dim=1)),
        ByMask(torch.rand(40, 60, generator=torch.Generator().manual_seed(1)) < 0.7),
        ByImage(torch.arange(40) % 20, torch.cat((torch.arange(50) % 20, torch.full((10,), -1)))),
    ],
    ids=["none", "index", "mask", "image"],
)
def test_both_forms_average_the_same_positives(excluded: KeyMask | None) -> None:
    """A GPU takes the dense form for small batches."""
    keys = rows(60, 8, 0).double().requires_grad_()
    key_labels = torch.cat((torch.arange(50) % 15, torch.arange(100, 110)))  # those of empty keys occur once
    forms = [form(key_labels[:40], keys, key_labels, excluded) for form in (dense_positive_mean, segment_positive_mean)]
    (dense, dense_any), (segments, segments_any) = forms
    assert torch.equal(dense_any, segments_any)
    torch.testing.assert_close(dense, segments, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad((mean * keys[:40].detach()).sum(), keys)[0] for mean in (dense, segments)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


class Calls(TorchDispatchMode):
    """Counts the operations that read or write values: on a GPU each of them is a kernel or more."""

    views = re.compile(
        r"aten\.(_unsafe_view|alias|detach|empty|expand|new_empty|select|slice|squeeze|t|unsqueeze|view)\b"
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not self.views.match(str(func))
        return func(*args, **kwargs or {})


def calls(loss: Callable[[Tensor], Tensor], u: Tensor) -> int:
    given = u.clone().requires_grad_()
    with Calls() as counted:
        torch.autograd.grad(loss(given), given)
    return counted.count


@pytest.mark.parametrize("kind", ["random", "near", "duplicates"])
@pytest.mark.parametrize("t", [0.01, 0.1])
def test_small_batches_on_a_gpu_take_few_calls(monkeypatch: pytest.MonkeyPatch, kind: str, t: float) -> None:
    """Losses from a whole matrix are the formula, with no more calls than the plain form with a mask of positives."""
    u, keys = rows(12, 5, 0, kind), rows(20, 5, 1, kind)
    labels, alone = weak_labels.weak_labels(u), torch.arange(12) // 2 + 20 * (torch.arange(12) == 11)
    tiled = [calls(lambda a: nt_xent(a[:6], a[6:], t), u), calls(lambda a: weak_label_loss(a, labels, t), u)]
    plain = calls(lambda a: dense_weak(a, a.detach(), labels, t), u)
    monkeypatch.setattr(losses, "_is_dense", lambda *_: True)
    dense = [calls(lambda a: nt_xent(a[:6], a[6:], t), u), calls(lambda a: weak_label_loss(a, labels, t), u)]
    assert all(few <= plain < many for few, many in zip(dense, tiled, strict=True)), (dense, plain, tiled)
    own = [{i} for i in range(12)]
    for detach, y in ((True, labels), (False, labels), (True, alone)):  # in `alone`, two images have no positive
        names = y.tolist()
        assert_matches(
            lambda a, detach=detach, y=y: weak_label_loss(a, y, t, detach_keys=detach),
            lambda a, detach=detach, names=names: naive_weak(a, names, a.detach() if detach else a, names, own, t),
            u,
        )
    assert_matches(lambda a: nt_xent(a[:6], a[6:], t), lambda a: naive_nt_xent(a[:6], a[6:], t), u)
    momentum = (keys[:6], keys[6:12])
    assert_matches(
        lambda a: nt_xent(a[:6], a[6:], t, keys=momentum),
        lambda a: naive_nt_xent(a[:6], a[6:], t, keys=(momentum[0].double(), momentum[1].double())),
        u,
    )


def dense_weak(u: Tensor, keys: Tensor, labels: Tensor, t: float) -> Tensor:
    own = torch.eye(len(u), dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~own
    logits = u @ keys.T / t
    logarithms = logits - logits.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    return -(torch.where(positives, logarithms, 0.0).sum(1) / positives.sum(1)).mean()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "near", "duplicates", "pairs"])
@pytest.mark.parametrize("t", [0.05, 0.2])
def test_large_batches_keep_the_tolerance(kind: str, t: float) -> None:
    """Logits are float32 here. Equal pairs far from all others have a tiny loss, which float32 logits alone lose."""
    u = rows(1024, 128, 0, kind)
    if kind == "pairs":  # one row under many signs, so that every product of equals is rounded alike
        u = (rows(1, 128, 0) * rows(512, 128, 1).sign()).repeat(2, 1)
    labels = weak_labels.weak_labels(u)
    assert len(u) ** 2 >= log_sum_exp.FLOAT32_FROM_PAIRS
    for detach in (True, False):
        assert_matches(
            lambda a, detach=detach: weak_label_loss(a, labels, t, detach_keys=detach),
            lambda a, detach=detach: dense_weak(a, a.detach() if detach else a, labels, t),
            u,
        )
    names = torch.arange(512).repeat(2)
    assert_matches(lambda a: nt_xent(a[:512], a[512:], t), lambda a: dense_weak(a, a, names, t), u)


def dense_nt_xent(z1: Tensor, z2: Tensor, keys: Tensor | None, hidden: Tensor, t: float) -> Tensor:
    z, size = torch.cat((z1, z2)), len(z1)
    logits = z @ (z if keys is None else keys).T / t
    own = torch.arange(2 * size)
    loss = logits.masked_fill(hidden, -torch.inf).logsumexp(1) - logits[own, own.roll(size)]
    return loss[~hidden.all(1)].sum() / (2 * size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "duplicates"])
@pytest.mark.parametrize("options", ["decoupled", "mask_labels", "mask_labels, decoupled", "keys", "keys, mask_labels"])
def test_options_of_large_batches_keep_the_tolerance(kind: str, options: str) -> None:
    """In float32, at the smallest temperature that allows it."""
    size = 512
    z1, z2, k1, k2 = (rows(size, 64, seed, kind) for seed in range(4))
    y1, y2 = torch.arange(size) % 9, torch.arange(size) % 30
    keys = (k1, k2) if "keys" in options else None
    mask_labels = (y1, y2) if "mask_labels" in options else None
    own = torch.arange(2 * size)
    hidden = torch.zeros(2 * size, 2 * size, dtype=torch.bool)
    if mask_labels is not None:
        hidden = torch.cat((y2[:, None] == y2.repeat(2), y1[:, None] == y1.repeat(2)))
    hidden[own, own] = True
    hidden[own, own.roll(size)] = "decoupled" in options
    assert hidden.numel() >= log_sum_exp.FLOAT32_FROM_PAIRS
    all_keys = None if keys is None else torch.cat(keys).double()
    assert_matches(
        lambda a, b: nt_xent(a, b, 0.05, decoupled="decoupled" in options, mask_labels=mask_labels, keys=keys),
        lambda a, b: dense_nt_xent(a, b, all_keys, hidden, 0.05),
        z1,
        z2,
    )


def test_float64_rows_are_exact_at_any_number() -> None:
    u = rows(1024, 128, 0).double()
    labels = weak_labels.weak_labels(u)
    expected = dense_weak(u, u, labels, 0.05)
    torch.testing.assert_close(weak_label_loss(u, labels, 0.05), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("detach", [True, False])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, detach: bool) -> None:
    u1, u2 = rows(23, 5, 3), rows(23, 5, 4)
    for module in (log_sum_exp, weak_labels):
        monkeypatch.setattr(module, "MAX_TILE_PAIRS", 150)
    assert_matches(
        lambda a, b: swapped_weak_label_loss(a, b, 0.1, detach) + nt_xent(a, b, 0.1),
        lambda a, b: naive_swapped(a, b, 0.1, detach) + naive_nt_xent(a, b, 0.1),
        u1,
        u2,
    )
    y1, y2 = torch.arange(23) % 4, torch.arange(23) % 6
    assert_matches(
        lambda a, b: nt_xent(a, b, 0.1, decoupled=detach, mask_labels=(y1, y2)),
        lambda a, b: naive_nt_xent(a, b, 0.1, detach, (y1.tolist(), y2.tolist())),
        u1,
        u2,
    )


@pytest.mark.parametrize("detach", [True, False])
def test_two_images_have_no_weak_loss(detach: bool) -> None:
    u1, u2 = rows(2, 128, 0).requires_grad_(), rows(2, 128, 1)
    loss = swapped_weak_label_loss(u1, u2, 0.01, detach)
    (gradient,) = torch.autograd.grad(loss, u1)
    assert loss.abs() < 1e-9
    assert gradient.abs().max() < 1e-9


def test_equal_rows_have_the_closed_form() -> None:
    u = rows(1, 8, 0).expand(12, 8)
    labels = torch.arange(12) // 3
    torch.testing.assert_close(weak_label_loss(u, labels, 0.05), torch.tensor(math.log(11)), rtol=1e-6, atol=0)
    torch.testing.assert_close(nt_xent(u, u, 0.05), torch.tensor(math.log(23)), rtol=1e-6, atol=0)


def test_relabelling_and_order_do_not_matter() -> None:
    u, labels = rows(20, 6, 0), torch.arange(20) % 5
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    expected = weak_label_loss(u, labels, 0.1)
    torch.testing.assert_close(weak_label_loss(u, 7 - 3 * labels, 0.1), expected)
    torch.testing.assert_close(weak_label_loss(u[order], labels[order], 0.1), expected)


def test_autocast_does_not_reach_the_losses() -> None:
    u1, u2 = rows(16, 32, 0), rows(16, 32, 1)
    expected = nt_xent(u1, u2, 0.1), swapped_weak_label_loss(u1, u2, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (nt_xent(u1, u2, 0.1), swapped_weak_label_loss(u1, u2, 0.1)) == expected


def test_detached_keys_get_no_gradient() -> None:
    u, keys = rows(4, 3, 0), rows(6, 3, 1).requires_grad_()
    anchors = u.clone().requires_grad_()
    labels, key_labels = torch.arange(4) % 2, torch.arange(6) % 2
    weak_label_loss(anchors, labels, 0.1, keys=keys, key_labels=key_labels).backward()
    assert anchors.grad is not None
    assert keys.grad is None


@pytest.mark.parametrize(
    "call",
    [
        lambda u: nt_xent(u, u[:3], 0.1),
        lambda u: nt_xent(u, u, 0.0),
        lambda u: weak_label_loss(u, torch.zeros(3, dtype=torch.long), 0.1),
        lambda u: weak_label_loss(u, torch.zeros(4, dtype=torch.long), 0.1, keys=u),
        lambda u: weak_label_loss(u, torch.zeros(4, dtype=torch.long), 0.1, excluded=torch.zeros(4, 3).bool()),
        lambda u: swapped_weak_label_loss(u[:1], u[:1], 0.1),
    ],
)
def test_wrong_shapes_and_temperatures_are_refused(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call(rows(4, 3, 0))
