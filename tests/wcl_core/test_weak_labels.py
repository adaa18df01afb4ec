"""The neighbour graph and its components against plain Python, and the agreement measures against scikit-learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from wcl_core import weak_labels
from wcl_core.weak_labels import components, nearest_neighbours, pair_precision, pair_precision_chance, view_agreement

torch.set_num_threads(1)


def partition(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, y in enumerate(labels) if y == label) for label in labels}


def union_find(nn: list[int]) -> list[int]:
    parent = list(range(len(nn)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in enumerate(nn):
        parent[root(i)] = root(j)
    return [root(i) for i in range(len(nn))]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=70))
def test_components_of_any_functional_graph(numbers: list[int]) -> None:
    nn = [n % len(numbers) for n in numbers]
    assert partition(components(torch.tensor(nn)).tolist()) == partition(union_find(nn))


@pytest.mark.parametrize("count", [2, 3, 5, 64, 65])
def test_long_cycles_and_chains(count: int) -> None:
    cycle = (torch.arange(count) + 1) % count
    chain = torch.arange(1, count + 1).clamp(max=count - 1)
    chain[-1] = count - 2
    assert components(cycle).unique().tolist() == [0]
    assert len(components(chain).unique()) == 1


# Entries on a grid make products exact, so equal similarities are truly equal.
GRID = st.lists(st.lists(st.sampled_from([-0.5, 0.0, 0.5]), min_size=3, max_size=3), min_size=2, max_size=20)


@settings(max_examples=60, deadline=None)
@given(GRID, st.sampled_from([16, 10**6]))
def test_the_lowest_index_wins_ties(entries: list[list[float]], tile: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weak_labels, "MAX_TILE_PAIRS", tile)
        nn = nearest_neighbours(torch.tensor(entries)).tolist()
    for i, row in enumerate(entries):
        similarity = {j: sum(a * b for a, b in zip(row, other, strict=True)) for j, other in enumerate(entries)}
        del similarity[i]
        assert nn[i] == min(similarity, key=lambda j: (-similarity[j], j))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(0, 999))
def test_every_component_has_two_members(count: int, seed: int) -> None:
    u = F.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)
    labels = weak_labels.weak_labels(u.requires_grad_())
    assert labels.dtype == torch.int64
    assert not labels.requires_grad
    assert labels.unique(return_counts=True)[1].min() >= 2


def test_float32_labels_are_those_of_float64_similarities() -> None:
    u = F.normalize(torch.randn(512, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = weak_labels.weak_labels(u)
    assert torch.equal(labels, weak_labels.weak_labels(u.double()))


def test_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        nearest_neighbours(torch.ones(1, 3))


def test_rows_of_nan_stay_in_range() -> None:
    nn = nearest_neighbours(torch.full((4, 3), torch.nan))
    assert ((nn >= 0) & (nn < 4)).all()


LABELLINGS = st.integers(2, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-3, 5), min_size=n, max_size=n) for _ in range(2)])
)


@settings(max_examples=60, deadline=None)
@given(LABELLINGS)
def test_view_agreement_is_the_adjusted_rand_index(pair: tuple[list[int], list[int]]) -> None:
    a, b = pair
    expected = adjusted_rand_score(a, b)
    assert view_agreement(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(LABELLINGS)
def test_pair_precision_is_the_mean_share(pair: tuple[list[int], list[int]]) -> None:
    labels, classes = pair
    shares = []
    for i, label in enumerate(labels):
        mates = [j for j, other in enumerate(labels) if other == label and j != i]
        if mates:
            shares.append(sum(classes[j] == classes[i] for j in mates) / len(mates))
    value = pair_precision(torch.tensor(labels), torch.tensor(classes))
    assert value.isnan() if not shares else value.item() == pytest.approx(sum(shares) / len(shares))


def test_chance_is_the_sum_of_squared_shares() -> None:
    assert pair_precision_chance(torch.tensor([0, 0, 0, 7])).item() == pytest.approx(0.75**2 + 0.25**2)
