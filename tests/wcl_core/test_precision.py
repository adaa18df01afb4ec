"""Mixed precision does not change neighbours: autocast and TF32 do not reach the products that decide them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.wcl_core import small
from wcl_core.images.augment import normalised
from wcl_core.methods import log_sum_exp
from wcl_core.methods.heads import ProjectionHead
from wcl_core.methods.losses import nt_xent, swapped_weak_label_loss
from wcl_core.methods.multicrop import instance_crop_loss, nearest_positives, weak_crop_loss
from wcl_core.methods.weak_labels import components, weak_labels
from wcl_core.precision import full_float32

torch.set_num_threads(1)

LIBRARIES = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear")


def settings() -> tuple[str, ...]:
    return tuple(library.fp32_precision for library in LIBRARIES)


class Products(TorchDispatchMode):
    """Records the precision setting and the result type of each float32 product."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[tuple[torch.dtype, tuple[str, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS and result.dtype != torch.float64:
            self.met.append((result.dtype, settings()))
        return result


@pytest.fixture(params=["high", "medium"])
def reduced(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """Choose fast products for the whole process: TF32, or bfloat16 if the processor has it."""
    torch.set_float32_matmul_precision(request.param)
    yield settings()
    torch.set_float32_matmul_precision("highest")


def unit(count: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def weak_crops(u: Tensor, keys: Tensor) -> Tensor:
    by = nearest_positives(keys.detach(), 3)
    return weak_crop_loss(u[:, None], (keys, keys), (by, by), 0.1, own_weight=0.5, neighbour_weight=0.5)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "instance": lambda u, v: nt_xent(u, v, 0.1),
    "weak, detached keys": lambda u, v: swapped_weak_label_loss(u, v, 0.1),
    "weak, keys with gradient": lambda u, v: swapped_weak_label_loss(u, v, 0.1, detach_keys=False),
    "coarser labels": lambda u, v: u.sum() + weak_labels(u, level=2).sum() + 0 * v.sum(),
    "crops, instance": lambda u, v: instance_crop_loss(u[:, None], (v, v), 0.1) + 0 * v.sum(),
    "crops, weak": lambda u, v: weak_crops(u, v) + 0 * v.sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_products_of_graph_and_losses_are_float32(
    name: str, reduced: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, with float32 logits as in large batches; values and gradients equal the exact ones."""
    monkeypatch.setattr(log_sum_exp, "FLOAT32_FROM_PAIRS", 1)
    assert set(reduced) <= {"tf32", "bf16"}
    results = []
    for is_hasty in (True, False):
        torch.set_float32_matmul_precision("highest")
        if is_hasty:
            for library, chosen in zip(LIBRARIES, reduced, strict=True):
                library.fp32_precision = chosen
        u, v = unit(64, 32, 0).requires_grad_(), unit(64, 32, 1).requires_grad_()
        with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_hasty):
            loss = LOSSES[name](u, v)
            loss.backward()
        assert len(products.met) >= (4 if name.startswith("weak") else 2)
        assert {dtype for dtype, _ in products.met} == {torch.float32}
        assert {setting for _, met in products.met for setting in met} <= {"ieee", "none"}
        assert not is_hasty or settings() == reduced
        results.append((loss.detach(), u.grad, v.grad))
    for hasty, unhurried in zip(*results, strict=True):
        assert hasty is not None
        assert torch.equal(hasty, unhurried)


def test_the_last_linear_of_a_head_alone_is_float32(reduced: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(8, 16, 4)
    with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16):
        head(torch.randn(9, 8))
    assert products.met[:-1] == [(torch.bfloat16, reduced)] * 2
    ((dtype, precisions),) = products.met[-1:]
    assert dtype == torch.float32
    assert set(precisions) == {"ieee"}
    assert settings() == reduced


def test_the_programs_choice_is_back_after_an_error(reduced: tuple[str, ...]) -> None:
    def fail() -> None:
        with full_float32("cpu"):
            assert set(settings()) == {"ieee"}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert settings() == reduced
    assert torch.get_float32_matmul_precision() in ("high", "medium")  # which refuses a half-changed state


def test_without_a_setting_nothing_is_changed() -> None:
    before = settings()
    with full_float32("cpu"):
        assert settings() == before
    assert settings() == before


def test_labels_of_a_bfloat16_network_are_those_of_float64_from_the_same_head_inputs() -> None:
    """Only the backbone is rounded; from the inputs of the head on, labels are exact, which bfloat16 would not give."""
    model = small.model(small.spec(backbone={"name": "tiny", "width": 8}, heads={"hidden_dim": 64, "output_dim": 32}))
    head = model.get_submodule("weak_head")
    assert isinstance(head, ProjectionHead)
    inputs: list[Tensor] = []
    head.output.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    images = normalised(small.digits().train.images[:1024])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        u = model(images)["weak_head"]
        labels = weak_labels(u)
    weight, bias = head.output.weight.double(), head.output.bias.double()
    exact = F.normalize(inputs[0].double() @ weight.T + bias, dim=1)
    assert torch.equal(labels, components(nearest_of(exact)))
    assert not torch.equal(labels, components(nearest_of(exact.bfloat16().double())))


def nearest_of(u: Tensor) -> Tensor:
    similarity = u @ u.T
    return similarity.fill_diagonal_(-torch.inf).argmax(1)
