"""Streams: every message once, no held connections, and an end."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api.http import descriptors
from api.streams import feeds, responses, watcher
from jobs import changes, keys, queries, sweeps, transitions
from jobs.changes import Cursor
from jobs.database import Database
from jobs.models import Log, SignInToken
from tests.api.served import Served, assert_problem, listening, messages
from tests.jobs import rows, sweeping
from tests.waiting import eventually
from wcl_client.api import WclClient
from wcl_client.sse import Message


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.05)


def progress(step: int) -> dict[str, Any]:
    return {"type": "progress", "step": step, "total_steps": 100, "epoch": 0.1, "total_epochs": 1, "phase": "train"}


def stored_points(database: Database, job_id: str) -> list[tuple[int, str, int, float | None]]:
    own = [point for point in rows.stored_points(database) if point.job_id == job_id]
    return sorted((point.attempt, point.name, point.step, point.value) for point in own)


def points_of(received: list[Message]) -> list[tuple[int, str, int, float | None]]:
    points = [point for message in received if message.event == "metrics" for point in message.data["points"]]
    return [(point["attempt"], point["name"], point["step"], point["value"]) for point in points]


def event_numbers(received: list[Message]) -> list[int]:
    return [message.data["seq"] for message in received if message.event == "event"]


def test_a_stream_from_the_start_sends_everything_and_the_end_last(served: Served) -> None:
    run = rows.Run(served.database, rows.running(served.database))
    run.deliver(rows.started(), *(rows.metrics(step, a=1.0 * step, b=None) for step in range(1, 51)))
    run.deliver(progress(50), rows.checkpoint(50), rows.end("succeeded"))

    with listening(served.client("read"), f"/v1/jobs/{run.job_id}/stream?from=start") as stream:
        received = list(messages(stream))

    assert received[0].event == "job"
    assert received[-1].event == "end"
    assert received[-1].data["status"] == "succeeded"
    assert event_numbers(received) == [event.seq for event in rows.events(served.database, run.job_id)]
    assert sorted(points_of(received)) == stored_points(served.database, run.job_id)
    assert all(message.id for message in received)


def test_without_a_cursor_it_starts_from_now(served: Served) -> None:
    run = rows.Run(served.database, rows.running(served.database))
    run.deliver(rows.started(), rows.metrics(1, loss=5.0))

    with listening(served.client("read"), f"/v1/jobs/{run.job_id}/stream") as stream:
        coming = messages(stream)
        first = next(coming)
        run.deliver(rows.metrics(2, loss=4.0), progress(2))
        rest = [next(coming), next(coming)]
        run.deliver(progress(3), rows.end("succeeded"))
        rest += coming

    assert (first.event, first.data["status"], first.data["latest_metrics"]) == ("job", "running", {"loss": 5.0})
    assert points_of(rest) == [(1, "loss", 2, 4.0)]
    assert [message.data["type"] for message in rest if message.event == "event"] == ["succeeded"]
    assert [message.data["step"] for message in rest if message.event == "progress"] == [2]
    assert [message.data["progress"]["step"] for message in rest if message.event == "job"] == [3]
    assert rest[-1].event == "end"


@pytest.mark.parametrize(("batch", "kept_bytes"), [(2_000, 1 << 20), (7, 500)])
def test_a_broken_stream_resumes_without_gap_or_repeat(
    served: Served, tmp_path: Path, batch: int, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is cut off after any message and reconnects to one of two servers."""
    monkeypatch.setattr(feeds, "_BATCH", batch)
    monkeypatch.setattr(feeds, "_KEPT_BYTES", kept_bytes)
    database, chance = served.database, random.Random(7)
    job_id = rows.submit(database)
    other = Served(database, tmp_path / "other")
    other.start()

    def work() -> None:
        for start in (0, 30):
            run = rows.Run(database, rows.claim(database))
            run.deliver(rows.started(start))
            for step in range(start + 1, start + 41):
                warning = {"type": "warning", "reason": "test", "message": str(step)}
                extra = [warning, rows.log(f"{step}")] if step % 5 == 0 else []
                run.deliver(*(rows.metrics(step, **dict.fromkeys("abc", 1.0 * step)), *extra), output=[(step, "x")])
                time.sleep(chance.uniform(0, 0.01))
            run.deliver(rows.checkpoint(start + 30), rows.end("drained" if start == 0 else "succeeded"))

    with rows.in_background(work) as worker:
        received = list(_cut_again_and_again([served.client("read"), other.client("read")], job_id, chance))
        worker.result()
    other.stop()

    assert event_numbers(received) == [event.seq for event in rows.events(database, job_id)]
    assert sorted(points_of(received)) == stored_points(database, job_id)
    assert len(points_of(received)) == 2 * 40 * 3
    assert lines_of(received) == [(line.attempt, line.seq, line.line) for line in stored_lines(database, job_id)]
    assert len(lines_of(received)) == 2 * (40 + 8)
    assert [message.event for message in received].count("end") == 1


def stored_lines(database: Database, job_id: str) -> list[Log]:
    with database.read() as session:
        return queries.logs(session, job_id, (0, 0), 10_000)


def lines_of(received: list[Message]) -> list[tuple[int, int, str]]:
    lines = [line for message in received if message.event == "logs" for line in message.data["lines"]]
    return [(line["attempt"], line["seq"], line["line"]) for line in lines]


def _cut_again_and_again(clients: list[httpx.Client], job_id: str, chance: random.Random) -> Iterator[Message]:
    last_id = "0.0.0"
    while True:
        with listening(chance.choice(clients), f"/v1/jobs/{job_id}/stream?logs=true", last_id) as stream:
            for count, message in enumerate(messages(stream)):
                yield message
                assert message.id
                last_id = message.id
                if message.event == "end":
                    return
                if count >= chance.randrange(1, 12):
                    break


def test_many_viewers_share_each_read(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started())
    read: list[Cursor] = []
    real = changes.changes

    def counted(session: Session, job_id: str, after: Cursor, *rest: Any) -> changes.Changes:
        read.append(after)
        return real(session, job_id, after, *rest)

    monkeypatch.setattr(changes, "changes", counted)
    client = small.client("read")
    with ExitStack() as open_streams:
        responses = [
            messages(open_streams.enter_context(listening(client, f"/v1/jobs/{run.job_id}/stream"))) for _ in range(20)
        ]
        assert {next(stream).event for stream in responses} == {"job"}
        for step in range(1, 6):
            run.deliver(rows.metrics(step, loss=1.0 * step))
            # On a machine that stalls, the job itself changes, too: a message without a read of the points.
            received = [next(each for each in stream if each.event == "metrics") for stream in responses]
            assert [points_of([message]) for message in received] == [[(1, "loss", step, 1.0 * step)]] * 20
        run.deliver(rows.end("succeeded"))
        assert {[message.event for message in stream][-1] for stream in responses} == {"end"}

    assert len(read) == len(set(read)) == 6


def test_a_slow_viewer_delays_no_other_and_misses_nothing(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads nothing while the server sends more than it keeps for a viewer; then it reads everything, once."""
    monkeypatch.setattr(feeds, "_KEPT_BYTES", 20_000)
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started())
    address = f"/v1/jobs/{run.job_id}/stream"
    host, port = small.url.removeprefix("http://").split(":")
    small.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)  # so that the system keeps little for it
    with socket.socket() as slow, listening(small.client("read"), address) as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.connect((host, int(port)))
        slow.sendall(
            f"GET {address} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {small.key()}\r\n\r\n".encode()
        )
        eventually(lambda: small.app.state.streams.count == 2, "both streams")
        for first in range(1, 8_000, 2_000):
            run.deliver(*(rows.metrics(step, loss=1.0 * step) for step in range(first, first + 2_000)))
        run.deliver(rows.end("succeeded"))
        received = list(messages(quick))
        eventually(lambda: small.app.state.streams.count == 1, "the end of the quick stream alone")
        assert small.app.state.streams.watcher.kept_bytes < 20_000 + 200_000, "more than the last frame is kept"
        late = "".join(iter(lambda: slow.recv(65_536).decode(), ""))

    expected = [(1, "loss", step, 1.0 * step) for step in range(1, 8_001)]
    assert points_of(received) == expected
    batches = [json.loads(line[6:])["points"] for line in late.splitlines() if line.startswith('data: {"points"')]
    assert [point["step"] for points in batches for point in points] == list(range(1, 8_001))
    assert late.count("event: end") == 1


def test_the_cursor_may_come_by_the_address(small: Served) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started(), rows.end("succeeded"))

    with listening(small.client("read"), f"/v1/jobs/{run.job_id}/stream?last_event_id=2.0.0") as stream:
        assert event_numbers(list(messages(stream))) == [3, 4]


def test_the_client_follows_to_the_end(served: Served) -> None:
    run = rows.Run(served.database, rows.running(served.database))

    def work() -> None:
        time.sleep(0.3)
        run.deliver(rows.started(), rows.metrics(1, loss=2.0), rows.end("failed", "bad_data", "no images"))

    with WclClient(served.url, served.key("read")) as client, rows.in_background(work):
        received = list(client.follow(run.job_id))

    assert received[-1].event == "end"
    assert received[-1].data["status_message"] == "no images"
    assert points_of(received) == [(1, "loss", 1, 2.0)]


def test_no_connection_is_held_while_streams_are_open(served: Served) -> None:
    job_id = rows.submit(served.database)
    client = served.client("read")
    pool = served.database.engine.pool

    with (
        listening(client, f"/v1/jobs/{job_id}/stream") as one,
        listening(client, "/v1/stream") as other,
    ):
        next(messages(one))
        next(other)
        for _ in range(20):  # a busy machine takes long for a poll, so no share of the time is promised
            eventually(lambda: pool.checkedout() == 0, "the return of all connections", 30)  # type: ignore[attr-defined]
            time.sleep(0.05)


def test_a_stream_ends_when_its_reader_goes_away(small: Served) -> None:
    job_id = rows.submit(small.database)

    with listening(small.client("read"), f"/v1/jobs/{job_id}/stream") as stream:
        next(messages(stream))
        assert small.app.state.streams.count == 1

    eventually(lambda: small.app.state.streams.count == 0, "the end of the stream")


def test_streams_end_when_the_server_stops(small: Served) -> None:
    job_id = rows.submit(small.database)
    client = small.client("read")

    with listening(client, f"/v1/jobs/{job_id}/stream") as one, listening(client, "/v1/stream") as other:
        next(messages(one))
        small.app.state.stopping.set()
        began = time.monotonic()
        assert list(messages(one)) == []
        assert list(messages(other)) == []

    assert time.monotonic() - began < 2


def test_a_revoked_key_ends_its_streams(small: Served) -> None:
    job_id = rows.submit(small.database)
    client = small.client("read")
    with small.database.read() as session:
        key_id = keys.list_keys(session)[0].id

    with listening(client, f"/v1/jobs/{job_id}/stream") as stream:
        coming = messages(stream)
        next(coming)
        small.database.write(lambda session: keys.revoke(session, key_id))
        assert list(coming) == []


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/jobs/{job_id}/stream", "/v1/stream?job={job_id}"])
@pytest.mark.parametrize("end", ["sign-out", "expiry"])
def test_the_end_of_a_session_ends_its_streams_and_no_others(small: Served, path: str, end: str) -> None:
    job_id = rows.submit(small.database)
    browser, other, client = small.browser(), small.browser(), small.client("read")
    path = path.format(job_id=job_id)

    with listening(browser, path) as stream, listening(other, path) as second, listening(client, path) as third:
        if end == "sign-out":
            assert browser.post("/sign-out", headers={"Origin": small.url}).status_code == 303
        else:
            digest = hashlib.sha256(browser.cookies[small.cookie].encode()).hexdigest()
            is_this = SignInToken.hash == digest
            small.database.write(
                lambda session: session.execute(update(SignInToken).where(is_this).values(expires_at=1))
            )
        rest = list(stream)
        new_id = rows.submit(small.database)
        for still_open in (second, third) if path == "/v1/stream" else ():
            assert new_id in next(messages(still_open)).data["changed"]

    assert all(message is None or message.event in ("job", "subject") for message in rest)
    assert browser.get("/v1/jobs").status_code == 401
    assert other.get("/v1/jobs").status_code == 200


def test_one_stream_carries_the_lists_and_several_jobs(served: Served) -> None:
    runs = [rows.Run(served.database, rows.running(served.database)) for _ in range(2)]
    for run in runs:
        run.deliver(rows.started(), rows.metrics(1, loss=1.0))
    query = f"job={runs[1].job_id}@0.0.0&job={runs[0].job_id}&job={runs[1].job_id}"

    with listening(served.client("read"), f"/v1/stream?{query}") as stream:
        coming = messages(stream)
        received, subjects, subject = [], [], None
        while len({place for place, _ in received}) < 3:
            message = next(coming)
            subject = message.data if message.event == "subject" else subject
            received += [(subject, message)] if message.event != "subject" and message.id else []
        runs[0].deliver(rows.metrics(2, loss=0.5), rows.log("a line"), rows.end("succeeded"))
        while not any(message.event == "end" for _, message in received):
            message = next(coming)
            subjects += [message.event] if message.event == "changed" else []
            subject = message.data if message.event == "subject" else subject
            received += [(subject, message)] if message.event not in ("subject", "changed") else []
        rows.submit(served.database)
        while "changed" not in subjects:
            subjects.append(next(coming).event)

    by_place = {place: [message for where, message in received if where == place] for place in range(3)}
    assert points_of(by_place[0]) == [(1, "loss", 1, 1.0)]
    assert points_of(by_place[1]) == [(1, "loss", 2, 0.5)]
    assert points_of(by_place[2]) == []
    assert [line[2] for line in lines_of(by_place[1])] == ["a line"]
    assert [message.event for message in by_place[1]].count("end") == 1
    assert all(message.id for each in by_place.values() for message in each)


def test_a_shared_stream_of_no_job_or_of_too_many_is_a_problem(small: Served) -> None:
    job_id = rows.submit(small.database)
    client = small.client("read")

    assert_problem(client.get("/v1/stream?job=nothing"), 404)
    assert_problem(client.get(f"/v1/stream?job={job_id}@junk"), 422)
    assert_problem(client.get("/v1/stream?" + "&".join([f"job={job_id}"] * 101)), 422)


def test_a_quiet_stream_sends_heartbeats(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HEARTBEAT_SECONDS", 0.2)
    job_id = rows.submit(small.database)

    with listening(small.client("read"), f"/v1/jobs/{job_id}/stream") as stream:
        opening = next(stream)
        first = next(messages(stream))  # on a busy machine, heartbeats may come before it
        heartbeats = [next(stream) for _ in range(2)]

    assert (opening, first.event, heartbeats) == (None, "job", [None, None])


def test_an_outage_of_the_database_does_not_end_a_stream(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = rows.submit(small.database)
    real, failures = queries.tags, [1, 1, 1]

    def sometimes(*arguments: Any) -> dict[str, list[str]]:
        if failures:
            failures.pop()
            raise OperationalError("SELECT", {}, Exception("gone"))
        return real(*arguments)

    monkeypatch.setattr(queries, "tags", sometimes)
    with listening(small.client("read"), f"/v1/jobs/{job_id}/stream") as stream:
        assert next(messages(stream)).event == "job"
    assert failures == []


def test_a_key_holds_only_so_many_streams(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_MAX_STREAMS_PER_KEY", 1)
    job_id = rows.submit(small.database)
    client = small.client("read")

    with listening(client, f"/v1/jobs/{job_id}/stream") as stream:
        next(messages(stream))
        refused = client.get(f"/v1/jobs/{job_id}/stream")
        with listening(small.client("read"), f"/v1/jobs/{job_id}/stream") as other:
            assert next(messages(other)).event == "job"

        monkeypatch.setattr(responses, "_MAX_STREAMS", 1)
        full = small.client("read").get("/v1/stream")

    assert assert_problem(refused, 429)
    assert refused.headers["retry-after"]
    assert "this server" in assert_problem(full, 429)["detail"]


def test_streams_leave_file_descriptors_for_other_requests(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "limit", lambda: 3)

    with listening(small.client("read"), "/v1/stream"):
        refused = small.client("read").get("/v1/stream")

    assert "this server has 1 open streams" in assert_problem(refused, 429)["detail"]


def test_a_stream_of_no_job_is_a_problem(small: Served) -> None:
    client = small.client("read")

    assert_problem(client.get("/v1/jobs/nothing/stream"), 404)
    assert_problem(client.get("/v1/jobs/nothing/stream", headers={"Last-Event-ID": "x"}), 422, "Last-Event-ID")


def test_a_list_opens_once_it_was_read(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that then fetches the list misses no later change."""
    opened = threading.Event()
    was_open: list[bool] = []
    real = queries.newest_states

    def slow(session: Session) -> dict[str, tuple[Any, ...]]:
        if not was_open:
            was_open.append(opened.wait(1))
        return real(session)

    monkeypatch.setattr(queries, "newest_states", slow)
    with listening(small.client("read"), "/v1/stream"):
        opened.set()

    assert was_open == [False]


def test_the_list_stream_names_the_changed_job(served: Served) -> None:
    database = served.database
    job_id, other = rows.submit(database), rows.submit(database, pool="elsewhere")

    with listening(served.client("read"), "/v1/stream") as stream:
        coming = messages(stream)
        next(stream)
        time.sleep(0.3)
        new = rows.submit(database, pool="elsewhere")
        assert next(coming).data == {"changed": [new]}
        run = rows.Run(database, rows.claim(database))
        assert next(coming).data == {"changed": [job_id]}
        run.deliver(progress(3))
        assert next(coming).data == {"changed": [job_id]}
        database.write(lambda session: transitions.cancel(session, other))
        message = next(coming)

        assert (message.event, message.data) == ("changed", {"changed": [other]})
        sweep_id = sweeping.submit(database, {sweeping.TEMPERATURE: [0.1]}, max_parallel=1)
        assert next(coming).data["sweeps"] == [sweep_id]
        database.write(lambda session: sweeps.cancel(session, sweep_id))
        assert next(coming).data["sweeps"] == [sweep_id]
