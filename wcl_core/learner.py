"""What learns in a run beside the optimiser: the network, its momentum encoder and the queue of past embeddings.

    views ── network [in chunks, twice] ── embeddings ── gather ── objective ── gradients
          └─ momentum network ──────────── keys ─────── gather ──┘   ▲
                                                        queue ───────┘

The loop in `pretrain` asks for the gradients of a batch, steps, and lets the rest follow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wcl_core.config import PretrainSpec
from wcl_core.gradient_cache import GradientCache
from wcl_core.model import Embedded, Model, Views
from wcl_core.momentum import MomentumEncoder
from wcl_core.neighbour_queue import NeighbourQueue
from wcl_core.objective import Objective, Weights, objective

Gather = Callable[..., list[Tensor]]


class Learner:
    """The network under training and all that its loss needs from step to step.

    Args:
        config: the run.
        build: makes the freshly initialised network on its device; called again for the momentum encoder's twin.
        is_bfloat16: whether networks run under bfloat16 autocast.
        gather: from this rank's rows of some tensors to the global batch's, with gradient; alone they are the same.
    """

    def __init__(
        self, config: PretrainSpec, build: Callable[[], Model], *, is_bfloat16: bool, gather: Gather | None = None
    ) -> None:
        self.model = build()
        self._config, self._is_bfloat16, self._gather = config, is_bfloat16, gather
        self._momentum: MomentumEncoder | None = None
        if config.momentum_decay is not None:
            self._momentum = MomentumEncoder(build(), config.momentum_decay)
        self._queue: NeighbourQueue | None = None
        if config.queue_size:
            device = next(self.model.parameters()).device
            self._queue = NeighbourQueue(config.queue_size, config.heads.output_dim, device)
        self._newest: tuple[Tensor, Tensor] | None = None

    def gradients(self, views: Views, images: Tensor, step: int, total_steps: int) -> Objective:
        """Add a batch's gradient to the parameters'.

        Args:
            views: this rank's part of the batch.
            images: (B,) int64 index in the train split of each image of the global batch.
            step: updates done before this one.
            total_steps: of the run.
        """
        cache = self._cache(views)
        embedded = self._whole(self._embed(self.model, views) if cache is None else cache.embedded)
        keys = self._keys(views)
        weights = Weights.at(self._config, step, total_steps)
        found = objective(embedded, self._config, weights, images, keys=keys, queue=self._queue)
        found.total.backward()
        if cache is not None:
            cache.backward()
        newest = embedded if keys is None else keys
        if newest.first.u is not None and newest.second.u is not None:
            self._newest = newest.first.u.detach(), newest.second.u.detach()
        return found

    def follow(self, images: Tensor, step: int) -> None:
        """After the optimiser's step: move the momentum encoder on and put the batch into the queue."""
        if self._momentum is not None:
            self._momentum.update(self.model)
        if self._queue is not None and self._newest is not None:
            self._queue.push(*self._newest, images, step)
        self._newest = None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by prefix: `model/`, and where they are on `momentum/` and `queue/`."""
        parts = {"model": dict(self.model.state_dict())}
        if self._momentum is not None:
            parts["momentum"] = self._momentum.state()
        if self._queue is not None:
            parts["queue"] = self._queue.state()
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load(self, part: Callable[[str], dict[str, Tensor]]) -> None:
        """Continue from a checkpoint, whose tensors below a prefix `part` gives."""
        self.model.load_state_dict(part("model/"))
        if self._momentum is not None:
            self._momentum.load(part("momentum/"))
        if self._queue is not None:
            self._queue.load(part("queue/"))

    def _cache(self, views: Views) -> GradientCache | None:
        size = self._config.micro_batch_size
        if size is None:
            return None
        joint = self._config.loss.batch_norm_views
        return GradientCache(self.model, views, size, joint, is_bfloat16=self._is_bfloat16)

    def _keys(self, views: Views) -> Embedded | None:
        if self._momentum is None:
            return None
        both = Views(views.first, views.second)
        chunks = both.chunks(self._config.micro_batch_size or len(both.first))
        with torch.no_grad():
            return self._whole(Embedded.joined([self._embed(self._momentum.model, chunk) for chunk in chunks]))

    def _embed(self, model: Model, views: Views) -> Embedded:
        with torch.autocast(views.first.device.type, dtype=torch.bfloat16, enabled=self._is_bfloat16):
            return model.embed(views, self._config.loss.batch_norm_views)

    def _whole(self, embedded: Embedded) -> Embedded:
        return embedded if self._gather is None else embedded.replaced(self._gather(*embedded.parts()))
