"""VICReg (Bardes, Ponce and LeCun, ICLR 2022, https://arxiv.org/abs/2105.04906): a loss without negatives.

Two views of an image are pulled together (invariance).  Each dimension keeps its spread over the batch (variance), and
different dimensions stay uncorrelated (covariance), so the embedding cannot collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from vicreg_options import VicregOptions

from wcl_core.methods.base import Batch, Loss, Method
from wcl_core.methods.views import Embedded

HEAD = "projection"


class Vicreg(Method):
    """One head and a loss of three terms."""

    def __init__(self, options: VicregOptions) -> None:
        self._options = options

    @property
    def heads(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """A projection of the pooled features."""
        return {HEAD: self._projection}

    def _projection(self, feature_dim: int) -> nn.Module:
        width = self._options.projection_dim
        return nn.Sequential(nn.Linear(feature_dim, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))

    def loss(self, embedded: Embedded, batch: Batch, keys: Embedded | None) -> Loss:
        """Return the weighted sum of the three terms over the global batch."""
        first, second = embedded.first[HEAD].float(), embedded.second[HEAD].float()
        terms = {
            "invariance": (first - second).square().mean(),
            "variance": (variance(first) + variance(second)) / 2,
            "covariance": covariance(first) + covariance(second),
        }
        options = self._options
        total = options.invariance_weight * terms["invariance"] + options.covariance_weight * terms["covariance"]
        total = total + options.variance_weight * terms["variance"]
        return Loss(total, {name: term.detach() for name, term in terms.items()})


def variance(z: Tensor) -> Tensor:
    """Return how far the deviations of the dimensions fall below 1, on average."""
    deviation = (z.var(dim=0) + 1e-4).sqrt()
    return torch.relu(1 - deviation).mean()


def covariance(z: Tensor) -> Tensor:
    """Return the sum of squared covariances of different dimensions, divided by their number."""
    centred = z - z.mean(dim=0)
    matrix = centred.T @ centred / (len(z) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
