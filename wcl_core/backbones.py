"""Residual networks that end in pooled features, with torchvision's parameter names and no classifier.

The names (`conv1.weight`, `layer1.0.bn1.bias`, ...) are what makes an exported backbone load into torchvision's own
models.  Heads, losses and checkpoint files live elsewhere.

    stem (conv1, bn1, relu, maxpool) ── layer1 ── layer2 ── layer3 [── layer4] ── mean over positions
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from wcl_core.config import BackboneConfig

_BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "tiny": (BasicBlock, (1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class Backbone(nn.Module):
    """A ResNet (He et al., CVPR 2016) without its last linear layer.

    Args:
        block: torchvision's residual block.
        depths: number of blocks of each stage; stage s has `width * 2**s` channels times the block's expansion.
        width: channels of the stem and of the first stage.
        stem: `small`, `stride2` or `imagenet`, see `BackboneConfig`.

    Attributes:
        feature_dim: number of pooled features, D.
    """

    feature_dim: int

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], width: int, stem: str) -> None:
        super().__init__()
        kernel, stride = {"small": (3, 1), "stride2": (3, 2), "imagenet": (7, 2)}[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        stages = []
        channels = width
        for index, depth in enumerate(depths):
            stages.append(_stage(block, channels, width * 2**index, depth, stride=1 if index == 0 else 2))
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
    block: type[BasicBlock | Bottleneck], in_channels: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, planes) for _ in range(depth - 1)))


def _initialise(network: nn.Module) -> None:
    """Kaiming normal fan_out convolutions, batch norms of gain 1 and bias 0, no zero-init of residual gains. [C]"""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def build_backbone(config: BackboneConfig) -> Backbone:
    """The freshly initialised network a spec names, drawn from torch's global generator."""
    block, depths = _BLOCKS[config.name]
    return Backbone(block, depths, config.width, config.stem)
