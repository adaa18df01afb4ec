"""Networks that end in pooled features, with torchvision's parameter names and no classifier.

The names (`conv1.weight`, `layer1.0.bn1.bias`, ...) are what makes an exported backbone load into torchvision's own
models.  Residual networks are here, transformers in `vision_transformer`, what else is installed in `plugins`;
heads, losses and checkpoint files live elsewhere.

    stem (conv1, bn1, relu, maxpool) ── layer1 ── layer2 ── layer3 [── layer4] ── mean over positions
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from wcl_core import plugins
from wcl_core.config import BackboneConfig, is_transformer
from wcl_core.networks.feature_network import FeatureNetwork
from wcl_core.networks.vision_transformer import VisionBackbone

# Block, blocks of each stage, and how many times wider than usual a block's 3x3 convolution is.
_BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...], int]] = {
    "tiny": (BasicBlock, (1, 1, 1), 1),
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), 2),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), 2),
}


class Backbone(FeatureNetwork):
    """A ResNet (He et al., CVPR 2016) without its last linear layer.

    Args:
        block: torchvision's residual block.
        depths: number of blocks of each stage; stage s has `width * 2**s` channels times the block's expansion.
        width: channels of the stem and of the first stage.
        stem: `small`, `stride2` or `imagenet`, see `BackboneConfig`.
        widening: factor of the channels within each block (Zagoruyko & Komodakis, BMVC 2016), for bottlenecks.

    Attributes:
        feature_dim: number of pooled features, D.
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
        """Pooled features.

        Args:
            images: (N, 3, H, W) floats, normalised.

        Returns:
            (N, feature_dim) features `h` in the dtype autocast chose.
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
    base_width = 64 * widening  # torchvision's measure: 64 is as wide as usual
    first = block(in_channels, planes, stride, shortcut, base_width=base_width)
    return nn.Sequential(first, *(block(out_channels, planes, base_width=base_width) for _ in range(depth - 1)))


def _initialise(network: nn.Module) -> None:
    """Kaiming normal fan_out convolutions, batch norms of gain 1 and bias 0, no zero-init of residual gains. [C]"""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def build_backbone(config: BackboneConfig, image_size: int) -> FeatureNetwork:
    """The freshly initialised network a spec names, drawn from torch's global generator.

    Args:
        config: which one.
        image_size: side of the training views in pixels; it decides a transformer's position embeddings.

    Raises:
        plugins.PluginError: a plugin that is not installed here, or that makes no such network.
    """
    if is_transformer(config.name):
        return VisionBackbone(config.name, image_size, config.patch_size)
    if config.name in _BLOCKS:
        block, depths, widening = _BLOCKS[config.name]
        return Backbone(block, depths, config.width, config.stem, widening)
    network = plugins.load("wcl.backbones", config.name)(config, image_size)
    if not isinstance(network, nn.Module) or not isinstance(getattr(network, "feature_dim", None), int):
        raise plugins.PluginError(f"plugin {config.name} of wcl.backbones makes no module with a feature_dim")
    return cast(FeatureNetwork, network)
