"""The learner: the network, its momentum encoder and the state of its method; the optimiser is apart.

    views ── network [in chunks, twice] ── embeddings ── gather ── the method's loss ── gradients
          └─ momentum network ──────────── keys ─────── gather ──┘

The loop in `pretrain` calls `gradients`, then the optimiser, then `follow`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wcl_core.config import PretrainSpec
from wcl_core.methods.base import Batch, Loss, Method
from wcl_core.methods.views import Embedded, Views
from wcl_core.networks.model import Model
from wcl_core.training.gradient_cache import GradientCache
from wcl_core.training.momentum import MomentumEncoder

Gather = Callable[..., list[Tensor]]


class Learner:
    """The network under training, and the state that its loss needs from step to step.

    Args:
        method: the method of the run; its heads are the model's.
        build: returns the freshly initialised model on its device; called a second time for the momentum encoder.
        is_bfloat16: whether networks run under bfloat16 autocast.
        gather: maps this rank's rows of some tensors to the rows of the global batch, with gradient; None for one rank.

    Attributes:
        model: the network; monitors, evaluations and checkpoints read it.
        encoder: the form of the network that computes the embeddings in training; at first the network itself.
    """

    def __init__(
        self,
        config: PretrainSpec,
        method: Method,
        build: Callable[[], Model],
        *,
        is_bfloat16: bool,
        gather: Gather | None = None,
    ) -> None:
        self.model = build()
        self._config, self._is_bfloat16, self._gather = config, is_bfloat16, gather
        self._momentum: MomentumEncoder | None = None
        if config.momentum_decay is not None:
            self._momentum = MomentumEncoder(build(), config.momentum_decay)
        self._method = method
        self._method.prepare(next(self.model.parameters()).device)
        self._newest: tuple[Embedded, Batch] | None = None
        self.embed_by(lambda model: model)

    def embed_by(self, form: Callable[[Model], Model]) -> None:
        """Compute embeddings by another form of each network from now on; `model` itself stays as it is.

        Args:
            form: maps a network to one with the same parameters and buffers.
        """
        self.encoder = form(self.model)
        self._key_encoder = None if self._momentum is None else form(self._momentum.model)

    def gradients(self, views: Views, batch: Batch) -> Loss:
        """Add the gradient of a batch to the parameters' gradients, and return the loss.

        Args:
            views: this rank's part of the global batch.
        """
        cache = self._cache(views)
        embedded = self._whole(self._embed(self.encoder, views) if cache is None else cache.embedded)
        keys = self._keys(views)
        loss = self._method.loss(embedded, batch, keys)
        loss.total.backward()
        if cache is not None:
            cache.backward()
        self._newest = (embedded if keys is None else keys).map(Tensor.detach), batch
        return loss

    def follow(self) -> None:
        """Update the momentum encoder and the method; called after the optimiser's step."""
        if self._momentum is not None:
            self._momentum.update(self.model)
        assert self._newest is not None
        self._method.follow(*self._newest)
        self._newest = None

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, below `model/`, `momentum/` (if it is on) and the method's prefix."""
        parts = {"model": dict(self.model.state_dict())}
        if self._momentum is not None:
            parts["momentum"] = self._momentum.state()
        named = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        return named | self._method.state()

    def load(self, part: Callable[[str], dict[str, Tensor]]) -> None:
        """Restore the state from a checkpoint; `part` returns its tensors below a prefix."""
        self.model.load_state_dict(part("model/"))
        if self._momentum is not None:
            self._momentum.load(part("momentum/"))
        self._method.load(part)

    def _cache(self, views: Views) -> GradientCache | None:
        size = self._config.chunk_size
        if size is None:
            return None
        joint = self._config.loss.batch_norm_views
        return GradientCache(self.encoder, views, size, joint, is_bfloat16=self._is_bfloat16)

    def _keys(self, views: Views) -> Embedded | None:
        if self._key_encoder is None:
            return None
        both = Views(views.first, views.second)
        chunks = both.chunks(self._config.chunk_size or len(both.first))
        with torch.no_grad():
            return self._whole(Embedded.joined([self._embed(self._key_encoder, chunk) for chunk in chunks]))

    def _embed(self, model: Model, views: Views) -> Embedded:
        with torch.autocast(views.first.device.type, dtype=torch.bfloat16, enabled=self._is_bfloat16):
            return model.embed(views, self._config.loss.batch_norm_views)

    def _whole(self, embedded: Embedded) -> Embedded:
        return embedded if self._gather is None else embedded.replaced(self._gather(*embedded.parts()))
