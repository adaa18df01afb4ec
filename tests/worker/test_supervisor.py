"""A real worker with real runs: how attempts end, and the status of the job then."""

from __future__ import annotations

import signal
import threading
import time
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import psycopg
import pytest
from PIL import Image
from sqlalchemy import update
from sqlalchemy.engine import make_url

from jobs import checkpoints, queries, transitions
from jobs.database import Database
from jobs.errors import Invalid, Superseded
from jobs.models import Checkpoint, Job
from jobs.settings import Settings
from jobs.status import INFRASTRUCTURE, Reason
from jobs.transitions import Requests
from tests.chaos.proxy import Proxy
from tests.disks import mounted
from tests.jobs import rows
from tests.jobs.rows import open_attempt
from tests.servers import free_port
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import ENDLESS, SAVING, SHORT, Jobs, RunningWorker
from wcl_core.protocol import Request
from worker import open_attempt as opening
from worker import supervisor
from worker.background import BackgroundWork
from worker.exit_reason import AttemptEnd

pytestmark = pytest.mark.timeout(300)


def start_endless(worker: RunningWorker, jobs: Jobs) -> str:
    """Start a job that does not end by itself; wait for its first registered checkpoint."""
    job_id = jobs.submit(ENDLESS)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, f"a checkpoint\n{worker.log()}")
    return job_id


def test_a_job_runs_to_its_end_and_leaves_no_folder(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    job_id = jobs.submit(SHORT)

    job = jobs.wait_for(job_id, "succeeded", "failed")

    assert (job.status, job.failures, job.attempt) == ("succeeded", 0, 1)
    assert jobs.num_checkpoints(job_id) == 2
    eventually(worker.is_idle, "the worker's rest")
    assert list((worker.folder / "attempts").iterdir()) == []


class StandIn:
    """A process that hears nothing, its records, of which there are none, and its attempt."""

    has_ended, obstacle, requested, job_id, was_killed = False, None, None, "job", False
    collect = is_storing = spool_bytes = cap_output = wait = lambda *_, **__: 0

    def __init__(self, cancel: bool) -> None:
        self._cancel = cancel
        self.ends: list[AttemptEnd] = []

    def exit_code(self) -> int | None:
        return -9 if self.was_killed else None

    def send(self) -> Requests:
        return Requests(cancel=self._cancel, pause=False, preempt=False)

    def request(self, request: str) -> None:
        self.requested = request

    def kill(self, at_once: bool = False) -> None:
        self.was_killed, self.was_at_once = True, at_once

    def end(self, end: AttemptEnd) -> None:
        self.ends.append(end)


def follow(one: Any, problem: str | None = None) -> None:
    """Follow a run whose devices have the problem."""
    supervisor._Run(one, Settings(), threading.Event(), one, one, None, lambda: problem).follow()


def test_a_run_that_still_imports_is_ended_at_once_by_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_STOP_SECONDS", 3600.0)
    one = StandIn(cancel=True)

    follow(one)

    assert one.ends == [AttemptEnd("cancelled", None, None)]


def test_a_cancelled_run_that_does_not_end_by_itself_is_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that holds the interpreter hears nothing; for a pause, the run may finish it and save."""
    monkeypatch.setattr(supervisor, "_CANCEL_SECONDS", 0.0)
    monkeypatch.setattr(StandIn, "spool_bytes", lambda _: 1)
    monkeypatch.setattr(supervisor, "_STOP_SECONDS", 3600.0)
    one = StandIn(cancel=True)

    follow(one)

    assert one.was_at_once, "a run that has time to end is waited for"
    assert [end.outcome for end in one.ends] == ["cancelled"]


def test_a_cancel_is_read_beside_a_delivery_that_a_slow_database_holds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    one: Any = StandIn(cancel=False)
    one.read_request = chain([None], repeat("cancel")).__next__

    def held_up() -> Requests:
        eventually(lambda: one.was_killed, "the end of the run")
        return Requests(cancel=False, pause=False, preempt=False)

    one.send = held_up
    follow(one)

    assert one.was_at_once
    assert one.ends == [AttemptEnd("cancelled", None, None)]


def test_a_cancel_is_read_beside_another_read_that_a_slow_database_holds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_READ_SECONDS", 0.05)
    one: Any = StandIn(cancel=False)
    over, first = threading.Event(), iter([True])
    one.read_request = lambda: over.wait() and None if next(first, False) else "cancel"
    one.send = lambda: eventually(lambda: one.was_killed, "the end of the run") and StandIn.send(one)

    follow(one)
    over.set()

    assert one.ends == [AttemptEnd("cancelled", None, None)]


def test_after_a_slow_delivery_a_cancel_is_read_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_SLOW_SECONDS", 0.0)
    one: Any = StandIn(cancel=False)
    sent = []

    def slow() -> Requests:
        time.sleep(0.1)
        sent.append(one.was_killed)
        return StandIn.send(one)

    one.send = slow
    one.read_request = lambda: "cancel" if sent else None
    follow(one)

    assert one.ends == [AttemptEnd("cancelled", None, None)]
    assert len(sent) == 1


@pytest.mark.parametrize("read", [[None, "cancel"], [None, "pause"]])
def test_a_request_is_read_beside_a_renewal_that_a_slow_database_holds_up(
    read: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "POLL_SECONDS", 0.01)
    claim: Any = SimpleNamespace(job_id="j", attempt=None, node=0)
    one: Any = opening.OpenAttempt(None, Settings(lease_seconds=0.1), threading.Event(), claim)  # type: ignore[arg-type]
    over = threading.Event()
    one.renew, one.read_request = over.wait, iter(read).__next__
    preparation: BackgroundWork[bool] = BackgroundWork(over.wait)

    request = one.renew_during(preparation)
    over.set()

    assert request == read[-1]


def test_a_cancel_reaches_the_preparation_of_a_run_before_a_renewal_over_a_slow_network(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.add_dataset(postgres_database)
    claim = rows.running(postgres_database)
    url = make_url(postgres_database.url)
    assert url.port
    proxy = Proxy(url.port)
    slow = Database(url.set(port=proxy.port).render_as_string(hide_password=False))
    one = opening.OpenAttempt(slow, Settings(lease_seconds=0.1), threading.Event(), claim)
    with slow.read(), slow.read():  # both connections are open
        pass
    postgres_database.write(lambda session: transitions.cancel(session, claim.job_id))
    renewed: list[Request | None] = []
    over, renew = threading.Event(), one.renew

    def noted_renew() -> Request | None:
        renewed.append(renew())
        return renewed[-1]

    monkeypatch.setattr(one, "renew", noted_renew)
    try:
        proxy.slow(0.3)  # in each direction: a renewal takes ten messages and more, a read of requests one
        request = one.renew_during(BackgroundWork(over.wait))

        assert (request, renewed) == ("cancel", [])
    finally:
        over.set()
        proxy.mend()
        eventually(lambda: bool(renewed), "the end of the renewal")
        slow.dispose()
        proxy.close()


def test_a_renewal_that_finds_the_attempt_ended_ends_the_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "POLL_SECONDS", 0.01)
    claim: Any = SimpleNamespace(job_id="j", attempt=None, node=0)
    one: Any = opening.OpenAttempt(None, Settings(lease_seconds=0.1), threading.Event(), claim)  # type: ignore[arg-type]
    over = threading.Event()

    def superseded() -> None:
        raise Superseded("it has ended")

    one.renew = superseded
    with pytest.raises(Superseded):
        one.renew_during(BackgroundWork(over.wait))
    over.set()


def test_a_run_is_looked_at_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "send", lambda _: Requests(False, False, False, seconds_left=0.1))
    one: Any = StandIn(cancel=False)
    run = supervisor._Run(one, Settings(), threading.Event(), one, one, None, lambda: None)

    run._deliver()

    assert run._next_renewal - time.monotonic() <= 0.1
    assert run._pause() <= 0.1


def test_a_run_whose_device_breaks_is_killed_and_retried() -> None:
    one = StandIn(cancel=False)

    follow(one, "GPU 1 (H100): its driver reports Xid 79")

    assert one.was_at_once, "a run that had time would report an end of its own"
    message = "the run was killed: GPU 1 (H100): its driver reports Xid 79"
    assert one.ends == [AttemptEnd("failed", Reason.DEVICE_FAILED, message)]
    assert Reason.DEVICE_FAILED in INFRASTRUCTURE


def test_pause_resume_cancel(sqlite_database: Database, jobs: Jobs, start_worker: StartWorker) -> None:
    worker = start_worker(sqlite_database)
    job_id = start_endless(worker, jobs)

    sqlite_database.write(lambda session: transitions.pause(session, job_id))
    paused = jobs.wait_for(job_id, "paused")
    before = jobs.num_checkpoints(job_id)
    assert paused.failures == 0
    sqlite_database.write(lambda session: transitions.resume(session, job_id))
    eventually(lambda: jobs.num_checkpoints(job_id) > before, "progress after the pause")
    sqlite_database.write(lambda session: transitions.cancel(session, job_id))

    assert jobs.wait_for(job_id, "cancelled").attempt == 2


def test_a_stopped_worker_saves_its_run_and_claims_no_other_job(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    job_id = start_endless(worker, jobs)
    waiting = jobs.submit(SHORT)

    assert worker.stop() == 0

    job = jobs.get(job_id)
    assert (job.status, job.status_reason, job.failures) == ("queued", "worker_stopped", 0)
    events = jobs.events(job_id)
    assert [event.type for event in events][-2:] == ["checkpoint", "requeued"]
    assert jobs.get(waiting).attempt == 0, "a stopping worker took another job"


def test_a_killed_run_is_retried_until_the_limit(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database, WCL_MAX_FAILURES="2")
    job_id = start_endless(worker, jobs)

    for attempt in (1, 2):
        run = eventually(
            lambda n=attempt: worker.run_process() if jobs.get(job_id).attempt == n else None,  # type: ignore[misc]
            f"attempt {attempt}",
        )
        run.send_signal(signal.SIGKILL)
        eventually(lambda n=attempt: jobs.get(job_id).failures == n, "the failure")  # type: ignore[misc]

    job = jobs.wait_for(job_id, "failed")
    assert job.status_reason == "killed"
    assert "SIGKILL" in (job.status_message or "")


def test_a_restarted_worker_recovers_the_attempt_of_its_killed_process(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    """It does not wait for the lease of an hour; the orphaned run had saved its last step and ended."""
    worker = start_worker(sqlite_database, WCL_LEASE_SECONDS="3600")
    job_id = start_endless(worker, jobs)
    worker.stop(signal.SIGKILL)

    start_worker(sqlite_database, WCL_LEASE_SECONDS="3600")

    eventually(lambda: jobs.get(job_id).attempt == 2, "the second attempt")
    types = [event.type for event in jobs.events(job_id)]
    assert types[types.index("requeued") - 1] == "checkpoint"
    eventually(lambda: [e.type for e in jobs.events(job_id)].count("started") == 2, "the second start")
    steps = [event.data["start_step"] for event in jobs.events(job_id) if event.type == "started"]
    saved = [
        event.data["step"] for event in jobs.events(job_id)[: types.index("requeued")] if event.type == "checkpoint"
    ]
    assert steps == [0, saved[-1]]


def test_a_superseded_run_is_stopped_and_writes_nothing_more(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    job_id = start_endless(worker, jobs)
    run = worker.run_process()
    assert run

    attempt = open_attempt(sqlite_database, job_id)
    sqlite_database.write(lambda s: transitions.end_attempt(s, attempt, "failed", "bad_data", "ended by the test"))
    num_events, num_checkpoints = len(jobs.events(job_id)), jobs.num_checkpoints(job_id)
    eventually(lambda: not run.is_running(), "the end of the superseded run")
    eventually(worker.is_idle, "the worker's rest")

    assert jobs.get(job_id).status == "failed"
    assert (len(jobs.events(job_id)), jobs.num_checkpoints(job_id)) == (num_events, num_checkpoints)


@pytest.mark.parametrize("damage", [pytest.param("absent", marks=pytest.mark.long), "flipped"])
def test_a_damaged_checkpoint_is_named_in_the_message(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, damage: str
) -> None:
    worker = start_worker(sqlite_database)
    trained = jobs.submit(SHORT)
    jobs.wait_for(trained, "succeeded")
    with sqlite_database.read() as session:
        newest = checkpoints.newest(session, trained)
    assert newest
    path = worker.folder / "checkpoints" / newest.storage_key
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    features = {"kind": "checkpoint", "checkpoint_id": newest.id}
    job_id = jobs.submit({"data": SHORT["data"], "features": features, "protocols": ["knn"]}, "evaluate")
    job = jobs.wait_for(job_id, "failed", "succeeded")

    assert (job.status, job.status_reason) == ("failed", "missing_checkpoint")
    assert newest.id in (job.status_message or "")


def test_corrupt_images_are_refused_or_tolerated_and_named(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"no image")
    (tmp_path / "images" / "b" / "broken.png").write_bytes(b"")
    worker = start_worker(sqlite_database, WCL_DATASETS=f'{{"flat": "{tmp_path / "images"}"}}')
    data = {"name": "flat", "image_size": 8}

    eventually(worker.is_idle, "the registration of the dataset")
    with pytest.raises(Invalid, match=r"/spec/data/max_corrupt_share: 2 of 26 image files of flat cannot be read"):
        jobs.submit(SHORT | {"data": data, "batch_size": 8})
    tolerant = jobs.submit(SHORT | {"data": data | {"max_corrupt_share": 0.5}, "batch_size": 8})

    assert jobs.wait_for(tolerant, "failed", "succeeded").status == "succeeded", worker.log()
    assert any("broken.png" in event.data.get("message", "") for event in jobs.events(tolerant))


def test_a_run_loses_nothing_in_an_outage_of_the_database(
    postgres_database: Database, postgres_server: str, start_worker: StartWorker
) -> None:
    jobs = Jobs(postgres_database)
    worker = start_worker(postgres_database)
    job_id = start_endless(worker, jobs)
    run = worker.run_process()
    assert run
    name = postgres_database.engine.url.database
    (spool,) = (worker.folder / "attempts").rglob("report.jsonl")

    with psycopg.connect(postgres_server, autocommit=True) as administrator:
        administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        before = spool.stat().st_size
        try:
            # Longer than the lease: no process reaches the database, so no reconciler may declare the run lost.
            eventually(lambda: spool.stat().st_size > 3 * before, "reports during the outage")
            refused = "the delivery of its records fails and is repeated"
            eventually(lambda: refused in worker.log(), "refused deliveries")
        finally:  # other tests use this database, too
            administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    delivered = jobs.num_checkpoints(job_id)
    eventually(lambda: jobs.num_checkpoints(job_id) > delivered, "deliveries after the outage")
    assert run.is_running()
    assert worker.log().count("the delivery of its records fails") == 1
    assert worker.log().count("the delivery of its records works again") == 1
    assert (jobs.get(job_id).attempt, jobs.get(job_id).failures) == (1, 0)
    postgres_database.write(lambda session: transitions.cancel(session, job_id))
    jobs.wait_for(job_id, "cancelled")
    steps = [point.step for point in rows.stored_points(postgres_database) if point.name == "train/loss"]
    assert steps == list(range(1, len(steps) + 1)), "a report was lost or came twice"


def test_jobs_run_without_the_broker(postgres_database: Database, start_worker: StartWorker) -> None:
    jobs = Jobs(postgres_database)
    worker = start_worker(postgres_database, WCL_BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")

    assert jobs.wait_for(jobs.submit(SHORT), "succeeded", "failed").status == "succeeded"
    assert worker.stop() == 0


def test_a_full_disk_pauses_the_job_until_there_is_room(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, tmp_path: Path
) -> None:
    with mounted(tmp_path / "data" / "attempts", "3m") as disk:
        worker = start_worker(sqlite_database)
        wide = SHORT["backbone"] | {"width": 64}
        job = jobs.wait_for(jobs.submit(SHORT | {"backbone": wide}), "failed", "succeeded", "paused")

        assert (job.status, job.status_reason) == ("paused", "disk_full")
        assert jobs.num_checkpoints(job.id) == 0

        disk.resize("64m")
        assert jobs.wait_for(job.id, "failed", "succeeded").status == "succeeded", worker.log()
        assert jobs.get(job.id).failures == 0


@pytest.mark.long
def test_a_limit_on_the_size_of_files_pauses_the_job_until_it_is_lifted(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    """The limit acts as a quota does, and needs no root; the run inherits it from the worker."""
    worker = start_worker(sqlite_database)
    process = psutil.Process(worker.pid)
    unlimited = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (2 << 20, unlimited[1]))
    wide = SHORT["backbone"] | {"width": 64}

    job = jobs.wait_for(jobs.submit(SHORT | {"backbone": wide}), "failed", "succeeded", "paused")
    process.rlimit(psutil.RLIMIT_FSIZE, unlimited)

    assert (job.status, job.status_reason) == ("paused", "disk_full")
    assert jobs.wait_for(job.id, "failed", "succeeded").status == "succeeded", worker.log()


def pause_with_checkpoints(database: Database, jobs: Jobs, worker: RunningWorker, count: int) -> list[Checkpoint]:
    """Pause a job with so many checkpoints; return them, newest first."""
    job_id = jobs.submit(SAVING)
    eventually(lambda: jobs.num_checkpoints(job_id) >= count, f"checkpoints\n{worker.log()}")
    database.write(lambda session: transitions.pause(session, job_id))
    jobs.wait_for(job_id, "paused")
    with database.read() as session:
        return queries.checkpoints(session, job_id)


def start_of_attempt(jobs: Jobs, job_id: str, number: int) -> int:
    """Return the step where an attempt began, or the next one if that one did not come so far."""
    started = eventually(
        lambda: [e.data for e in jobs.events(job_id) if e.type == "started" and e.data["attempt"] >= number],
        f"the start of attempt {number}",
    )
    return int(started[0]["start_step"])


def damage_of(jobs: Jobs, job_id: str) -> list[dict[str, Any]]:
    reasons = ("damaged_checkpoint", "missing_checkpoint")
    return [e.data for e in jobs.events(job_id) if e.data.get("reason") in reasons]


def test_a_run_continues_from_an_older_checkpoint_when_the_newest_is_damaged(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    newest, second, third, *_ = pause_with_checkpoints(sqlite_database, jobs, worker, 4)
    (worker.folder / "checkpoints" / newest.storage_key).unlink()
    flipped = worker.folder / "checkpoints" / second.storage_key
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)

    sqlite_database.write(lambda session: transitions.resume(session, newest.job_id))

    assert start_of_attempt(jobs, newest.job_id, 2) == third.step
    assert [data["checkpoint"] for data in damage_of(jobs, newest.job_id)] == [newest.id, second.id]
    assert f"resumes from step {third.step}" in damage_of(jobs, newest.job_id)[1]["message"]
    assert flipped.read_bytes() == content, "the damaged file was touched"
    with sqlite_database.read() as session:
        rows = {row.id: row for row in queries.checkpoints(session, newest.job_id)}
    assert [rows[one.id].flaw for one in (newest, second, third)] == ["missing", "damaged", None]


def test_a_checkpoint_that_is_damaged_after_its_worker_read_it_costs_one_attempt(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(sqlite_database, FAILPOINTS=str(tmp_path))
    newest, second, *_ = pause_with_checkpoints(sqlite_database, jobs, worker, 3)
    (tmp_path / "armed").write_text("process.before_spawn hang 100")
    sqlite_database.write(lambda session: transitions.resume(session, newest.job_id))
    eventually((tmp_path / "fired").exists, "the start of the run")
    file = worker.folder / "checkpoints" / newest.storage_key
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (tmp_path / "release").touch()

    assert start_of_attempt(jobs, newest.job_id, 2) == second.step
    requeued = [event for event in jobs.events(newest.job_id) if event.data.get("reason") == "damaged_checkpoint"]
    assert [event.type for event in requeued] == ["requeued", "warning"]
    assert [data["checkpoint"] for data in damage_of(jobs, newest.job_id) if "checkpoint" in data] == [newest.id]


@pytest.mark.long
def test_a_job_whose_checkpoints_are_all_damaged_starts_over_and_its_retry_fails(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    """A job that began from scratch may start over; a retry that needs its checkpoint may not."""
    worker = start_worker(sqlite_database)
    checkpoints = pause_with_checkpoints(sqlite_database, jobs, worker, 1)
    job_id = checkpoints[0].job_id
    retry = jobs.submit(ENDLESS, resume_checkpoint_id=checkpoints[0].id, pool="later")
    sqlite_database.write(lambda s: s.execute(update(Checkpoint).values(sha256="0" * 64)) and None)

    sqlite_database.write(lambda session: transitions.resume(session, job_id))
    assert start_of_attempt(jobs, job_id, 2) == 0
    assert "no good checkpoint is left" in damage_of(jobs, job_id)[-1]["message"]
    sqlite_database.write(lambda s: s.execute(update(Job).where(Job.id == retry).values(pool="default")) and None)
    sqlite_database.write(lambda session: transitions.cancel(session, job_id))

    job = jobs.wait_for(retry, "failed")
    assert (job.status, job.status_reason, job.failures) == ("failed", "missing_checkpoint", 0)


def test_a_storage_folder_that_is_not_mounted_damages_nothing(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    """The worker takes no job meanwhile, and the job goes on by itself once the folder is back."""
    worker = start_worker(sqlite_database)
    newest, *_ = pause_with_checkpoints(sqlite_database, jobs, worker, 1)
    folder = worker.folder / "checkpoints"
    folder.rename(worker.folder / "unmounted")
    folder.mkdir()

    sqlite_database.write(lambda session: transitions.resume(session, newest.job_id))
    eventually(lambda: worker.row().unable == "storage_unavailable", "the worker's word")
    job = jobs.get(newest.job_id)
    folder.rmdir()
    (worker.folder / "unmounted").rename(folder)

    assert (job.status, job.attempt) == ("queued", 1)
    assert start_of_attempt(jobs, newest.job_id, 2) == newest.step
    assert damage_of(jobs, newest.job_id) == []
    eventually(lambda: worker.row().unable is None, "the worker's word")
