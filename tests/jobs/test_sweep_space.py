"""The search space, rungs and metric of a sweep; pure functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.errors import Invalid
from jobs.sweeps import Metric, Range, designed, halving, space
from tests.jobs.sweeping import BASE, RATE, TEMPERATURE, new_sweep


def test_a_grid_is_every_combination() -> None:
    assert space.grid({"a": [1, 2], "b": ["x"], "c": [None, True]}) == [
        {"a": a, "b": "x", "c": c} for a in (1, 2) for c in (None, True)
    ]


def test_draws_are_a_function_of_seed_and_name() -> None:
    parameters: dict[str, Any] = {"a": Range(min=0.001, max=0.1, log=True), "b": ["x", "y"], "n": Range(min=1, max=9)}

    result = space.draws(parameters, 20, seed=7)

    assert result == space.draws(parameters, 20, seed=7)
    assert result != space.draws(parameters, 20, seed=8)
    alone = space.draws({"a": parameters["a"]}, 20, seed=7)
    assert [each["a"] for each in alone] == [each["a"] for each in result], "no parameter moves another one's draws"
    assert result[0]["a"] == 0.0298358, "the same on every machine and under every version"


@pytest.mark.parametrize("is_log", [False, True])
def test_draws_fill_their_range(is_log: bool) -> None:
    values = [each["a"] for each in space.draws({"a": Range(min=0.01, max=100, log=is_log)}, 200, seed=0)]

    assert min(values) >= 0.01
    assert max(values) <= 100
    middle = sum(value < (1 if is_log else 50) for value in values) / 200
    assert middle == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("is_log", [False, True])
def test_whole_numbers_include_both_bounds(is_log: bool) -> None:
    drawn = Range(min=2, max=5, integer=True, log=is_log)

    assert [drawn.at(share) for share in (0, 0.9999999)] == [2, 5]
    assert {each["a"] for each in space.draws({"a": drawn}, 4, seed=0)} == {2, 3, 4, 5}
    assert all(isinstance(drawn.at(share / 10), int) for share in range(10))


def test_more_draws_than_there_are_settings_are_refused() -> None:
    with pytest.raises(Invalid, match="at most 4"):
        space.draws({"a": [1, 2], "b": [1, 2]}, 5, seed=0)
    assert len(space.draws({"a": [1, 2], "b": [1, 2]}, 4, seed=0)) == 4


@pytest.mark.parametrize(
    ("trials", "epochs", "eta", "least", "expected"),
    [
        (9, 18, 3, 2, [(9, 2), (3, 6), (1, 18)]),
        (9, 18, 3, 3, [(9, 6), (3, 18)]),
        (27, 100, 3, None, [(27, 4), (9, 11), (3, 33), (1, 100)]),
        (4, 60, 3, None, [(4, 20), (1, 60)]),
        (8, 8, 2, 1, [(8, 1), (4, 2), (2, 4), (1, 8)]),
    ],
)
def test_rungs_end_at_the_whole_run(trials: int, epochs: int, eta: int, least: int | None, expected: Any) -> None:
    assert [(r.trials, r.epochs) for r in halving.rungs(trials, epochs, eta, least)] == expected


def test_invalid_rungs_are_refused() -> None:
    for arguments, pointer in (((2, 60, 3, None), "/trials"), ((9, 60, 3, 30), "/min_epochs")):
        with pytest.raises(Invalid) as caught:
            halving.rungs(*arguments)
        assert caught.value.errors[0].pointer == pointer
    for lengths in ([5, 5], [9, 3], [1, 2, 3]):
        with pytest.raises(Invalid, match="/rungs"):
            halving.explicit(4, lengths, 3)


def test_equal_values_rank_by_number_and_missing_ones_not_at_all() -> None:
    values = {0: 0.5, 1: None, 2: 0.7, 3: 0.5, 4: math.nan}
    assert [number for number, _ in halving.ranked(values, maximize=True)] == [2, 0, 3]
    assert [number for number, _ in halving.ranked(values, maximize=False)] == [0, 3, 2]


@pytest.mark.parametrize(
    "metric",
    [
        "train/loss",
        {"protocol": "train/loss"},
        {"protocol": "eval/knn_top1"},
        {"protocol": "knn", "name": "train/loss"},
        {"protocol": "embed"},
    ],
)
def test_a_loss_is_not_a_metric(metric: Any) -> None:
    with pytest.raises(ValidationError, match="cannot rank methods, temperatures or batch sizes"):
        Metric.model_validate(metric)


def test_no_metric_was_selected_on_the_test_split() -> None:
    with pytest.raises(ValidationError, match="expected one of top1, mean_per_class"):
        Metric(protocol="linear_sgd", name="top1_selected_on_test")


def test_a_metric_is_one_number_of_its_protocol() -> None:
    assert Metric(protocol="linear").name == "top1"
    assert Metric(protocol="few_labels", settings={"labels_per_class": [1]}).plan["labels_per_class"] == [1]
    for wrong in (
        {"protocol": "few_labels"},
        {"protocol": "semi_supervised"},
        {"protocol": "linear", "name": "recall_at_1"},
        {"protocol": "linear_sgd", "name": "top1_selected_on_test"},
        {"protocol": "knn", "settings": {"when": "best"}},
        {"protocol": "knn", "settings": {"k": 3}},
    ):
        with pytest.raises(ValidationError, match="expected"):
            Metric.model_validate(wrong)


@pytest.mark.parametrize(
    ("parameters", "changes", "pointer"),
    [
        ({"seed": [1, 2]}, {}, "/parameters/seed"),
        ({"data.held_out_share": [0.1, 0.2]}, {}, "/parameters/data.held_out_share"),
        ({"epochs": [1, 2, 3]}, {"search": "halving"}, "/parameters/epochs"),
        ({"loss": [{}], TEMPERATURE: [0.1]}, {}, f"/parameters/{TEMPERATURE}"),
        ({RATE: {"min": 0.1, "max": 0.2}}, {}, f"/parameters/{RATE}"),
        ({TEMPERATURE: [0.1, 0.2]}, {"search": "halving"}, "/trials"),
        ({TEMPERATURE: [0.1] * 2, "batch_size": list(range(2, 202))}, {}, "/parameters"),
        ({"batch_size": list(range(2, 202))}, {"seeds": tuple(range(6))}, "/parameters"),
        ({TEMPERATURE: [0.1]}, {"search": "halving", "base": BASE | {"epochs": "ten"}}, "/spec/epochs"),
        ({TEMPERATURE: [0.1]}, {"base": BASE | {"evaluations": "all"}}, "/spec/evaluations"),
    ],
)
def test_an_invalid_sweep_names_its_field(parameters: Any, changes: Any, pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        designed(new_sweep(parameters, **changes))
    assert [error.pointer for error in caught.value.errors] == [pointer]


@pytest.mark.parametrize(
    "wrong", [{"min": 1, "max": 1}, {"min": 0, "max": 1, "log": True}, {"min": 0.5, "max": 3, "integer": True}]
)
def test_an_invalid_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected"):
        Range.model_validate(wrong)
