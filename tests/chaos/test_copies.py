"""Copies on one host: a copied data folder, and a backup restored under living workers.

A copy carries the same ids, tokens and files as its original.  Neither disturbs the other.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import func, make_url, select

from jobs import transitions
from jobs.backups import BackupFolder, make_backup, restore
from jobs.models import Attempt, Checkpoint
from jobs.settings import Settings
from jobs.storage import LocalStorage
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.processes import Node
from tests.chaos.stage import Stage, Theatre, spec
from tests.jobs import rows
from tests.waiting import eventually
from wcl_core.text import Secret

_ENDLESS = 100_000  # epochs
_STEP_MS = 150
_LEASE = {"WCL_LEASE_SECONDS": "12"}  # long enough for a busy machine; the copies wait for its end


def num_points(stage: Stage, job_id: str) -> int:
    return sum(point.job_id == job_id for point in rows.stored_points(stage.database))


def num_checkpoints(stage: Stage, job_id: str) -> int:
    with stage.database.read() as session:
        own = select(func.count()).where(Checkpoint.job_id == job_id)
        return session.execute(own).scalar_one()


def training_of(stage: Stage, worker: Node, job_id: str, attempt: int) -> psutil.Process:
    """Wait until the attempt trains, and return its process."""

    def training() -> psutil.Process | None:
        runs = worker.trainings()
        return runs[0] if runs and stage.job(job_id).attempt == attempt else None

    return eventually(training, f"attempt {attempt} of {job_id}\n{worker.words()}")


def own_storage(stage: Stage, name: str) -> None:
    """Let a worker's data folder hold its files itself, as on one machine."""
    (stage.folder / name / "checkpoints").mkdir(parents=True)


@contextmanager
def suspended(stage: Stage, worker: Node) -> Iterator[None]:
    """Suspend a worker at a moment at which it holds no lock of the database."""

    def is_suspended() -> bool:
        worker.send(signal.SIGSTOP)
        eventually(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, "a suspended worker")
        if stage.postgres is not None or is_unlocked(stage.folder / "wcl.sqlite3"):
            return True
        worker.send(signal.SIGCONT)
        return False

    try:
        eventually(is_suspended, "a moment without a transaction")
        yield
    finally:
        worker.send(signal.SIGCONT)


def is_unlocked(database: Path) -> bool:
    """Return whether no process reads or writes a SQLite file; a backup into it would wait for ever."""
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        return True


@contextmanager
def copied(original: Stage, worker: Node) -> Iterator[Stage]:
    """Copy the folder and the database of a service while its run goes on."""
    folder, name = original.folder.with_name(f"{original.folder.name}-copy"), f"copy_{original.folder.name}"
    url = make_url(original.url)
    with suspended(original, worker):
        subprocess.run(["cp", "-a", original.folder, folder], check=True)
        if original.postgres is not None:
            _copy_database(original, name.replace("-", "_"))
    if original.postgres is not None:
        url = url.set(database=name.replace("-", "_"))
    else:
        url = url.set(database=str(folder / "wcl.sqlite3"))
    with closing(Stage(folder, url.render_as_string(hide_password=False), original.settings)) as stage:
        yield stage


def _copy_database(original: Stage, name: str) -> None:
    original.database.dispose()
    url = make_url(original.url)
    maintenance = url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(others, [url.database])
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{url.database}"')


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_copy_on_the_same_host_ends_no_run_of_its_original(house: Theatre, kind: str) -> None:
    """The copy takes the job over as its own attempt 2, while the original's attempts 1 and 2 run beside it."""
    with house.stage(f"copied-{kind}", kind, **_LEASE) as original:
        own_storage(original, "worker")
        worker = original.worker("worker").start()
        original.wait_for_workers("worker")
        job_id = original.submit(spec(1, _ENDLESS, _STEP_MS))
        first = training_of(original, worker, job_id, 1)
        eventually(lambda: num_checkpoints(original, job_id), "a checkpoint")
        with copied(original, worker) as copy:
            double = copy.worker("worker", orphan_seconds=1).start()
            training_of(copy, double, job_id, 2)
            assert first.is_running()
            assert (original.job(job_id).attempt, original.job(job_id).failures) == (1, 0)

            first.kill()
            second = training_of(original, worker, job_id, 2)
            copy.database.write(lambda session: transitions.cancel(session, job_id))
            copy.wait_for(job_id, "cancelled")
            double.end(signal.SIGTERM)
        before = num_points(original, job_id)
        eventually(lambda: num_points(original, job_id) > before, "further points of the original")
        assert second.is_running()
        original.database.write(lambda session: transitions.cancel(session, job_id))
        assert original.wait_for(job_id, "cancelled").failures == 1
        accepted = Accepted(job_id, 1, _ENDLESS, frozenset({"cancelled"}))
        assert Ledger(original.database, original.folder / "worker" / "checkpoints").problems([accepted]) == []


def test_a_worker_on_a_copied_folder_writes_into_no_attempt_of_the_original(house: Theatre) -> None:
    """Both workers share the database, and the copy holds the spool of the original's attempt."""
    with house.stage("copied-folder", "sqlite", **_LEASE) as stage:
        worker = stage.worker("worker").start()
        stage.wait_for_workers("worker")
        job_id = stage.submit(spec(1, _ENDLESS, _STEP_MS))
        run = training_of(stage, worker, job_id, 1)
        eventually(lambda: num_checkpoints(stage, job_id), "a checkpoint")
        with suspended(stage, worker):
            subprocess.run(["cp", "-a", stage.folder / "worker", stage.folder / "copy"], check=True)
        double = stage.worker("worker", orphan_seconds=1)
        environment = double.start_as.environment | {
            "WCL_DATA_DIR": str(stage.folder / "copy"),
            "WCL_WORKER_NAME": "copy",
        }
        object.__setattr__(double.start_as, "environment", environment)
        double.start()

        other = stage.wait_for(stage.submit(spec(2)), "succeeded")

        assert other.attempt == 1, "the worker on the copy took it"
        assert run.is_running()
        assert (stage.job(job_id).attempt, stage.job(job_id).failures) == (1, 0)
        before = num_points(stage, job_id)
        eventually(lambda: num_points(stage, job_id) > before, "further points of the original")
        stage.database.write(lambda session: transitions.cancel(session, job_id))
        stage.wait_for(job_id, "cancelled")


def test_a_worker_on_a_copied_database_removes_no_file_of_the_original(house: Theatre) -> None:
    """The folder of checkpoints is a link to a larger disk, so original and copy share it."""
    with house.stage("copied-link", "sqlite", **_LEASE) as original:
        worker = original.worker("worker").start()
        original.wait_for_workers("worker")
        job_id = original.submit(spec(1, _ENDLESS, _STEP_MS))
        run = training_of(original, worker, job_id, 1)
        eventually(lambda: num_checkpoints(original, job_id), "a checkpoint")
        with copied(original, worker) as copy:
            double = copy.worker("worker", orphan_seconds=1).start()
            eventually(lambda: [row for row in copy.workers() if row.pid == double.pid and row.unable], "a refusal")
            eventually(lambda: copy.job(job_id).status == "queued", "the end of the lease of the copied attempt")
            before = num_checkpoints(original, job_id)
            eventually(lambda: num_checkpoints(original, job_id) > before + 3, "further checkpoints of the original")
            assert copy.job(job_id).attempt == 1, "the copy runs a job"
            double.end(signal.SIGTERM)
        assert run.is_running()
        original.database.write(lambda session: transitions.cancel(session, job_id))
        assert original.wait_for(job_id, "cancelled").failures == 0
        accepted = Accepted(job_id, 1, _ENDLESS, frozenset({"cancelled"}))
        assert Ledger(original.database, original.checkpoints_dir).problems([accepted]) == []


def backup(source: Path, target: Path) -> None:
    """Copy a SQLite database into another one, as `.backup` and `.restore` do."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target, timeout=30)) as written:
        read.backup(written)


def test_a_worker_from_before_a_restored_backup_writes_nothing(house: Theatre) -> None:
    """The backup is of before the claim; the restored job gets another attempt of the same number."""
    with house.stage("restored", "sqlite", **_LEASE) as stage:
        database, saved = stage.folder / "wcl.sqlite3", stage.folder / "saved.sqlite3"
        old = stage.worker("old").start()
        stage.wait_for_workers("old")
        old.end(signal.SIGTERM)  # the storage has its id
        job_id = stage.submit(spec(1, epochs=30, step_ms=60))
        backup(database, saved)
        old.start()
        training_of(stage, old, job_id, 1)
        eventually(lambda: num_points(stage, job_id) >= 2, "the first points")
        with suspended(stage, old):
            backup(saved, database)
            new = stage.worker("new").start()
            training_of(stage, new, job_id, 1)
            eventually(lambda: num_points(stage, job_id) >= 2, "points of the new attempt")
        eventually(lambda: not old.trainings(), "the end of the old run")

        job = stage.wait_for_end(job_id)

        assert (job.status, job.attempt, job.failures) == ("succeeded", 1, 0)
        accepted = Accepted(job_id, 1, 30, frozenset({"succeeded"}))
        assert Ledger(stage.database, stage.checkpoints_dir).problems([accepted]) == []
        with stage.database.read() as session:
            rows = session.execute(select(Attempt.number, Attempt.worker_name).where(Attempt.job_id == job_id)).all()
        assert [tuple(row) for row in rows] == [(1, "new")]


def test_a_backup_made_while_jobs_run_goes_on_in_another_database(house: Theatre) -> None:
    """The job that ran continues from its newest checkpoint, the other one runs, and the original notices nothing."""
    with house.stage("backup", **_LEASE) as original:
        worker = original.worker("worker").start()
        original.wait_for_workers("worker")
        running, waiting = original.submit(spec(1, _ENDLESS, _STEP_MS)), original.submit(spec(2))
        run = training_of(original, worker, running, 1)
        eventually(lambda: num_checkpoints(original, running), "a checkpoint")
        folder = BackupFolder(original.folder / "backups")
        make_backup(original.database, LocalStorage(original.checkpoints_dir), original.folder / "backups", None)
        with restored(original, folder) as copy:
            other = copy.worker("other").start()
            training_of(copy, other, running, 2)
            copy.database.write(lambda session: transitions.cancel(session, running))
            copy.wait_for(running, "cancelled")
            copy.wait_for(waiting, "succeeded")
            with copy.database.read() as session:
                start = select(Attempt.start_step).where(Attempt.job_id == running, Attempt.number == 2)
                assert session.execute(start).scalar_one() >= 3, "it began again"
            ends = [
                Accepted(running, 1, _ENDLESS, frozenset({"cancelled"})),
                Accepted(waiting, 2, 2, frozenset({"succeeded"})),
            ]
            assert Ledger(copy.database, copy.checkpoints_dir).problems(ends) == []
        assert run.is_running()
        assert (original.job(running).attempt, original.job(running).failures) == (1, 0)
        assert original.job(waiting).status == "queued"


@contextmanager
def restored(original: Stage, folder: BackupFolder) -> Iterator[Stage]:
    """Restore a backup as a copy: a database and a data folder of its own."""
    url, name = make_url(original.url), f"restored_{make_url(original.url).database}"
    with psycopg.connect(original.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    text = url.set(database=name).render_as_string(hide_password=False)
    with closing(Stage(original.folder.with_name(name), text, original.settings)) as stage:
        stage.checkpoints_dir.rmdir()  # a restore makes it
        settings = Settings(data_dir=stage.folder, database_url=Secret(text.replace("+psycopg", "")))
        restore(settings, folder, folder.read(None), replace=False)
        yield stage
