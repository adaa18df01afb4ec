"""The networks of timm as backbones, if timm is installed: `{"name": "timm", "variant": "<timm's name>"}`; its names.

This is an ordinary plugin and an example of one; `pip install 'wcl-service[timm]'` enables its entry point.
Initialisation is timm's.  Pretrained weights are never downloaded.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from wcl_core.config import BackboneConfig
from wcl_core.networks.backbones import FeatureNetwork
from wcl_core.plugins import PluginError

# The names of a vision transformer's parameters in timm and in torchvision; ^ is the start of a name, # a number.
_NAMES = (
    ("^patch_embed.proj.", "^conv_proj."),
    ("^cls_token", "^class_token"),
    ("^pos_embed", "^encoder.pos_embedding"),
    ("^blocks.#.norm1.", "^encoder.layers.encoder_layer_#.ln_1."),
    ("^blocks.#.norm2.", "^encoder.layers.encoder_layer_#.ln_2."),
    ("^blocks.#.attn.qkv.", "^encoder.layers.encoder_layer_#.self_attention.in_proj_"),
    ("^blocks.#.attn.proj.", "^encoder.layers.encoder_layer_#.self_attention.out_proj."),
    ("^blocks.#.mlp.fc1.", "^encoder.layers.encoder_layer_#.mlp.0."),
    ("^blocks.#.mlp.fc2.", "^encoder.layers.encoder_layer_#.mlp.3."),
    ("^norm.", "^encoder.ln."),
)


def torchvision_name(name: str) -> str:
    """Return torchvision's name of a parameter of timm's vision transformer; other names stay."""
    return _renamed(name, _NAMES)


def timm_name(name: str) -> str:
    """Return timm's name of a parameter of torchvision's vision transformer; other names stay."""
    return _renamed(name, tuple((ours, theirs) for theirs, ours in _NAMES))


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        pattern = "^" + re.escape(old[1:]).replace(re.escape("#"), r"(\d+)")
        if re.match(pattern, name):
            return re.sub(pattern, new[1:].replace("#", r"\1"), name)
    return name


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
