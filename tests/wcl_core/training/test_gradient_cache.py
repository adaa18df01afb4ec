"""Two passes by chunks against one pass over the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.wcl_core import small
from wcl_core.config import PretrainSpec
from wcl_core.methods import build_method
from wcl_core.methods.base import Batch
from wcl_core.methods.objective import INSTANCE
from wcl_core.methods.views import Views
from wcl_core.networks.model import Model
from wcl_core.training.gradient_cache import GradientCache
from wcl_core.training.learner import Learner

torch.set_num_threads(1)


def without_batch_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            module.add_module(name, nn.Identity())
        else:
            without_batch_norm(child)
    return module


def network(spec: PretrainSpec, keeps_batch_norm: bool) -> Callable[[], Model]:
    def build() -> Model:
        model = small.model(spec).double()
        return model if keeps_batch_norm else without_batch_norm(model)  # type: ignore[return-value]

    return build


def views(count: int, has_crops: bool) -> Views:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, 8, 8)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    crops = torch.randn(count, 2, 3, 8, 8, generator=generator, dtype=torch.float64) if has_crops else None
    return Views(first, second, crops)


def gradients(
    spec: PretrainSpec, keeps_batch_norm: bool, has_crops: bool
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    learner = Learner(spec, build_method(spec), network(spec, keeps_batch_norm), is_bfloat16=False)
    loss = learner.gradients(views(spec.batch_size, has_crops), Batch(torch.arange(spec.batch_size), 5, 10))
    grads = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    return loss.total.detach(), grads, {name: b.clone() for name, b in learner.model.named_buffers()}


@pytest.mark.parametrize("method", ["wcl", "simclr"])
@pytest.mark.parametrize("batch_norm_views", ["separate", "joint"])
@pytest.mark.parametrize("crops", [0, 2])
def test_without_batch_norm_the_gradients_are_those_of_one_pass(method: str, batch_norm_views: str, crops: int) -> None:
    """The computation is in float64, so only the order of sums differs."""
    changes = {
        "method": method,
        "batch_size": 12,
        "loss": {"batch_norm_views": batch_norm_views, "detach_keys": False},
        "multi_crop": {"crops": crops},
    }
    whole = gradients(small.spec(**changes), False, crops > 0)
    for size in (2, 4, 12):
        result = gradients(small.spec(**changes, micro_batch_size=size), False, crops > 0)
        torch.testing.assert_close(result[0], whole[0], rtol=1e-12, atol=0)
        assert result[1].keys() == whole[1].keys()
        for name, gradient in whole[1].items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(result[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_one_chunk_is_one_pass_with_batch_norm_too() -> None:
    """Gradients agree, and running statistics are updated once."""
    spec = {"batch_size": 12, "multi_crop": {"crops": 2}}
    whole = gradients(small.spec(**spec), True, True)
    result = gradients(small.spec(**spec, micro_batch_size=12), True, True)
    for one, other in zip(whole[1:], result[1:], strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


def test_chunks_have_statistics_of_their_own() -> None:
    """The deviation: each chunk's embeddings are those of a pass over the chunk alone, in order."""
    spec = small.spec(batch_size=12, micro_batch_size=4)
    model = small.model(spec).double()
    whole = views(12, False)
    cache = GradientCache(model, whole, 4, "separate")
    assert int(model.backbone.get_buffer("bn1.num_batches_tracked")) == 0
    for number, chunk in enumerate(whole.chunks(4)):
        expected = small.model(spec).double()(chunk.first)[INSTANCE]
        torch.testing.assert_close(
            cache.embedded.first[INSTANCE].detach()[4 * number : 4 * number + 4], expected.detach()
        )
