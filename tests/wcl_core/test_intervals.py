"""Intervals of accuracies: against SciPy and a published table, and how often they hold the truth."""

from __future__ import annotations

import pytest
import torch

from wcl_core.intervals import newcombe, wilson

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 10), (5, 10), (10, 10), (67, 107), (4612, 10_000)])
def test_the_interval_of_a_share_is_wilsons(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("hits", "others", "count", "low", "high"),
    [(9, 3, 10, 0.1705, 0.8090), (6, 2, 7, 0.0582, 0.8062), (10, 0, 10, 0.6075, 1.0), (0, 0, 10, -0.2775, 0.2775)],
)
def test_the_interval_of_a_difference_is_newcombes(hits: int, others: int, count: int, low: float, high: float) -> None:
    """The cases of his table II with equal numbers of images, method 10."""
    assert newcombe(hits / count, others / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("share", "other", "count"), [(0.6, 0.5, 107), (0.97, 0.92, 300), (0.1, 0.1, 50)])
def test_an_interval_of_a_difference_holds_the_truth_as_often_as_it_says(
    share: float, other: float, count: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    hits = [torch.rand(4000, count, generator=draw).lt(p).double().mean(dim=1).tolist() for p in (share, other)]
    held = [low <= share - other <= high for low, high in map(newcombe, *hits, [count] * 4000)]
    assert 0.935 <= sum(held) / len(held) <= 0.985
