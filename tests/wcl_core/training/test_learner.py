"""The state that the learner keeps from step to step."""

from __future__ import annotations

import torch

from tests.wcl_core import small
from wcl_core.methods import build_method
from wcl_core.methods.base import Batch
from wcl_core.methods.objective import WEAK
from wcl_core.methods.views import Views
from wcl_core.training.learner import Learner

torch.set_num_threads(1)


def test_the_queue_holds_the_embeddings_that_serve_as_keys() -> None:
    """Those of the momentum network if there is one, otherwise of the trained network; from before the step."""
    generator = torch.Generator().manual_seed(0)
    views = Views(*(torch.randn(8, 3, 8, 8, generator=generator) for _ in range(2)))
    for decay in (None, 0.9):
        spec = small.spec(batch_size=8, queue_size=16, momentum_decay=decay)
        learner = Learner(spec, build_method(spec), lambda spec=spec: small.model(spec), is_bfloat16=False)
        with torch.no_grad():
            learner.model.backbone.conv1.weight.add_(0.3)  # the momentum network keeps the first weights
        reference = small.model(spec)
        if decay is None:
            reference.load_state_dict(learner.model.state_dict())
        learner.gradients(views, Batch(torch.arange(8) + 40, 1, 10))
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter.mul_(0.5)
        learner.follow()
        state = learner.state()
        assert state["queue/images"].tolist() == [-1] * 8 + list(range(40, 48))
        for view, images in enumerate((views.first, views.second)):
            expected = reference(images)[WEAK]
            assert expected is not None
            torch.testing.assert_close(state["queue/u"][view, 8:], expected.detach())
