"""The networks of timm as backbones: `{"name": "timm", "variant": "<timm's name>"}`, where timm is installed.

A plugin like any other, and an example of one: `pip install 'wcl-service[timm]'` makes its entry point count.
Initialisation is timm's; no pretrained weights are ever fetched.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wcl_core.config import BackboneConfig
from wcl_core.networks.feature_network import FeatureNetwork
from wcl_core.plugins import PluginError


class TimmBackbone(FeatureNetwork):
    """One of timm's networks up to its pooled features; parameter names are timm's below `network`.

    Attributes:
        feature_dim: number of pooled features, D.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.feature_dim = int(network.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised floats to (N, feature_dim)."""
        features: Tensor = self.network(images)
        return features


def build(config: BackboneConfig, image_size: int) -> TimmBackbone:
    """The network that `config.variant` names.

    Raises:
        PluginError: timm has no such network, or it cannot be made for images of this size.
    """
    import timm

    if config.variant is None:
        raise PluginError("backbone.variant: name one of timm's networks")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    try:
        try:
            network = timm.create_model(config.variant, img_size=image_size, **options)
        except TypeError:  # convolutional networks take any size and no such argument
            network = timm.create_model(config.variant, **options)
    except Exception as error:  # timm raises what its many networks raise
        raise PluginError(f"backbone.variant {config.variant}: {error}") from error
    return TimmBackbone(network)
