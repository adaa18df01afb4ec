"""Wake-ups on a real Redis: how many are sent, to which pools, and what an absent broker costs."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from jobs import transitions, wake_up, workers
from jobs.database import Database, Signal, new_id, now_ms
from jobs.models import Job, Worker
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from tests.jobs import rows
from tests.jobs.rows import submit, worker
from tests.waiting import PATIENCE, eventually


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, broker_url=redis_url)


def num_wake_ups(broker: redis.Redis) -> dict[str, int]:
    lengths = {}
    for pool in ("default", "big"):
        length = broker.llen(f"wcl:{wake_up.queue_of(pool)}")
        assert isinstance(length, int)
        lengths[pool] = length
    return lengths


def add_worker(database: Database, pool: str = "default", *, is_busy: bool = False) -> None:
    facts = worker(id=new_id(), pool=pool)
    database.write(lambda session: workers.register(session, facts, 1, []))
    if is_busy:
        rows.submit(database, pool=pool, priority=1)
        rows.claim(database, facts)


def test_each_idle_worker_gets_at_most_one_wake_up(database: Database, broker: redis.Redis, settings: Settings) -> None:
    rows.add_dataset(database)
    for _ in range(3):
        submit(database)
    submit(database, pool="big")
    for _ in range(2):
        add_worker(database)
    for _ in range(4):
        add_worker(database, pool="big")
    add_worker(database, is_busy=True)

    wake_up.send_where_needed(database, settings)

    assert num_wake_ups(broker) == {"default": 2, "big": 1}


def test_without_due_jobs_no_wake_up_is_sent(database: Database, broker: redis.Redis, settings: Settings) -> None:
    rows.add_dataset(database)
    add_worker(database)
    rows.running(database)
    job_id = submit(database)
    database.write(lambda s: s.execute(update(Job).where(Job.id == job_id).values(not_before=now_ms() + 3_600_000)))
    submit(database, after=(job_id,))

    wake_up.send_where_needed(database, settings)

    assert num_wake_ups(broker) == {"default": 0, "big": 0}


def test_a_wake_up_names_no_job_and_expires(broker: redis.Redis, settings: Settings) -> None:
    wake_up.send(settings, "default")

    (message,) = broker.lrange("wcl:wcl.default", 0, -1)
    headers = json.loads(message)["headers"]
    assert (headers["task"], headers["argsrepr"], headers["kwargsrepr"]) == (wake_up.TASK, "()", "{}")
    assert headers["expires"] is not None


def test_an_absent_broker_only_causes_a_warning(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows.add_dataset(database)
    submit(database)
    add_worker(database)
    settings = Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")

    wake_up.send_where_needed(database, settings)

    assert "the broker refused a wake-up" in caplog.text


@pytest.mark.server
@pytest.mark.timeout(120)
def test_a_silent_broker_delays_no_poll(database: Database, tmp_path: Path) -> None:
    """The broker accepts connections and never answers: polls go on, and only one wake-up waits."""
    rows.add_dataset(database)
    submit(database)
    add_worker(database)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(data_dir=tmp_path, broker_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        reconciler = Reconciler(database, settings, sends_wake_ups=True)
        reconciler.poll()
        accepted, _ = silent.accept()
        with accepted:
            for _ in range(3):
                reconciler.poll()
            assert [thread.name for thread in threading.enumerate()].count("wake-up") == 1  # still waiting
        silent.close()
        eventually(lambda: not is_sending(), "the end of the wake-up")


def is_sending() -> bool:
    return any(thread.name == "wake-up" for thread in threading.enumerate())


def test_each_poll_sends_wake_ups_again(database: Database, broker: redis.Redis, settings: Settings) -> None:
    rows.add_dataset(database)
    submit(database)
    add_worker(database)
    reconciler = Reconciler(database, settings, sends_wake_ups=True)
    for count in (1, 2):
        reconciler.poll()
        eventually(lambda: num_wake_ups(broker)["default"] == count and not is_sending(), "a wake-up")  # noqa: B023


def test_a_wake_up_that_is_needed_while_another_is_sent_is_sent_after_it(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, calls = threading.Event(), threading.Event(), []

    def send(*_: object) -> None:
        calls.append(1)
        begun.set()
        may_end.wait(PATIENCE)

    monkeypatch.setattr(wake_up, "send_where_needed", send)
    sender = wake_up.WakeUpSender(database, settings)
    sender.start()
    begun.wait(PATIENCE)
    for _ in range(3):
        sender.start()
    may_end.set()

    eventually(lambda: not is_sending(), "the end of the wake-ups")
    assert len(calls) == 2


def test_a_commit_that_queues_a_job_is_signalled(database: Database) -> None:
    signals: list[str] = []
    database.on(Signal.DUE, lambda: signals.append("due"))
    database.on(Signal.MET, lambda: signals.append("met"))
    rows.add_dataset(database)

    first = submit(database)
    blocked = submit(database, after=(first,))
    assert signals == ["due"], "a job that waits for another one is not due"

    database.write(lambda session: transitions.pause(session, first))
    database.write(lambda session: transitions.resume(session, first))
    assert signals == ["due", "due"]

    with pytest.raises(RuntimeError):
        database.write(_fail_after(lambda session: transitions.cancel(session, first)))
    assert len(signals) == 2, "nothing was committed"

    database.write(lambda session: transitions.cancel(session, first))
    assert signals[2:] == ["met"]
    database.write(transitions.unblock)
    assert rows.status(database, blocked) == "failed"


def _fail_after(change: Callable[[Session], None]) -> Callable[[Session], None]:
    def both(session: Session) -> None:
        change(session)
        raise RuntimeError

    return both


def test_changes_of_any_process_are_noticed_on_sqlite(sqlite_database: Database) -> None:
    has_changed = sqlite_database.changes()
    assert has_changed is not None
    assert has_changed(), "the changes before the first call"
    assert not has_changed()

    rows.add_dataset(sqlite_database)

    assert has_changed()
    with sqlite_database.read() as session:
        session.execute(select(Job.id)).all()
    assert not has_changed()


def test_without_a_broker_no_wake_up_is_sent(database: Database, tmp_path: Path) -> None:
    rows.add_dataset(database)
    submit(database)
    add_worker(database)

    wake_up.send_where_needed(database, Settings(data_dir=tmp_path))


def test_the_queue_is_read_only_where_a_worker_has_room(database: Database, settings: Settings) -> None:
    rows.add_dataset(database)
    add_worker(database, is_busy=True)
    add_worker(database, "other")
    for _ in range(2):
        submit(database)
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    wake_up.send_where_needed(database, settings)
    of_pool = [text for text in statements if "jobs.pool IN" in text]
    database.write(lambda session: session.execute(update(Worker).values(cordoned_at=1)))
    statements.clear()
    wake_up.send_where_needed(database, settings)
    event.remove(database.engine, "before_cursor_execute", note)

    assert len(of_pool) == 1, "the queue of the pool with an idle worker alone"
    assert [text for text in statements if "FROM jobs" in text] == []
