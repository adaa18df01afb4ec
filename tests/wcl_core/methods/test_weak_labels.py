"""The neighbour graph and its components against plain Python, and the agreement measures against scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from wcl_core.methods import weak_labels
from wcl_core.methods.key_masks import ByImage
from wcl_core.methods.weak_labels import (
    NUMPY_UP_TO_ROWS,
    coarser_labels,
    components,
    k_nearest_neighbours,
    largest_share,
    nearest_neighbours,
    pair_precision,
    pair_precision_chance,
    view_agreement,
)

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
    labels = components(torch.tensor(nn))
    assert partition(labels.tolist()) == partition(union_find(nn))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weak_labels, "NUMPY_UP_TO_ROWS", 0)
        assert torch.equal(components(torch.tensor(nn)), labels)


@pytest.mark.parametrize("count", [2, 3, 5, 64, 65])
def test_long_cycles_and_chains(count: int) -> None:
    cycle = (torch.arange(count) + 1) % count
    chain = torch.arange(1, count + 1).clamp(max=count - 1)
    chain[-1] = count - 2
    assert components(cycle).unique().tolist() == [0]
    assert len(components(chain).unique()) == 1


def random_edges(order: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(len(order), order.shape, generator=generator)


def one_cycle(order: Tensor, generator: torch.Generator) -> Tensor:
    """Return one cycle through all rows, in random order."""
    return order.roll(1)[order.argsort()]


def cycles(order: Tensor, generator: torch.Generator) -> Tensor:
    """Return several cycles of very different lengths."""
    bounds = [0, *sorted({len(order) // 2, len(order) // 3, len(order) - len(order) // 7}), len(order)]
    rolled = [order[start:stop].roll(1) for start, stop in pairwise(bounds)]
    return torch.cat(rolled)[order.argsort()]


def chain(order: Tensor, generator: torch.Generator) -> Tensor:
    """Return the longest chain; it ends in a cycle of two, as with nearest neighbours."""
    return torch.cat((order[1:2], order[:-1]))[order.argsort()]


def chain_to_itself(order: Tensor, generator: torch.Generator) -> Tensor:
    """Return a chain that ends in a row that points to itself, as queue rows do."""
    return torch.cat((order[:1], order[:-1]))[order.argsort()]


def tree(order: Tensor, generator: torch.Generator) -> Tensor:
    """Return a binary tree; its root and the root's first child form the cycle."""
    rank = torch.arange(len(order))
    parent = ((rank - 1) // 2).clamp(min=0)
    parent[0] = 1
    return order[parent][order.argsort()]


def few_targets(order: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows of which many point to the same few rows, as with many duplicates."""
    return torch.randint(1 + len(order) // 8, order.shape, generator=generator)


def pairs(order: Tensor, generator: torch.Generator) -> Tensor:
    """Return pairs and, if the number of rows is odd, one row that points to itself."""
    return order[(torch.arange(len(order)) ^ 1).clamp(max=len(order) - 1)][order.argsort()]


SHAPES = (random_edges, one_cycle, cycles, chain, chain_to_itself, tree, few_targets, pairs)
# The ends of the range, both sides of the change from NumPy to torch, and as many small ones as make 10,000.
SIZES = (2, 3, NUMPY_UP_TO_ROWS, NUMPY_UP_TO_ROWS + 1, 65_535, 65_536)
NUM_GRAPHS = 10_000


def functional_graphs() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(2, 80, (NUM_GRAPHS,), generator=generator).tolist()
    every = [(shape, size) for shape in SHAPES for size in SIZES]
    every += [(SHAPES[number % len(SHAPES)], size) for number, size in enumerate(small[len(every) :])]
    for shape, size in every:
        yield shape(torch.randperm(size, generator=generator), generator)


@pytest.mark.slow
def test_components_are_those_of_scipy() -> None:
    """Equal partitions: as many joint labels as labels of either."""
    num_graphs = 0
    for nn in functional_graphs():
        count = len(nn)
        graph = csr_matrix((np.ones(count), (np.arange(count), nn.numpy())), shape=(count, count))
        number, expected = connected_components(graph, directed=False)
        labels = components(nn).numpy()
        assert len(np.unique(labels)) == number
        assert len(np.unique(labels * number + expected)) == number
        num_graphs += 1
    assert num_graphs == NUM_GRAPHS


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


def test_labels_of_many_duplicates_are_those_of_scipy() -> None:
    """Ties everywhere, over many tiles of rows: each row chooses the first other row of its kind, or of the nearest."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(40, (3000,), generator=generator)
    u = torch.nn.functional.one_hot(kinds, 40).float()
    u[:, 0] += 0.5 * (kinds % 2)  # half of the kinds look a little like the first
    nn = nearest_neighbours(u)
    similarity = (u.double() @ u.double().T).numpy()
    np.fill_diagonal(similarity, -np.inf)
    assert np.array_equal(nn.numpy(), similarity.argmax(1))  # NumPy's argmax is the lowest
    labels = components(nn).numpy()
    graph = csr_matrix((np.ones(3000), (np.arange(3000), nn.numpy())), shape=(3000, 3000))
    number, expected = connected_components(graph, directed=False)
    assert len(np.unique(labels)) == len(np.unique(labels * number + expected)) == number


@settings(max_examples=60, deadline=None)
@given(GRID, GRID, st.integers(1, 5), st.sampled_from([16, 10**6]), st.integers(0, 99))
def test_k_neighbours_among_batch_and_queue(
    entries: list[list[float]], queue: list[list[float]], k: int, tile: int, seed: int
) -> None:
    """Nearest first, lowest index among equals; never the own image or an empty row; itself if no candidate is left."""
    generator = torch.Generator().manual_seed(seed)
    names = torch.arange(len(entries))
    queue_names = torch.randint(-1, len(entries), (len(queue),), generator=generator)
    all_names = torch.cat((names, queue_names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weak_labels, "MAX_TILE_PAIRS", tile)
        neighbours = k_nearest_neighbours(
            torch.tensor(entries), k, queue=torch.tensor(queue), excluded=ByImage(names, all_names)
        ).tolist()
    candidates = entries + queue
    for i, row in enumerate(entries):
        similarity = {
            j: sum(a * b for a, b in zip(row, other, strict=True))
            for j, other in enumerate(candidates)
            if all_names[j] not in (-1, i)
        }
        expected = sorted(similarity, key=lambda j: (-similarity[j], j))[:k]
        assert neighbours[i] == expected + [i] * (k - len(expected))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 24), st.integers(1, 40), st.integers(0, 999))
def test_labels_of_batch_and_queue_are_components(count: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = F.normalize(torch.randn(count, 4, generator=generator), dim=1)
    queue = F.normalize(torch.randn(length, 4, generator=generator), dim=1)
    names = torch.cat((torch.arange(count), torch.randint(-1, 2 * count, (length,), generator=generator)))
    excluded = ByImage(names[:count], names)
    nn = nearest_neighbours(u, queue=queue, excluded=excluded).tolist()
    labels = weak_labels.weak_labels(u, queue=queue, excluded=excluded).tolist()
    assert partition(labels) == partition(union_find(nn + list(range(count, count + length))))
    for i in range(count):  # each anchor has a visible positive
        assert any(labels[j] == labels[i] and names[j] not in (-1, i) for j in range(count + length))


def plain_coarser(u: torch.Tensor, labels: list[int]) -> list[int]:
    groups = sorted({frozenset(j for j, y in enumerate(labels) if y == label) for label in labels}, key=min)
    if len(groups) == 1:
        return [0] * len(labels)
    means = [F.normalize(u[list(group)].double().mean(0), dim=0) for group in groups]
    nn = [
        max((c for c in range(len(groups)) if c != own), key=lambda c, own=own: float(means[own] @ means[c]))
        for own in range(len(groups))
    ]
    merged = union_find(nn)
    return [merged[next(c for c, group in enumerate(groups) if i in group)] for i in range(len(labels))]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 999), st.sampled_from([40, 10**6]))
def test_labels_one_level_higher_cluster_the_means(count: int, seed: int, tile: int) -> None:
    u = F.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=1)
    fine = weak_labels.weak_labels(u)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weak_labels, "MAX_TILE_PAIRS", tile)
        coarse = weak_labels.weak_labels(u, level=2)
    assert partition(coarse.tolist()) == partition(plain_coarser(u, fine.tolist()))
    assert ((coarse >= 0) & (coarse < count)).all()


def test_a_level_higher_of_one_component_and_of_opposite_means() -> None:
    u = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1]]), dim=1)
    assert weak_labels.weak_labels(u, level=2).unique().numel() == 1
    # Two components whose means are zero: normalised they stay zero, and they still choose each other.
    u = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert coarser_labels(u, torch.tensor([0, 0, 2, 2])).unique().numel() == 1


def test_a_level_higher_with_a_queue_is_refused() -> None:
    with pytest.raises(ValueError, match="queue"):
        weak_labels.weak_labels(torch.eye(3), level=2, queue=torch.eye(3))


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 5), min_size=1, max_size=30))
def test_largest_share_is_that_of_the_most_frequent_label(labels: list[int]) -> None:
    assert largest_share(torch.tensor(labels)).item() == max(map(labels.count, labels)) / len(labels)


def test_chance_is_the_sum_of_squared_shares() -> None:
    assert pair_precision_chance(torch.tensor([0, 0, 0, 7])).item() == pytest.approx(0.75**2 + 0.25**2)
