"""Which trials start, are promoted and win, with simulated jobs; test_sweeps_once.py tests concurrency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs import submission, sweeps, transitions
from jobs.database import Database
from jobs.errors import Conflict, Invalid, NotFound
from jobs.models import Dataset, Job, Sweep, Tag
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from tests.jobs import rows, sweeping
from tests.jobs.rows import job
from tests.jobs.sweeping import RATE, TEMPERATURE, advance, entered, halving, places, play, play_out, sweep


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    rows.add_dataset(sqlite_database)
    return sqlite_database


def temperature(spec: dict[str, Any]) -> float:
    return float(spec["loss"]["temperature"])


def jobs_of(database: Database, sweep_id: str) -> list[Job]:
    with database.read() as session:
        return list(session.execute(select(Job).where(Job.sweep_id == sweep_id).order_by(Job.id)).scalars())


def test_a_grid_tries_every_combination_and_names_the_best(database: Database) -> None:
    parameters = {TEMPERATURE: [0.1, 0.2], RATE: [0.01, 0.05, 0.1]}
    options = {"priority": 3, "pool": "default", "tags": ("search",)}
    sweep_id = sweeping.submit(database, parameters, options=options, name="grid")

    play_out(database, sweep_id, lambda spec: temperature(spec) + spec["optimizer"]["learning_rate"])

    result = sweep(database, sweep_id)
    assert (result.status, result.best_trial, result.best_value) == ("succeeded", 5, pytest.approx(0.3))
    created = jobs_of(database, sweep_id)
    tried = {(each.spec["loss"]["temperature"], each.spec["optimizer"]["learning_rate"]) for each in created}
    assert tried == {(t, r) for t in (0.1, 0.2) for r in (0.01, 0.05, 0.1)}
    assert {(each.priority, each.spec["epochs"]) for each in created} == {(3, 18)}
    assert created[0].name == "grid, trial 0"
    with database.read() as session:
        assert set(session.execute(select(Tag.tag)).scalars()) == {"search", "evaluation:final"}


def test_max_parallel_limits_the_unfinished_trials(database: Database) -> None:
    sweep_id = sweeping.submit(database, {TEMPERATURE: [0.1, 0.2, 0.3, 0.4, 0.5]}, max_parallel=2)
    assert entered(database, sweep_id, 0) == [0, 1]
    advance(database, sweep_id)
    assert entered(database, sweep_id, 0) == [0, 1]

    run = rows.Run(database, rows.claim(database))
    run.deliver(rows.started(), rows.checkpoint(1), rows.end("succeeded"))
    advance(database, sweep_id)
    assert entered(database, sweep_id, 0) == [0, 1], "its evaluation is not in yet"

    play(database, temperature)
    advance(database, sweep_id)
    assert entered(database, sweep_id, 0) == [0, 1, 2, 3]


def test_many_trials_start_in_short_transactions(database: Database, tmp_path: Path) -> None:
    sweep_id = sweeping.submit(database, {TEMPERATURE: [round(0.1 + 0.01 * number, 2) for number in range(70)]})
    assert len(entered(database, sweep_id, 0)) == 32

    Reconciler(database, Settings(data_dir=tmp_path), sends_wake_ups=False).poll()

    assert entered(database, sweep_id, 0) == list(range(70))


def test_images_of_a_packed_file_are_not_held_out(database: Database) -> None:
    database.write(lambda session: session.execute(update(Dataset).values(kind="packed")))

    with pytest.raises(Invalid) as caught:
        sweeping.submit(database, {TEMPERATURE: [0.1]})

    assert [error.pointer for error in caught.value.errors] == ["/spec/data/held_out_share"]
    data = {"data": {"name": "digits", "image_size": 8}}
    assert entered(database, sweeping.submit(database, {TEMPERATURE: [0.1]}, base=data), 0) == [0]


@pytest.mark.slow
def test_halving_promotes_the_best_by_evaluation(database: Database) -> None:
    """The highest temperatures have the lowest loss here, and the best evaluations are in the middle."""
    sweep_id = halving(database)
    assert [(rung["epochs"], rung["trials"]) for rung in sweep(database, sweep_id).rungs] == [(2, 9), (6, 3), (18, 1)]

    play_out(database, sweep_id, lambda spec: 1 - abs(temperature(spec) - 0.5))

    assert entered(database, sweep_id, 0) == list(range(9))
    assert entered(database, sweep_id, 1) == [3, 4, 5]
    assert entered(database, sweep_id, 2) == [4]
    result = sweep(database, sweep_id)
    assert (result.status, result.best_trial, result.best_value) == ("succeeded", 4, 1.0)


@pytest.mark.slow
def test_a_rung_waits_for_its_last_evaluation(database: Database) -> None:
    sweep_id = halving(database)
    claims = [rows.claim(database) for _ in range(9)]
    for place, claimed in enumerate(claims):
        run = rows.Run(database, claimed)
        run.deliver(rows.started(), rows.checkpoint(1, f"{place:064x}"), rows.end("succeeded"))
    measuring = [rows.Run(database, rows.claim(database)) for _ in range(9)]
    for run in measuring[:8]:
        run.deliver(rows.started(), rows.evaluation(0.5, protocol="knn"), rows.end("succeeded"))

    advance(database, sweep_id)
    assert entered(database, sweep_id, 1) == []

    measuring[8].deliver(rows.started(), rows.evaluation(0.9, protocol="knn"), rows.end("succeeded"))
    advance(database, sweep_id)
    assert entered(database, sweep_id, 1) == [0, 1, 8]


@pytest.mark.slow
def test_a_failed_trial_is_never_promoted(database: Database) -> None:
    sweep_id = halving(database)

    play_out(database, sweep_id, lambda spec: temperature(spec) if temperature(spec) < 0.25 else None)

    assert entered(database, sweep_id, 1) == [0, 1]
    assert sweep(database, sweep_id).best_trial == 1


def test_a_sweep_without_any_result_fails(database: Database) -> None:
    sweep_id = halving(database)

    play_out(database, sweep_id, lambda spec: None)

    result = sweep(database, sweep_id)
    assert (result.status, result.status_message) == ("failed", "no trial has a result")
    assert entered(database, sweep_id, 1) == []


@pytest.mark.slow
def test_a_trial_has_the_mean_over_its_seeds(database: Database) -> None:
    values = {(0.1, 1): 0.9, (0.1, 2): None, (0.2, 1): 0.1, (0.2, 2): 0.3, (0.3, 1): 0.1, (0.3, 2): 0.2}
    sweep_id = sweeping.submit(database, {TEMPERATURE: [0.1, 0.2, 0.3]}, seeds=(1, 2), max_parallel=1)
    assert places(database, sweep_id) == [(0, 0, 1), (0, 0, 2)]

    play_out(database, sweep_id, lambda spec: values[temperature(spec), spec["seed"]])

    result = sweep(database, sweep_id)
    assert (result.best_trial, result.best_value) == (1, pytest.approx(0.2))
    groups = [each.group_id for each in jobs_of(database, sweep_id)]
    assert len(set(groups)) == 3
    assert None not in groups


@pytest.mark.slow
def test_each_rung_is_a_separate_run_with_the_same_share_of_warm_up(database: Database) -> None:
    base = sweeping.BASE | {"warmup_epochs": 3, "weak_augmentation_epochs": 9, "evaluations": [{"protocols": ["knn"]}]}
    sweep_id = halving(database, 4, eta=2, base=base)

    play_out(database, sweep_id, temperature)

    assert sweep(database, sweep_id).best_value == 0.4, "not what the base's own evaluation measures"
    of_rungs = {}
    for each in jobs_of(database, sweep_id):
        of_rungs[each.spec["epochs"]] = (each.spec["warmup_epochs"], each.spec["weak_augmentation_epochs"])
        assert each.resume_checkpoint_id is None
        assert [plan["knn_k"] for plan in each.spec["evaluations"]] == [20, 5]
    assert of_rungs == {4: (pytest.approx(2 / 3), 2), 9: (1.5, 4), 18: (3, 9)}


@pytest.mark.slow
def test_a_minimised_metric_ranks_the_least_value_first(database: Database) -> None:
    sweep_id = halving(database, 4, eta=2, direction="minimize")

    play_out(database, sweep_id, temperature)

    assert (entered(database, sweep_id, 1), sweep(database, sweep_id).best_trial) == ([0, 1], 0)


# --- ends ------------------------------------------------------------------------------------------------------------


def test_cancel_ends_the_sweep_and_its_jobs(database: Database) -> None:
    sweep_id = sweeping.submit(database, {TEMPERATURE: [0.1, 0.2, 0.3, 0.4]}, max_parallel=3)
    first, second = (rows.Run(database, rows.claim(database)) for _ in range(2))
    first.deliver(rows.started(), rows.checkpoint(1), rows.end("succeeded"))

    database.write(lambda session: sweeps.cancel(session, sweep_id))

    statuses = {each.id: each.status for each in jobs_of(database, sweep_id)}
    assert sorted(statuses.values()) == ["cancelled", "running", "succeeded"]
    assert job(database, second.job_id).cancel_requested_at is not None
    with database.read() as session:
        evaluation = session.execute(select(Job.status).where(Job.parent_id == first.job_id)).scalar_one()
    assert evaluation == "cancelled"
    second.deliver(rows.end("cancelled"))
    advance(database, sweep_id)
    assert (sweep(database, sweep_id).status, len(jobs_of(database, sweep_id))) == ("cancelled", 3)
    with pytest.raises(Conflict):
        database.write(lambda session: sweeps.cancel(session, sweep_id))
    with pytest.raises(NotFound):
        database.write(lambda session: sweeps.cancel(session, "no such"))


@pytest.mark.slow
def test_a_changed_dataset_ends_the_sweep(database: Database) -> None:
    sweep_id = halving(database)
    play(database, temperature)
    database.write(lambda session: session.execute(update(Dataset).values(digest="e" * 64)))

    advance(database, sweep_id)

    result = sweep(database, sweep_id)
    assert result.status == "failed"
    assert "digits" in (result.status_message or "")


@pytest.mark.slow
def test_a_sweep_that_cannot_advance_does_not_end_the_poll(database: Database, tmp_path: Path) -> None:
    broken, whole = halving(database), sweeping.submit(database, {TEMPERATURE: [0.1, 0.2]}, max_parallel=1)
    spoiled = sweeping.BASE | {"method": "of a plugin that is not here"}
    database.write(lambda s: s.execute(update(Sweep).where(Sweep.id == broken).values(base=spoiled)))
    play(database, temperature)

    Reconciler(database, Settings(data_dir=tmp_path), sends_wake_ups=False).poll()

    assert entered(database, broken, 1) == []
    assert entered(database, whole, 0) == [0, 1]


def test_a_retry_of_its_job_is_not_part_of_the_sweep(database: Database) -> None:
    sweep_id = sweeping.submit(database, {TEMPERATURE: [0.1]})
    failed = jobs_of(database, sweep_id)[0].id
    database.write(lambda session: transitions.cancel(session, failed))

    retried = database.write(lambda session: submission.retry(session, failed, None))

    assert (retried.sweep_id, retried.origin) == (None, None)


def test_a_trial_whose_job_was_cancelled_is_cancelled_and_not_failed(database: Database) -> None:
    sweep_id = sweeping.submit(database, {TEMPERATURE: [0.1]})
    cancelled = jobs_of(database, sweep_id)[0].id
    database.write(lambda session: transitions.cancel(session, cancelled))

    with database.read() as session:
        (standing,) = sweeps.standings(session, sweeps.get_sweep(session, sweep_id))

    assert (standing.state, standing.by_rung[0].state) == ("cancelled", "failed")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_of_a_trial_points_to_the_parameter(database: Database) -> None:
    with pytest.raises(Invalid) as caught:
        sweeping.submit(database, {"batch_size": [256, 900], TEMPERATURE: [0.1]})

    assert [error.pointer for error in caught.value.errors] == ["/parameters/batch_size"]
    assert "trial 1: 900" in caught.value.errors[0].detail
    assert rows.rows_of(database, Sweep) == []
    with pytest.raises(Invalid) as caught:
        sweeping.submit(database, {TEMPERATURE: [0.1]}, metric={"protocol": "knn", "settings": {"knn_k": 50}})
    assert [error.pointer for error in caught.value.errors] == ["/metric/settings/knn_k"]
