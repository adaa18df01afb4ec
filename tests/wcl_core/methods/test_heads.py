"""The projection head's layers, precision and unit length."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from wcl_core.methods.heads import ProjectionHead, normalise

torch.set_num_threads(1)


def test_layers() -> None:
    head = ProjectionHead(5, 7, 3)
    layers = [type(m) for m in head.modules() if not list(m.children())]
    assert layers == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    linears = [m for m in head.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(5, 7), (7, 7), (7, 3)]
    assert all(m.bias is not None for m in linears)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_rows_are_unit_float32(is_autocast: bool) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(5, 16, 4)
    output_dtypes: list[torch.dtype] = []
    head.output.register_forward_hook(lambda _m, _i, out: output_dtypes.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        u = head(torch.randn(9, 5))
    assert output_dtypes == [torch.float32]
    assert u.dtype == torch.float32
    torch.testing.assert_close(u.norm(dim=1), torch.ones(9), rtol=1e-6, atol=1e-6)


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(5, 16, 4)
    (head(torch.randn(9, 5)) * torch.randn(9, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_normalise_keeps_zero_and_float64() -> None:
    assert torch.equal(normalise(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert normalise(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert normalise(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_two_views_in_one_product_are_two_calls() -> None:
    """Values, gradients and running statistics, which each view moves once and in order."""
    torch.manual_seed(0)
    together = ProjectionHead(5, 16, 4).double()
    apart = copy.deepcopy(together)
    views = torch.randn(9, 5).double(), 3 + 2 * torch.randn(9, 5).double()
    weights = torch.randn(18, 4).double()

    rows = together(torch.cat(views), num_views=2)
    expected = torch.cat([apart(view) for view in views])
    loss: torch.Tensor = (rows * weights).sum() + (expected * weights).sum()
    loss.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(rows, expected)
    for (name, one), (_, other) in zip(together.named_parameters(), apart.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, moved), (_, twice) in zip(together.named_buffers(), apart.named_buffers(), strict=True):
        torch.testing.assert_close(moved, twice, msg=name)
    assert not torch.allclose(together(torch.cat(views)), expected), "one group of statistics is something else"
