"""Planned evaluations of a training job: which jobs are submitted, when, and never twice."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from jobs import queries, submission, transitions
from jobs.database import Database
from jobs.errors import Invalid, Superseded
from jobs.models import Checkpoint, Dataset, Job
from tests.jobs import rows
from tests.jobs.rows import Run, claim, job, new_job, submit

OWNER = "00000000-0000-7000-8000-0000000000ee"


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def training(database: Database, *plans: dict[str, Any], **fields: Any) -> Run:
    spec = {"epochs": 10, "knn_every_epochs": 1, "evaluations": list(plans)}
    job_id = submit(database, spec=spec, **fields)
    run = Run(database, claim(database))
    assert run.job_id == job_id
    return run


def saved(epoch: int, knn: float | None = None) -> dict[str, Any]:
    metrics = {} if knn is None else {"eval/knn_top1": knn}
    return rows.checkpoint(100 * epoch, f"{epoch:064x}") | {"epoch": epoch, "metrics": metrics}


def children(database: Database, parent_id: str) -> list[Job]:
    with database.read() as session:
        return list(session.execute(select(Job).where(Job.parent_id == parent_id).order_by(Job.id)).scalars())


def measured_epochs(database: Database, parent_id: str) -> list[int]:
    with database.read() as session:
        epochs: dict[str, int] = dict(session.execute(select(Checkpoint.id, Checkpoint.epoch)).all())
    return [epochs[child.spec["features"]["checkpoint_id"]] for child in children(database, parent_id)]


def test_the_last_checkpoint_is_measured_once_the_run_succeeds(database: Database) -> None:
    plan = {"protocols": ["knn", "linear"], "knn_k": 7, "seed": 3}
    run = training(database, plan, tags=("trial",), priority=4, created_by=OWNER, name="mine")
    run.deliver(rows.started(), saved(9), saved(10))
    assert children(database, run.job_id) == []

    run.deliver(rows.end("succeeded"))

    child = children(database, run.job_id)[0]
    assert measured_epochs(database, run.job_id) == [10]
    assert (child.kind, child.status, child.priority, child.created_by) == ("evaluate", "queued", 4, OWNER)
    assert child.name.endswith("final of mine")
    assert child.spec["protocols"] == ["knn", "linear"]
    assert (child.spec["knn_k"], child.spec["seed"]) == (7, 3)
    assert child.spec["data"] == job(database, run.job_id).spec["data"]
    with database.read() as session:
        assert queries.tags(session, [child.id]) == {child.id: ["evaluation:final", "trial"]}
    submitted = [event for event in rows.events(database, run.job_id) if event.type == "evaluation_submitted"]
    assert [event.data for event in submitted] == [{"job": child.id, "when": "final", "step": 1000}]
    assert claim(database).evaluated is not None


def test_the_best_checkpoint_is_the_earliest_of_the_best_knn(database: Database) -> None:
    run = training(database, {"when": "best", "protocols": ["linear"]})
    run.deliver(rows.started(), saved(1, 0.3), saved(3, 0.9), saved(5, 0.9), saved(7), saved(10, 0.5))
    run.deliver(rows.end("succeeded"))

    assert measured_epochs(database, run.job_id) == [3]


def test_checkpoints_are_measured_every_given_number_of_epochs_during_the_run(database: Database) -> None:
    run = training(database, {"when": "every", "every_epochs": 4, "protocols": ["linear"]})
    run.deliver(rows.started(), saved(1), saved(4))

    assert measured_epochs(database, run.job_id) == [4]
    run.deliver(saved(5), saved(8), saved(9), saved(10), rows.end("succeeded"))
    assert measured_epochs(database, run.job_id) == [4, 8, 10]


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "paused", "drained"])
def test_only_success_submits_final_evaluations(database: Database, outcome: str) -> None:
    run = training(database, {"protocols": ["linear"]}, {"when": "best", "protocols": ["linear"]})
    run.deliver(rows.started(), saved(9, 0.5), rows.end(outcome, "bad_data" if outcome == "failed" else None))

    assert children(database, run.job_id) == []


def test_a_newer_attempt_that_saves_the_same_step_doubles_nothing(database: Database) -> None:
    run = training(database, {"when": "every", "every_epochs": 4, "protocols": ["linear"]}, {"protocols": ["linear"]})
    run.deliver(rows.started(), saved(4), rows.end("drained"))
    measuring = claim(database)  # the same priority, but older
    assert measuring.job_id == run.job_id
    again = Run(database, measuring)

    again.deliver(rows.started(400), saved(4), saved(8), saved(10), rows.end("succeeded"))

    assert measured_epochs(database, run.job_id) == [4, 8, 10, 10]
    assert len({child.origin for child in children(database, run.job_id)}) == 4


def test_a_superseded_attempt_submits_no_evaluation(database: Database) -> None:
    run = training(database, {"when": "every", "every_epochs": 4, "protocols": ["linear"]}, {"protocols": ["linear"]})
    run.deliver(rows.started())
    database.write(lambda session: transitions.end_attempt(session, run.attempt, "failed", "worker_lost"))

    with pytest.raises(Superseded):
        run.deliver(saved(4), saved(10), rows.end("succeeded"))

    assert children(database, run.job_id) == []


def test_a_delivery_that_is_sent_again_doubles_nothing(database: Database) -> None:
    run = training(database, {"when": "every", "every_epochs": 4, "protocols": ["linear"]})
    lines = rows.numbered([rows.started(), saved(4)])
    run.send(lines)
    run.send(lines)

    assert measured_epochs(database, run.job_id) == [4]


def test_the_database_itself_refuses_a_second_job_of_one_origin(database: Database) -> None:
    parent = submit(database)
    submit(database, parent_id=parent, origin="evaluations/0/final")
    submit(database, parent_id=submit(database), origin="evaluations/0/final")
    with pytest.raises(IntegrityError):
        submit(database, parent_id=parent, origin="evaluations/0/final")


def test_without_a_checkpoint_to_measure_the_run_succeeds_with_a_warning(database: Database) -> None:
    run = training(database, {"when": "best", "protocols": ["linear"]})
    run.deliver(rows.started(), saved(10), rows.end("succeeded"))

    assert job(database, run.job_id).status == "succeeded"
    assert children(database, run.job_id) == []
    warning = next(event for event in rows.events(database, run.job_id) if event.type == "warning")
    assert warning.data["reason"] == "evaluation_not_submitted"


def test_another_dataset_is_a_transfer(database: Database) -> None:
    rows.add_dataset(database, "other", "e" * 64)
    run = training(database, {"data": {"name": "other", "image_size": 16}, "protocols": ["linear"]})
    run.deliver(rows.started(), saved(10), rows.end("succeeded"))

    child = children(database, run.job_id)[0]
    assert (child.dataset_name, child.dataset_digest) == ("other", "e" * 64)
    assert child.spec["data"]["image_size"] == 16


def test_a_dataset_that_is_gone_is_a_warning_and_stops_nothing(database: Database) -> None:
    rows.add_dataset(database, "other", "e" * 64)
    run = training(database, {"data": {"name": "other"}, "protocols": ["linear"]})
    database.write(lambda session: session.query(Dataset).filter_by(name="other").delete())
    run.deliver(rows.started(), saved(10), rows.end("succeeded"))

    assert job(database, run.job_id).status == "succeeded"
    assert children(database, run.job_id) == []


# --- errors of a plan ----------------------------------------------------------------------------------------------


def refused(database: Database, *plans: dict[str, Any]) -> list[str]:
    spec = {"evaluations": list(plans), "knn_every_epochs": 1}
    with pytest.raises(Invalid) as caught:
        database.write(lambda session: submission.submit(session, new_job(spec=spec)))
    return [error.pointer for error in caught.value.errors]


def test_a_plan_that_cannot_run_is_refused_at_submission(database: Database) -> None:
    rows.add_dataset(database, "small", "e" * 64, train=100)
    small = {"data": {"name": "small"}}
    few = {"protocols": ["few_labels"]}
    assert refused(database, {"protocols": ["linear"]}, few | {"data": {"name": "no"}}) == [
        "/spec/evaluations/1/data/name"
    ]
    assert refused(database, small | {"protocols": ["knn"], "knn_k": 20}) == ["/spec/evaluations/0/knn_k"]
    assert refused(database, {"protocols": ["linear", "knn_wide"]}) == ["/spec/evaluations/0/protocols/1"]
    assert refused(database, small | few | {"labels_per_class": [1, 11]}) == ["/spec/evaluations/0/labels_per_class/1"]


@pytest.mark.parametrize(
    ("spec", "where", "message"),
    [
        ({"evaluations": [{"when": "best"}]}, ("evaluations",), "knn_every_epochs"),
        ({"evaluations": [{"when": "every"}]}, ("evaluations", 0, "every_epochs"), "needs every_epochs"),
        ({"evaluations": [{"every_epochs": 2}]}, ("evaluations", 0, "every_epochs"), "leave it out, or use every"),
        (
            {"evaluations": [{"when": "every", "every_epochs": 3}], "checkpoints": {"every_epochs": 2}},
            ("evaluations",),
            "multiple of checkpoints.every_epochs = 2",
        ),
        ({"evaluations": [{"when": "every", "every_epochs": 2, "x": 1}]}, ("evaluations", 0, "x"), ""),
    ],
)
def test_a_plan_that_contradicts_the_run_names_its_field(spec: dict[str, Any], where: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        new_job(spec=spec)
    assert [error["loc"] for error in caught.value.errors()] == [where]
    assert message in caught.value.errors()[0]["msg"]
