"""Wall clocks that are wrong by a day in different directions: none decides anything, and none is stored."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import select

from jobs import submission, transitions
from jobs.models import Attempt, Event, Job, Worker
from jobs.submission import NewJob
from tests.chaos import clock
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.stage import Stage, Theatre, spec
from tests.chaos.test_broker import caller_of
from tests.waiting import eventually
from wcl_core.config import parse_spec

ROOT = Path(__file__).parents[2]
_DAY = 86_400
# Names that other modules imported from the two modules before the clock was set wrong.
_EVERY_WAY = """
import datetime, email.utils, sys, time
from datetime import date, datetime as taken, timezone
from time import time as also_taken
from tests.chaos import clock
began, right = time.time(), datetime.datetime.now()
clock.set_wrong(lambda: 86400)
times = [
    time.time(),
    time.time_ns() / 1e9,
    also_taken(),
    time.mktime(time.localtime()),
    time.mktime(time.strptime(time.ctime())),
    time.mktime(time.strptime(time.strftime("%c"))),
    taken.now().timestamp(),
    datetime.datetime.now(timezone.utc).timestamp(),
    taken.today().timestamp(),
    taken.utcnow().replace(tzinfo=timezone.utc).timestamp(),
    email.utils.parsedate_to_datetime(email.utils.formatdate()).timestamp(),
]
assert all(86400 - 2 < each - began < 86400 + 60 for each in times), [each - began for each in times]
assert date.today() == taken.now().date() and time.gmtime()[2] == taken.utcnow().day
assert isinstance(right, taken) and isinstance(right, datetime.date) and issubclass(type(right), datetime.datetime)
"""


def times(stage: Stage) -> list[int]:
    """Return every time of the jobs, attempts, events and workers of a stage, in milliseconds."""
    result: list[int] = []
    with stage.database.read() as session:
        for table in (Job, Attempt, Event, Worker):
            columns = [column for column in table.__table__.columns if column.name.endswith("_at")]
            result += [value for row in session.execute(select(*columns)) for value in row if value is not None]
    return result


def test_every_way_to_read_a_wrong_clock_gives_the_wrong_time() -> None:
    done = subprocess.run([sys.executable, "-c", _EVERY_WAY], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


def test_no_wall_clock_decides_and_none_is_stored(house: Theatre) -> None:
    """A run whose worker dies moves to another worker; the clocks of server and workers differ by two days."""
    began = time.time()
    with house.stage("clocks") as stage:
        server = stage.server("server", clock_seconds=_DAY).start()
        dying = stage.worker("dying", clock_seconds=-_DAY).start()
        stage.wait_for_workers("dying")
        with caller_of(server) as caller:
            job_id = caller.submit(spec(1, epochs=30, step_ms=50), "wrong")
            assert job_id
            eventually(lambda: stage.job(job_id).attempt == 1 and dying.trainings(), "the run")
            dying.end(signal.SIGKILL)
            stage.worker("other", clock_seconds=_DAY).start()
            job = stage.wait_for_end(job_id)

        assert (job.attempt, job.failures) == (2, 1)
        accepted = Accepted(job_id, 1, 30, frozenset({"succeeded"}), "wrong")
        assert Ledger(stage.database, stage.checkpoints_dir).problems([accepted]) == []
        wrong = [at for at in times(stage) if abs(at / 1000 - began) > _DAY / 2]
        assert wrong == []


def test_the_queue_follows_the_order_of_submission_whatever_the_clocks_of_servers_say(house: Theatre) -> None:
    """The second job's id is two days older than the first one's."""
    with house.stage("clocks-queue") as stage:
        ahead = stage.server("ahead", clock_seconds=_DAY).start()
        behind = stage.server("behind", clock_seconds=-_DAY).start()
        with caller_of(ahead) as one, caller_of(behind, key_of=ahead) as other:
            job_ids = [caller.submit(spec(1), f"key-{place}") for place, caller in enumerate((one, other, one, other))]
        assert job_ids != sorted(map(str, job_ids))

        stage.worker("worker").start()

        jobs = [stage.wait_for_end(str(job_id)) for job_id in job_ids]
        starts = [job.started_at for job in jobs]
        assert starts == sorted(starts)


def test_a_stepping_clock_neither_ends_a_run_nor_prolongs_a_wait(house: Theatre) -> None:
    """SQLite has no clock of its own, so its times step with the clock of the machine."""
    with house.stage("clocks-step", "sqlite", WCL_LEASE_SECONDS="60") as stage:
        clock_file = stage.folder / "clock"
        clock.step(clock_file, 0)
        worker = stage.worker("worker", machine_clock_file=clock_file).start()
        stage.wait_for_workers("worker")
        requested = spec(1, 100_000, 30)
        new = NewJob("pretrain", requested, parse_spec("pretrain", requested), max_seconds=3600)
        job_id = stage.database.write(lambda session: submission.submit(session, new)).id
        eventually(lambda: stage.job(job_id).progress or worker.trainings(), "the run")

        clock.step(clock_file, _DAY)
        time.sleep(2)  # several renewals
        assert stage.job(job_id).status == "running"
        for training in worker.trainings():
            training.kill()
        eventually(lambda: stage.job(job_id).status == "queued", "the end of the first attempt")
        clock.step(clock_file, 0)
        eventually(lambda: stage.job(job_id).attempt == 2 and worker.trainings(), "the second attempt")

        clock.step(clock_file, -_DAY)
        time.sleep(2)
        worker.end(signal.SIGTERM)
        job = stage.job(job_id)
        assert (job.status, job.status_reason, job.failures) == ("queued", "worker_stopped", 1)
        clock.step(clock_file, _DAY)
        worker.start()
        eventually(lambda: stage.job(job_id).attempt == 3 and worker.trainings(), "the third attempt")
        stage.database.write(lambda session: transitions.cancel(session, job_id))
        assert stage.wait_for(job_id, "cancelled").failures == 1
