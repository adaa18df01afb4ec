"""Good checkpoints; retention, which keeps those of the spec and needed ones; orphans, which no row can claim."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs import checkpoints, policies, queries, submission, transitions
from jobs.database import Database, new_id
from jobs.models import EMBEDDINGS, Checkpoint, Job
from jobs.settings import Settings
from tests.jobs import rows
from tests.jobs.rows import Run, add_dataset, running, submit
from wcl_core.protocol import KNN_TOP1, VIEW_TOP1


@pytest.fixture(autouse=True)
def dataset(database: Database) -> None:
    add_dataset(database)


def keeping(**keep: Any) -> dict[str, Any]:
    return {"epochs": 100, "knn_every_epochs": 1, "checkpoints": keep}


def saved(step: int, accuracy: float | None = None) -> dict[str, Any]:
    return rows.checkpoint(step) | {"metrics": {} if accuracy is None else {"eval/knn_top1": accuracy}}


def kept(database: Database, job_id: str) -> list[int]:
    return [row.step for row in rows.checkpoints(database, job_id) if row.deleted_at is None]


def id_of(database: Database, job_id: str, step: int) -> str:
    return next(row.id for row in rows.checkpoints(database, job_id) if row.step == step)


def evaluation_of(checkpoint_id: str) -> dict[str, Any]:
    return {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}


def test_a_checkpoint_has_the_accuracy_that_was_measured_last_before_it(database: Database) -> None:
    run = Run(database, running(database))
    knn = [rows.metrics(step, **{KNN_TOP1: value}) for step, value in ((0, 0.1), (10, 0.5), (20, 0.6), (40, 0.8))]
    views = [rows.metrics(step, **{VIEW_TOP1: 0.9}) for step in (10, 20)]
    run.deliver(rows.started(), *knn, *views, *(saved(step) for step in (5, 20, 30)))
    run.end("drained")
    again = Run(database, rows.claim(database))
    again.deliver(rows.started(15), rows.metrics(20, **{KNN_TOP1: 0.7}), rows.metrics(25, **{KNN_TOP1: None}))
    with database.read() as session:
        ids = {each.step: each.id for each in queries.checkpoints(session, run.job_id)}
        result = checkpoints.last_accuracies(session, list(ids.values()))
    assert ids.keys() == {5, 20, 30}
    assert {step: result.get(id) for step, id in ids.items()} == {
        5: None,  # that of the untrained network is none of the training's
        20: (KNN_TOP1, 0.7, 20),
        30: (KNN_TOP1, 0.7, 20),
    }


def test_by_default_all_checkpoints_are_kept(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), *(saved(step) for step in range(1, 30)))

    assert len(kept(database, run.job_id)) == 29


def test_the_latest_and_the_best_are_kept(database: Database) -> None:
    run = Run(database, running(database, spec=keeping(keep_last=2, keep_best=1)))
    run.deliver(rows.started())
    for step, accuracy in enumerate([0.1, 0.9, 0.5, 0.9, 0.2, None, 0.3], start=1):
        run.deliver(saved(step, accuracy))

    assert kept(database, run.job_id) == [2, 6, 7]


def test_the_best_checkpoint_stays_for_its_planned_evaluation(database: Database) -> None:
    plan = {"when": "best", "protocols": ["linear"]}
    run = Run(database, running(database, spec=keeping(keep_last=1) | {"evaluations": [plan]}))
    run.deliver(rows.started(), saved(1, 0.9), saved(2, 0.1), saved(3, 0.2))

    assert kept(database, run.job_id) == [1, 3]


def test_a_running_job_needs_its_best_checkpoint_for_a_planned_evaluation(database: Database) -> None:
    plan = {"when": "best", "protocols": ["linear"]}
    run = Run(database, running(database, spec=keeping() | {"evaluations": [plan]}))
    run.deliver(rows.started(), *(saved(step, 0.9 if step == 2 else 0.1) for step in range(1, 6)))

    with database.read() as session:
        assert [row.step for row in checkpoints.spare(session, [run.job_id])] == [3, 1]


def pin(database: Database, run: Run, step: int) -> None:
    database.write(partial(checkpoints.pin, checkpoint_id=id_of(database, run.job_id, step), is_pinned=True))


def test_a_pinned_checkpoint_does_not_count_as_one_of_the_latest(database: Database) -> None:
    run = Run(database, running(database, spec=keeping(keep_last=2)))
    run.deliver(rows.started(), saved(1), saved(2))
    pin(database, run, 2)

    run.deliver(saved(3))
    assert kept(database, run.job_id) == [1, 2, 3]
    run.deliver(saved(4))
    assert kept(database, run.job_id) == [2, 3, 4]


def test_a_pinned_checkpoint_does_not_count_as_the_best(database: Database) -> None:
    run = Run(database, running(database, spec=keeping(keep_last=1, keep_best=1)))
    run.deliver(rows.started(), saved(1, 0.9))
    pin(database, run, 1)

    run.deliver(saved(2, 0.5), saved(3, 0.1))

    assert kept(database, run.job_id) == [1, 2, 3]


@pytest.mark.parametrize("need", ["pin", "evaluation", "retry", "damage"])
def test_retention_keeps_a_needed_checkpoint(database: Database, need: str) -> None:
    run = Run(database, running(database, spec=keeping(keep_last=1)))
    run.deliver(rows.started(), saved(1))
    first = id_of(database, run.job_id, 1)
    if need == "pin":
        database.write(lambda s: s.execute(update(Checkpoint).values(pinned=True)) and None)
    elif need == "damage":
        database.write(lambda s: s.execute(update(Checkpoint).values(damaged_at=1)) and None)
    elif need == "evaluation":
        submit(database, "evaluate", evaluation_of(first))
    else:
        submit(database, resume_checkpoint_id=first)

    run.deliver(saved(2), saved(3))

    assert kept(database, run.job_id) == [1, 3]


def test_a_checkpoint_goes_once_the_job_that_needed_it_has_ended(database: Database) -> None:
    run = Run(database, running(database, spec=keeping(keep_last=1)))
    run.deliver(rows.started(), saved(1))
    evaluation = submit(database, "evaluate", evaluation_of(id_of(database, run.job_id, 1)))
    run.deliver(saved(2))
    database.write(lambda session: transitions.cancel(session, evaluation))
    run.deliver(saved(3))

    assert kept(database, run.job_id) == [3]


def test_retention_skips_a_checkpoint_that_a_new_job_has_locked(database: Database) -> None:
    """PostgreSQL only: the submission locks the row, and retention does not wait for it."""
    if database.engine.dialect.name == "sqlite":
        pytest.skip("writers of SQLite take turns")
    run = Run(database, running(database, spec=keeping(keep_last=1)))
    run.deliver(rows.started(), saved(1))
    new = rows.new_job("evaluate", evaluation_of(id_of(database, run.job_id, 1)))
    with Session(database.engine) as other:
        submission.submit(other, new)  # not committed yet
        run.deliver(saved(2))
        other.commit()

    assert kept(database, run.job_id) == [1, 2]


def test_a_resumed_job_starts_from_its_newest_checkpoint(database: Database) -> None:
    run = Run(database, running(database, spec=keeping(keep_last=1)))
    run.deliver(rows.started(), saved(1), saved(2))
    run.end("drained")

    resume = rows.claim(database).resume

    assert resume is not None
    assert resume.step == 2


@pytest.mark.parametrize(
    "flaw",
    [{"deleted_at": 1}, {"damaged_at": 1}, {"missing_at": 1}, {"kind": EMBEDDINGS}],
    ids=["deleted", "damaged", "missing", "embeddings"],
)
def test_only_an_intact_training_checkpoint_is_good(database: Database, flaw: dict[str, Any]) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), saved(1), saved(2))
    older, newer = (id_of(database, run.job_id, step) for step in (1, 2))
    flawed = update(Checkpoint).where(Checkpoint.id == newer).values(flaw)
    database.write(lambda session: session.execute(flawed) and None)

    with database.read() as session:
        newest = checkpoints.newest(session, run.job_id)
        assert newest is not None
        assert newest.id == older
        assert [row.id for row in checkpoints.good(session, run.job_id)] == [older]
    held = {each: database.write(partial(checkpoints.hold, checkpoint_id=each)) for each in (older, newer)}
    assert held == {older: True, newer: False}


def orphans(database: Database, job_id: str, *names: str) -> list[str]:
    with database.read() as session:
        keys = [f"{job_id}/{name}" for name in names]
        return [key.removeprefix(f"{job_id}/") for key in checkpoints.orphans(session, keys)]


def test_a_file_that_no_row_can_claim_is_an_orphan(database: Database) -> None:
    run = Run(database, running(database))
    own = run.attempt.folder.removeprefix(f"{run.job_id}/")
    there = [{**saved(step), "path": f"{run.job_id}/{own}/{step}"} for step in (1, 2)]
    run.deliver(rows.started(), *there)
    names = [f"{own}/{name}" for name in ("1", "2", "unregistered", ".3.77.part")]
    foreign = ("2/future", "odd/name", "1/without-token", "1-ffff/of-another-database")
    assert orphans(database, run.job_id, *names, *foreign) == []

    gone = update(Checkpoint).where(Checkpoint.step == 1).values(deleted_at=1)
    database.write(lambda session: session.execute(gone) and None)
    assert orphans(database, run.job_id, *names, *foreign) == [names[0]]
    run.end("failed", "worker_lost")
    assert orphans(database, run.job_id, *names, *foreign) == [names[0], *names[2:]]


def test_files_of_an_unknown_job_are_kept(database: Database) -> None:
    """The files may belong to another or an emptied database, and a deletion cannot be undone."""
    assert orphans(database, new_id(), "1/step-1.safetensors") == []
    assert not rows.rows_of(database, Job)


def test_the_service_has_a_default_and_a_limit_of_what_is_kept(database: Database) -> None:
    cases: list[tuple[int | None, int | None, dict[str, Any], list[int]]] = [
        (2, None, {}, [3, 4]),
        (2, None, {"keep_last": 3}, [2, 3, 4]),
        (None, 2, {}, [3, 4]),
        (None, 1, {"keep_last": 3, "keep_best": 3}, [1, 4]),
        (3, 2, {"keep_last": 1}, [4]),
        (None, None, {}, [1, 2, 3, 4]),
    ]
    for default, most, keep, expected in cases:
        settings = Settings(keep_checkpoints=default, most_checkpoints=most)
        database.write(lambda session, settings=settings: policies.store(session, settings))
        run = Run(database, running(database, spec=keeping(**keep)))
        run.deliver(rows.started())
        for step in (1, 2, 3, 4):
            run.deliver(saved(step, 1.0 / step))
        run.end("cancelled")

        assert kept(database, run.job_id) == expected, (default, most, keep)
