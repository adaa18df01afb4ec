"""Warnings about valid trainings that will hardly learn."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import estimates, queries, submission
from jobs.advice import advice, advice_of, further_epochs_of
from jobs.database import Database
from jobs.recommendations import recommended
from tests.jobs import rows
from wcl_core.config import PretrainSpec, parse_spec, resolve_spec
from wcl_core.presets import presets
from wcl_core.recommendation import MIN_STEPS

SGD = {"name": "sgd", "scaling": "linear"}


def advised(images: int, preset: str | None = None, **fields: Any) -> list[str]:
    data = {"name": "photos", "image_size": 32}
    spec = parse_spec("pretrain", {"data": data, "batch_size": 64, "epochs": 200} | fields)
    assert isinstance(spec, PretrainSpec)
    return advice(spec, images, preset)


@pytest.mark.parametrize(
    ("images", "fields", "expected"),
    [
        (
            490,
            {"epochs": 60},
            [
                "420 steps in all, too few to learn much, so this is a trial; use at least 1,000, that is epochs = "
                "143, or continue it for 83 epochs"
            ],
        ),
        (
            490,
            {"batch_size": 400, "epochs": 2000},
            [
                "batch_size is 400 of 490 train images, so an epoch is one step with the same images each time; "
                "use about 61"
            ],
        ),
        (64, {"epochs": 1}, ["batch_size is 64 of 64 train images, so", "1 step in all, too few to learn anything"]),
        (
            490,
            {"batch_size": 180, "epochs": 10},
            [
                "batch_size is 180 of 490 train images, so an epoch is only 2 steps with almost the same images each "
                "time; use about 61",
                "20 steps in all, too few to learn anything; use at least 1,000, that is batch_size = 61 with epochs = "
                "125, or epochs = 500",
            ],
        ),
        (490, {"batch_size": 120, "epochs": 300}, []),
        (
            4900,
            {"optimizer": SGD | {"learning_rate": 90}},
            ["optimizer.learning_rate is 90, 750 times that of the recipe, and the loss may diverge; use about 0.12"],
        ),
        (4900, {"optimizer": SGD | {"learning_rate": 0.3}}, []),
        (490, {}, []),
        (490, {"epochs": 1, "batch_size": "auto"}, []),
    ],
)
def test_what_will_hardly_learn_is_said_with_the_field_to_change(
    images: int, fields: dict[str, Any], expected: list[str]
) -> None:
    sentences = advised(images, **fields)
    assert len(sentences) == len(expected)
    assert all(each.startswith(start) for each, start in zip(sentences, expected, strict=True)), sentences


@pytest.mark.parametrize(
    ("epochs", "fields", "expected"),
    [
        (60, {}, "420 steps in all, which is little; continue it for 83 more epochs, to at least 1,000 steps"),
        (142, {}, "994 steps in all, which is little; continue it for 1 more epoch, to at least 1,000 steps"),
        (10, {"batch_size": 180}, "20 steps in all, which is little; use at least 1,000, that is batch_size"),
    ],
)
def test_a_training_that_has_ended_can_go_on(epochs: int, fields: dict[str, Any], expected: str) -> None:
    spec = parse_spec("pretrain", {"data": {"name": "photos"}, "batch_size": 64, "epochs": epochs} | fields)
    assert isinstance(spec, PretrainSpec)
    assert advice(spec, 490, None, is_trained=True)[-1].startswith(expected)


@pytest.mark.parametrize("minutes", [0.1, 1.0, 5.0, 60.0])
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_a_recipe_and_the_dry_run_of_it_have_one_verdict_and_one_time(
    database: Database, dataset: str, minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.add_dataset(database, name=dataset)
    for load in (0.0, 16.0):
        monkeypatch.setattr(estimates.os, "getloadavg", lambda load=load: (load, load, load))
        with database.read() as session:
            recipe = recommended(session, dataset, minutes)
            plan = submission.plan(session, rows.new_job(spec=recipe.spec))
        waits = "no running worker fits; the job would wait for one"
        assert [waits, *recipe.warnings] == plan["warnings"]
        assert (len(recipe.warnings), recipe.steps) == (recipe.steps < MIN_STEPS, plan["total_steps"])
        assert recipe.time == plan["estimate"]["time"]


def test_the_rate_is_compared_with_that_of_the_preset() -> None:
    recipe = presets()["cifar10-cpu"].optimizer
    rate = 6 * recipe.learning_rate
    assert advised(4900, "cifar10-cpu", optimizer=SGD | {"learning_rate": rate})
    assert not advised(4900, None, optimizer=SGD | {"learning_rate": rate})


def test_a_preset_on_its_own_dataset_is_long_enough(database: Database) -> None:
    recipe = presets()["digits-cpu"]
    assert advice(recipe, 1437, "digits-cpu") == []
    assert advice(recipe, 1437, None) != []
    rows.add_dataset(database)
    with database.read() as session:
        shorter = resolve_spec(recipe) | {"epochs": 20, "warmup_epochs": 2, "weak_augmentation_epochs": 2}
        plan = submission.plan(session, rows.new_job(spec=shorter, preset="digits-cpu"))
    assert any("60 steps in all" in text for text in plan["warnings"])


def test_the_form_that_continues_a_training_proposes_the_epochs_of_the_warning(database: Database) -> None:
    rows.add_dataset(database)  # with 1,000 images: 4 steps an epoch
    short = rows.submit(database, spec={"batch_size": 250, "epochs": 100})
    long = rows.submit(database, spec={"batch_size": 250, "epochs": 300})
    measuring = rows.submit(database, "evaluate", {"features": {"kind": "pixels"}})
    with database.read() as session:
        proposed = [further_epochs_of(session, queries.get_job(session, job_id)) for job_id in (short, long, measuring)]
        (warning,) = advice_of(session, queries.get_job(session, short))
    assert proposed == [150, 300, 0]
    assert "use at least 1,000, that is epochs = 250" in warning
