"""The network under training: one backbone and the heads of its method; for WCL the instance and the weak-label head.

    x^1, x^2, small crops ── backbone ── h ─┬─ instance head ── z
                                            └─ weak head ────── u

What the loss makes of the embeddings is the method's business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wcl_core.config import PretrainSpec
from wcl_core.data import derived_seed
from wcl_core.methods.builtin import build_method
from wcl_core.methods.heads import ProjectionHead
from wcl_core.methods.views import Embedded, Embeddings, Views
from wcl_core.networks.backbones import build_backbone


class Model(nn.Module):
    """Backbone and heads, each initialised by a seed of its own, so that a SimCLR twin starts from the same weights.

    Attributes:
        backbone: images to pooled features.
        head_names: each is a submodule by this name; the first one's embeddings are what monitors look at.
        labels_head: the one whose neighbours make weak labels; None where there are none.
    """

    def __init__(self, spec: PretrainSpec) -> None:
        super().__init__()
        torch.manual_seed(derived_seed(spec.seed, "initialisation"))
        self.backbone = build_backbone(spec.backbone, spec.data.image_size)
        method = build_method(spec)
        self.head_names, self.labels_head = tuple(method.heads), method.labels_head
        for name, build in method.heads.items():
            torch.manual_seed(derived_seed(spec.seed, "initialisation", name.replace("_", " ")))
            self.add_module(name, build(self.backbone.feature_dim))

    def heads(self, features: Tensor) -> Embeddings:
        """Each head's rows of (B, feature_dim) pooled features."""
        return {name: self.get_submodule(name)(features) for name in self.head_names}

    def forward(self, images: Tensor) -> Embeddings:
        """Embeddings of (B, 3, H, W) normalised views; one pass is one group of batch-norm statistics."""
        return self.heads(self.backbone(images))

    def embed_views(self, first: Tensor, second: Tensor, batch_norm_views: str) -> tuple[Embeddings, Embeddings]:
        """Both views, by default each normalised by its own statistics [C]; `joint` shares them [D]."""
        if batch_norm_views == "separate":
            features = self.backbone(first), self.backbone(second)
            both = {name: self._rows_by_view(name, *features) for name in self.head_names}
        else:
            both = {name: rows.chunk(2) for name, rows in self(torch.cat((first, second))).items()}
        one, other = ({name: halves[view] for name, halves in both.items()} for view in (0, 1))
        return one, other

    def _rows_by_view(self, name: str, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """A head's rows of each view's features; a plugin's head need not know how to take both at once."""
        head = self.get_submodule(name)
        if isinstance(head, ProjectionHead):
            rows: Tensor = head(torch.cat((first, second)), num_views=2)
            return rows.chunk(2)
        return head(first), head(second)

    def embed(self, views: Views, batch_norm_views: str) -> Embedded:
        """All views; the small crops are one more pass and so a group of batch-norm statistics of their own."""
        first, second = self.embed_views(views.first, views.second, batch_norm_views)
        if views.crops is None:
            return Embedded(first, second)
        images = views.crops.flatten(0, 1)
        if views.first.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        count = len(views.crops)
        return Embedded(first, second, {name: rows.reshape(count, -1) for name, rows in self(images).items()})
