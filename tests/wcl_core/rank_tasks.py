"""Tasks for the ranks of a test; each is called as task(ranks, folder, **arguments) and returns a JSON value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.wcl_core import small
from wcl_core.distributed import Ranks
from wcl_core.methods.objective import INSTANCE, Weights, objective
from wcl_core.methods.views import Views
from wcl_core.networks.batch_norm import sync_batch_norm
from wcl_core.protocol import Request
from wcl_core.reporter import MemoryReporter
from wcl_core.training import execution
from wcl_core.training.pretrain import pretrain


def gradient(ranks: Ranks, folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Return loss, embeddings and the whole gradient of one step in float64."""
    spec = small.spec(**fields)
    model = sync_batch_norm(small.model(spec), ranks, torch.device("cpu")).double()
    generator = torch.Generator().manual_seed(5)
    views = [torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    crops = torch.randn(16, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    own = ranks.own(16)
    part = Views(views[0][own], views[1][own], crops[own] if spec.multi_crop.crops else None)
    embedded = model.embed(part, spec.loss.batch_norm_views)
    embedded = embedded.replaced(ranks.gather(*embedded.parts()))
    loss = objective(embedded, spec, Weights(weak=0.7, neighbours=0.4, is_ramped=True), torch.arange(16)).total
    loss.backward()
    ranks.sum_gradients(model.parameters())
    return {
        "loss": loss.item(),
        "z": embedded.first[INSTANCE].tolist(),
        "gradient": {name: p.grad.flatten().tolist() for name, p in model.named_parameters() if p.grad is not None},
        "buffers": {name: buffer.double().flatten().tolist() for name, buffer in model.named_buffers()},
    }


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 everything that a run computes in float32: weights, random numbers, views, statistics."""
    default, to_float = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.float = to_float  # type: ignore[method-assign]


def double_training(ranks: Ranks, folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Run a whole training in float64."""
    with in_float64():
        return training(ranks, folder, fields)


def training(
    ranks: Ranks, folder: Path, fields: dict[str, Any], stop_rank: int = 0, stop: int = 0, resume: str | None = None
) -> dict[str, Any]:
    """Run a training; `stop` requests a drain from `stop_rank` after so many steps."""
    steps = [0]

    def request(_: list[dict[str, Any]]) -> Request | None:
        steps[0] += 1  # the run calls this once before the first step
        return "drain" if stop and ranks.rank == stop_rank and steps[0] > stop else None

    reporter = MemoryReporter(request)
    torch.manual_seed(ranks.rank)  # the state of the global generator must not matter
    outcome = pretrain(
        small.spec(**fields),
        reporter,
        dataset=small.few_digits(),
        output_dir=folder / f"from-{ranks.rank}",
        resume=Path(resume) if resume else None,
        ranks=ranks,
    )
    return {"outcome": outcome, "records": reporter.records}


def compiled_training(ranks: Ranks, folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Run a training whose head is traced by torch.compile, and whose traced operations run as they are."""
    execution._COMPILER = {"backend": "eager"}
    execution._compilable = lambda model: [model.instance_head.hidden]  # type: ignore[assignment, return-value]
    execution.compiled_function = lambda function: function
    return training(ranks, folder, fields)


def batch_norm(ranks: Ranks, folder: Path, shape: list[int]) -> dict[str, Any]:
    """Return output, gradients and buffers of a batch norm in training mode, then its output in eval mode."""
    generator = torch.Generator().manual_seed(1)
    x = (100 + torch.randn(shape, generator=generator)).requires_grad_()  # a mean far above the deviation
    weight = torch.randn(shape, generator=generator)
    layer: nn.Module = nn.BatchNorm1d(shape[1]) if len(shape) == 2 else nn.BatchNorm2d(shape[1])
    nn.init.uniform_(layer.weight, 0.5, 2, generator=generator)  # type: ignore[arg-type]
    layer = sync_batch_norm(nn.Sequential(layer), ranks, torch.device("cpu"))
    own = ranks.own(len(x))
    out = layer(x[own])
    (out * weight[own]).sum().backward()
    ranks.sum_gradients(layer.parameters())
    assert x.grad is not None
    buffers = [buffer.double().tolist() for buffer in layer.buffers()]
    layer.eval()
    return {
        "out": out.tolist(),
        "x_grad": x.grad[own].tolist(),
        "gradients": [p.grad.tolist() for p in layer.parameters() if p.grad is not None],
        "buffers": buffers,
        "eval": layer(x[own]).tolist(),
    }


def lose_a_rank(ranks: Ranks, folder: Path) -> str:
    """Let the last rank leave; return the error that the other ranks get."""
    from wcl_core.distributed import PeerLostError

    ranks.gather(torch.zeros(2, 3))  # every rank has joined
    if ranks.rank == ranks.size - 1:
        return "left"
    try:
        ranks.gather(torch.zeros(2, 3))
    except PeerLostError:
        return "lost"
    return "nothing"
