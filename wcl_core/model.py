"""The network under training: one backbone, the instance head and, for WCL, the weak-label head.

    x^1, x^2, small crops ── backbone ── h ─┬─ instance head ── z
                                            └─ weak head ────── u

What the loss makes of z and u is in `objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wcl_core.backbones import build_backbone
from wcl_core.config import PretrainSpec
from wcl_core.data import derived_seed
from wcl_core.heads import ProjectionHead


@dataclass(frozen=True)
class Embeddings:
    """Unit rows of one view: z (B, D) and, with a weak head, u (B, D); float32."""

    z: Tensor
    u: Tensor | None


@dataclass(frozen=True)
class Views:
    """Normalised images of one batch: two views (B, 3, H, W) and perhaps V small crops (B, V, 3, S, S) of each."""

    first: Tensor
    second: Tensor
    crops: Tensor | None = None

    def chunks(self, size: int) -> list[Views]:
        """Consecutive parts of `size` images each."""
        crops = [None] * (len(self.first) // size) if self.crops is None else self.crops.split(size)
        return [Views(*part) for part in zip(self.first.split(size), self.second.split(size), crops, strict=True)]


@dataclass(frozen=True)
class Embedded:
    """The embeddings of `Views`: both views and, flat in each row so that all parts have B rows, the crops.

    Attributes:
        first: the first view's.
        second: the second view's.
        crops: z and u of shape (B, V D); None without crops.
    """

    first: Embeddings
    second: Embeddings
    crops: Embeddings | None = None

    def parts(self) -> list[Tensor]:
        """Every tensor there is, in an order that `map` keeps."""
        views = [self.first, self.second, *([] if self.crops is None else [self.crops])]
        return [part for view in views for part in (view.z, view.u) if part is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> Embedded:
        """Each part changed alike."""
        return self.replaced([change(part) for part in self.parts()])

    def replaced(self, parts: list[Tensor]) -> Embedded:
        """The same structure with other tensors in the order of `parts`."""
        rest = iter(parts)
        views = [self.first, self.second, *([] if self.crops is None else [self.crops])]
        return Embedded(*(Embeddings(next(rest), None if view.u is None else next(rest)) for view in views))

    @staticmethod
    def joined(chunks: list[Embedded]) -> Embedded:
        """The rows of all chunks, in their order."""
        return chunks[0].replaced([torch.cat(rows) for rows in zip(*(chunk.parts() for chunk in chunks), strict=True)])


class Model(nn.Module):
    """Backbone and heads, each initialised by a seed of its own, so that a SimCLR twin starts from the same weights."""

    def __init__(self, spec: PretrainSpec) -> None:
        super().__init__()
        torch.manual_seed(derived_seed(spec.seed, "initialisation"))
        self.backbone = build_backbone(spec.backbone, spec.data.image_size)
        torch.manual_seed(derived_seed(spec.seed, "initialisation", "instance head"))
        self.instance_head = self._head(spec)
        self.weak_head: ProjectionHead | None = None
        if spec.method == "wcl":
            torch.manual_seed(derived_seed(spec.seed, "initialisation", "weak head"))
            self.weak_head = self._head(spec)

    def _head(self, spec: PretrainSpec) -> ProjectionHead:
        return ProjectionHead(self.backbone.feature_dim, spec.heads.hidden_dim, spec.heads.output_dim)

    def forward(self, images: Tensor) -> Embeddings:
        """Embeddings of (B, 3, H, W) normalised views; one pass is one group of batch-norm statistics."""
        features = self.backbone(images)
        return Embeddings(self.instance_head(features), None if self.weak_head is None else self.weak_head(features))

    def embed_views(self, first: Tensor, second: Tensor, batch_norm_views: str) -> tuple[Embeddings, Embeddings]:
        """Both views, by default each normalised by its own statistics [C]; `joint` shares them [D]."""
        if batch_norm_views == "separate":
            return self(first), self(second)
        both: Embeddings = self(torch.cat((first, second)))
        z1, z2 = both.z.chunk(2)
        u1, u2 = (None, None) if both.u is None else both.u.chunk(2)
        return Embeddings(z1, u1), Embeddings(z2, u2)

    def embed(self, views: Views, batch_norm_views: str) -> Embedded:
        """All views; the small crops are one more pass and so a group of batch-norm statistics of their own."""
        first, second = self.embed_views(views.first, views.second, batch_norm_views)
        if views.crops is None:
            return Embedded(first, second)
        images = views.crops.flatten(0, 1)
        if views.first.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        crops: Embeddings = self(images)
        count = len(views.crops)
        u = None if crops.u is None else crops.u.reshape(count, -1)
        return Embedded(first, second, Embeddings(crops.z.reshape(count, -1), u))
