"""A worker whose database is behind PgBouncer in transaction mode."""

from __future__ import annotations

import pytest

from jobs.database import Database
from tests import servers
from tests.worker.conftest import StartWorker
from tests.worker.running import SHORT, Jobs

pytestmark = [pytest.mark.timeout(300), pytest.mark.postgres]


def test_jobs_run_behind_pgbouncer(postgres_url: str, start_worker: StartWorker) -> None:
    with servers.pgbouncer(postgres_url) as url:
        database = Database(url)
        database.migrate()
        jobs = Jobs(database)
        worker = start_worker(database)
        ids = [jobs.submit(SHORT | {"seed": seed}) for seed in range(3)]

        for job_id in ids:
            job = jobs.wait_for(job_id, "succeeded", "failed")
            assert (job.status, job.attempt, job.failures) == ("succeeded", 1, 0), worker.log()
        assert worker.stop() == 0
        assert "Traceback" not in worker.log()
        database.dispose()
