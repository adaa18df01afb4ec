"""The rendezvous of ranks on several machines: a store of torch.distributed behind a proof of a shared secret.

    rank ── proof that it has the secret ──► server of the first rank: keys and values
         ◄── the same proof ──────────────┘

torch's own `TCPStore` serves every connection.  This one reads nothing but the proof until both sides have proved that
they have the secret of the attempt: an HMAC over random bytes of the other side, as `multiprocessing.connection` does
it.  After that, requests are keys and bytes.  Nothing is unpickled.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

import torch.distributed as dist

from wcl_core.addresses import bound
from wcl_core.protocol import Rendezvous

_PROOF_SECONDS = 10
_MOST_UNPROVED = 64  # connections at a time; further ones are closed, and ranks connect again
_MOST_BYTES = 1 << 20  # of a request
_RETRY_SECONDS = 0.2
_POLL_SECONDS = 0.02
_BACKLOG = 128
_SET, _GET, _ADD, _COMPARE, _DELETE, _COUNT = range(6)
_HEAD = struct.Struct("!BII")  # the request, and the lengths of its key and of its first value
_NUMBER = struct.Struct("!q")


class RendezvousError(RuntimeError):
    """The first rank cannot be reached, or does not have the secret."""


class Store(dist.Store):  # type: ignore[name-defined, misc]
    """The keys and values of the first rank, seen from any rank.

    Args:
        rendezvous: where it is.
        timeout: of the connection and of each wait.
    """

    def __init__(self, rendezvous: Rendezvous, timeout: timedelta) -> None:
        super().__init__()
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection = _connected(rendezvous, time.monotonic() + timeout.total_seconds())

    def _ask(self, request: int, key: str = "", first: bytes = b"", second: bytes = b"") -> bytes:
        name = key.encode()
        try:
            with self._lock:
                self._connection.send_bytes(_HEAD.pack(request, len(name), len(first)) + name + first + second)
                return self._connection.recv_bytes(_MOST_BYTES)
        except (OSError, EOFError) as error:
            raise RendezvousError(f"the first rank is gone: {error or type(error).__name__}") from error

    def set(self, key: str, value: str | bytes) -> None:
        self._ask(_SET, key, _bytes(value))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._ask(_GET, key)[1:]

    def add(self, key: str, value: int) -> int:
        return int(_NUMBER.unpack(self._ask(_ADD, key, _NUMBER.pack(value)))[0])

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        return self._ask(_COMPARE, key, _bytes(expected_value), _bytes(desired_value))

    def check(self, keys: Sequence[str]) -> bool:
        return all(self._ask(_GET, key) for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        limit = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + limit.total_seconds()
        while not self.check(keys):
            if time.monotonic() >= deadline:
                raise RendezvousError(f"no rank has set {', '.join(keys)} in time")
            time.sleep(_POLL_SECONDS)

    def delete_key(self, key: str) -> bool:
        return self._ask(_DELETE, key) != b""

    def num_keys(self) -> int:
        return int(_NUMBER.unpack(self._ask(_COUNT))[0])

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout

    def clone(self) -> Store:
        return self


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _connected(rendezvous: Rendezvous, deadline: float) -> Connection:
    """Connect to the first rank, which may start later, and prove the secret."""
    while True:
        try:
            plain = socket.create_connection(
                (rendezvous.address, rendezvous.port), _PROOF_SECONDS, (rendezvous.own_address, 0)
            )
            with plain:
                plain.setblocking(True)
                return _proved(plain, rendezvous.secret, is_server=False)
        except AuthenticationError as error:
            raise RendezvousError("the first rank has another secret") from error
        except (OSError, EOFError) as error:
            if time.monotonic() > deadline:
                raise RendezvousError(f"the first rank cannot be reached: {error}") from error
            time.sleep(_RETRY_SECONDS)


def _proved(plain: socket.socket, secret: str, *, is_server: bool) -> Connection:
    """Return a connection both of whose sides have proved that they have the secret.

    Raises:
        AuthenticationError, OSError, EOFError: the other side has not, or not in time.
    """
    connection = Connection(os.dup(plain.fileno()))
    timer = threading.Timer(_PROOF_SECONDS, _cut, (plain,))  # of all reads together
    timer.start()
    try:
        for step in (deliver_challenge, answer_challenge) if is_server else (answer_challenge, deliver_challenge):
            step(connection, secret.encode())
    except AssertionError as error:  # Python 3.11 asserts that a challenge begins as one
        connection.close()
        raise AuthenticationError("the other side sent no challenge") from error
    except BaseException:
        connection.close()
        raise
    finally:
        timer.cancel()
    return connection


def _cut(plain: socket.socket) -> None:
    with suppress(OSError):  # it is closed meanwhile
        plain.shutdown(socket.SHUT_RDWR)


class Server:
    """The keys and values, on the first rank; a connection gets an answer once it has proved the secret.

    Args:
        rendezvous: where it listens: on this address alone.

    Raises:
        OSError: the address is not of this machine, or the port is in use.
    """

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._secret = rendezvous.secret
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._unproved = threading.BoundedSemaphore(_MOST_UNPROVED)
        self._listener = bound(rendezvous.address, rendezvous.port)
        self._listener.listen(_BACKLOG)
        threading.Thread(target=self._accept, name="rendezvous", daemon=True).start()

    def close(self) -> None:
        """Accept no further connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait of the other thread
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() == -1:
                    return  # it was closed
                time.sleep(_RETRY_SECONDS)  # there is no descriptor for it now
                continue
            if self._unproved.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(plain,), name="rendezvous-rank", daemon=True).start()
            else:
                plain.close()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with plain:
                connection = _proved(plain, self._secret, is_server=True)
        except (AuthenticationError, OSError, EOFError):
            return
        finally:
            self._unproved.release()
        with connection:
            try:
                while True:
                    connection.send_bytes(self._answer(connection.recv_bytes(_MOST_BYTES)))
            except (OSError, EOFError, struct.error, UnicodeDecodeError):
                return

    def _answer(self, message: bytes) -> bytes:
        request, key_length, first_length = _HEAD.unpack_from(message)
        rest = message[_HEAD.size :]
        key, rest = rest[:key_length].decode(), rest[key_length:]
        first, second = rest[:first_length], rest[first_length:]
        with self._lock:
            value = self._values.get(key)
            if request == _SET:
                self._values[key] = first
            elif request == _GET:
                return b"" if value is None else b"=" + value
            elif request == _ADD:
                total = int(value or b"0") + _NUMBER.unpack(first)[0]
                self._values[key] = str(total).encode()
                return _NUMBER.pack(total)
            elif request == _COMPARE:
                if (value or b"") == first:
                    value = self._values[key] = second
                return value or b""
            elif request == _DELETE:
                return b"" if self._values.pop(key, None) is None else b"1"
            elif request == _COUNT:
                return _NUMBER.pack(len(self._values))
        return b""
