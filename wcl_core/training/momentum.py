"""The momentum encoder: a slowly moving copy of the network that makes the keys, the graph and the labels. [D]

    x^1, x^2 ─┬─ network ────────── z, u ──────────────────────────────── anchors
              └─ momentum network ─ z', u' ── graph, labels, neighbours ── keys, positives, queue

WCL's paper and code have none; the idea is MoCo's (He et al., CVPR 2020).  Where it is on: anchors are the trained
network's, every key and positive is the momentum network's and carries no gradient, an anchor's own place among the
keys of its view stays left out, and the weak labels, P_K and the queue come from u'.  Evaluations and exports read
the trained network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wcl_core.networks.model import Model


class MomentumEncoder:
    """m <- decay m + (1 - decay) p after every step, for every parameter; constant decay.

    Its batch norms normalise by the statistics of each view of the batch, as the trained network's do, and keep
    running statistics of their own.

    Args:
        model: a twin of the trained network with equal weights; this object's own from now on.
        decay: in [0, 1); at 0 it has the trained network's weights of the last step.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = model.requires_grad_(False).train()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the trained network after its step; nothing is read back to the host."""
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - self._decay)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: parameters and buffers."""
        return dict(self.model.state_dict())

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's weights."""
        self.model.load_state_dict(state)
