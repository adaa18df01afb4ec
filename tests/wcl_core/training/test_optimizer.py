"""The optimiser a spec names: AdamW against its rule written out, and slots that come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.wcl_core import small
from tests.wcl_core.training.test_pretrain import ADAMW, last_file, run
from wcl_core import checkpoint
from wcl_core.training.optim import LARS
from wcl_core.training.optimizer import build_optimizer, load_state, state_of, warning_of

torch.set_num_threads(1)

OPTIMIZERS = {
    "lars": {"name": "lars"},
    "sgd": {"name": "sgd", "momentum": 0.8, "weight_decay": 0.1},
    "adamw": ADAMW,
}


def small_model() -> nn.Module:
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
    model = small_model()
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
def test_the_spec_decides(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = build_optimizer(small.spec(optimizer=OPTIMIZERS[name]), small_model())
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    if name == "sgd":
        assert [(g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.8, 0.1), (0.8, 0.0)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_come_back_as_they_were(name: str) -> None:
    """A twin that takes over weights and slots goes on bit for bit; one without the slots does not."""
    spec = small.spec(optimizer=OPTIMIZERS[name])
    first, twin, without = small_model(), small_model(), small_model()
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
    # What came in is not shared: another run may go on from the same tensors.
    if name == "adamw":
        assert {float(tensor) for key, tensor in slots.items() if key.endswith("/step")} == {2.0}


def test_kernels_slots_take_the_kernels_memory_format() -> None:
    spec, model = small.spec(optimizer=ADAMW), small_model()
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


def test_lars_with_a_transformer_is_warned_of() -> None:
    data, vit = {"name": "digits", "image_size": 32}, {"name": "vit_small", "patch_size": 8}
    assert "LARS" in (warning_of(small.spec(data=data, backbone=vit, optimizer={"name": "lars"})) or "")
    assert warning_of(small.spec(data=data, backbone=vit, optimizer=ADAMW)) is None
    assert warning_of(small.spec(optimizer={"name": "lars"})) is None
