"""The momentum encoder."""

from __future__ import annotations

import pytest
import torch

from tests.wcl_core import small
from wcl_core.methods.objective import INSTANCE
from wcl_core.training.momentum import MomentumEncoder

torch.set_num_threads(1)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_every_parameter_follows(decay: float) -> None:
    model, encoder = small.model(small.spec()), MomentumEncoder(small.model(small.spec()), decay)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        encoder.update(model)
        expected = {
            name: decay * expected[name] + (1 - decay) * p.detach().double() for name, p in model.named_parameters()
        }
    for name, p in encoder.model.named_parameters():
        assert not p.requires_grad
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_momentum_encoder_normalises_by_the_batch_and_does_not_change_the_trained_network() -> None:
    model, encoder = small.model(small.spec()), MomentumEncoder(small.model(small.spec()).eval(), 0.5)
    images = 3 + torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(encoder.model(images)[INSTANCE], small.model(small.spec())(images)[INSTANCE])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
