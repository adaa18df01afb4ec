"""Lost attempts and workers, on a clock that the test moves, with real databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from jobs import transitions, workers
from jobs.database import Database, Signal, now_ms
from jobs.models import IdempotencyKey, Worker
from jobs.reconciler import Reconciler, Watch
from jobs.settings import Settings
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, claim, job, running, status, submit
from tests.waiting import eventually

LEASE, POLL_SECONDS = 60.0, 5.0


class Clock:
    """Monotonic seconds that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reconciler(database: Database, clock: Clock, tmp_path: Path) -> Reconciler:
    rows.add_dataset(database)
    return make(database, clock, tmp_path)


def make(database: Database, clock: Callable[[], float], folder: Path) -> Reconciler:
    settings = Settings(data_dir=folder, lease_seconds=LEASE, look_seconds=POLL_SECONDS)
    return Reconciler(database, settings, sends_wake_ups=False, clock=clock)


def poll_for(
    reconciler: Reconciler, clock: Clock, seconds: float, between: Callable[[], object] = lambda: None
) -> None:
    """Poll every few seconds, the first time at once."""
    reconciler.poll()
    for _ in range(int(seconds / POLL_SECONDS)):
        between()
        clock.now += POLL_SECONDS
        reconciler.poll()


def test_a_workers_reconciler_polls_only_while_no_server_does(
    postgres_database: Database, clock: Clock, tmp_path: Path
) -> None:
    database = postgres_database
    rows.add_dataset(database)
    worker = make(database, clock, tmp_path)
    settings = Settings(data_dir=tmp_path, lease_seconds=LEASE, look_seconds=POLL_SECONDS)
    server = Reconciler(database, settings, sends_wake_ups=True, clock=clock)

    def turns(seconds: float, *others: Reconciler) -> list[str]:
        """Return the statements of the worker's turns."""
        sent: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            sent.append(statement)

        for _ in range(int(seconds / POLL_SECONDS)):
            for other in others:
                other.turn()
            event.listen(database.engine, "before_cursor_execute", note)
            worker.turn()
            event.remove(database.engine, "before_cursor_execute", note)
            clock.now += POLL_SECONDS
        return sent

    turns(3 * POLL_SECONDS, server)
    beside_a_server = turns(12 * POLL_SECONDS, server)
    job_id = running(database).attempt.job_id
    alone = turns(LEASE)

    assert len(beside_a_server) == 12, "one look a turn"
    assert all("reconcilers" in each for each in beside_a_server)
    polls = [each for each in alone if "reconcilers" not in each]
    assert len(polls) >= LEASE / POLL_SECONDS, "each turn polls"
    assert status(database, job_id) == "running", "no lease is over for this reconciler"
    turns(4 * POLL_SECONDS)
    assert status(database, job_id) == "queued", "the worker does what the servers did"


# --- the watch -----------------------------------------------------------------------------------------------------


def test_an_owner_is_lost_after_a_lease_without_change() -> None:
    watch: Watch[str] = Watch(10, 6)
    assert watch.lost({"a": 1}, 0) == []
    assert watch.lost({"a": 1}, 5) == []
    assert watch.lost({"a": 1, "b": 1}, 9) == []
    assert watch.lost({"a": 1, "b": 1}, 10) == ["a"]
    assert watch.lost({"b": 1}, 15) == []
    assert watch.lost({"a": 1, "b": 1}, 19) == ["b"]


def test_any_change_restarts_the_wait() -> None:
    watch: Watch[str] = Watch(10, 6)
    for now in range(0, 60, 5):
        assert watch.lost({"a": now // 10}, now) == []
    assert watch.lost({"a": 5}, 60) == ["a"]


def test_an_owner_that_returns_starts_a_new_wait() -> None:
    watch: Watch[str] = Watch(10, 6)
    watch.lost({"a": 1}, 0)
    watch.lost({}, 5)
    assert watch.lost({"a": 1}, 10) == []
    assert watch.lost({"a": 1}, 15) == []
    assert watch.lost({"a": 1}, 20) == ["a"]


def test_a_gap_between_polls_restarts_every_wait() -> None:
    watch: Watch[str] = Watch(10, 6)
    watch.lost({"a": 1}, 0)
    assert watch.lost({"a": 1}, 6) == []
    assert watch.lost({"a": 1}, 12.5) == []  # it slept, so this is the first poll
    assert watch.lost({"a": 1}, 18) == []
    assert watch.lost({"a": 1}, 22.5) == ["a"]


def test_a_failed_poll_restarts_every_wait() -> None:
    watch: Watch[str] = Watch(10, 6)
    watch.lost({"a": 1}, 0)
    watch.lost({"a": 1}, 5)
    watch.reset()
    assert watch.lost({"a": 1}, 10) == []
    assert watch.lost({"a": 1}, 15) == []
    assert watch.lost({"a": 1}, 20) == ["a"]


# --- attempts ------------------------------------------------------------------------------------------------------


def test_an_unrenewed_attempt_is_reaped_after_a_lease(database: Database, reconciler: Reconciler, clock: Clock) -> None:
    run = Run(database, running(database))
    poll_for(reconciler, clock, LEASE - POLL_SECONDS)
    assert status(database, run.job_id) == Status.RUNNING

    clock.now += POLL_SECONDS
    reconciler.poll()
    result = job(database, run.job_id)
    assert (result.status, result.status_reason, result.failures) == ("queued", "worker_lost", 1)


def test_a_renewed_attempt_is_never_reaped(database: Database, reconciler: Reconciler, clock: Clock) -> None:
    run = Run(database, running(database))
    poll_for(reconciler, clock, 3 * LEASE, between=lambda: run.send([]))

    assert status(database, run.job_id) == Status.RUNNING


def test_a_renewal_just_before_the_end_of_the_lease_counts(
    database: Database, reconciler: Reconciler, clock: Clock
) -> None:
    run = Run(database, running(database))
    poll_for(reconciler, clock, LEASE - POLL_SECONDS)
    run.send([])
    clock.now += POLL_SECONDS
    reconciler.poll()
    assert status(database, run.job_id) == Status.RUNNING

    poll_for(reconciler, clock, LEASE - 2 * POLL_SECONDS)
    assert status(database, run.job_id) == Status.RUNNING


def test_a_suspended_reconciler_reaps_no_attempt_when_it_wakes(
    database: Database, reconciler: Reconciler, clock: Clock
) -> None:
    run = Run(database, running(database))
    poll_for(reconciler, clock, LEASE - POLL_SECONDS)
    clock.now += 3600

    poll_for(reconciler, clock, LEASE - POLL_SECONDS)
    assert status(database, run.job_id) == Status.RUNNING
    clock.now += POLL_SECONDS
    reconciler.poll()
    assert status(database, run.job_id) == Status.QUEUED


def test_each_attempt_has_its_own_lease(database: Database, reconciler: Reconciler, clock: Clock) -> None:
    job_id = submit(database)
    for failures in (1, 2, 3):
        claim(database)
        poll_for(reconciler, clock, LEASE - POLL_SECONDS)
        assert status(database, job_id) == Status.RUNNING
        clock.now += POLL_SECONDS
        reconciler.poll()
        assert job(database, job_id).failures == failures
        rows.make_due(database)
    assert (status(database, job_id), job(database, job_id).status_reason) == ("failed", "worker_lost")


def test_many_reconcilers_reap_once(database: Database, clock: Clock, tmp_path: Path) -> None:
    rows.add_dataset(database)
    claimed = [running(database) for _ in range(5)]
    many = [make(database, clock, tmp_path) for _ in range(4)]
    for _ in range(int(LEASE / POLL_SECONDS) + 1):
        at_once(4, lambda number: many[number].poll())
        clock.now += POLL_SECONDS

    for each in claimed:
        assert job(database, each.job_id).failures == 1
        assert [event.type for event in rows.events(database, each.job_id)] == ["submitted", "claimed", "requeued"]


def test_a_paused_job_whose_worker_is_lost_stays_paused(
    database: Database, reconciler: Reconciler, clock: Clock
) -> None:
    run = Run(database, running(database))
    database.write(lambda session: transitions.pause(session, run.job_id))
    poll_for(reconciler, clock, LEASE)

    assert status(database, run.job_id) == Status.PAUSED


# --- outages -------------------------------------------------------------------------------------------------------


def test_an_outage_reaps_no_attempt_and_stops_no_reconciler(
    database: Database, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` polls, fails, resets its waits, and polls again; each pause advances the clock."""
    rows.add_dataset(database)
    run = Run(database, running(database))
    reconciler = make(database, clock, tmp_path)
    polls = int(LEASE / POLL_SECONDS)
    steps: list[str] = ["poll"] * (polls - 1) + ["fail"] + ["poll"] * polls + ["stop"]
    unreachable = Database("sqlite:////no/such/folder/wcl.sqlite3")

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == POLL_SECONDS
            clock.now += POLL_SECONDS
            step = steps.pop(0)
            monkeypatch.setattr(reconciler, "_database", unreachable if step == "fail" else database)
            return step == "stop"

    reconciler.run(Stop())
    assert steps == []
    assert status(database, run.job_id) == Status.RUNNING

    steps.extend(["poll", "stop"])
    reconciler.run(Stop())
    assert status(database, run.job_id) == Status.QUEUED


@contextmanager
def read_only(database: Database) -> Iterator[None]:
    """Make the database read-only, as a process does that is stopped inside a transaction."""
    is_sqlite = database.engine.dialect.name == "sqlite"
    lock = "SELECT 1" if is_sqlite else "LOCK TABLE attempts, workers IN EXCLUSIVE MODE"
    with database.engine.connect().execution_options(wcl_begin="write") as connection:
        connection.execute(text(lock))
        yield


def test_no_attempt_is_lost_while_the_database_is_read_only(
    database: Database, reconciler: Reconciler, clock: Clock
) -> None:
    """The reconciler was blocked for as long as the workers, and polls before they renew."""
    run = Run(database, running(database))
    worker = add_worker(database, "1")
    reconciler.poll()
    with read_only(database):
        for _ in range(int(LEASE / POLL_SECONDS)):
            clock.now += POLL_SECONDS
            poll = threading.Thread(target=reconciler.poll)
            poll.start()
            poll.join(1)
            if poll.is_alive():  # it waits for the lock
                break
        assert poll.is_alive()
        clock.now += LEASE
    poll.join()
    clock.now += POLL_SECONDS
    reconciler.poll()
    assert (status(database, run.job_id), worker_states(database)[worker]) == (Status.RUNNING, "idle")

    poll_for(reconciler, clock, LEASE)
    assert (status(database, run.job_id), worker_states(database)[worker]) == (Status.QUEUED, "lost")


def test_a_reconciler_survives_an_error_of_its_own(
    database: Database, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return len(calls) == 3

    def fail() -> None:
        calls.append(1)
        raise KeyError("a mistake")

    monkeypatch.setattr(reconciler, "poll", fail)
    reconciler.run(Stop())
    assert len(calls) == 3


# --- the rest of a poll --------------------------------------------------------------------------------------------


def add_worker(database: Database, name: str) -> str:
    facts = rows.worker(id=f"00000000-0000-7000-8000-{name:0>12}", name=name)
    database.write(lambda session: workers.register(session, facts, 1, []))
    return facts.id


def worker_states(database: Database) -> dict[str, str]:
    with database.read() as session:
        return {worker.id: worker.state for worker in session.execute(select(Worker)).scalars()}


def test_a_worker_without_heartbeats_is_lost_and_comes_back(
    database: Database, reconciler: Reconciler, clock: Clock
) -> None:
    silent, loud = add_worker(database, "1"), add_worker(database, "2")
    beat: Callable[[str], Any] = lambda worker: database.write(lambda s: workers.heartbeat(s, worker, None))  # noqa: E731
    poll_for(reconciler, clock, LEASE, between=lambda: beat(loud))
    assert worker_states(database) == {silent: "lost", loud: "idle"}

    beat(silent)
    assert worker_states(database)[silent] == "idle"


def test_a_poll_is_one_statement_while_no_job_waits_or_runs(
    database: Database, reconciler: Reconciler, clock: Clock
) -> None:
    add_worker(database, "idle")
    reconciler.poll()  # cleans up
    sent: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))

    clock.now += POLL_SECONDS
    reconciler.poll()

    assert len(sent) == 1, sent


def test_a_poll_unblocks_jobs(database: Database, reconciler: Reconciler) -> None:
    needed = Run(database, running(database))
    waiting = submit(database, after=(needed.job_id,))
    reconciler.poll()
    assert status(database, waiting) == Status.BLOCKED

    needed.end("succeeded")
    reconciler.poll()
    assert status(database, waiting) == Status.QUEUED


def test_a_job_behind_another_one_is_queued_right_after_its_end(
    database: Database, clock: Clock, tmp_path: Path
) -> None:
    rows.add_dataset(database)
    reconciler, stop = make(database, clock, tmp_path), threading.Event()
    database.on(Signal.MET, reconciler.nudge)
    first = running(database)
    blocked = submit(database, after=(first.job_id,))
    thread = threading.Thread(target=reconciler.run_nudged, args=[stop])
    thread.start()
    try:
        Run(database, first).end("succeeded")
        eventually(lambda: status(database, blocked) == "queued", "the second job")
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_a_poll_deletes_old_idempotency_keys(database: Database, reconciler: Reconciler, clock: Clock) -> None:
    def add(session: Any) -> None:
        for number in range(2):
            session.add(IdempotencyKey(owner="o", key=str(number), body_digest="", job_id=""))

    database.write(add)
    day = 24 * 3_600_000
    old = update(IdempotencyKey).where(IdempotencyKey.key == "0").values(created_at=now_ms() - day - 60_000)
    database.write(lambda session: session.execute(old))
    reconciler.poll()

    with database.read() as session:
        assert list(session.execute(select(IdempotencyKey.key)).scalars()) == ["1"]
