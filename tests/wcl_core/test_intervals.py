"""Intervals of accuracies: against SciPy and a published table, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wcl_core.intervals import Difference, difference, holm, newcombe, paired, t_quantile, wilson
from wcl_core.per_image import Pairs, packed, pairs

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


@pytest.mark.parametrize(("gained", "lost", "count"), [(0.1, 0.02, 107), (0.05, 0.05, 60), (0.3, 0.1, 400)])
def test_a_paired_interval_holds_the_truth_as_often_as_it_says(gained: float, lost: float, count: int) -> None:
    draw = torch.rand(4000, count, generator=torch.Generator().manual_seed(0))
    changes = (draw < gained).long() - (draw > 1 - lost).long()
    sums = zip(changes.sum(dim=1).tolist(), changes.abs().sum(dim=1).tolist(), strict=True)
    held = [low <= gained - lost <= high for low, high in (paired(Pairs(count, *each)) for each in sums)]
    assert 0.935 <= sum(held) / len(held) <= 0.985


def test_packed_results_are_compared_image_by_image() -> None:
    ours, others = [1, 0, 1, 1], [3, 10, 0, 10]
    assert pairs(packed(ours), packed(others, 10), 4) == (4, pytest.approx(0.7), pytest.approx(0.49 + 1 + 1))
    for wrong in (None, {}, {"correct": "?", "trials": 1}, {"correct": "eJwD", "trials": 1}, packed(ours, 0)):
        assert pairs(packed(ours), wrong, 4) is None
    assert pairs(packed(ours), packed([1] * 5), 4) is None


def test_holms_correction_is_that_of_statsmodels_and_its_p_values_follow_from_the_intervals() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # as statsmodels' multipletests
    assert holm([]) == []
    at_the_edge = Difference(0.1, 0.0, 0.2, "")
    assert at_the_edge.p_value == pytest.approx(0.05)
    assert Difference(-0.1, -0.12, -0.08, "").p_value < 1e-20 < Difference(0.0, -0.1, 0.1, "").p_value == 1.0


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 31, 200])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_the_quantile_matches_students_t(degrees: int, probability: float) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)


def test_paired_seeds_give_the_interval_of_their_differences() -> None:
    ours, others = {0: 0.70, 1: 0.72, 2: 0.75, 9: 0.1}, {0: 0.66, 1: 0.69, 2: 0.70, 7: 0.9}
    found = difference(ours, others, 100)
    assert found is not None
    differences = [0.04, 0.03, 0.05]
    expected = stats.t.interval(0.95, 2, loc=np.mean(differences), scale=stats.sem(differences))
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.is_shown, found.method) == (True, "t-interval over 3 paired seeds")


def test_seeds_that_are_not_paired_give_welchs_interval() -> None:
    ours, others = [0.70, 0.72, 0.75], [0.66, 0.69, 0.70, 0.60]
    found = difference(dict(enumerate(ours)), dict(enumerate(others, start=10)), 100)
    assert found is not None
    exact = stats.ttest_ind(ours, others, equal_var=False).confidence_interval(0.95)
    assert found.low <= exact.low <= exact.high <= found.high  # degrees of freedom are rounded down
    assert found.margin == pytest.approx((exact.high - exact.low) / 2, rel=0.1)
    same = difference({0: 0.5, 1: 0.5}, {2: 0.4, 3: 0.4}, None)
    assert same is not None
    assert (same.low, same.high) == (pytest.approx(0.1), pytest.approx(0.1))


def test_one_seed_has_the_interval_of_its_test_images() -> None:
    found = difference({0: 0.62, 1: 0.9}, {0: 0.56}, 107)
    assert found is not None
    assert (found.low, found.high) == newcombe(0.62, 0.56, 107)
    assert found.method == "Newcombe's interval of one seed on 107 test images"
    assert difference({0: 0.5}, {}, 107) is None
    assert difference({0: 0.5}, {0: 0.4}, None) is None
