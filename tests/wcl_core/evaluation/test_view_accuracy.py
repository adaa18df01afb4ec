"""View accuracy: 1 if the features name the image, chance if they say nothing, and the same at every measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.wcl_core import small
from wcl_core.data import Split
from wcl_core.evaluation import view_accuracy as module
from wcl_core.evaluation.view_accuracy import recognised, recognised_by_pixels
from wcl_core.images.augment import random_view
from wcl_core.methods.heads import normalise
from wcl_core.stop import Interrupted, interruptible

CPU = torch.device("cpu")


class Constant(nn.Module):
    """The same features for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 3)


def split(count: int) -> Split:
    few = small.few_digits().train
    return replace(few, images=few.images[:count], labels=few.labels[:count])


def test_it_is_the_share_of_images_whose_other_view_is_nearest() -> None:
    spec, images = small.spec(), split(40)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).train()
    hits = recognised(network, spec, images, CPU)

    order = module.epoch_order(40, spec.seed, -2)
    first, second = (
        normalise(
            network(
                random_view(
                    images.plain(order),
                    spec.augmentation,
                    spec.data.image_size,
                    seed=spec.seed,
                    epoch=-2,
                    step=-1,
                    view=v,
                )
            )
        )
        for v in (0, 1)
    )
    own = [int((second @ row).argmax()) == place for place, row in enumerate(first)]
    assert hits.tolist() == own
    assert 0 < sum(own) < 40
    state = torch.random.get_rng_state()
    assert torch.equal(recognised(network, spec, images, CPU), hits), "at every measurement the same views"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training


def test_features_that_say_nothing_have_chance() -> None:
    hits = recognised(Constant(), small.spec(), split(40), CPU)
    assert (int(hits.sum()), len(hits)) == (1, 40)


def test_raw_pixels_recognise_views_that_do_not_change_them() -> None:
    still = {"jitter_probability": 0.0, "flip_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
    spec = small.spec(augmentation={"scale_min": 1.0, **still})
    assert recognised_by_pixels(spec, split(40), CPU).all()
    one = replace(split(40), images=torch.zeros_like(split(40).images))
    assert int(recognised_by_pixels(spec, one, CPU).sum()) == 1, "equal images: chance"


def test_a_request_ends_it() -> None:
    with interruptible(lambda: "drain"), pytest.raises(Interrupted):
        recognised(Constant(), small.spec(), split(40), CPU)
