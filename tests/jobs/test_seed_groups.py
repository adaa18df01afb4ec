"""Seed groups, and their results over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sqlalchemy.orm import Session

from jobs import seed_groups, submission
from jobs.database import Database
from jobs.errors import Invalid, NotFound
from jobs.idempotency import create_once
from jobs.models import Job
from tests.jobs import rows
from tests.jobs.rows import Run, claim, job, new_job
from wcl_core.config import Kind


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def group(database: Database, seeds: list[int], kind: Kind = "pretrain", **fields: Any) -> list[str]:
    new = [new_job(kind, {"seed": seed}, **fields) for seed in seeds]
    return [each.id for each in database.write(lambda session: submission.submit_group(session, new))]


def group_of(database: Database, spec: dict[str, Any], seeds: Sequence[int] = (0, 1)) -> list[str]:
    new = [new_job("pretrain", spec | {"seed": seed}) for seed in seeds]
    return [each.id for each in database.write(lambda session: submission.submit_group(session, new))]


def read(database: Database, job_id: str) -> list[seed_groups.Result]:
    group_id = job(database, job_id).group_id
    assert group_id is not None
    with database.read() as session:
        return seed_groups.results(session, seed_groups.members(session, group_id))


def finish(database: Database, *records: dict[str, Any]) -> None:
    Run(database, claim(database)).deliver(rows.started(), *records, rows.end("succeeded"))


def measure(database: Database, checkpoint_job: str, *results: dict[str, Any]) -> None:
    checkpoint = rows.checkpoints(database, checkpoint_job)[-1].id
    spec = {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint}}
    rows.submit(database, "evaluate", spec)
    finish(database, *results)


def test_a_seed_group_has_one_job_a_seed_and_is_submitted_as_a_whole(database: Database) -> None:
    ids = group(database, [0, 4, 2])
    other = group(database, [0])

    jobs = [job(database, job_id) for job_id in ids]
    assert [each.spec["seed"] for each in jobs] == [0, 4, 2]
    assert len({each.group_id for each in jobs}) == 1
    assert job(database, other[0]).group_id not in (None, jobs[0].group_id)
    new = [new_job(), replace(new_job(), after=("nobody",))]
    with pytest.raises(Invalid):
        database.write(lambda session: submission.submit_group(session, new))
    assert len(rows.rows_of(database, Job)) == 4
    with database.read() as session, pytest.raises(NotFound):
        seed_groups.members(session, "00000000-0000-7000-8000-00000000dead")


def test_results_are_over_the_seeds_where_all_else_agrees(database: Database) -> None:
    ids = group(database, [0, 1, 2])
    for place in range(3):
        finish(database, rows.checkpoint(10, f"{place}" * 64))
    values = (0.5, 0.7, 0.9)
    for job_id, value in zip(ids, values, strict=True):
        measure(database, job_id, rows.evaluation(value), rows.evaluation(value / 2, params={"C": 2.0}))
    measure(database, ids[0], rows.evaluation(0.1, seed=9))

    aggregates = {(r.params["C"], r.evaluation_seed): r for r in read(database, ids[0])}

    assert set(aggregates) == {(1.0, 0), (2.0, 0), (1.0, 9)}
    result = aggregates[1.0, 0]
    assert (result.protocol, result.metric, result.epoch, result.seeds) == ("linear", "top1", 1, [0, 1, 2])
    assert result.values == list(values)
    assert result.mean == pytest.approx(0.7)
    assert result.deviation == pytest.approx(np.std(values, ddof=1))
    reference = stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem(values))
    assert result.interval == pytest.approx(reference)
    assert (aggregates[1.0, 9].seeds, aggregates[1.0, 9].deviation, aggregates[1.0, 9].interval) == ([0], None, None)


def test_an_evaluation_of_several_seeds_is_one_row_and_a_retry_takes_its_place(database: Database) -> None:
    ids = group(database, [0, 1], "evaluate")
    finish(database, rows.evaluation(0.4, seed=0))
    failing = Run(database, claim(database))
    failing.deliver(rows.started(), rows.evaluation(0.1, seed=1), rows.end("failed", "bad_data"))
    again = database.write(lambda session: submission.retry(session, ids[1], None))
    finish(database, rows.evaluation(0.6, seed=1, params={"C": 3.0}), rows.evaluation(0.6, seed=1, split_digest="t"))

    assert again.group_id == job(database, ids[0]).group_id
    aggregates = {r.params["C"]: r for r in read(database, ids[0])}
    assert (aggregates[1.0].seeds, aggregates[1.0].values, aggregates[1.0].epoch, aggregates[1.0].evaluation_seed) == (
        [0, 1],
        [0.4, 0.6],
        None,
        None,
    )
    assert aggregates[3.0].seeds == [1]


def test_the_best_of_each_seed_is_one_row_whatever_their_epochs(database: Database) -> None:
    """There is a second row for evaluations at an epoch that all seeds have."""
    plans = [{"when": "best", "protocols": ["linear"]}, {"when": "final", "protocols": ["linear"]}]
    ids = group_of(database, {"evaluations": plans, "knn_every_epochs": 1, "epochs": 3})
    for place in (0, 1):
        saved = [
            rows.checkpoint(10 * epoch, f"{place}{epoch}" * 32)
            | {"epoch": epoch, "metrics": {"eval/knn_top1": 0.9 if epoch == best else 0.5}}
            for epoch, best in ((1, place + 1), (2, place + 1), (3, place + 1))
        ]
        finish(database, *saved)
    for value in (0.5, 0.1, 0.7, 0.2):  # the planned evaluations of each seed in their order
        finish(database, rows.evaluation(value))

    aggregates = {(r.epoch, r.selection): r for r in read(database, ids[0])}

    assert aggregates.keys() == {(3, None), (None, "best eval/knn_top1, selected on test")}
    best = aggregates[None, seed_groups.SELECTED_ON_TEST]
    assert (best.seeds, best.values, best.mean) == ([0, 1], [0.5, 0.7], pytest.approx(0.6))
    assert (aggregates[3, None].seeds, aggregates[3, None].values) == ([0, 1], [0.1, 0.2])


def test_a_retry_of_a_best_evaluation_counts_as_best(database: Database) -> None:
    plans = [{"when": "best", "protocols": ["linear"]}]
    (trained,) = group_of(database, {"evaluations": plans, "knn_every_epochs": 1, "epochs": 1}, seeds=[0])
    finish(database, rows.checkpoint(10) | {"metrics": {"eval/knn_top1": 0.9}})
    for _ in range(2):
        failing = Run(database, claim(database))
        failing.deliver(rows.started(), rows.end("failed", "bad_data"))
        database.write(partial(submission.retry, job_id=failing.job_id, created_by=None))
    finish(database, rows.evaluation(0.5))
    measure(database, trained, rows.evaluation(0.4, params={"C": 2.0}))

    aggregates = {r.params["C"]: (r.epoch, r.selection) for r in read(database, trained)}

    assert aggregates == {1.0: (None, seed_groups.SELECTED_ON_TEST), 2.0: (1, None)}


def test_a_clone_with_another_checkpoint_does_not_count_as_best(database: Database) -> None:
    plans = [{"when": "best", "protocols": ["linear"]}]
    (trained,) = group_of(database, {"evaluations": plans, "knn_every_epochs": 1, "epochs": 2}, seeds=[0])
    saved = [
        rows.checkpoint(10 * epoch, f"{epoch}" * 64) | {"epoch": epoch, "metrics": {"eval/knn_top1": 1 / epoch}}
        for epoch in (1, 2)
    ]
    finish(database, *saved)
    last = rows.checkpoints(database, trained)[-1].id
    best = Run(database, claim(database))
    best.deliver(rows.started(), rows.evaluation(0.5), rows.end("succeeded"))
    other = {"features": {"kind": "checkpoint", "checkpoint_id": last}}
    database.write(partial(submission.clone, job_id=best.job_id, overrides=other, created_by=None))
    finish(database, rows.evaluation(0.4))

    aggregates = {(r.epoch, r.selection): r.values for r in read(database, trained)}

    assert aggregates == {(None, seed_groups.SELECTED_ON_TEST): [0.5], (2, None): [0.4]}


def test_a_best_that_is_the_last_counts_for_both(database: Database) -> None:
    plans = [{"when": "best", "protocols": ["linear"]}, {"when": "final", "protocols": ["linear"]}]
    ids = group_of(database, {"evaluations": plans, "knn_every_epochs": 1, "epochs": 1}, seeds=[0])
    finish(database, rows.checkpoint(10) | {"metrics": {"eval/knn_top1": 0.9}})
    for _ in range(2):
        finish(database, rows.evaluation(0.5))

    aggregates = {(r.epoch, r.selection): r.values for r in read(database, ids[0])}

    assert aggregates == {(None, seed_groups.SELECTED_ON_TEST): [0.5], (1, None): [0.5]}


def test_a_clone_does_not_join_the_seed_group(database: Database) -> None:
    ids = group(database, [0], preset="digits-cpu")

    clone = database.write(lambda session: submission.clone(session, ids[0], {}, None))

    assert (clone.group_id, clone.preset) == (None, "digits-cpu")


def test_the_same_key_answers_with_the_same_group(database: Database) -> None:
    new = [new_job(spec={"seed": seed}) for seed in (0, 1)]

    def create(session: Session) -> Job:
        return submission.submit_group(session, new)[0]

    answers = [create_once(database, "owner", "key", "a" * 64, Job, create) for _ in range(3)]

    assert [is_replay for _, is_replay in answers] == [False, True, True]
    assert len({each.group_id for each, _ in answers}) == 1
    assert len(rows.rows_of(database, Job)) == 2
