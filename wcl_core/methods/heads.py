"""The projection heads g and phi, and the normalisation of their outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wcl_core.precision import full_float32


def normalise(x: Tensor) -> Tensor:
    """Return rows of unit Euclidean length, in float32 also under autocast (float64 stays float64).

    Args:
        x: (B, D) floats.

    Returns:
        (B, D) float32 or float64; a zero row stays zero.
    """
    with full_float32(x.device.type):
        return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


class HiddenLayers(nn.Sequential):
    """Layers in a row, whose batch norms normalise each view by its own statistics."""

    def forward(self, rows: Tensor, num_views: int = 1) -> Tensor:
        """Return the rows of the last layer; the linear layers process all views in one product.

        Args:
            rows: the rows of `num_views` views of equal size, one after the other.
        """
        for layer in self:
            is_by_view = isinstance(layer, _BatchNorm) and num_views > 1
            rows = torch.cat([layer(view) for view in rows.chunk(num_views)]) if is_by_view else layer(rows)
        return rows


class ProjectionHead(nn.Module):
    """Linear-BN-ReLU-Linear-BN-ReLU-Linear, with a bias in every linear layer and no batch norm at the end. [C]

    The first two linear layers follow autocast.  The last one and the normalisation run in float32 with TF32 off,
    because weak labels depend on small differences between similarities.  Initialisation is PyTorch's default. [C]

    Args:
        in_dim: number of features of the backbone.
        hidden_dim: width of both hidden layers.
        output_dim: dimension of the embedding, D.
    """

    def __init__(self, in_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.hidden = HiddenLayers(
            nn.Linear(in_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
        )
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, features: Tensor, num_views: int = 1) -> Tensor:
        """Return embeddings of unit length.

        Args:
            features: (B, in_dim) pooled features of the backbone.
            num_views: number of views of equal size in `features`, one after the other.

        Returns:
            (B, output_dim) float32 rows of length 1.
        """
        hidden: Tensor = self.hidden(features, num_views)
        with full_float32(features.device.type):
            return normalise(self.output(hidden.to(self.output.weight.dtype)))
