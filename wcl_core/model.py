"""The network under training: one backbone, the instance head and, for WCL, the weak-label head; and its loss.

x^1, x^2 ── backbone ── h ─┬─ instance head ── z ── NT-Xent                    L_NCE
                           └─ weak head ────── u ── swapped weak-label loss    L_swap
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wcl_core.backbones import build_backbone
from wcl_core.config import LossConfig, PretrainSpec
from wcl_core.data import derived_seed
from wcl_core.distributed import Ranks
from wcl_core.heads import ProjectionHead
from wcl_core.losses import nt_xent, swapped_weak_label_loss


@dataclass(frozen=True)
class Embeddings:
    """Unit rows of one view: z (B, D) and, with a weak head, u (B, D); float32."""

    z: Tensor
    u: Tensor | None


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


def gathered(ranks: Ranks, a: Embeddings, b: Embeddings) -> tuple[Embeddings, Embeddings]:
    """The global batch's embeddings of both views from this rank's, in one exchange; gradient flows to own rows."""
    if a.u is None or b.u is None:
        return tuple(Embeddings(z, None) for z in ranks.gather(a.z, b.z))  # type: ignore[return-value]
    z1, u1, z2, u2 = ranks.gather(a.z, a.u, b.z, b.u)
    return Embeddings(z1, u1), Embeddings(z2, u2)


def losses(a: Embeddings, b: Embeddings, config: LossConfig, weak_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """(L, L_NCE, L_swap) with L = L_NCE + beta L_swap; without a weak head L_swap is 0. Scalars, float32."""
    instance = nt_xent(a.z, b.z, config.temperature)
    if a.u is None or b.u is None:
        return instance, instance.detach(), torch.zeros_like(instance)
    weak = swapped_weak_label_loss(a.u, b.u, config.weak_temperature, config.detach_keys)
    return instance + weak_weight * weak, instance.detach(), weak.detach()
