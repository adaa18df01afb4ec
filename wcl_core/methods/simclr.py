"""SimCLR: the instance loss alone (Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from wcl_core.config import PretrainSpec
from wcl_core.methods.base import Batch, Loss, Method
from wcl_core.methods.heads import ProjectionHead
from wcl_core.methods.neighbour_queue import NeighbourQueue
from wcl_core.methods.objective import INSTANCE, Weights, objective
from wcl_core.methods.views import Embedded


class SimCLR(Method):
    """One head and the instance loss; with the options of the spec that do not need weak labels."""

    is_capturable = True

    def __init__(self, spec: PretrainSpec) -> None:
        self._spec = spec
        self._queue: NeighbourQueue | None = None

    @property
    def heads(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """The builder of the instance head."""
        return {INSTANCE: self._head}

    def _head(self, feature_dim: int) -> ProjectionHead:
        return ProjectionHead(feature_dim, self._spec.heads.hidden_dim, self._spec.heads.output_dim)

    def loss(self, embedded: Embedded, batch: Batch, keys: Embedded | None) -> Loss:
        """Return the loss of one global batch; see `objective`."""
        weights = Weights.at(self._spec, batch.step, batch.total_steps)
        result = objective(embedded, self._spec, weights, batch.images, keys=keys, queue=self._queue)
        terms = {"loss_instance": result.instance}
        if result.labels is not None:
            terms["loss_weak"] = result.weak
        if embedded.crops is not None:
            terms["loss_multi_crop"] = result.multi_crop
        return Loss(result.total, terms, result.labels)
