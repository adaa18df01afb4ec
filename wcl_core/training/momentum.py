"""The momentum encoder: a slowly moving copy of the network, which gives keys, neighbours and labels. [D]

    x^1, x^2 ─┬─ network ────────── z, u ──────────────────────────────── anchors
              └─ momentum network ─ z', u' ── graph, labels, neighbours ── keys, positives, queue

The idea is MoCo's (He et al., CVPR 2020, https://arxiv.org/abs/1911.05722).  WCL has none.  If it is on:

- anchors come from the trained network;
- every key and positive comes from the momentum network and carries no gradient;
- an anchor does not see its own image among the keys of its own view;
- the weak labels, P_K and the queue come from u'.

Evaluations and exports read the trained network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wcl_core.networks.model import Model


class MomentumEncoder:
    """A network that follows the trained one: m <- decay m + (1 - decay) p for every parameter, after every step.

    As in the trained network, its batch norms normalise each view by the view's statistics, and they keep running
    statistics of their own.

    Args:
        model: a copy of the trained network with equal weights; this object owns it.
        decay: constant, in [0, 1); with 0 the weights are those of the trained network after the last step.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = model.requires_grad_(False).train()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the trained network; called after its step.  No value is read back to the host."""
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - self._decay)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps: parameters and buffers."""
        return dict(self.model.state_dict())

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the weights from a checkpoint."""
        self.model.load_state_dict(state)
