"""Connections that send nothing, half a request or a byte at a time, and clients that read slowly or not at all."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from api.http import connections
from api.http.connections import Connections
from jobs.database import Database
from tests.api.served import Served, listening
from tests.waiting import eventually

PROXY = "127.0.0.99"
HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SENT = {
    "nothing": b"",
    "half a line": b"GET /hea",
    "half of the headers": HEAD,
    "a body that nothing reads": b"POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n{",
    "half of a second request": HEAD + b"\r\n" + HEAD,
    "a body without a key": b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n{",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all times."""
    for name, seconds in (("HEAD_SECONDS", 0.5), ("SEND_SECONDS", 0.5), ("_LOOK_SECONDS", 0.1)):
        monkeypatch.setattr(connections, name, seconds)


def connect(served: Served, source: str = "127.0.0.1") -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20, source_address=(source, 0))


def is_closed(connection: socket.socket) -> bool:
    """Read to the end; return whether the server has closed the connection, False if that takes too long."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def is_answered(served: Served) -> bool:
    with closing(connect(served)) as connection:
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        return connection.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
def test_a_connection_without_a_whole_request_is_closed(quick: None, small: Served, sent: bytes) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(sent)

        assert is_closed(connection)


@pytest.mark.parametrize("sent", [HEAD + b"X: ", SENT["a body without a key"]], ids=["headers", "body"])
def test_a_connection_that_sends_a_byte_at_a_time_is_closed(quick: None, small: Served, sent: bytes) -> None:
    stop = threading.Event()
    with closing(connect(small)) as connection:
        connection.sendall(sent)

        def trickle() -> None:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert is_closed(connection)
        finally:
            stop.set()
            thread.join()


def test_an_idle_connection_lasts_longer_than_clients_keep_it(quick: None, small: Served) -> None:
    """Else a request that arrives while the server closes is lost; httpx keeps connections for as long as uvicorn."""
    assert connections.config(small.app).timeout_keep_alive == connections.IDLE_SECONDS > 120
    with closing(http.client.HTTPConnection(small.url.removeprefix("http://"), timeout=20)) as connection:
        connection.connect()
        connected = connection.sock
        for _ in range(2):
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            assert (response.status, bool(response.read()), connection.sock) == (200, True, connected)
            threading.Event().wait(1.5)  # three times HEAD_SECONDS
        connected.sendall(HEAD)
        assert is_closed(connected)


def test_a_response_that_lasts_is_not_cut(quick: None, small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.streams.feeds.HEARTBEAT_SECONDS", 0.3)
    with listening(small.client(), "/v1/stream") as stream:
        assert [next(stream) for _ in range(6)] == [None] * 6  # heartbeats, for three times HEAD_SECONDS


@pytest.fixture
def few(sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Yield a server that takes 20 connections, 10 from each address but that of its proxy."""
    monkeypatch.setattr(connections, "_MOST", 20)
    server = Served(sqlite_database, tmp_path / "data", trusted_proxies=[f"{PROXY}/32"])
    server.start()
    yield server
    server.stop()


@pytest.mark.server
def test_at_the_limit_of_an_address_the_longest_waiting_makes_room(few: Served) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(closing(connect(few, "127.0.0.2")))
        idle = [stack.enter_context(closing(connect(few))) for _ in range(15)]
        assert all(is_closed(each) for each in idle[:5])
        assert is_answered(few)
        other.sendall(HEAD + b"\r\n")
        assert other.recv(4096).startswith(b"HTTP/1.1 200")
        idle[-1].sendall(HEAD + b"\r\n")
        assert idle[-1].recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.server
def test_a_trusted_proxy_has_the_limit_of_all_only(few: Served) -> None:
    """Its connections are those of many clients."""
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connect(few, PROXY))) for _ in range(20)]
        for connection in idle:
            connection.sendall(HEAD + b"\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        stack.enter_context(closing(connect(few, PROXY)))
        assert is_closed(idle[0])
        assert is_answered(few)


@pytest.mark.server
def test_at_the_limit_of_all_the_longest_waiting_makes_room(few: Served) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connect(few, f"127.0.0.{2 + n % 10}"))) for n in range(40)]
        assert all(is_closed(each) for each in idle[:20])
        assert is_answered(few)
        idle[-1].sendall(HEAD + b"\r\n")
        assert idle[-1].recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.server
def test_where_all_connections_are_busy_a_new_one_is_refused(few: Served) -> None:
    with ExitStack() as stack:
        for _ in range(10):
            stream = connect(few)
            stack.enter_context(closing(stream))
            stream.sendall(HEAD.replace(b"/healthz", b"/v1/stream") + b"Authorization: Bearer " + few.key().encode())
            stream.sendall(b"\r\n\r\n")
            received = b""
            while b": open" not in received:
                received += stream.recv(4096)
        with closing(connect(few)) as refused:
            assert is_closed(refused)


def test_idle_and_slow_connections_keep_no_client_waiting(small: Served) -> None:
    """A small version of `benchmarks/door.py`, without its times."""
    with ExitStack() as stack:
        held = [stack.enter_context(closing(connect(small))) for _ in range(200)]
        for connection in held[:50]:
            connection.sendall(HEAD)
        for _ in range(5):
            for connection in held[:50]:
                connection.sendall(b"x")
            assert is_answered(small)


# --- slow readers ----------------------------------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_cut(quick: None, small: Served) -> None:
    checkpoint = small.checkpoint(b"x" * 30_000_000)
    request = HEAD.replace(b"/healthz", f"/v1/checkpoints/{checkpoint}/download".encode())
    with closing(connect(small)) as connection:
        connection.sendall(request + f"Authorization: Bearer {small.key()}\r\n\r\n".encode())
        eventually(lambda: small.open_connections == 1, "the connection")
        eventually(lambda: small.open_connections == 0, "the end of the connection")

        received = 0
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert received < 30_000_000


class Reader:
    """A connection whose client reads nothing."""

    def __init__(self, unsent: int, sent_at: float) -> None:
        self.unsent, self._sent_at = unsent, sent_at
        self.transport = self
        self.is_aborted = False

    def is_sending(self, now: float) -> bool:
        return self.unsent > 0

    def stuck_seconds(self, now: float) -> float:
        return now - self._sent_at

    def abort(self) -> None:
        self.is_aborted = True


def test_unsent_data_of_all_connections_is_bounded() -> None:
    half = connections.MAX_UNSENT // 2
    readers = [Reader(half, 0), Reader(half - 100, 0), Reader(2 * half - 20, 9), Reader(10, 0)]
    all_connections: Any = Connections(10, clock=lambda: 10.0)
    all_connections._open = set(readers)

    all_connections.look()

    assert [reader.is_aborted for reader in readers] == [True, True, False, False]  # the third is not stuck yet


# --- what is no HTTP -------------------------------------------------------------------------------------------------


def test_requests_that_are_no_http_fill_no_log(small: Served, caplog: pytest.LogCaptureFixture) -> None:
    connections._Quiet._logged_at.clear()
    caplog.set_level(logging.INFO)
    for junk in (b"\x16\x03\x01\x00", b"GET / HTTP/1.1\r\nHost: a b\x00\r\n\r\n", b"NOT HTTP\r\n\r\n") * 10:
        with closing(connect(small)) as connection:
            connection.sendall(junk + b"\r\n\r\n")
            assert is_closed(connection)

    assert len(caplog.records) == 1, caplog.text


def test_junk_in_the_middle_of_a_response_is_no_error(small: Served, caplog: pytest.LogCaptureFixture) -> None:
    head = HEAD.replace(b"GET /healthz", b"POST /v1/jobs") + f"Authorization: Bearer {small.key()}\r\n".encode()
    with closing(connect(small)) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n")
        assert is_closed(connection)

    assert is_answered(small)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("version", "lengths"),
    [
        (b"1.1", b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
        (b"1.1", b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
        (b"1.0", b"Transfer-Encoding: chunked\r\n"),
        (b"1.1", b"Content-Length: 5\r\nContent-Length: 4\r\n"),
        (b"1.1", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
    ],
)
def test_a_body_whose_end_has_two_readings_is_refused(small: Served, version: bytes, lengths: bytes) -> None:
    """A proxy may take the rest for a part of the body, and this server for the next request."""
    request = b"POST /healthz HTTP/%s\r\nHost: 127.0.0.1\r\n%s\r\n0\r\n\r\n" % (version, lengths)
    with closing(connect(small)) as connection:
        connection.sendall(request + HEAD + b"\r\n")
        received = b""
        while part := connection.recv(65_536):
            received += part

    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert received.count(b"HTTP/1.1 ") == 1, "it has taken the rest for a request"
