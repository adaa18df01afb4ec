"""A worker that alone is cut off from the network: its job moves, and its late run stops without any effect."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url

from jobs import transitions
from jobs.database import Database
from tests.chaos.proxy import Proxy
from tests.jobs import rows
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import ENDLESS, Jobs

pytestmark = pytest.mark.timeout(600)


def num_points(database: Database, attempt: int) -> int:
    return sum(point.attempt == attempt for point in rows.stored_points(database))


def test_a_worker_that_alone_is_cut_off_loses_its_job_and_stops_its_run(
    postgres_database: Database, start_worker: StartWorker
) -> None:
    jobs, url = Jobs(postgres_database), make_url(postgres_database.engine.url)
    assert url.port
    proxy = Proxy(url.port)
    try:
        behind = url.set(port=proxy.port).render_as_string(hide_password=False)
        cut_off = start_worker(postgres_database, WCL_DATABASE_URL=behind)
        job_id = jobs.submit(ENDLESS)
        eventually(lambda: jobs.num_checkpoints(job_id) >= 1, "a checkpoint")
        body = cut_off.run_process()
        assert body
        other = start_worker(postgres_database)

        proxy.cut()
        eventually(lambda: jobs.get(job_id).attempt == 2 and other.run_process(), "the move to the other worker")
        written = num_points(postgres_database, 1)
        eventually(lambda: num_points(postgres_database, 2), "reports of the second body")
        proxy.mend()
        eventually(lambda: not body.is_running(), "the end of the first body")

        assert num_points(postgres_database, 1) == written
        moved = [event.type for event in jobs.events(job_id)].index("requeued")
        assert [event.data for event in jobs.events(job_id)[moved + 1 :] if event.data.get("attempt") == 1] == []
        job = jobs.get(job_id)
        assert (job.status, job.attempt, job.failures) == ("running", 2, 1)
        postgres_database.write(lambda session: transitions.cancel(session, job_id))
        jobs.wait_for(job_id, "cancelled")
    finally:
        proxy.close()
