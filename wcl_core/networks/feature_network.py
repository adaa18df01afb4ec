"""What every backbone is, also one that a plugin brings."""

from __future__ import annotations

from torch import nn


class FeatureNetwork(nn.Module):
    """A module whose `forward` takes (N, 3, H, W) normalised floats to (N, feature_dim) pooled features.

    Attributes:
        feature_dim: number of features, D.
    """

    feature_dim: int
