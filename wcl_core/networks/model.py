"""The network under training: one backbone and the heads of its method; for WCL an instance head and a weak head.

    x^1, x^2, small crops ── backbone ── h ─┬─ instance head ── z
                                            └─ weak head ────── u

The method computes the loss from the embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wcl_core.config import PretrainSpec
from wcl_core.data import derived_seed
from wcl_core.methods.base import Method
from wcl_core.methods.heads import ProjectionHead
from wcl_core.methods.views import Embedded, Embeddings, Views
from wcl_core.networks.backbones import build_backbone


class Model(nn.Module):
    """Backbone and heads, each initialised with its own seed, so that WCL and SimCLR start from the same weights.

    Args:
        spec: backbone, image size and seed.
        method: its heads become submodules by their names.

    Attributes:
        backbone: maps images to pooled features.
        head_names: names of the heads; monitors read the embeddings of the first one.
        labels_head: name of the head whose neighbours give weak labels; None without one.
    """

    def __init__(self, spec: PretrainSpec, method: Method) -> None:
        super().__init__()
        torch.manual_seed(derived_seed(spec.seed, "initialisation"))
        self.backbone = build_backbone(spec.backbone, spec.data.image_size)
        self.head_names, self.labels_head = tuple(method.heads), method.labels_head
        for name, build in method.heads.items():
            torch.manual_seed(derived_seed(spec.seed, "initialisation", name.replace("_", " ")))
            self.add_module(name, build(self.backbone.feature_dim))

    def heads(self, features: Tensor) -> Embeddings:
        """Return the embeddings by each head, for (B, feature_dim) pooled features."""
        return {name: self.get_submodule(name)(features) for name in self.head_names}

    def forward(self, images: Tensor) -> Embeddings:
        """Return the embeddings of (B, 3, H, W) normalised views; they share their batch-norm statistics."""
        return self.heads(self.backbone(images))

    def embed_views(self, first: Tensor, second: Tensor, batch_norm_views: str) -> tuple[Embeddings, Embeddings]:
        """Return the embeddings of both views; batch-norm statistics are `separate` [C] or `joint` [D]."""
        if batch_norm_views == "separate":
            features = self.backbone(first), self.backbone(second)
            both = {name: self._rows_by_view(name, *features) for name in self.head_names}
        else:
            both = {name: rows.chunk(2) for name, rows in self(torch.cat((first, second))).items()}
        one, other = ({name: halves[view] for name, halves in both.items()} for view in (0, 1))
        return one, other

    def _rows_by_view(self, name: str, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """Return one head's embeddings of each view; only the built-in head computes both in one product."""
        head = self.get_submodule(name)
        if isinstance(head, ProjectionHead):
            rows: Tensor = head(torch.cat((first, second)), num_views=2)
            return rows.chunk(2)
        return head(first), head(second)

    def embed(self, views: Views, batch_norm_views: str) -> Embedded:
        """Return the embeddings of all views; the small crops are a pass of their own, with their own statistics."""
        first, second = self.embed_views(views.first, views.second, batch_norm_views)
        if views.crops is None:
            return Embedded(first, second)
        images = views.crops.flatten(0, 1)
        if views.first.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        count = len(views.crops)
        return Embedded(first, second, {name: rows.reshape(count, -1) for name, rows in self(images).items()})
