"""Components and losses on a GPU: against SciPy, against a dense mask, and against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure.card_speed import captured, milliseconds
from measure.loss import TEMPERATURE, dense_loss
from torch import Tensor

from wcl_core.methods.losses import nt_xent, weak_label_loss
from wcl_core.methods.weak_labels import components, nearest_neighbours, weak_labels

SIZES = (256, 512, 1024, 4096, 16384, 65536)
MAX_DENSE = 16384  # a dense mask of 65,536 rows has 4 billion entries
EXACT_SIZES = (512, 4096)
DIM = 128

Form = Callable[[Tensor, Tensor], Tensor]


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    graphs = {f"components, B={count}": lambda _, count=count: component_times(count) for count in SIZES}
    losses = {
        f"weak-label loss, B={count}": lambda _, count=count: loss_times(count) for count in SIZES if count <= MAX_DENSE
    }
    return graphs | losses


def component_times(count: int) -> dict[str, Any]:
    """Return the times of the components on the GPU, in a CUDA graph, and by SciPy with the copies to the host."""
    u = _rows(count)
    nn = nearest_neighbours(u)
    values: dict[str, Any] = {
        "neighbours_ms": milliseconds(lambda: nearest_neighbours(u), 10),
        "components_ms": milliseconds(lambda: components(nn), 50),
        "in_graph_ms": milliseconds(captured(lambda: components(nn)).replay, 50),
    }
    try:
        from measure.graph import is_same_partition, scipy_components
    except ImportError as error:
        return values | {"scipy": f"not measured: {error}"}
    same = is_same_partition(components(nn).cpu(), scipy_components(nn.cpu()))
    by_scipy = milliseconds(lambda: scipy_components(nn.cpu()).to(nn.device), 20)
    return values | {"scipy_ms": by_scipy, "same_partition": same}


def loss_times(count: int) -> dict[str, Any]:
    """Return time and extra memory of loss and gradient in each form, and the errors against float64."""
    u = _rows(count).requires_grad_()
    labels = weak_labels(u)
    forms: dict[str, Form] = {"ours": _ours, "dense": lambda u, labels: dense_loss(u, labels, TEMPERATURE)}
    values: dict[str, Any] = {}
    for name, form in forms.items():
        values[f"{name}_ms"] = milliseconds(lambda form=form: _gradient(form, u, labels), 20)
        values[f"{name}_mib"] = _extra_mib(lambda form=form: _gradient(form, u, labels))
        graph = captured(lambda form=form: _gradient(form, u, labels))
        values[f"{name}_in_graph_ms"] = milliseconds(graph.replay, 20)
        del graph
    values["instance_loss_ms"] = milliseconds(lambda: _gradient(_instance, u, labels), 20)
    if count in EXACT_SIZES:
        exact_u = u.detach().double().requires_grad_()
        exact = _gradient(forms["dense"], exact_u, labels)
        for name, form in forms.items():
            error = (_gradient(form, u, labels) - exact).abs().max() / exact.abs().max()
            values[f"{name}_gradient_error"] = float(error)
    return values


def _rows(count: int) -> Tensor:
    u = torch.randn(count, DIM, generator=torch.Generator().manual_seed(count))
    return F.normalize(u, dim=1).cuda()


def _ours(u: Tensor, labels: Tensor) -> Tensor:
    return weak_label_loss(u, labels, TEMPERATURE)


def _instance(u: Tensor, _labels: Tensor) -> Tensor:
    first, second = u.chunk(2)
    return nt_xent(first, second, TEMPERATURE)


def _gradient(form: Form, u: Tensor, labels: Tensor) -> Tensor:
    return torch.autograd.grad(form(u, labels), u)[0]


def _extra_mib(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
