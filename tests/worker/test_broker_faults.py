"""Whatever the broker does, the worker and its run live: a lost wake-up only costs the time until the next poll."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator

import pytest
import redis

from jobs import wake_up
from jobs.database import Database
from tests import servers
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import ENDLESS, Jobs

pytestmark = [pytest.mark.timeout(300), pytest.mark.redis]

FAULTS = {
    "read-only": [("REPLICAOF", "127.0.0.1", "1")],
    "full": [("CONFIG", "SET", "maxmemory-policy", "noeviction"), ("CONFIG", "SET", "maxmemory", "1")],
    "no permission": [("ACL", "SETUSER", "default", "-@all", "+ping", "+acl", "+client")],
    "wrong password": [("ACL", "SETUSER", "default", "resetpass", ">another")],
}
CURES = {
    "read-only": [("REPLICAOF", "NO", "ONE")],
    "full": [("CONFIG", "SET", "maxmemory", "0")],
    "no permission": [("ACL", "SETUSER", "default", "+@all")],
    "wrong password": [("ACL", "SETUSER", "default", "nopass")],
}
SLOW = 180.0  # seconds for the start of a run on a busy machine
LOST, BACK = "wake-ups do not arrive", "wake-ups arrive again"


@pytest.fixture
def broker() -> Iterator[tuple[redis.Redis, str]]:
    """A Redis of the test's own, and a connection to it that faults do not reach."""
    with servers.redis_server() as url:
        client = redis.Redis.from_url(url, single_connection_client=True)
        client.ping()
        yield client, url
        client.close()


@pytest.mark.parametrize(
    "fault",
    [
        "read-only",
        "full",
        pytest.param("no permission", marks=pytest.mark.long),
        pytest.param("wrong password", marks=pytest.mark.long),
    ],
)
def test_a_broker_that_refuses_costs_a_run_nothing(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, broker: tuple[redis.Redis, str], fault: str
) -> None:
    """The worker is idle when the fault begins, finds a job by its polls, and runs it until the broker is well."""
    client, url = broker
    worker = start_worker(sqlite_database, WCL_BROKER_URL=url)
    for words in FAULTS[fault]:
        client.execute_command(*words)
    client.execute_command("CLIENT", "KILL", "TYPE", "normal")  # all but this one
    eventually(lambda: LOST in worker.log(), f"the line of the lost broker\n{worker.log()}")

    job_id = jobs.submit(ENDLESS)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 2, "progress of the run", SLOW)
    assert worker.log().count(LOST) == 1
    assert "Traceback" not in worker.log()

    for words in CURES[fault]:
        client.execute_command(*words)
    eventually(lambda: BACK in worker.log(), f"the line of the broker that is well\n{worker.log()}")
    assert (jobs.get(job_id).status, jobs.get(job_id).attempt) == ("running", 1)
    assert worker.stop() == 0
    assert (worker.log().count(LOST), worker.log().count(BACK)) == (1, 1)


def message(body: str, **headers: object) -> str:
    """A wake-up as Celery sends it, with another body or other headers."""
    fields = {"lang": "py", "task": wake_up.TASK, "id": str(uuid.uuid4()), "argsrepr": "()", "kwargsrepr": "{}"}
    properties = {
        "correlation_id": "x",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "wcl.default"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    content = {"body": base64.b64encode(body.encode()).decode(), "content-encoding": "utf-8"}
    return json.dumps(
        content | {"content-type": "application/json", "headers": fields | headers, "properties": properties}
    )


UNREADABLE = (
    message("null"),
    message("{}"),
    message("7"),
    message("[[], {}, {}]", timelimit="x", retries=0),
    message("[[], {}, {}]", id=["a"]),
    "5",
    "[]",
    "",
    "{",
)


def test_a_message_that_celery_cannot_read_ends_no_worker(
    sqlite_database: Database, start_worker: StartWorker, broker: tuple[redis.Redis, str]
) -> None:
    client, url = broker
    worker = start_worker(sqlite_database, WCL_BROKER_URL=url)
    queue = f"wcl:{wake_up.queue_of('default')}"

    for unreadable in UNREADABLE:
        received = worker.whole_log().count("succeeded")
        client.lpush(queue, unreadable)
        eventually(lambda: client.llen(queue) == 0, "its end")

        def hears_another(received: int = received) -> bool:  # a wake-up is discarded while no consumer listens
            client.lpush(queue, message("[[], {}, {}]"))
            time.sleep(1)
            return worker.whole_log().count("succeeded") > received

        eventually(hears_another, f"a wake-up after {unreadable!r}")
        assert worker.is_idle()
    assert worker.stop() == 0
