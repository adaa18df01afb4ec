"""Whatever the broker does, the worker and its run live: a lost wake-up only costs the time until the next poll."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from kombu import Connection

from jobs import wake_up
from jobs.database import Database
from tests import servers
from tests.waiting import PATIENCE, eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import SAVING, Jobs
from worker import broker as guarded
from worker.broker import Dropped

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
    # Until then the worker may connect anew after the cut, and a full Redis lets it wait for messages.
    eventually(lambda: any(each["cmd"] == "brpop" for each in client.client_list()), "the wait for a message")
    for words in FAULTS[fault]:
        client.execute_command(*words)
    client.execute_command("CLIENT", "KILL", "TYPE", "normal")  # all but this one
    eventually(lambda: LOST in worker.log(), f"the line of the lost broker\n{worker.log()}")

    job_id = jobs.submit(SAVING)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 2, "progress of the run", SLOW)
    assert worker.log().count(LOST) == 1
    assert "Traceback" not in worker.log()

    for words in CURES[fault]:
        client.execute_command(*words)
    eventually(lambda: BACK in worker.log(), f"the line of the broker that is well\n{worker.log()}")
    assert (jobs.get(job_id).status, jobs.get(job_id).attempt) == ("running", 1)
    assert worker.stop() == 0
    assert (worker.log().count(LOST), worker.log().count(BACK)) == (1, 1)


@pytest.mark.long
def test_a_worker_listens_again_after_each_of_many_faults(
    sqlite_database: Database, start_worker: StartWorker, broker: tuple[redis.Redis, str]
) -> None:
    """The last fault is a long one, after which the pauses between two tries have grown."""
    client, url = broker
    worker = start_worker(sqlite_database, WCL_BROKER_URL=url)
    for number, fault in enumerate(FAULTS, 1):
        client.lpush(f"wcl:{wake_up.queue_of('default')}", *UNREADABLE)
        for words in FAULTS[fault]:
            client.execute_command(*words)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        eventually(lambda count=number: worker.whole_log().count(LOST) == count, f"the line of {fault}")
        time.sleep(45 if number == len(FAULTS) else 5)
        for words in CURES[fault]:
            client.execute_command(*words)
        eventually(lambda count=number: worker.whole_log().count(BACK) == count, f"the end of {fault}")
    assert "Traceback" not in worker.whole_log()


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


def envelope(**changes: object) -> str:
    """A wake-up with other fields of its envelope; None removes one."""
    fields = json.loads(message("[[], {}, {}]")) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def properties(**changes: object) -> dict[str, object]:
    sent: dict[str, object] = json.loads(message("[[], {}, {}]"))["properties"]
    return sent | changes


_ANY = "[[], {}, {}]"
UNREADABLE = (
    *(message(body) for body in ("null", "{}", "7", "[]", "[1]", "[[], [], []]", "[" * 100_000, '"x"', "", "x")),
    *(message(_ANY, id=value) for value in (["a"], None, 7, "a", {}, "\x1b[31m" * 5)),
    *(message(_ANY, task=value) for value in (["a"], None, 7, "other.task", {}, "celery.backend_cleanup")),
    *(message(_ANY, expires=value) for value in ("x", ["a"], 1e400, "9" * 400, {})),
    message(_ANY, compression="zlib"),
    *(envelope(headers=value) for value in (None, [], "x", 5, {})),
    *(envelope(body=value) for value in (None, 5, [], {}, "%%%")),
    *(envelope(**{"content-type": value}) for value in (None, "application/x-python-serialize", "x", [], 5)),
    *(envelope(properties=value) for value in (None, [], 5, {})),
    envelope(properties=properties(body_encoding="x")),
    envelope(properties=properties(delivery_tag=["a"])),
    envelope(properties=properties(delivery_tag=None)),
    envelope(properties=properties(delivery_info=None)),
    envelope(properties=properties(delivery_info=[])),
    *("5", "[]", "", "{", "null", "not json", "[" * 100_000, "{}", '"x"', "NaN"),
)
# Celery reads these of a message, and the guard does not.
HARMLESS = (
    *(envelope(**{"content-encoding": value}) for value in ("punycode", "x", [], 5)),
    message(_ANY, timelimit="x", retries=0),
    message(_ANY, retries="x", eta="x", group=["a"], root_id=5, chain="x"),
    message('[[], {}, {"chord": 5, "callbacks": ["x"], "chain": [7]}]'),
    envelope(properties=properties(priority="x", correlation_id=[], reply_to=5)),
)


def test_a_message_that_is_no_wake_up_is_dropped_and_counted(
    sqlite_database: Database, start_worker: StartWorker, broker: tuple[redis.Redis, str]
) -> None:
    """No consumer ends, so the wake-up that is sent after the messages is heard, and nothing comes back."""
    client, url = broker
    for number, left in enumerate(("null", "[1]", "[" * 100_000, '"x"', b"\xff", '[{"a": 1}, "", ""]')):
        client.hset("wcl:unacked", str(number), left)  # as if an earlier worker had not acknowledged it
        client.zadd("wcl:unacked_index", {str(number): 0})
    client.rpush("wcl:unacked_mutex", "x")
    worker = start_worker(sqlite_database, WCL_BROKER_URL=url)
    queue = f"wcl:{wake_up.queue_of('default')}"

    client.lpush(queue, *UNREADABLE, *HARMLESS, message(_ANY))  # the worker takes them in this order
    expected = len(HARMLESS) + 1
    eventually(lambda: worker.whole_log().count("succeeded") == expected, "the last wake-up")

    assert client.llen(queue) == 0
    eventually(lambda: client.hlen("wcl:unacked") == 0, "the acknowledgement of the last wake-up")
    assert "dropped a message of the broker that is no wake-up" in worker.whole_log()
    assert LOST not in worker.whole_log()
    assert worker.stop() == 0
    assert client.llen(queue) == 0


def test_a_dropped_message_is_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    counter = Dropped(lambda: now[0])
    for second in range(0, 130, 10):
        now[0] = float(second)
        counter.add(ValueError("x"))

    assert counter.count == 13
    assert [record.args[-1] for record in caplog.records if record.args] == [1, 7, 13]


def test_a_message_and_a_stop_wake_up_a_consumer_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "_LONGEST_WAIT_SECONDS", 3600.0)
    guarded.install()
    received: list[str] = []
    stop = threading.Event()

    def consume() -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                connection.drain_events(timeout=3600)

    with Connection("memory://") as connection:
        queue = connection.SimpleQueue("wake-ups")
        queue.consumer.callbacks = [lambda body, message: received.append(body)]
        queue.consumer.consume(no_ack=True)
        thread = threading.Thread(target=consume, daemon=True)
        thread.start()
        for number in range(3):
            with Connection("memory://") as other, other.SimpleQueue("wake-ups") as sender:
                sender.put(str(number))
            eventually(lambda number=number: len(received) == number + 1, "the message")  # type: ignore[misc]
        stop.set()
        guarded.wake_consumer()
        thread.join(PATIENCE)

    assert not thread.is_alive()
    assert received == ["0", "1", "2"]
