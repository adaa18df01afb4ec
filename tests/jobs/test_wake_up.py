"""Bells on a real Redis: how many, for whom, and that a broker that is away costs nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import update

from jobs import wake_up, workers
from jobs.database import Database, new_id, now_ms
from jobs.models import Job
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from tests.jobs import rows
from tests.jobs.rows import submit, worker
from tests.waiting import eventually


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, broker_url=redis_url)


def bells(broker: redis.Redis) -> dict[str, int]:
    found = {}
    for pool in ("default", "big"):
        length = broker.llen(f"wcl:{wake_up.queue_of(pool)}")
        assert isinstance(length, int)
        found[pool] = length
    return found


def add_worker(database: Database, pool: str = "default", job_id: str | None = None) -> None:
    facts = worker(id=new_id(), pool=pool)

    def add(session: object) -> None:
        workers.register(session, facts, 1, [])  # type: ignore[arg-type]
        if job_id:
            workers.beat(session, facts.id, job_id)  # type: ignore[arg-type]

    database.write(add)


def test_each_free_worker_hears_at_most_one_bell(database: Database, broker: redis.Redis, settings: Settings) -> None:
    rows.add_dataset(database)
    for _ in range(3):
        submit(database)
    submit(database, pool="big")
    for _ in range(2):
        add_worker(database)
    for _ in range(4):
        add_worker(database, pool="big")
    add_worker(database, job_id=new_id())

    wake_up.ring_for_waiting(database, settings)

    assert bells(broker) == {"default": 2, "big": 1}


def test_nobody_hears_a_bell_without_work_that_is_due(
    database: Database, broker: redis.Redis, settings: Settings
) -> None:
    rows.add_dataset(database)
    add_worker(database)
    rows.running(database)
    job_id = submit(database)
    database.write(lambda s: s.execute(update(Job).where(Job.id == job_id).values(not_before=now_ms() + 3_600_000)))
    submit(database, after=(job_id,))

    wake_up.ring_for_waiting(database, settings)

    assert bells(broker) == {"default": 0, "big": 0}


def test_a_bell_carries_no_job_and_expires(broker: redis.Redis, settings: Settings) -> None:
    wake_up.ring(settings, "default")

    (message,) = broker.lrange("wcl:wcl.default", 0, -1)
    headers = json.loads(message)["headers"]
    assert (headers["task"], headers["argsrepr"], headers["kwargsrepr"]) == (wake_up.TASK, "()", "{}")
    assert headers["expires"] is not None


def test_a_broker_that_is_away_costs_only_a_warning(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows.add_dataset(database)
    submit(database)
    add_worker(database)
    settings = Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")

    wake_up.ring_for_waiting(database, settings)

    assert "the broker does not take a doorbell" in caplog.text


@pytest.mark.timeout(120)
def test_a_silent_broker_holds_up_no_look(database: Database, tmp_path: Path) -> None:
    """It accepts connections and never answers: the looks go on, and no second bell waits beside the first."""
    rows.add_dataset(database)
    submit(database)
    add_worker(database)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(data_dir=tmp_path, broker_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        reconciler = Reconciler(database, settings, rings=True)
        reconciler.look()
        accepted, _ = silent.accept()
        with accepted:
            for _ in range(3):
                reconciler.look()
            assert [thread.name for thread in threading.enumerate()].count("doorbell") == 1  # still waiting
        silent.close()
        eventually(lambda: not ringing(), "the end of the bell")


def ringing() -> bool:
    return any(thread.name == "doorbell" for thread in threading.enumerate())


def test_a_look_rings_again_once_the_broker_answers(
    database: Database, broker: redis.Redis, settings: Settings
) -> None:
    rows.add_dataset(database)
    submit(database)
    add_worker(database)
    reconciler = Reconciler(database, settings, rings=True)
    for count in (1, 2):
        reconciler.look()
        eventually(lambda: bells(broker)["default"] == count and not ringing(), "a bell")  # noqa: B023


def test_without_a_broker_nobody_rings(database: Database, tmp_path: Path) -> None:
    rows.add_dataset(database)
    submit(database)
    add_worker(database)

    wake_up.ring_for_waiting(database, Settings(data_dir=tmp_path))
