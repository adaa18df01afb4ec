"""LARS and AdamW against their update rules written out, and slots that come back as they were."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.wcl_core import small
from tests.wcl_core.training.test_pretrain import ADAMW, last_file, run
from wcl_core import checkpoint
from wcl_core.training.optim import LARS, build_optimizer, load_state, param_groups, state_of, warning_of

torch.set_num_threads(1)

OPTIMIZERS = {
    "lars": {"name": "lars"},
    "sgd": {"name": "sgd", "momentum": 0.8, "weight_decay": 0.1},
    "adamw": ADAMW,
}


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
    model = small.model(small.spec(backbone={"name": "resnet50", "width": 64}))
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


# --- the optimiser of a spec ----------------------------------------------------------------------------------------


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, rate: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def test_adamw_is_its_rule_and_spares_one_dimensional_parameters() -> None:
    model = small_network()
    optimizer = build_optimizer(small.spec(optimizer=ADAMW), model)
    rate, decay, (b1, b2) = 0.01, 0.05, (0.8, 0.9)
    expected = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    means = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in expected.items()}
    for number in range(1, 4):
        step(model, optimizer, number, rate)
        for name, p in model.named_parameters():
            assert p.grad is not None
            g = p.grad.double().numpy()
            m, v = b1 * means[name][0] + (1 - b1) * g, b2 * means[name][1] + (1 - b2) * g**2
            means[name] = m, v
            if p.ndim > 1:
                expected[name] *= 1 - rate * decay
            expected[name] -= rate * (m / (1 - b1**number)) / (np.sqrt(v / (1 - b2**number)) + 1e-8)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("lars", LARS), ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_spec_selects_the_optimiser(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = build_optimizer(small.spec(optimizer=OPTIMIZERS[name]), small_network())
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    if name == "sgd":
        assert [(g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.8, 0.1), (0.8, 0.0)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_slots_continue_to_the_same_weights(name: str) -> None:
    """A copy with weights and slots continues bit for bit; a copy without the slots does not."""
    spec = small.spec(optimizer=OPTIMIZERS[name])
    first, twin, without = small_network(), small_network(), small_network()
    optimizers = [build_optimizer(spec, model) for model in (first, twin, without)]
    assert state_of(optimizers[0], first) == {}
    step(first, optimizers[0], 1)
    step(first, optimizers[0], 2)
    slots = {key: tensor.clone() for key, tensor in state_of(optimizers[0], first).items()}
    names = {"momentum"} if name != "adamw" else {"step", "exp_avg", "exp_avg_sq"}
    assert slots.keys() == {f"{p}/{slot}" for p, _ in first.named_parameters() for slot in names}
    for model in (twin, without):
        model.load_state_dict(first.state_dict())
    load_state(optimizers[1], twin, slots, torch.contiguous_format)
    for model, optimizer in zip((first, twin, without), optimizers, strict=True):
        step(model, optimizer, 3)
    for a, b, c in zip(first.parameters(), twin.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    # The restored tensors are copied: another run may continue from the same ones.
    if name == "adamw":
        assert {float(tensor) for key, tensor in slots.items() if key.endswith("/step")} == {2.0}


def test_kernels_slots_take_the_kernels_memory_format() -> None:
    spec, model = small.spec(optimizer=ADAMW), small_network()
    optimizer = build_optimizer(spec, model)
    step(model, optimizer, 1)
    slots = {key: tensor.clone() for key, tensor in state_of(optimizer, model).items()}
    load_state(optimizer, model, slots, torch.channels_last)
    state = optimizer.state[model[0].weight]
    assert state["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert not state["exp_avg"].is_contiguous()


def test_a_checkpoint_counts_adamws_steps(tmp_path: Path) -> None:
    run(small.spec(optimizer=ADAMW), tmp_path, stop=(5, "drain"))
    slots = checkpoint.read(last_file(tmp_path)).part("optimizer/")
    assert {float(tensor) for key, tensor in slots.items() if key.endswith("/step")} == {5.0}


def test_lars_with_a_transformer_gives_a_warning() -> None:
    data, vit = {"name": "digits", "image_size": 32}, {"name": "vit_small", "patch_size": 8}
    warning = warning_of(small.spec(data=data, backbone=vit, optimizer={"name": "lars"}))
    assert "optimizer.name is lars" in (warning or "")
    assert warning_of(small.spec(data=data, backbone=vit, optimizer=ADAMW)) is None
    assert warning_of(small.spec(optimizer={"name": "lars"})) is None
