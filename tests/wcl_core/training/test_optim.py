"""LARS against the update rule written out for numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.wcl_core import small
from wcl_core.networks.model import Model
from wcl_core.training.optim import LARS, param_groups

torch.set_num_threads(1)


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3, bias=False))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    lr=st.floats(0, 2),
    momentum=st.floats(0, 0.99),
    decay=st.sampled_from([0.0, 1e-6, 0.1]),
    eps=st.sampled_from([0.0, 1e-3]),
    is_zero=st.booleans(),
)
def test_update_rule(seed: int, lr: float, momentum: float, decay: float, eps: float, is_zero: bool) -> None:
    model = small_model(seed).double()
    if is_zero:
        nn.init.zeros_(model[2].weight)
    optimizer = LARS(param_groups(model, decay), lr, momentum=momentum, trust_coefficient=0.01, eps=eps)
    generator = torch.Generator().manual_seed(seed)
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    velocity: dict[str, np.ndarray] = {}
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            g = p.grad.numpy().copy()
            if p.ndim > 1:
                g += decay * expected[name]
                p_norm, g_norm = np.sqrt((expected[name] ** 2).sum()), np.sqrt((g**2).sum())
                if p_norm > 0 and g_norm > 0:
                    g *= 0.01 * p_norm / (g_norm + eps)
            velocity[name] = momentum * velocity[name] + g if name in velocity else g
            expected[name] = expected[name] - lr * velocity[name]
        optimizer.step()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(optimizer.state[p]["momentum"].numpy(), velocity[name], rtol=1e-10, atol=1e-12)


def test_zero_gradient_is_not_scaled_to_nan() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    LARS([weight], 1.0, weight_decay=0.0).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_groups_leave_one_dimensional_parameters_alone() -> None:
    matrices, vectors = param_groups(small_model(), 0.5)
    assert [p.ndim for p in matrices["params"]] == [2, 2]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1]
    assert (matrices["weight_decay"], matrices["adapt"]) == (0.5, True)
    assert (vectors["weight_decay"], vectors["adapt"]) == (0.0, False)


def test_official_names_leave_only_the_gains_of_shortcuts_decayed_and_scaled() -> None:
    model = Model(small.spec(backbone={"name": "resnet50", "width": 64}))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, left_out = param_groups(model, 0.5, "official-names")
    vectors = [names[id(p)] for p in decayed["params"] if p.ndim == 1]
    assert vectors == [f"backbone.layer{stage}.0.downsample.1.weight" for stage in (1, 2, 3, 4)]
    assert all(p.ndim == 1 for p in left_out["params"])
    assert len(decayed["params"]) + len(left_out["params"]) == len(names)
    assert (decayed["weight_decay"], decayed["adapt"]) == (0.5, True)
    assert (left_out["weight_decay"], left_out["adapt"]) == (0.0, False)


def test_groups_fit_sgd() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(param_groups(model, 0.1), lr=0.1, momentum=0.9)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()


def test_frozen_and_unused_parameters_stay() -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = LARS(param_groups(model, 0.1), 1.0)
    model[2].weight.grad = torch.ones(3, 6)
    optimizer.step()
    changed = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert changed == {"2.weight"}
    assert list(optimizer.state) == [model[2].weight]


def test_state_survives_a_round_trip() -> None:
    first = small_model()
    optimizer = LARS(param_groups(first, 1e-3), 0.1)
    for p in first.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    second = copy.deepcopy(first)
    restored = LARS(param_groups(second, 1e-3), 0.7)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, any_optimizer in ((first, optimizer), (second, restored)):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.5)
        any_optimizer.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_closure_is_evaluated_with_gradient() -> None:
    model = small_model()
    optimizer = LARS(param_groups(model, 0.0), 0.1)

    def closure() -> float:
        loss = model(torch.ones(3, 4)).square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) is not None
    assert optimizer.step() is None


@pytest.mark.parametrize(
    "options", [{"lr": -1}, {"momentum": 1}, {"weight_decay": -1}, {"trust_coefficient": 0}, {"eps": -1}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="LARS got"):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **options})
