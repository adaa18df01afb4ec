"""The rendezvous of ranks on several machines: a proof before anything else, one address, and no pickle."""

from __future__ import annotations

import errno
import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import eventually, patch_clock
from wcl_core import rendezvous
from wcl_core.addresses import bound, resolve
from wcl_core.distributed import PeerLostError, joined
from wcl_core.protocol import Rendezvous
from wcl_core.rendezvous import RendezvousError, Server, Store

pytestmark = pytest.mark.server

LIMIT = timedelta(seconds=20)


class Opened:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def where(**changes: Any) -> Rendezvous:
    with bound("127.0.0.2") as free:
        port = free.getsockname()[1]
    facts = {"address": "127.0.0.2", "port": port, "secret": "the secret", "own_address": "127.0.0.3"}
    return Rendezvous(**facts | changes)


@pytest.fixture
def at() -> Iterator[Rendezvous]:
    place = where()
    server = Server(place)
    yield place
    server.close()


def test_ranks_with_the_secret_share_keys_and_values(at: Rendezvous, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Store(at, LIMIT), Store(at, LIMIT)

    one.set("a/b", "value")
    assert two.get("a/b") == b"value"
    assert (one.add("n", 2), two.add("n", 3), two.get("n")) == (2, 5, b"5")
    assert two.compare_set("new", "", "x") == b"x"
    assert one.compare_set("new", "y", "z") == b"x"
    assert one.check(["a/b", "n"])
    assert not one.check(["a/b", "absent"])
    assert two.num_keys() == 3
    assert two.delete_key("n")
    assert not two.delete_key("n")
    slept: list[float] = []
    patch_clock(monkeypatch, rendezvous, sleep=slept.append)
    with pytest.raises(RendezvousError, match="absent"):
        one.wait(["absent"], timedelta(seconds=0))
    assert slept == []


def test_a_rank_with_another_secret_gets_nothing(at: Rendezvous) -> None:
    with pytest.raises(RendezvousError, match="secret"):
        Store(at.model_copy(update={"secret": "another secret"}), LIMIT)


def test_nothing_of_a_stranger_is_read_and_none_keeps_ranks_waiting(
    at: Rendezvous, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [socket.create_connection((at.address, at.port)) for _ in range(20)]
    rank = Store(at, LIMIT)
    rank.set("key", "value")

    for message in (pickle.dumps(Opened(tmp_path / "opened")), b"\0" * 9 + b"key", b"#WELCOME#", b""):
        with socket.create_connection((at.address, at.port)) as plain:
            stranger = Connection(plain.detach())
            stranger.recv_bytes()  # the challenge
            stranger.send_bytes(message)
            assert stranger.recv_bytes() == b"#FAILURE#"
            with pytest.raises((EOFError, OSError)):
                stranger.recv_bytes()

    assert rank.get("key") == b"value"
    assert rank.num_keys() == 1
    assert list(tmp_path.iterdir()) == []
    for each in silent:
        each.close()


def test_a_slow_proof_ends_in_time(at: Rendezvous, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes soon enough, and all of them would not."""
    monkeypatch.setattr(rendezvous, "_PROOF_SECONDS", 0.5)
    with socket.create_connection((at.address, at.port)) as slow:
        stranger = Connection(os.dup(slow.fileno()))
        stranger.recv_bytes()
        slow.sendall((256).to_bytes(4, "big"))

        def send_slowly() -> None:
            for _ in range(256):
                slow.sendall(b"x")
                time.sleep(0.1)

        with pytest.raises(OSError, match="Broken pipe|reset"):
            send_slowly()
        stranger.close()


def test_it_accepts_again_after_a_lack_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        has_failed = False

        def accept(self) -> tuple[socket.socket, Any]:
            if not self.has_failed:
                self.has_failed = True
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(rendezvous, "bound", lambda *place: Exhausted(fileno=bound(*place).detach()))
    place = where()
    server = Server(place)
    Store(place, LIMIT).set("key", "value")

    assert Store(place, LIMIT).get("key") == b"value"
    server.close()


def test_a_listener_that_sends_no_challenge_is_no_first_rank() -> None:
    place = where()
    with socket.create_server((place.address, place.port)) as listener:

        def answer() -> None:
            with Connection(listener.accept()[0].detach()) as other:
                other.send_bytes(b"none")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RendezvousError, match="secret"):
            Store(place, LIMIT)
        thread.join()


def test_a_request_that_is_none_ends_only_its_connection(at: Rendezvous, tmp_path: Path) -> None:
    with_proof, other = Store(at, LIMIT), Store(at, LIMIT)

    with_proof._connection.send_bytes(pickle.dumps(Opened(tmp_path / "opened"))[:5])
    with pytest.raises(RendezvousError):
        with_proof._ask(0)

    other.set("key", "value")
    assert other.get("key") == b"value"
    assert list(tmp_path.iterdir()) == []


def test_the_first_rank_may_start_later_and_its_loss_is_the_loss_of_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    place = where()
    monkeypatch.setattr(rendezvous, "_RETRY_SECONDS", 0.01)
    with pytest.raises(RendezvousError, match="cannot be reached"):
        Store(place, timedelta(seconds=0.05))
    environment = {"RANK": "1", "WORLD_SIZE": "2"}
    monkeypatch.setattr("wcl_core.distributed._TIMEOUT", timedelta(seconds=0.05))
    with pytest.raises(PeerLostError), joined(environment, place):
        pass


def test_the_first_rank_listens_on_the_named_address_alone() -> None:
    place = where(own_address="127.0.0.2")

    server = Server(place)
    listening = {each.laddr.ip for each in psutil.Process().net_connections() if each.status == psutil.CONN_LISTEN}
    server.close()

    assert listening == {"127.0.0.2"}
    eventually(lambda: not _answers(place), "the end of the listener")


def _answers(place: Rendezvous) -> bool:
    time.sleep(0.01)
    try:
        socket.create_connection((place.address, place.port), 1).close()
    except OSError:
        return False
    return True


def test_an_address_or_an_interface_of_this_machine_is_named() -> None:
    assert resolve("127.0.0.3") == ("127.0.0.3", "lo")
    assert resolve("lo") == ("127.0.0.1", "lo")
    for other in ("0.0.0.0", "192.0.2.1", "224.0.0.1", "eth99", "::"):
        with pytest.raises(ValueError, match=other):
            resolve(other)


def test_no_message_between_ranks_is_a_pickle() -> None:
    """torch's collectives of objects pickle, and so does `Connection.recv`."""
    for path in (Path(__file__).parents[2] / "wcl_core").rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"\b(all_gather|broadcast|gather|scatter|send|recv)_object|\bimport pickle", source), path
    assert not re.search(r"\.(recv|send)\(", Path(rendezvous.__file__).read_text())
