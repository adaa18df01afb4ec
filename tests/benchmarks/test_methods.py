"""The comparison of methods: held-out images, equal budgets, intervals, and kept trials."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_rel

from benchmarks.measure.pairs import comparison_table, paired
from benchmarks.measure.search import METHODS, Search, Stage
from benchmarks.measure.trials import FOLDS, MEASURES, PRECISIONS, Bench, Measured, Source, Trial, dataset, parts
from tests import parallel

pytestmark = pytest.mark.slow

LABELS = torch.arange(10).repeat(103)
SHORT = {"epochs": 1, "warmup_epochs": 0, "weak_augmentation_epochs": 0, "log_every_steps": 1}


@pytest.mark.parametrize("per_class", [None, 40])
def test_held_out_images_are_a_balanced_tenth_and_not_trained_on(per_class: int | None) -> None:
    held_by_fold = []
    for fold in range(FOLDS):
        train, held = parts(LABELS, per_class, fold)
        assert not set(train.tolist()) & set(held.tolist())
        assert LABELS[held].bincount().tolist() == [10] * 10
        assert LABELS[train].bincount().tolist() == [per_class or 93] * 10
        held_by_fold.append(set(held.tolist()))
    assert len(set.union(*held_by_fold)) == 10 * 10 * FOLDS, "each fold holds out other images"


def test_search_and_comparison_train_on_the_same_few_images() -> None:
    alone, nothing = parts(LABELS, 40, None)
    assert len(nothing) == 0
    assert all(torch.equal(parts(LABELS, 40, fold)[0], alone) for fold in range(3))
    assert len(parts(LABELS, None, None)[0]) == len(LABELS)


def test_a_trial_of_the_search_never_sees_the_test_split() -> None:
    whole, held = dataset(Source(), None), dataset(Source(), 0)
    assert len(held.train) + len(held.test) == len(whole.train)
    assert held.test.digest != whole.test.digest
    pixels = {image.numpy().tobytes() for image in torch.cat((held.train.images, held.test.images))}
    assert pixels == {image.numpy().tobytes() for image in whole.train.images}


def test_the_twins_of_a_pair_differ_in_the_method_alone() -> None:
    wcl, simclr = (Trial(Source(), method, 3, (), None).spec() for method in ("wcl", "simclr"))
    assert wcl.model_copy(update={"method": "simclr"}) == simclr


def test_budgets_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="equal numbers of options"):
        Stage("rate", {"wcl": [{"a": 1}, {"a": 2}], "simclr": [{"a": 1}]})
    with pytest.raises(ValueError, match="options are shared, but differ"):
        Stage("rate", {"wcl": [{"a": 1}], "simclr": [{"a": 2}]}, is_shared=True)


def test_the_search_tries_equally_many_settings_and_chooses_the_best() -> None:
    measured: list[Trial] = []

    def measure(trials: list[Trial]) -> list[Measured]:
        """Return scores that are best at a = 2, b = 0 for WCL and at a = 3, b = 1 for SimCLR."""
        measured.extend(trials)
        results = []
        for trial in trials:
            at = dict(trial.settings)
            liked = {"wcl": 2, "simclr": 3}[trial.method]
            value = -abs(at["a"] - liked) - (2 if trial.method == "wcl" else -1) * at["b"]
            results.append(dict.fromkeys(MEASURES, float(value)))
        return results

    search = Search(Source(), (1000, 1001), measure, {method: {"a": 1, "b": 0} for method in METHODS})
    own = {"wcl": [{"a": 2}, {"a": 4}], "simclr": [{"a": 3}, {"a": 4}]}

    best = search.run([Stage("own", own), Stage.shared("both", [{"b": 1}])])

    assert best == {"wcl": {"a": 2, "b": 0}, "simclr": {"a": 3, "b": 0}}, "what both share is chosen for both"
    assert {(trial.seed, trial.fold) for trial in measured} == {(1000, 0), (1001, 1)}
    counts = [sum(entry["method"] == method for entry in search.tried) for method in METHODS]
    assert counts == [4, 4]


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    a, b = [71.0, 72.5, 70.0, 69.5, 73.0], [72.0, 72.0, 71.5, 71.0, 74.5]

    middle, half = paired([y - x for x, y in zip(a, b, strict=True)])

    low, high = ttest_rel(b, a).confidence_interval(0.95)
    assert (middle - half, middle + half) == pytest.approx((low, high))


def test_the_table_shows_wcl_minus_simclr_for_each_seed() -> None:
    simclr = [dict.fromkeys(MEASURES, value) for value in (0.5, 0.7)]
    wcl = [dict.fromkeys(MEASURES, value) for value in (0.52, 0.72)]

    rows = comparison_table(simclr, wcl).splitlines()[2:]

    assert len(rows) == len(MEASURES)
    assert all("| 60.00 | 62.00 | +2.00 ± 0.00 |" in row for row in rows)


def test_a_trial_is_measured_once_and_its_result_outlives_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(parallel.python()))
    trials = [Trial(Source(), method, 0, tuple(SHORT.items()), 0) for method in METHODS]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        measured = Bench(pool, tmp_path / "finished.jsonl").measure(trials)
    with ThreadPoolExecutor(1) as closed:
        later = Bench(closed, tmp_path / "finished.jsonl")
    assert later.measure(trials) == measured, "a closed pool runs nothing"

    assert set(measured[0]) == set(MEASURES)
    assert set(measured[1]) == {*MEASURES, *PRECISIONS}
    assert all(0 <= value <= 1 for one in measured for value in one.values())
    with pytest.raises(RuntimeError, match="shutdown"):
        later.measure([Trial(Source(), "wcl", 1, tuple(SHORT.items()), 0)])
