"""Jobs that train a finished one further: their spec, their start, and what keeps it from removal."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from jobs import checkpoints, lineage, queries, submission, weights
from jobs.database import Database
from jobs.errors import Conflict, Invalid, NotFound
from jobs.models import Checkpoint, Dataset, DatasetVersion, Job, Weights
from jobs.verdicts import untrained_accuracies, verdict
from tests.jobs import rows
from wcl_core.config import resolve_spec
from wcl_core.protocol import KNN_TOP1
from wcl_core.schedule import schedule_of

IMPORTED = "b" * 64


def finished(database: Database, spec: dict[str, Any] | None = None, **fields: Any) -> str:
    """Return a job that has succeeded with a checkpoint at its end."""
    job_id = rows.submit(database, spec={"epochs": 20} | (spec or {}), **fields)
    run = rows.Run(database, rows.claim(database))
    values = [rows.metrics(0, **{KNN_TOP1: 0.3}), rows.metrics(100, **{KNN_TOP1: 0.6})]
    run.deliver(rows.started(), *values, rows.checkpoint(100))
    run.end("succeeded")
    return job_id


def go_on(database: Database, job_id: str, epochs: int | None = None, data: str | None = None) -> Job:
    return database.write(lambda session: submission.go_on(session, job_id, epochs, data, None))


def add_weights(database: Database, sha256: str = IMPORTED, **backbone: Any) -> None:
    fields = {"sha256": sha256, "name": "mine", "size": 10, "image_size": 224, "report": {}}
    row = Weights(**fields, backbone={"name": "tiny", "stem": "small", "width": 64} | backbone)
    database.write(lambda session: weights.add(session, row))


def test_more_epochs_are_the_same_job_with_a_restart(database: Database) -> None:
    rows.add_dataset(database)
    first = finished(database, {"seed": 3}, name="mine", tags=("keep",))

    second = go_on(database, first, epochs=200)

    with database.read() as session:
        before, new = session.get_one(Job, first), session.get_one(Job, second.id)
        changed = {name for name, value in new.spec.items() if value != before.spec[name]}
        point = session.get_one(Checkpoint, new.resume_checkpoint_id)
        tags = queries.tags(session, [new.id])[new.id]
    assert changed == {"epochs", "restarts"}
    assert (new.spec["epochs"], new.spec["restarts"], new.spec["warmup_epochs"]) == (220, [20], 2)
    assert (new.parent_id, point.job_id, new.name, tags) == (first, first, "mine, 200 more epochs", ["keep"])
    assert new.spec_sent["seed"] == 3
    assert schedule_of(new.spec) == (
        "linear warm-up over 2 epochs, cosine to 0 at epoch 20; again: warm-up over 2 epochs, cosine to 0 at epoch 220"
    )
    assert rows.claim(database).resume is not None


def test_a_continued_job_can_be_continued(database: Database) -> None:
    rows.add_dataset(database)
    second = go_on(database, finished(database), epochs=5)
    run = rows.Run(database, rows.claim(database))
    run.deliver(rows.started(100), rows.metrics(125, **{KNN_TOP1: 0.7}), rows.checkpoint(125, "c" * 64))
    run.end("succeeded")

    third = go_on(database, second.id, epochs=10)

    assert (third.spec["epochs"], third.spec["restarts"]) == (35, [20, 25])
    with database.read() as session:
        origins = lineage.lineage(session, third)
        values = untrained_accuracies(session, [second.id, third.id])
    assert [(each.relation, each.step) for each in origins] == [("continues", 125), ("continues", 100)]
    assert values == {second.id: 0.3, third.id: 0.3}


def test_the_sizes_that_a_run_has_found_are_kept(database: Database) -> None:
    rows.add_dataset(database)
    first = finished(database, {"batch_size": "auto"})
    with database.read() as session:
        found = session.get_one(Job, first).spec | {"batch_size": 64}
    database.write(lambda session: session.execute(update(Job).where(Job.id == first).values(spec=found)))

    assert go_on(database, first, epochs=1).spec["batch_size"] == 64


def test_other_data_are_a_run_of_its_own_from_the_weights(database: Database) -> None:
    rows.add_dataset(database)
    rows.add_dataset(database, "flowers", "e" * 64)
    first = finished(database, {"seed": 3})

    second = go_on(database, first, data="flowers")
    third = go_on(database, first, data="flowers", epochs=7)

    spec = resolve_spec(rows.new_job(spec={"epochs": 20, "seed": 3, "weights": rows.SHA}).spec)
    assert second.spec == spec | {"data": spec["data"] | {"name": "flowers"}}
    assert (third.spec["epochs"], third.spec["warmup_epochs"]) == (7, 0.7)
    assert second.resume_checkpoint_id is None
    with database.read() as session:
        (origin,) = lineage.lineage(session, second)
    assert (origin.relation, origin.job_id, origin.step, origin.weights) == ("starts_from", first, 100, rows.SHA)


def test_the_verdict_names_the_weights_that_a_training_started_from(database: Database) -> None:
    rows.add_dataset(database)
    counts = {"test": [50, 50], "train": [500, 500]}
    database.write(lambda session: session.add(DatasetVersion(digest=rows.DIGEST, class_counts=counts)))
    add_weights(database)
    first = finished(database, {"weights": IMPORTED})
    second = go_on(database, first, epochs=5)
    run = rows.Run(database, rows.claim(database))
    run.deliver(rows.started(100), rows.metrics(125, **{KNN_TOP1: 0.7}), rows.checkpoint(125, "c" * 64))
    run.end("succeeded")

    for job_id, points in ((first, "30.0"), (second.id, "40.0")):
        with database.read() as session:
            result = verdict(session, session.get_one(Job, job_id))
        assert result is not None
        assert result.sentence.startswith(f"Better than the weights that it started from by {points} ±")
        assert "before the training 30.0%" in result.sentence


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("failed", "`wcl retry` trains it to its end"),
        ("cancelled", "`wcl retry` trains it to its end"),
        ("running", "this one is running, so wait for its end"),
    ],
)
def test_only_a_finished_training_goes_on(database: Database, status: str, message: str) -> None:
    rows.add_dataset(database)
    job_id = finished(database)
    database.write(lambda session: session.execute(update(Job).values(status=status)))

    with pytest.raises(Conflict, match=message):
        go_on(database, job_id, epochs=1)


def test_what_cannot_go_on_says_why(database: Database) -> None:
    rows.add_dataset(database)
    first = finished(database)
    evaluation = rows.submit(database, kind="evaluate")
    with pytest.raises(NotFound):
        go_on(database, "unknown", epochs=1)
    with pytest.raises(Conflict, match="this job is an evaluation"):
        go_on(database, evaluation, epochs=1)
    with pytest.raises(Invalid, match="there is no dataset 'other'"):
        go_on(database, first, data="other")
    with pytest.raises(Conflict, match="only a failed or cancelled .*; `wcl continue` trains it for more epochs"):
        database.write(lambda session: submission.retry(session, first, None))
    database.write(lambda session: session.execute(update(Dataset).values(digest="f" * 64)))
    with pytest.raises(Conflict, match="the images of digits have changed since"):
        go_on(database, first, epochs=1)
    database.write(lambda session: session.execute(update(Checkpoint).values(deleted_at=1)))
    with pytest.raises(Conflict, match="deleted, damaged or missing"):
        go_on(database, first, epochs=1)


def test_weights_are_kept_while_an_unfinished_job_starts_from_them(database: Database) -> None:
    rows.add_dataset(database)
    add_weights(database)
    first = finished(database)
    rows.submit(database, spec={"weights": IMPORTED})
    rows.submit(database, spec={"weights": rows.SHA})
    with database.read() as session:
        checkpoint_id = session.query(Checkpoint).filter_by(job_id=first).one().id

    for removal in (
        lambda session: weights.remove_row(session, IMPORTED),
        lambda session: checkpoints.delete(session, checkpoint_id),
    ):
        with pytest.raises(Conflict, match="needs the"):
            database.write(removal)
    with database.read() as session:
        assert set(checkpoints.users(session, checkpoints.good(session, first))) == {checkpoint_id}
    database.write(lambda session: session.execute(update(Job).values(status="cancelled")))

    database.write(lambda session: weights.remove_row(session, IMPORTED))
    database.write(lambda session: checkpoints.delete(session, checkpoint_id))
    with database.read() as session:
        assert weights.source(session, IMPORTED) is weights.source(session, rows.SHA) is None


def test_weights_of_another_network_are_refused_at_submission(database: Database) -> None:
    rows.add_dataset(database)
    add_weights(database, name="resnet18", stem="imagenet")
    with pytest.raises(Invalid, match=r"/spec/backbone: the weights \(mine\) are of another network; use .*resnet18"):
        rows.submit(database, spec={"weights": IMPORTED})
    with pytest.raises(Invalid, match=r"/spec/weights: there are no weights .*; imported are: mine \(bbbb"):
        rows.submit(database, spec={"weights": "0" * 64})
    fits = {"weights": IMPORTED, "backbone": {"name": "resnet18", "stem": "imagenet"}}

    assert rows.submit(database, spec=fits)


def test_a_transformer_starts_at_the_size_of_its_position_embeddings(database: Database) -> None:
    rows.add_dataset(database)
    add_weights(database, name="vit_small", patch_size=16)
    spec = {"weights": IMPORTED, "backbone": {"name": "vit_small"}}
    with pytest.raises(Invalid, match=r"data.image_size = 224"):
        rows.submit(database, spec=spec | {"data": {"name": "digits", "image_size": 64}})

    assert rows.submit(database, spec=spec | {"data": {"name": "digits", "image_size": 224}})
