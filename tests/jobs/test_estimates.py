"""Estimates of time and disk from the newest similar run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from jobs import estimates, queries, submission, workers
from jobs.database import Database, new_id
from jobs.models import Job
from jobs.recommendations import recommended
from tests.jobs import rows
from tests.jobs.rows import Run, claim, new_job, submit

STEPS = 50  # of a finished run


@pytest.fixture(autouse=True)
def load(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Add a dataset, and return the load of the machine, of 2 cores, that a test may change."""
    rows.add_dataset(database)
    load = [0.0]
    monkeypatch.setattr(estimates.os, "getloadavg", lambda: (load[0], 0.0, 0.0))
    monkeypatch.setattr(estimates, "num_cores", lambda: 2)
    return load


def estimate(database: Database, **spec: Any) -> Any:
    with database.read() as session:
        return submission.plan(session, new_job(spec=spec))["estimate"]


UNKNOWN = {
    "low_seconds": None,
    "high_seconds": None,
    "job": None,
    "text": "unknown until the first epoch",
    "busy": None,
}


def finish(database: Database, speed: float, outcome: str = "succeeded", **spec: Any) -> str:
    job_id = submit(database, spec=spec)
    reports = [rows.metrics(3, **{"train/images_per_second": speed}), rows.progress(STEPS), rows.checkpoint(3)]
    Run(database, claim(database)).deliver(rows.started(), *reports, rows.end(outcome))
    return job_id


def test_without_a_similar_run_the_estimate_has_only_the_views(database: Database) -> None:
    finish(database, 50.0, batch_size=128, data={"name": "digits", "image_size": 64})
    finish(database, 50.0, "failed", batch_size=250)

    planned = estimate(database, batch_size=250)
    time = planned.pop("time")
    # Two views of 3 x 8 x 8 float32.
    assert planned == {"view_bytes": 250 * 2 * 3 * 8 * 8 * 4, "memory": None, "like": None}
    assert (time["job"], time["high_seconds"] / time["low_seconds"]) == (None, pytest.approx(4))
    assert time["text"].endswith("by a rule of thumb; the first epoch tells more")
    assert estimate(database, backbone={"name": "resnet34"})["time"] == UNKNOWN, "no rule for this network"


def test_the_newest_similar_run_gives_time_and_disk(database: Database) -> None:
    finish(database, 10.0, batch_size=250)
    newest = finish(database, 50.0, batch_size=250, seed=7, epochs=3)
    finish(database, 70.0, batch_size=250, backbone={"name": "resnet34"})

    like = estimate(database, batch_size=250, epochs=7, checkpoints={"every_epochs": 2, "first_epoch": True})["like"]

    assert (like["job"], like["images_per_second"]) == (newest, 50.0)
    assert like["seconds"] == 7 * 1000 / 50
    assert like["disk_bytes"] == 10 * 5  # epochs 1, 2, 4, 6 and 7
    kept = estimate(
        database, batch_size=250, epochs=7, checkpoints={"keep_last": 2, "keep_best": 1}, knn_every_epochs=1
    )
    assert kept["like"]["disk_bytes"] == 10 * 3


def test_the_speed_of_another_network_gives_a_range(database: Database) -> None:
    finish(database, 1.0, backbone={"name": "resnet50", "stem": "small"})
    nearest = finish(database, 90.0, backbone={"name": "resnet34", "stem": "small"})
    spec: dict[str, Any] = {"backbone": {"name": "resnet18", "stem": "small"}, "batch_size": 250, "epochs": 9}

    time = estimate(database, **spec)["time"]

    assert time["job"] == nearest
    resnet18, resnet34 = 34_713_600, 72_462_336  # multiplications of a forward pass of 8 x 8 pixels
    seconds = 9 * 1000 / 90 * resnet18 / resnet34
    assert 2 * time["low_seconds"] < seconds < time["high_seconds"] / 2
    assert time["low_seconds"] * time["high_seconds"] == pytest.approx(seconds**2)
    assert time["text"] == "about 20 s to 2 min, by the speed of wcl digits resnet34, a job with other settings"
    larger = estimate(database, **spec | {"data": {"name": "digits", "image_size": 64}})["time"]
    assert "by a rule of thumb" in larger["text"], "64 x the cost"
    assert estimate(database, **spec | {"batch_size": "auto"})["time"] == UNKNOWN


def test_a_recipe_counts_with_the_speed_that_the_plan_of_its_job_has(database: Database) -> None:
    finish(database, 90.0, backbone={"name": "resnet34", "stem": "small"}, batch_size=250)

    def planned_and_speed(name: str) -> tuple[Any, float | None]:
        spec: dict[str, Any] = {"backbone": {"name": name, "stem": "small"}, "batch_size": 250, "epochs": 9}
        with database.read() as session:
            return estimate(database, **spec), estimates.speeds(session, "default", 0)(new_job(spec=spec).spec)

    planned, speed = planned_and_speed("resnet34")
    assert planned["like"]["images_per_second"] == speed == 90
    planned, speed = planned_and_speed("resnet18")
    middle = (planned["time"]["low_seconds"] * planned["time"]["high_seconds"]) ** 0.5
    assert speed == pytest.approx(9 * 1000 / middle)
    with database.read() as session:
        assert estimates.speeds(session, "elsewhere", 0)(new_job().spec) is None


def test_a_busy_machine_is_named_with_the_time_that_it_costs(database: Database, load: list[float]) -> None:
    load[0] = 8.0
    time = estimate(database, batch_size=250, epochs=6)["time"]
    assert time["busy"] == (
        "other work keeps this machine busy, with a load of 8 for 2 cores; while that lasts, a training takes up to "
        f"5 times as long, {estimates.rough_range(*[5 * time['high_seconds']] * 2)}"
    )
    finish(database, 50.0, batch_size=250)
    time = estimate(database, batch_size=250, epochs=6)["time"]
    assert time["busy"].endswith("cores; if it had less other work during that job, this one takes longer"), "not twice"
    job_id = submit(database, spec={"batch_size": 250, "epochs": 6})
    with database.read() as session:
        expected = estimates.expected_time(session, rows.job(database, job_id))
        assert expected is not None
        assert expected["busy"] == time["busy"], "also of a submitted or cloned job"
    claim(database)
    assert "a load of 8" in estimate(database, batch_size=250)["time"]["busy"], "the load hardly has a new job yet"
    begun = update(Job).where(Job.id == job_id).values(started_at=0)
    database.write(lambda session: session.execute(begun))
    assert "a load of 6" in estimate(database, batch_size=250)["time"]["busy"], "a job that runs is no other work"


def test_a_recipe_keeps_its_minutes_on_a_busy_machine(database: Database, load: list[float]) -> None:
    recipes = []
    for load[0] in (0.0, 8.0):
        with database.read() as session:
            recipes.append(recommended(session, "digits", 8))
    idle, busy = recipes
    assert 5 * busy.steps * busy.spec["batch_size"] <= 1.2 * idle.steps * idle.spec["batch_size"]
    assert busy.seconds <= 8 * 60
    assert "; the recipe counts on that" in busy.notes[-1]
    assert not any("busy" in note for note in idle.notes)


def test_a_short_run_says_nothing_of_another_network(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "STEPS", 5)
    finish(database, 90.0, backbone={"name": "resnet34", "stem": "small"})
    assert estimate(database, backbone={"name": "resnet18", "stem": "small"})["time"]["job"] is None


def test_the_time_is_at_most_that_of_a_similar_run_with_all_that_it_did_beside_training(database: Database) -> None:
    job_id = finish(database, 50.0, batch_size=250)
    seconds = 4 * STEPS * 250 / 50  # of which a quarter was training
    ended = update(Job).where(Job.id == job_id).values(started_at=0, ended_at=int(1000 * seconds))
    database.write(lambda session: session.execute(ended))

    time = estimate(database, batch_size=250, epochs=3)["time"]

    assert (time["low_seconds"], time["high_seconds"]) == (60, pytest.approx(240))
    assert time["text"].startswith("about 60 s to 4 min, at the speed of ")


def test_a_job_that_goes_on_is_expected_to_train_the_steps_that_are_left(database: Database) -> None:
    finish(database, 50.0, batch_size=250)
    with database.read() as session:
        (first,) = (row.id for row in queries.list_jobs(session).items)
    more = database.write(lambda session: submission.go_on(session, first, 60, None, None).id)

    with database.read() as session:
        job = queries.get_job(session, more)
        time = estimates.expected_time(session, job)
    total = job.spec["epochs"] * 4
    assert time is not None
    assert time["low_seconds"] == time["high_seconds"] == (total - 3) * 250 / 50
    run = Run(database, claim(database))
    run.deliver(rows.started(), rows.progress(4, eta_seconds=9.0))
    with database.read() as session:
        assert estimates.expected_time(session, queries.get_job(session, more)) is None, "it reports its own"
    run.deliver(rows.metrics(8, **{"train/images_per_second": 25.0}), rows.checkpoint(8), rows.end("drained"))
    with database.read() as session:
        time = estimates.expected_time(session, queries.get_job(session, more))
    assert time is not None
    assert time["low_seconds"] == (total - 8) * 250 / 25, "by the speed of its earlier attempt"


def test_a_training_that_takes_much_longer_than_a_similar_run_says_so(database: Database) -> None:
    finish(database, 50.0, batch_size=250)
    job_id = submit(database, spec={"batch_size": 250, "epochs": 10})
    run = Run(database, claim(database))

    def longer(step: int, seconds: float) -> str | None:
        report = rows.progress(step, total_steps=40, epoch=step / 4, total_epochs=10, eta_seconds=seconds)
        run.deliver(report)
        with database.read() as session:
            return estimates.longer_than_expected(session, queries.get_job(session, job_id))

    run.deliver(rows.started())
    assert longer(2, 3_000.0) is None, "in the first epoch"
    assert longer(20, 140.0) is None, "280 s, where 200 were expected"
    assert longer(20, 300.0) == "it takes about 10 minutes, much longer than the expected 3 minutes"
    run.deliver(rows.end("succeeded"))
    with database.read() as session:
        assert estimates.longer_than_expected(session, queries.get_job(session, job_id)) is None


def test_the_memory_of_a_run_is_compared_with_the_workers(database: Database) -> None:
    announced = rows.worker(id=new_id(), gpus=1)
    announced = replace(announced, devices=(replace(announced.devices[0], memory_bytes=8 * 2**30),))
    database.write(lambda session: workers.register(session, announced, 1, [], 64 * 2**30))
    large = {"backbone": {"name": "resnet50", "stem": "imagenet"}, "data": {"name": "digits", "image_size": 224}}

    fits, too_large = (estimate(database, batch_size=size, **large)["memory"] for size in (32, 512))

    assert (fits["on_gpu"], fits["device_bytes"], fits["warning"]) == (True, 8 * 2**30, None)
    assert fits["process_bytes"] < 8 * 2**30 < too_large["process_bytes"]
    assert 32 < too_large["largest_batch_size"] < 512
    assert f"use a batch_size of at most {too_large['largest_batch_size']}" in too_large["warning"]

    on_cpu = estimate(database, batch_size=32, device="cpu", processes=2, **large)["memory"]
    assert (on_cpu["on_gpu"], on_cpu["device_bytes"]) == (False, 32 * 2**30), "its part of the machine's memory"


def test_a_run_that_finds_its_batch_has_no_number_of_steps(database: Database) -> None:
    with database.read() as session:
        plan = submission.plan(session, new_job(spec={"batch_size": "auto"}))
    assert "total_steps" not in plan
    assert plan["spec"]["batch_size"] == "auto"


def test_found_sizes_stand_in_the_spec_of_the_job_and_of_its_retry(database: Database) -> None:
    job_id = submit(database, spec={"batch_size": "auto", "micro_batch_size": None})
    run = Run(database, claim(database))
    run.deliver(rows.started() | {"batch_size": 96, "micro_batch_size": 7})
    run.deliver(rows.end("failed"))
    with database.read() as session:
        job = queries.get_job(session, job_id)
        assert (job.spec["batch_size"], job.spec["micro_batch_size"]) == (96, None)
        assert job.spec_sent["batch_size"] == "auto"
    again = database.write(lambda session: submission.retry(session, job_id, None).spec)
    assert again["batch_size"] == 96
    assert database.write(lambda session: submission.clone(session, job_id, {}, None).spec)["batch_size"] == "auto"


@pytest.mark.parametrize("size", ["auto", None, 1, 1.5, "7", True, 70_000])
def test_no_odd_size_gets_into_a_spec(database: Database, size: Any) -> None:
    job_id = submit(database, spec={"batch_size": "auto"})
    Run(database, claim(database)).deliver(rows.started() | {"batch_size": size})
    with database.read() as session:
        assert queries.get_job(session, job_id).spec["batch_size"] == "auto"
