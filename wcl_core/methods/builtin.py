"""The methods by name: WCL and SimCLR, which are the same code with and without a weak head, and installed ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wcl_core.config import PretrainSpec, options_of
from wcl_core.methods.base import Batch, Loss, Method
from wcl_core.methods.heads import ProjectionHead
from wcl_core.methods.neighbour_queue import NeighbourQueue
from wcl_core.methods.objective import INSTANCE, WEAK, Weights, objective
from wcl_core.methods.views import Embedded
from wcl_core.plugins import PluginError


def build_method(spec: PretrainSpec) -> Method:
    """The method that a spec names.

    Raises:
        PluginError: a plugin that is not installed here, or that makes no such thing.
    """
    if spec.method in _BUILTIN:
        return _BUILTIN[spec.method](spec)
    method = options_of(spec.method).model_validate(spec.method_options).build(spec)
    if not isinstance(method, Method):
        raise PluginError(f"plugin {spec.method} of wcl.methods makes no wcl_core.methods.base.Method")
    names = tuple(method.heads)
    if not names or "backbone" in names or not all(name.isidentifier() for name in names):
        raise PluginError(f"plugin {spec.method} of wcl.methods: heads need names of their own, not {names}")
    return method


class SimCLR(Method):
    """The instance loss alone (Chen et al., ICML 2020)."""

    def __init__(self, spec: PretrainSpec) -> None:
        self._spec = spec
        self._queue: NeighbourQueue | None = None

    @property
    def heads(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """The instance head."""
        return {INSTANCE: self._head}

    def _head(self, feature_dim: int) -> ProjectionHead:
        return ProjectionHead(feature_dim, self._spec.heads.hidden_dim, self._spec.heads.output_dim)

    def loss(self, embedded: Embedded, batch: Batch, keys: Embedded | None) -> Loss:
        """See `objective`."""
        weights = Weights.at(self._spec, batch.step, batch.total_steps)
        found = objective(embedded, self._spec, weights, batch.images, keys=keys, queue=self._queue)
        terms = {"loss_instance": found.instance}
        if found.labels is not None:
            terms["loss_weak"] = found.weak
        if embedded.crops is not None:
            terms["loss_multi_crop"] = found.multi_crop
        return Loss(found.total, terms, found.labels)


class WCL(SimCLR):
    """Weakly supervised contrastive learning (Zheng et al., ICCV 2021); its queue of past embeddings is ours [D]."""

    labels_head = WEAK

    @property
    def heads(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """Both heads."""
        return {INSTANCE: self._head, WEAK: self._head}

    def prepare(self, device: torch.device) -> None:
        """Make the queue, where the spec has one."""
        if self._spec.queue_size:
            self._queue = NeighbourQueue(self._spec.queue_size, self._spec.heads.output_dim, device)

    def follow(self, embedded: Embedded, batch: Batch) -> None:
        """Put the batch into the queue."""
        if self._queue is not None:
            self._queue.push(embedded.first[WEAK], embedded.second[WEAK], batch.images, batch.step)

    def state(self) -> dict[str, Tensor]:
        """The queue."""
        return {} if self._queue is None else {f"queue/{name}": rows for name, rows in self._queue.state().items()}

    def load(self, part: Callable[[str], dict[str, Tensor]]) -> None:
        """The queue."""
        if self._queue is not None:
            self._queue.load(part("queue/"))


_BUILTIN: dict[str, Callable[[PretrainSpec], Method]] = {"wcl": WCL, "simclr": SimCLR}
