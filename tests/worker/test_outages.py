"""Faults of the database under a running worker: its run goes on, and its job waits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from jobs import transitions
from jobs.database import Database
from jobs.models import Attempt
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import SAVING, SHORT, Jobs, RunningWorker

pytestmark = pytest.mark.timeout(300)
ROLE = "worker_role"


@pytest.fixture
def administrator(postgres_server: str, postgres_database: Database) -> Iterator[psycopg.Connection]:
    """A superuser's connection to the database of `postgres_database`."""
    name = postgres_database.engine.url.database
    with psycopg.connect(postgres_server.rpartition("/")[0] + f"/{name}", autocommit=True) as connection:
        yield connection


def start_endless(worker: RunningWorker, jobs: Jobs) -> str:
    job_id = jobs.submit(SAVING)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, f"a checkpoint\n{worker.log()}")
    return job_id


def renewals(database: Database, job_id: str) -> int:
    with database.read() as session:
        return session.get_one(Attempt, (job_id, 1)).renewals


def cut(administrator: psycopg.Connection) -> None:
    """End the connections of other processes: a changed default is for new ones."""
    administrator.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_a_read_only_database_costs_a_run_nothing(
    postgres_database: Database, administrator: psycopg.Connection, start_worker: StartWorker
) -> None:
    jobs = Jobs(postgres_database)
    worker = start_worker(postgres_database)
    job_id = start_endless(worker, jobs)
    run = worker.run_process()
    assert run
    name = postgres_database.engine.url.database
    (spool,) = (worker.folder / "attempts").rglob("report.jsonl")

    administrator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    cut(administrator)
    try:
        before = spool.stat().st_size
        # Longer than the lease, and than several renewals.
        eventually(lambda: spool.stat().st_size > 3 * before, "reports while it is read-only")
        eventually(lambda: "the database is read-only" in worker.log(), "its line in the log")
    finally:
        administrator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        cut(administrator)

    delivered = jobs.num_checkpoints(job_id)
    eventually(lambda: jobs.num_checkpoints(job_id) > delivered, "deliveries afterwards")
    assert run.is_running()
    assert (jobs.get(job_id).attempt, jobs.get(job_id).failures) == (1, 0)
    assert "Traceback" not in worker.log()


def test_a_revoked_right_is_named_and_costs_a_run_nothing(
    postgres_database: Database, administrator: psycopg.Connection, start_worker: StartWorker
) -> None:
    administrator.execute(f"CREATE ROLE {ROLE} LOGIN")
    administrator.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}")
    limited = Database(postgres_database.engine.url.set(username=ROLE).render_as_string())
    jobs = Jobs(postgres_database)
    try:
        worker = start_worker(limited)
        administrator.execute(f"REVOKE INSERT ON point_blocks FROM {ROLE}")
        job_id = jobs.submit(SHORT)
        missing = "permission denied for table point_blocks, for INSERT"
        eventually(lambda: missing in worker.log(), "the name of the right")
        before = renewals(postgres_database, job_id)
        # Longer than a lease: the attempt is renewed although its records are refused.
        eventually(lambda: renewals(postgres_database, job_id) > before + 8, "renewals without records")
        assert (jobs.get(job_id).status, jobs.get(job_id).attempt) == ("running", 1)
        administrator.execute(f"GRANT INSERT ON point_blocks TO {ROLE}")

        job = jobs.wait_for(job_id, "succeeded", "failed")
        assert (job.status, job.attempt, job.failures) == ("succeeded", 1, 0), worker.log()
        assert worker.stop() == 0
        assert "Traceback" not in worker.log()
    finally:
        limited.dispose()
        cut(administrator)
        administrator.execute(f"DROP OWNED BY {ROLE}")
        administrator.execute(f"DROP ROLE {ROLE}")


def test_a_worker_starts_once_the_database_can_be_written(
    postgres_database: Database, administrator: psycopg.Connection, start_worker: StartWorker, tmp_path_factory
) -> None:
    name = postgres_database.engine.url.database
    administrator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    worker = RunningWorker(postgres_database, tmp_path_factory.mktemp("data")).start()
    try:
        eventually(
            lambda: "the registration of this worker fails and is repeated: the database is read-only" in worker.log(),
            "its line",
        )
        administrator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        cut(administrator)
        eventually(worker.is_idle, "the start of the worker")
    finally:
        administrator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        worker.stop()
    assert "Traceback" not in worker.log()


def test_a_worker_whose_user_the_database_refuses_ends_and_says_so(
    postgres_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = Database(postgres_database.engine.url.set(username="stranger").render_as_string(hide_password=False))
    worker = RunningWorker(stranger, tmp_path_factory.mktemp("data")).start()
    assert worker.wait() == os.EX_CONFIG, worker.log()
    assert "WCL_DATABASE_URL: " in worker.log()
    assert 'role "stranger" does not exist' in worker.log()


def test_a_checkpoint_that_cannot_be_marked_now_does_not_end_its_job(
    postgres_database: Database, administrator: psycopg.Connection, start_worker: StartWorker
) -> None:
    """The newest checkpoint is damaged, and the worker cannot store that yet."""
    jobs = Jobs(postgres_database)
    worker = start_worker(postgres_database)
    job_id = start_endless(worker, jobs)
    postgres_database.write(lambda session: transitions.pause(session, job_id))
    jobs.wait_for(job_id, "paused")
    newest = max((worker.folder / "checkpoints" / job_id).glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()

    administrator.execute(
        "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN RAISE SQLSTATE '53100'; END $$ LANGUAGE plpgsql"
    )
    administrator.execute("CREATE TRIGGER refuse BEFORE UPDATE ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse()")
    try:
        postgres_database.write(lambda session: transitions.resume(session, job_id))
        eventually(
            lambda: (
                "the preparation of its run fails and is repeated: the disk of the database is full" in worker.log()
            ),
            "a retry",
        )
        assert jobs.get(job_id).status == "running"
    finally:
        administrator.execute("DROP FUNCTION refuse CASCADE")

    eventually(lambda: [e.type for e in jobs.events(job_id)].count("started") == 2, "the second start")
    assert (jobs.get(job_id).status, jobs.get(job_id).attempt, jobs.get(job_id).failures) == ("running", 2, 0)
