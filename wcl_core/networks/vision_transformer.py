"""Vision transformers that end in the class token, with torchvision's parameter names and no classifier. [D]

Neither the paper nor its released code trains one; they are here for comparison.  The network and its initialisation
are torchvision's `VisionTransformer` (Dosovitskiy et al., ICLR 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from wcl_core.networks.feature_network import FeatureNetwork

_SHAPES = {"vit_small": (12, 6, 384), "vit_base": (12, 12, 768)}  # layers, heads, channels


class VisionBackbone(VisionTransformer, FeatureNetwork):  # type: ignore[misc]  # the first is Any to mypy
    """torchvision's network without its head; any image side of at least one patch is taken.

    At `image_size` it computes exactly what torchvision's does.  At another one the position embeddings are
    interpolated (bicubic), as Dosovitskiy et al. do for fine-tuning, so that small crops and other test sizes work.

    Args:
        name: `vit_small` or `vit_base`.
        image_size: side in pixels that the position embeddings are for, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.

    Attributes:
        feature_dim: channels of the class token, D.
    """

    # torchvision's, which mypy does not see
    conv_proj: nn.Module
    class_token: nn.Parameter
    encoder: Any
    image_size: int
    patch_size: int

    def __init__(self, name: str, image_size: int, patch_size: int) -> None:
        layers, heads, channels = _SHAPES[name]
        super().__init__(image_size, patch_size, layers, heads, channels, 4 * channels)
        self.heads = nn.Sequential()  # nothing: the class token itself
        self.feature_dim = channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised floats to (N, feature_dim): the class token after the last layer norm."""
        patches = self.conv_proj(x)
        rows, columns = patches.shape[-2:]
        tokens = torch.cat((self.class_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
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
