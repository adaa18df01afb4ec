"""The bad network itself, and the loss of a response to a commit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.chaos.clients import Caller
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.proxy import Proxy
from tests.chaos.stage import Theatre, spec
from tests.waiting import eventually


@contextmanager
def echo() -> Iterator[int]:
    """Yield a port that sends all bytes back."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            while data := connection.recv(1000):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with echo() as port:
        result = Proxy(port)
        yield result
        result.close()


def talk(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    return connection.recv(1000)


def test_a_cut_network_resets_old_connections_and_new_ones(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        assert talk(connection, b"hello") == b"hello"
        proxy.cut()
        with pytest.raises(ConnectionError):
            talk(connection, b"hello")
    proxy.mend()
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        assert talk(connection, b"again") == b"again"


def test_a_silent_network_delivers_its_bytes_once_it_is_mended(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        assert talk(connection, b"hello") == b"hello"
        proxy.silence()
        connection.sendall(b"anybody there?")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1000)
        proxy.mend()
        connection.settimeout(5)
        assert connection.recv(1000) == b"anybody there?"


def test_a_job_whose_commit_response_is_lost_is_created_once(house: Theatre) -> None:
    with house.stage("unanswered") as stage:
        url, proxy = stage.proxied(stage.url)
        worker = stage.worker("worker").start()  # announces the dataset
        server = stage.server("server", url).start()
        environment = server.start_as.environment
        data_dir = Path(environment["WCL_DATA_DIR"])
        eventually((data_dir / "server.json").exists, "the start of the server")
        stage.wait_for_workers("worker")
        worker.end()
        caller = Caller([f"http://127.0.0.1:{environment['WCL_PORT']}"], data_dir / "key", threading.Event())
        first = caller.submit(spec(0), "warm")
        assert first

        num_lost = 0
        while not num_lost:  # the server's reconciler may commit first, and lose its response instead
            proxy.lose_next_answer(b"COMMIT")
            second = caller.submit(spec(1), "lost")
            num_lost = caller.num_retries
            assert second

        ledger = Ledger(stage.database, stage.checkpoints_dir)
        either = frozenset({"queued"})
        assert ledger.problems([Accepted(first, 0, 2, either, "warm"), Accepted(second, 1, 2, either, "lost")]) == []
        assert len(ledger.jobs) == 2
        caller.close()
