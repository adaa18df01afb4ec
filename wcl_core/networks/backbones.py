"""Backbones: networks that end in pooled features, with torchvision's parameter names and no classifier.

    FeatureNetwork ── Backbone           residual networks: stem ── layer1 ── layer2 ── layer3 [── layer4] ── mean
                   ├─ VisionBackbone     vision transformers: patches ── encoder ── class token [D]
                   └─ TimmBackbone       networks of timm, see `timm`; an example of a plugin

The names (`conv1.weight`, `layer1.0.bn1.bias`, ...) let an exported backbone load into torchvision's own models.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck

from wcl_core import plugins
from wcl_core.config import BackboneConfig, is_transformer

# Block, number of blocks of each stage, and the factor by which a block's 3x3 convolution is wider than usual.
_BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...], int]] = {
    "tiny": (BasicBlock, (1, 1, 1), 1),
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), 2),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), 2),
}
_TRANSFORMERS = {"vit_small": (12, 6, 384), "vit_base": (12, 12, 768)}  # layers, heads, channels


def build_backbone(config: BackboneConfig, image_size: int) -> FeatureNetwork:
    """Return the freshly initialised network that a spec names, drawn from torch's global generator.

    Args:
        config: the backbone's part of a spec.
        image_size: side of the training views in pixels; it sets the size of a transformer's position embeddings.

    Raises:
        plugins.PluginError: when the plugin is not installed, or does not build a module with a `feature_dim`.
    """
    if is_transformer(config.name):
        return VisionBackbone(config.name, image_size, config.patch_size)
    if config.name in _BLOCKS:
        block, depths, widening = _BLOCKS[config.name]
        return Backbone(block, depths, config.width, config.stem, widening)
    network = plugins.load("wcl.backbones", config.name)(config, image_size)
    if not isinstance(network, nn.Module) or not isinstance(getattr(network, "feature_dim", None), int):
        raise plugins.PluginError(
            f"plugin {config.name} of wcl.backbones: it built {type(network).__name__}, "
            "expected a torch module with an integer feature_dim"
        )
    return cast(FeatureNetwork, network)


class FeatureNetwork(nn.Module):
    """A module whose `forward` maps (N, 3, H, W) normalised floats to (N, feature_dim) pooled features.

    Attributes:
        feature_dim: number of features.
    """

    feature_dim: int


class Backbone(FeatureNetwork):
    """A residual network (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385) without its last linear layer.

    Args:
        block: torchvision's residual block.
        depths: number of blocks of each stage; stage s has `width * 2**s` channels times the block's expansion.
        width: channels of the stem and of the first stage.
        stem: `small`, `stride2` or `imagenet`, see `BackboneConfig`.
        widening: factor of the channels within each bottleneck (Zagoruyko & Komodakis, BMVC 2016).

    Attributes:
        feature_dim: number of pooled features.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, ...],
        width: int,
        stem: str,
        widening: int = 1,
    ) -> None:
        super().__init__()
        kernel, stride = {"small": (3, 1), "stride2": (3, 2), "imagenet": (7, 2)}[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        stages = []
        channels = width
        for index, depth in enumerate(depths):
            stages.append(_stage(block, channels, width * 2**index, depth, 1 if index == 0 else 2, widening))
            channels = width * 2**index * block.expansion
            self.add_module(f"layer{index + 1}", stages[-1])
        self._num_stages = len(stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = channels
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features h.

        Args:
            images: (N, 3, H, W) floats, normalised.

        Returns:
            (N, feature_dim), in the dtype that autocast chooses.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for index in range(self._num_stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return torch.flatten(self.avgpool(x), 1)


def _stage(
    block: type[BasicBlock | Bottleneck], in_channels: int, planes: int, depth: int, stride: int, widening: int
) -> nn.Sequential:
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    base_width = 64 * widening  # in torchvision, 64 is the usual width
    first = block(in_channels, planes, stride, shortcut, base_width=base_width)
    return nn.Sequential(first, *(block(out_channels, planes, base_width=base_width) for _ in range(depth - 1)))


def _initialise(network: nn.Module) -> None:
    """Initialise convolutions by Kaiming normal (fan_out) and batch norms with gain 1 and bias 0. [C]

    Gains at the end of residual blocks are 1 as well, not 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class VisionBackbone(VisionTransformer, FeatureNetwork):  # type: ignore[misc]  # mypy sees VisionTransformer as Any
    """torchvision's vision transformer (Dosovitskiy et al., ICLR 2021) without its head, for comparison. [D]

    Neither the paper nor its released code trains one.  Network and initialisation are torchvision's.  Images of
    `image_size` give exactly torchvision's result.  For any other side of at least one patch the position embeddings
    are interpolated (bicubic), as Dosovitskiy et al. do for fine-tuning, so that small crops and other sizes work.

    Args:
        name: `vit_small` or `vit_base`.
        image_size: side of the images in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.

    Attributes:
        feature_dim: number of channels of the class token.
    """

    # Attributes of torchvision's class, which mypy does not see.
    conv_proj: nn.Module
    class_token: nn.Parameter
    encoder: Any
    image_size: int
    patch_size: int

    def __init__(self, name: str, image_size: int, patch_size: int) -> None:
        layers, heads, channels = _TRANSFORMERS[name]
        super().__init__(image_size, patch_size, layers, heads, channels, 4 * channels)
        self.heads = nn.Sequential()  # empty: the features are the class token
        self.feature_dim = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the class token after the last layer norm, (N, feature_dim), for (N, 3, H, W) normalised floats."""
        patches = self.conv_proj(x)
        rows, columns = patches.shape[-2:]
        tokens = torch.cat((self.class_token.expand(x.shape[0], -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        tokens = tokens + self._positions(rows, columns)
        encoded: Tensor = self.encoder.ln(self.encoder.layers(self.encoder.dropout(tokens)))
        return encoded[:, 0]

    def _positions(self, rows: int, columns: int) -> Tensor:
        positions: Tensor = self.encoder.pos_embedding
        side = self.image_size // self.patch_size
        if (rows, columns) == (side, side):
            return positions
        grid = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        resized = nn.functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((positions[:, :1], resized.flatten(2).transpose(1, 2)), dim=1)
