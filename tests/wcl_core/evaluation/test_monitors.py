"""The monitors against closed forms, naive loops and other libraries; the monitor batch changes no state."""

from __future__ import annotations

import math
import sys
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from tests.wcl_core import small
from wcl_core.evaluation import monitors
from wcl_core.methods.heads import normalise
from wcl_core.training.monitor_batch import MonitorBatch

SIZES = ((1, 1), (1, 4), (2, 3), (10, 10), (40, 5), (200, 300))

torch.set_num_threads(1)


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return normalise(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def test_alignment_is_the_mean_squared_distance_of_pairs() -> None:
    a, b = rows(7, 3), rows(7, 3, seed=1)
    expected = sum(math.dist(x, y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)) / 7
    assert monitors.alignment(a, b) == pytest.approx(expected)
    assert monitors.alignment(a, a) == 0
    assert monitors.alignment(a, -a) == pytest.approx(4)


def test_uniformity_is_the_log_of_the_mean_over_pairs() -> None:
    x = rows(9, 4)
    pairs = [math.exp(-2 * math.dist(a.tolist(), b.tolist()) ** 2) for a, b in combinations(x, 2)]
    assert monitors.uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-6)
    assert monitors.uniformity(x[:1].expand(5, -1)) == 0
    assert monitors.uniformity(rows(500, 256)) == pytest.approx(-4, abs=0.1)
    with pytest.raises(ValueError, match="at least 2 rows"):
        monitors.uniformity(x[:1])


def test_rankme_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    sigma = np.array([4.0, 2.0, 1.0, 1.0])
    left, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 4)))
    right, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 4)))
    p = sigma / sigma.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    assert monitors.rankme(torch.tensor(left * sigma @ right.T)) == pytest.approx(expected, rel=1e-4)
    assert monitors.rankme(torch.ones(8, 5)) == pytest.approx(1, abs=1e-4)
    assert monitors.rankme(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert math.isnan(monitors.rankme(torch.full((3, 3), math.nan)))


def test_deviation_is_one_for_an_even_spread_in_any_dimension() -> None:
    for dim in (8, 128):
        assert monitors.deviation(5 * rows(4000, dim)) == pytest.approx(1, abs=0.02)
    assert monitors.deviation(torch.ones(4, 3)) == 0
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert monitors.deviation(two) == pytest.approx(math.sqrt(0.5) * math.sqrt(2))  # ddof 1 of (1, 0)


@pytest.mark.slow
def test_adjusted_mutual_information_is_its_formula_with_the_mean_over_all_permutations() -> None:
    labels, classes = [0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 2]
    information = monitors.adjusted_mutual_information(torch.tensor(labels), torch.tensor(classes))

    mi = mutual_info_score(labels, classes)
    expected = np.mean([mutual_info_score(order, classes) for order in {*permutations(labels)}])  # each as often
    entropies = (mutual_info_score(labels, labels) + mutual_info_score(classes, classes)) / 2
    assert information == pytest.approx((mi - expected) / (entropies - expected), rel=1e-6)
    assert monitors.adjusted_mutual_information(torch.tensor(labels), torch.tensor(labels)) == pytest.approx(1)


def test_adjusted_mutual_information_is_that_of_scikit_learn_without_its_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of equal partitions, of single rows, and of one part."""
    generator = np.random.default_rng(0)
    cases = [(generator.integers(0, a, n), generator.integers(0, b, n)) for n in (5, 64, 700) for a, b in SIZES]
    chain = np.minimum(generator.integers(0, 64, 512), 40)  # one large part and many small ones
    cases += [
        (chain, chain % 10),
        (chain, chain),
        (np.arange(64), np.zeros(64, int)),
        (np.arange(64), np.arange(64) % 7),
    ]
    expected = [adjusted_mutual_info_score(classes, labels) for labels, classes in cases]

    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    results = [monitors.adjusted_mutual_information(torch.tensor(a), torch.tensor(b)) for a, b in cases]
    assert results == pytest.approx(expected, abs=1e-9)


def test_adjusted_mutual_information_of_random_groups_of_four_is_no_success() -> None:
    """The raw NMI of these groups is .84."""
    classes = torch.arange(1000).repeat(2)
    groups = torch.randperm(2000, generator=torch.Generator().manual_seed(0)) // 4
    assert abs(monitors.adjusted_mutual_information(groups, classes)) < 0.05


def test_component_share_counts_components() -> None:
    assert monitors.component_share(torch.tensor([0, 0, 5, 5, 0, 5, 9, 9])) == 3 / 8


@pytest.mark.parametrize("method", ["wcl", "simclr"])
def test_measuring_changes_no_state_and_is_deterministic(method: str) -> None:
    spec = small.spec(method=method)
    model = small.model(spec)
    model.backbone.eval()  # modes come back as they were, module by module
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    monitor_batch = MonitorBatch(spec, small.few_digits().train, torch.device("cpu"))

    measured = [monitor_batch.measure(model) for _ in range(2)]
    first, second = (each.values for each in measured)

    assert first == second
    assert [each.labels is None for each in measured] == [method == "simclr"] * 2
    names = {
        f"{part}/{name}" for part in ("repr", "embedding") for name in ("alignment", "uniformity", "rankme", "std")
    }
    assert first.keys() == names | ({"weak/component_share", "weak/ami"} if method == "wcl" else set())
    assert 0 < first["repr/alignment"] < 2, "two different views"
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
