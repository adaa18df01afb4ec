"""Deleted jobs are absent at once, can be restored for a while, and then leave no row and no file behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, text, update
from sqlalchemy.orm import Session

from jobs import audit, checkpoints, deletions, keys, lineage, listing, queries, shares, submission, transitions
from jobs.database import Database, new_id
from jobs.deletions import Extent
from jobs.errors import Conflict, Invalid, NotFound
from jobs.keys import Principal
from jobs.models import SEES_HIDDEN, Base, Checkpoint, Deletion, Evaluation, Job, JobEvaluation, Point, Series, Sweep
from jobs.purge import BATCH, purge_due
from jobs.storage import LocalStorage, file_key
from tests.jobs import rows
from tests.jobs.rows import Run, add_dataset, running, submit

ADA = Principal("00000000-0000-7000-8000-00000000000a", "ada", frozenset({"submit"}))
ROOT = Principal("00000000-0000-7000-8000-00000000000b", "root", frozenset({"admin"}))


@pytest.fixture(autouse=True)
def dataset(request: pytest.FixtureRequest) -> None:
    name = "database" if "database" in request.fixturenames else "postgres_database"
    add_dataset(request.getfixturevalue(name))


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    (tmp_path / "checkpoints").mkdir()
    return LocalStorage(tmp_path / "checkpoints")


def delete(database: Database, *job_ids: str) -> Extent:
    return database.write(lambda session: deletions.delete(session, job_ids, ADA))


def restore(database: Database, job_id: str) -> list[str]:
    return database.write(lambda session: deletions.restore(session, job_id, ROOT))


def reasons(extent: Extent) -> dict[str, str]:
    return {each.job_id: each.reason for each in extent.refused}


def trained(database: Database, steps: Sequence[int] = (1, 2), **fields: Any) -> str:
    """Return an ended training with checkpoints, points, lines and an artifact."""
    run = Run(database, running(database, **fields))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.log("line"), rows.artifact())
    run.deliver(*(rows.checkpoint(step, f"{step:x}" * 64) for step in steps))
    run.end("succeeded")
    return run.job_id


def checkpoint_of(database: Database, job_id: str) -> Checkpoint:
    return rows.checkpoints(database, job_id)[-1]


def evaluated(database: Database, checkpoint_id: str, value: float = 0.5) -> str:
    """Return an ended evaluation of a checkpoint."""
    spec = {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}
    run = Run(database, running(database, kind="evaluate", spec=spec))
    run.deliver(rows.started(), rows.evaluation(value))
    run.end("succeeded")
    return run.job_id


def count(database: Database, table: Any) -> int:
    statement = select(func.count()).select_from(table)
    with database.read() as session:
        return int(session.execute(statement, execution_options=SEES_HIDDEN).scalar_one())


def write_files(database: Database, storage: LocalStorage, job_id: str) -> list[Path]:
    """Write the files of a job's attempt; the purge takes whole folders."""
    paths = [storage.root / job_id / "1" / name for name in ("step-1.safetensors", "probe.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bytes")
    return paths


def purge(database: Database, storage: LocalStorage, days: float = 0) -> int:
    return purge_due(database, storage, days, threading.Event())


# --- absent at once --------------------------------------------------------------------------------------------------


def test_a_deleted_job_is_absent_with_its_evaluations_until_it_is_restored(database: Database) -> None:
    job_id = trained(database)
    file = checkpoint_of(database, job_id)
    evaluation = evaluated(database, file.id)
    other = trained(database, steps=(3,))

    extent = delete(database, job_id)

    assert [each.id for each in extent.jobs] == [job_id]
    assert (extent.num_evaluation_jobs, extent.num_checkpoints, extent.num_results) == (1, 2, 1)
    assert extent.size == 2 * 10 + 10
    with database.read() as session:
        assert [job.id for job in queries.list_jobs(session).items] == [other]
        assert [entry.id for entry in listing.entries(session, "", False, None, 50).items] == [other]
        for gone in (job_id, evaluation):
            with pytest.raises(NotFound):
                queries.get_job(session, gone)
        with pytest.raises(NotFound):
            queries.get_checkpoint(session, file.id)
        assert checkpoints.good(session, job_id) == []
        assert session.execute(select(Evaluation)).scalars().all() == []
    assert audit.audit(database).findings == []

    assert sorted(restore(database, job_id)) == sorted([job_id, evaluation])

    with database.read() as session:
        assert len(checkpoints.good(session, job_id)) == 2
        assert [entry.value for entry in queries.evaluations(session, job_id)] == [0.5]
        record = deletions.records(session)[-1]
    assert (record.deleted_by_name, record.restored_by_name) == ("ada", "root")
    assert audit.audit(database).findings == []


def test_the_next_job_of_a_seed_group_stands_for_it_in_the_list(database: Database) -> None:
    new = [rows.new_job(spec={"seed": seed}) for seed in (0, 1)]
    first, second = (job.id for job in database.write(lambda session: submission.submit_group(session, new)))

    assert delete(database, first).num_seed_groups == 1

    with database.read() as session:
        assert [(each.job and each.job.id) for each in listing.entries(session, "", False, None, 50).items] == [second]


def test_a_value_that_another_job_has_measured_stays(database: Database) -> None:
    file = checkpoint_of(database, trained(database))
    first, second = evaluated(database, file.id), evaluated(database, file.id)

    assert delete(database, first).num_results == 0
    with database.read() as session:
        assert len(session.execute(select(Evaluation)).scalars().all()) == 1
    assert delete(database, second).num_results == 1
    with database.read() as session:
        assert session.execute(select(Evaluation)).scalars().all() == []


def test_a_value_is_shown_again_once_another_job_measures_it(database: Database) -> None:
    file = checkpoint_of(database, trained(database))
    delete(database, evaluated(database, file.id))

    again = evaluated(database, file.id)

    with database.read() as session:
        assert len(queries.evaluations(session, again)) == 1


def test_a_retry_of_a_deleted_evaluation_stays_below_the_training(database: Database) -> None:
    job_id = trained(database)
    first = evaluated(database, checkpoint_of(database, job_id).id)
    again = database.write(lambda session: submission.clone(session, first, {}, None).id)

    delete(database, first)

    with database.read() as session:
        assert listing.num_evaluations(session, [job_id])[job_id] == 1
        assert queries.get_job(session, again).parent_id == job_id


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_running_job_is_refused_and_a_waiting_one_is_cancelled(database: Database) -> None:
    run = Run(database, running(database))
    waiting = submit(database)

    extent = delete(database, run.job_id, waiting)

    assert [each.id for each in extent.jobs] == [waiting]
    assert "cancel it first" in reasons(extent)[run.job_id]
    run.deliver(rows.started(), rows.metrics(1, loss=1.0))
    restore(database, waiting)
    assert rows.status(database, waiting) == "cancelled"


def test_a_refusal_names_the_evaluation_that_runs(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.checkpoint(1))
    run.end("succeeded")
    user = submit(database, "evaluate", {"features": {"kind": "pixels"}})
    facts = {"parent_id": run.job_id, "name": "measures it"}
    database.write(lambda session: session.execute(update(Job).where(Job.id == user).values(**facts)))
    rows.claim(database)
    reason = reasons(delete(database, run.job_id))[run.job_id]
    assert reason == f"measures it ({user[-12:]}), which evaluates it, runs; cancel that one first"


@pytest.mark.parametrize(
    "need", ["retry", "evaluation", "weights", "dependency", "sweep", "weights of a sweep", "running evaluation"]
)
def test_a_job_that_another_one_needs_is_refused(database: Database, need: str) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.checkpoint(1))
    run.end("failed" if need == "retry" else "succeeded")
    file = checkpoint_of(database, run.job_id)
    features = {"features": {"kind": "checkpoint", "checkpoint_id": file.id}}
    if need == "retry":
        user = database.write(lambda session: submission.retry(session, run.job_id, None).id)
    elif need.endswith("evaluation"):
        user = submit(database, "evaluate", features)
        # One that was submitted below another job: it is not deleted with this one.
        database.write(lambda s: s.execute(update(Job).where(Job.id == user).values(parent_id=None)))
    elif need == "weights":
        user = submit(database)
        spec = rows.job(database, user).spec | {"weights": file.sha256}
        database.write(lambda session: session.execute(update(Job).where(Job.id == user).values(spec=spec)))
    elif need == "dependency":
        blocker = submit(database)
        user = submit(database, after=(blocker,))
        assert user in reasons(delete(database, blocker))[blocker]
        return
    else:
        sweep_id = new_id()
        values = {"name": "s", "search": "grid", "status": "running", "base": {}, "parameters": {}, "metric": {}}
        values |= {"direction": "maximize", "seeds": [0], "seed": 0, "eta": 3, "rungs": [], "max_parallel": 1}
        values |= {"options": {}, "dataset_name": "digits", "dataset_digest": rows.DIGEST}
        if need == "sweep":
            database.write(lambda s: s.execute(update(Job).where(Job.id == run.job_id).values(sweep_id=sweep_id)))
        else:
            values["base"] = {"weights": file.sha256}
        database.write(lambda session: session.execute(insert(Sweep).values(id=sweep_id, **values)))
        user = sweep_id
    if need == "running evaluation":
        rows.claim(database)

    assert user in reasons(delete(database, run.job_id))[run.job_id]
    assert rows.job(database, run.job_id)

    if need in ("retry", "evaluation", "weights"):  # together they may go
        assert {each.id for each in delete(database, run.job_id, user).jobs} == {run.job_id, user}


def test_a_refused_job_keeps_those_that_it_needs(database: Database) -> None:
    first = submit(database)
    second = submit(database, after=(first,))
    third = submit(database, after=(second,))

    assert set(reasons(delete(database, first, second))) == {first, second}
    assert rows.status(database, second) == "blocked"
    assert not delete(database, first, second, third).refused


def test_a_second_deletion_finds_no_job(database: Database) -> None:
    job_id = trained(database)
    delete(database, job_id)

    assert reasons(delete(database, job_id)) == {job_id: "there is no such job"}
    assert count(database, Deletion) == 1


def test_no_new_job_can_need_a_deleted_one(database: Database) -> None:
    job_id = trained(database)
    file = checkpoint_of(database, job_id)
    delete(database, job_id)

    with pytest.raises(Invalid, match="no checkpoint"):
        submit(database, "evaluate", {"features": {"kind": "checkpoint", "checkpoint_id": file.id}})
    with pytest.raises(Invalid, match="no job"):
        submit(database, after=(job_id,))
    with pytest.raises(NotFound):
        database.write(lambda session: submission.retry(session, job_id, None))


@pytest.mark.parametrize("kind", ["evaluation", "dependency"])
def test_a_job_that_is_submitted_during_a_deletion_finds_nothing(postgres_database: Database, kind: str) -> None:
    database = postgres_database
    job_id = trained(database)
    features = {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_of(database, job_id).id}}

    def act() -> str:
        try:
            return submit(database, "evaluate", features) if kind == "evaluation" else submit(database, after=(job_id,))
        except Invalid:
            return "invalid"

    with ExitStack() as stack:

        def change(session: Session) -> Future[str]:
            deletions.delete(session, [job_id], ADA)
            future = stack.enter_context(rows.in_background(act))
            rows.until_a_statement_waits_for_a_lock(database, future)
            return future

        future = database.write(change)

    assert future.result() == "invalid"


# --- restored --------------------------------------------------------------------------------------------------------


def test_what_was_deleted_with_another_job_is_restored_with_it(database: Database) -> None:
    job_id = trained(database)
    evaluation = evaluated(database, checkpoint_of(database, job_id).id)
    delete(database, job_id)

    with pytest.raises(Conflict, match=job_id):
        restore(database, evaluation)


def test_an_evaluation_is_restored_after_its_training(database: Database) -> None:
    job_id = trained(database)
    evaluation = evaluated(database, checkpoint_of(database, job_id).id)
    delete(database, evaluation)
    delete(database, job_id)

    with pytest.raises(Conflict, match=job_id):
        restore(database, evaluation)
    restore(database, job_id)
    restore(database, evaluation)
    assert audit.audit(database).findings == []


def test_a_job_that_was_not_deleted_cannot_be_restored(database: Database) -> None:
    with pytest.raises(NotFound):
        restore(database, trained(database))


def test_a_job_can_be_deleted_and_restored_again(database: Database) -> None:
    job_id = trained(database)
    for _ in range(2):
        delete(database, job_id)
        restore(database, job_id)

    assert count(database, Deletion) == 2
    assert audit.audit(database).findings == []


# --- purged ----------------------------------------------------------------------------------------------------------


def test_a_purge_leaves_no_row_and_no_file(database: Database, storage: LocalStorage) -> None:
    key, _ = database.write(lambda session: keys.create(session, "ada", ["submit"]))
    before = {table.name: count(database, table) for table in Base.metadata.sorted_tables}
    job_id = trained(database)
    ada = Principal(key.id, "ada", frozenset({"submit"}))
    database.write(lambda session: shares.create(session, [job_id], 7, ada))
    evaluation = evaluated(database, checkpoint_of(database, job_id).id)
    submit(database, after=(job_id,), tags=("keep",))
    dependent = submit(database, after=(job_id,), tags=("keep",))
    for paths in (write_files(database, storage, each) for each in (job_id, evaluation)):
        assert all(path.exists() for path in paths)
    with database.read() as session:
        waiting = [job.id for job in queries.list_jobs(session, status=["queued"]).items]
    delete(database, *waiting)
    delete(database, job_id)

    assert purge(database, storage, days=1) == 0
    assert purge(database, storage) == 4

    after = {table.name: count(database, table) for table in Base.metadata.sorted_tables}
    records = [after.pop(name) for name in ("deletions", "shares", "activities", "device_use", "project_use")]
    assert records == [4, 1, 5, 1, 1]
    before = {name: number for name, number in before.items() if name in after}
    assert after == before
    assert list(storage.job_ids()) == []
    with pytest.raises(NotFound):
        restore(database, dependent)
    report = audit.audit(database, storage)
    assert (report.deletions, report.findings) == (4, [])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_500_deletions_beside_running_jobs_leave_their_records_only(
    postgres_database: Database, storage: LocalStorage
) -> None:
    database = postgres_database
    key, _ = database.write(lambda session: keys.create(session, "ada", ["submit"]))
    ada = Principal(key.id, "ada", frozenset({"submit"}))
    runs = [Run(database, running(database)) for _ in range(3)]
    for run in runs:
        run.deliver(rows.started())
    ended = [trained(database) for _ in range(10)]
    for job_id in ended:
        write_files(database, storage, job_id)
    database.write(lambda session: shares.create(session, ended[:2], 7, ada))
    job_ids = ended + [submit(database) for _ in range(490)]
    is_over = threading.Event()

    def deliver() -> int:
        step = 0
        while not is_over.is_set():
            step += 1
            for run in runs:
                run.deliver(rows.metrics(step, loss=1.0))
            is_over.wait(0.05)
        return step

    with rows.in_background(deliver) as delivered:
        try:
            for first in range(0, len(job_ids), deletions.AT_ONCE):
                assert not delete(database, *job_ids[first : first + deletions.AT_ONCE]).refused
            assert purge(database, storage) == 500
        finally:
            is_over.set()
        steps = delivered.result()

    for run in runs:
        run.end("succeeded")
    left = {table.name: count(database, table) for table in Base.metadata.sorted_tables}
    assert (left["jobs"], left["deletions"], left["point_blocks"], left["share_jobs"]) == (3, 500, 3 * steps, 0)
    assert left["checkpoints"] == left["artifacts"] == left["logs"] == 0
    assert list(storage.job_ids()) == []
    report = audit.audit(database, storage)
    assert (report.jobs, report.deletions, report.findings) == (3, 500, [])


def test_files_of_a_deleted_job_are_no_garbage(database: Database) -> None:
    run = Run(database, running(database))
    key = file_key(run.attempt, "step-1.safetensors")
    run.deliver(rows.started(), rows.checkpoint(1) | {"path": key})
    run.end("succeeded")
    delete(database, run.job_id)

    with database.read() as session:
        assert checkpoints.orphans(session, [key]) == []


class BrokenStorage(LocalStorage):
    """A storage that fails once, as a server that is killed at this place leaves everything."""

    is_broken = True

    def delete_job(self, job_id: str) -> None:
        """Remove half of the files, then fail."""
        if self.is_broken:
            self.is_broken = False
            next(iter((self.root / job_id).glob("*/*"))).unlink()
            raise OSError("interrupted")
        super().delete_job(job_id)


def test_an_interrupted_purge_goes_on_and_loses_account_of_nothing(database: Database, tmp_path: Path) -> None:
    storage = BrokenStorage(tmp_path / "checkpoints")
    job_id = trained(database)
    write_files(database, storage, job_id)
    delete(database, job_id)

    with pytest.raises(OSError, match="interrupted"):
        purge(database, storage)

    assert count(database, Job) == 1  # the row goes last: it alone tells whose files these are
    assert audit.audit(database, storage).findings == []
    with pytest.raises(Conflict, match="being removed"):
        restore(database, job_id)
    assert purge(database, storage, days=30) == 1
    assert list(storage.job_ids()) == []
    assert audit.audit(database, storage).findings == []


def test_a_restored_job_is_not_purged(database: Database, storage: LocalStorage) -> None:
    job_id = trained(database)
    paths = write_files(database, storage, job_id)
    delete(database, job_id)
    restore(database, job_id)

    assert purge(database, storage) == 0
    assert all(path.exists() for path in paths)


def test_rows_are_removed_in_short_transactions(database: Database, storage: LocalStorage) -> None:
    job_id = trained(database)
    with database.read() as session:
        series_id = session.execute(select(Series.id).where(Series.job_id == job_id)).scalar_one()
    points = [
        {"series_id": series_id, "attempt": 1, "step": step, "seq": 1, "value": 0.5, "at": 0}
        for step in range(2, 2 * BATCH + 10)
    ]
    database.write(lambda session: session.execute(insert(Point), points))
    delete(database, job_id)
    removed: list[int] = []
    real = database.write

    def counted(change: Any) -> Any:
        before = count(database, Point)
        result = real(change)
        removed.append(before - count(database, Point))
        return result

    database.write = counted  # type: ignore[method-assign]
    try:
        purge(database, storage)
    finally:
        database.write = real  # type: ignore[method-assign]
    assert max(removed) == BATCH
    assert count(database, Point) == 0


def test_many_deletions_take_a_bounded_number_of_statements(database: Database) -> None:
    ids = [submit(database) for _ in range(12)]
    for job_id in ids:
        database.write(lambda session, job_id=job_id: transitions.cancel(session, job_id))  # type: ignore[misc]

    few, many = (_statements(database, chosen) for chosen in (ids[:1], ids[1:]))

    assert many <= few + 2


def _statements(database: Database, ids: list[str]) -> int:
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    delete(database, *ids)
    event.remove(database.engine, "before_cursor_execute", note)
    return len(seen)


# --- lineage and the audit -------------------------------------------------------------------------------------------


def test_a_job_that_continues_a_deleted_one_names_it(database: Database, storage: LocalStorage) -> None:
    run = Run(database, running(database, name="first"))
    run.deliver(rows.started(), rows.checkpoint(1))
    run.end("failed")
    retry = database.write(lambda session: submission.retry(session, run.job_id, None).id)
    Run(database, rows.claim(database)).end("succeeded")

    extent = delete(database, run.job_id)

    assert [each.id for each in extent.continued_by] == [retry]
    for _ in range(2):
        with database.read() as session:
            origins = lineage.lineage(session, queries.get_job(session, retry))
        assert [(each.words, each.name, each.job_id) for each in origins] == [("retries", "first (deleted)", None)]
        purge(database, storage)


def test_the_audit_finds_files_and_rows_that_no_deletion_accounts_for(
    database: Database, storage: LocalStorage
) -> None:
    write_files(database, storage, "weights")  # imported ones, which are of no job
    lost, hidden, shown = new_id(), trained(database), trained(database, steps=(3,))
    write_files(database, storage, lost)
    delete(database, shown)
    hide, show = (text(f"UPDATE jobs SET hidden_at = {value} WHERE id = :id") for value in ("1", "NULL"))
    database.write(lambda session: session.execute(hide, {"id": hidden}))
    database.write(lambda session: session.execute(show, {"id": shown}))

    findings = {(each.job_id, each.rule) for each in audit.audit(database, storage).findings}

    assert findings == {(lost, "files"), (hidden, "deletions"), (shown, "deletions")}


def test_links_of_purged_values_are_gone(database: Database, storage: LocalStorage) -> None:
    file = checkpoint_of(database, trained(database))
    first, second = evaluated(database, file.id), evaluated(database, file.id)
    delete(database, first)
    purge(database, storage)

    assert count(database, Evaluation) == 1
    delete(database, second)
    purge(database, storage)
    assert (count(database, Evaluation), count(database, JobEvaluation)) == (0, 0)
