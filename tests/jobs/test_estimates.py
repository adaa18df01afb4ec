"""Estimates of time and disk from the newest similar run."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import submission
from jobs.database import Database
from tests.jobs import rows
from tests.jobs.rows import Run, claim, new_job, submit


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def estimate(database: Database, **spec: Any) -> Any:
    with database.read() as session:
        return submission.plan(session, new_job(spec=spec))["estimate"]


def finish(database: Database, speed: float, outcome: str = "succeeded", **spec: Any) -> str:
    job_id = submit(database, spec=spec)
    reports = [rows.metrics(3, **{"train/images_per_second": speed}), rows.checkpoint(3)]
    Run(database, claim(database)).deliver(rows.started(), *reports, rows.end(outcome))
    return job_id


def test_without_a_similar_run_the_estimate_has_only_the_views(database: Database) -> None:
    finish(database, 50.0, batch_size=128)
    finish(database, 50.0, "failed", batch_size=250)

    # Two views of 3 x 8 x 8 float32.
    assert estimate(database, batch_size=250) == {"view_bytes": 250 * 2 * 3 * 8 * 8 * 4, "like": None}


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
