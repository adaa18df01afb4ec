"""The views of a step: parameters that a thread draws one step ahead, and views with shapes that no value changes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from tests.waiting import PATIENCE
from tests.wcl_core import small
from wcl_core.distributed import SINGLE, Ranks
from wcl_core.images.view_parameters import draw_parameters
from wcl_core.training import view_maker
from wcl_core.training.view_maker import Inputs, ViewMaker

CROPS: dict[str, Any] = {"multi_crop": {"crops": 2, "image_size": 8}}


def maker(ranks: Ranks = SINGLE, **fields: Any) -> ViewMaker:
    layout = torch.channels_last
    return ViewMaker(small.spec(**fields), ranks, torch.device("cpu"), (12, 10), small.STEPS_PER_EPOCH, layout)


def inputs(views: ViewMaker, step: int, count: int = 64) -> Inputs:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (count, 3, 12, 10), dtype=torch.uint8, generator=generator)
    return Inputs(images, views.parameters(step), torch.arange(count))


def test_a_thread_draws_the_parameters_of_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, str]] = []
    is_next = threading.Event()

    def watch(*arguments: Any, **place: Any) -> Any:
        drawn.append((place["step"], threading.current_thread().name))
        if place["step"] == 3:
            is_next.set()
        return draw_parameters(*arguments, **place)

    views = maker()
    expected = [views.parameters(step) for step in range(2, 6)]
    monkeypatch.setattr(view_maker, "draw_parameters", watch)
    ahead = views.ahead(range(2, 6))
    first = next(ahead)
    assert is_next.wait(PATIENCE), "step 3 is drawn although only step 2 was taken"
    for ours, theirs in zip([first, *ahead], expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.values, other.values)
            assert torch.equal(one.masks, other.masks)
    assert [step for step, _ in drawn] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert {name for _, name in drawn} == {"views_0"}


@pytest.mark.parametrize("fields", [{}, CROPS, {"weak_augmentation": {"hue": 0.0, "blur_probability": 0.0}}])
def test_views_of_fixed_shapes_are_the_views(fields: dict[str, Any]) -> None:
    """One function serves the first epochs with the weak augmentation and the later ones."""
    views = maker(**fields)
    fixed = views.fixed_views(lambda function: function)
    for step in (0, small.STEPS_PER_EPOCH):
        given = inputs(views, step)
        expected = views.views(given).parts()
        for ours, theirs in zip(fixed(given.on_device()).parts(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
            assert ours.stride() == theirs.stride()


def test_parameters_of_a_rank_are_its_part_of_the_batchs() -> None:
    whole = maker(**CROPS).parameters(5)
    parts = [maker(Ranks(rank, 2), **CROPS).parameters(5) for rank in range(2)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat((first.values, second.values), dim=1), one.values)
        assert torch.equal(torch.cat((first.masks, second.masks), dim=1), one.masks)
