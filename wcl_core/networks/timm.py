"""The networks of timm as backbones, if timm is installed: `{"name": "timm", "variant": "<timm's name>"}`.

This is an ordinary plugin and an example of one; `pip install 'wcl-service[timm]'` enables its entry point.
Initialisation is timm's.  Pretrained weights are never downloaded.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wcl_core.config import BackboneConfig
from wcl_core.networks.backbones import FeatureNetwork
from wcl_core.plugins import PluginError


class TimmBackbone(FeatureNetwork):
    """A network of timm up to its pooled features; its parameters have timm's names below `network`.

    Attributes:
        feature_dim: number of pooled features.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.feature_dim = int(network.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, (N, feature_dim), for (N, 3, H, W) normalised floats."""
        features: Tensor = self.network(images)
        return features


def build(config: BackboneConfig, image_size: int) -> TimmBackbone:
    """Return the network that `config.variant` names.

    Raises:
        PluginError: when timm has no such network, or cannot build it for images of this size.
    """
    import timm

    if config.variant is None:
        raise PluginError("backbone.variant is missing; set it to the name of a network of timm")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    try:
        try:
            network = timm.create_model(config.variant, img_size=image_size, **options)
        except TypeError:  # convolutional networks take any size and have no argument for it
            network = timm.create_model(config.variant, **options)
    except Exception as error:  # each of timm's networks raises errors of its own
        raise PluginError(f"backbone.variant {config.variant}: {error}") from error
    return TimmBackbone(network)
