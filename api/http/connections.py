"""Connections: a time for each phase of a connection, and limits on their number, by address and in all.

uvicorn lacks these limits (a trusted proxy has the limit in all only; it limits its own clients):

waits for a request ── 10 s until its headers are complete, however slowly they come; idle after a response, longer
                       than proxies and clients keep such a connection, since a request on one that the server closes
                       at that moment is lost; at a limit of connections, the longest waiting one makes room
responds            ── no limit: the application limits the time for a body and the number of streams
sends               ── the client reads at least 1 KiB a second, over 20 s; all unsent data together is bounded
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.http import descriptors
from api.http.proxies import Proxies

HEAD_SECONDS = 10.0
IDLE_SECONDS = 150  # Caddy reuses a connection for 120 s, nginx and balancers for 60, httpx for 5
SEND_SECONDS = 20.0
LEAST_BYTES = 20 * 1024  # that a client reads in SEND_SECONDS
MAX_UNSENT = 64 * 2**20  # bytes; above it the largest connections end that have been stuck for STUCK_SECONDS
STUCK_SECONDS = 5.0
_MOST = 10_000
_LOOK_SECONDS = 1.0
_QUIET_SECONDS = 60.0

log = logging.getLogger(__name__)


def config(app: FastAPI, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration with these limits."""
    proxies = Proxies(app.state.settings)
    protocol = cast(Any, partial(Connection, Connections(is_proxy=proxies.is_trusted)))
    options |= {"log_config": None, "access_log": False, "server_header": False}
    options |= {"timeout_keep_alive": IDLE_SECONDS}
    options |= {"proxy_headers": False}  # api.http.proxies reads them, from trusted proxies only
    return uvicorn.Config(app, http=protocol, **options)


class Connections:
    """All connections of a server, by client address.

    Args:
        most: connections in all; half of them from one address.  By default, as many as the file descriptors allow.
        clock: monotonic seconds.
        is_proxy: whether an address is that of a trusted proxy, whose connections are those of many clients.
    """

    def __init__(
        self,
        most: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_proxy: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._most = most or min(_MOST, descriptors.limit() * 3 // 4)
        self.clock, self._is_proxy = clock, is_proxy
        self._open: set[Connection] = set()
        self._by_address: defaultdict[str, set[Connection]] = defaultdict(set)
        # In the order in which they began to wait
        self._waiting: dict[Connection, None] = {}
        self._waiting_by_address: defaultdict[str, dict[Connection, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """Add a connection that waits for its first request; above a limit, one connection ends."""
        if not self._open:
            connection.loop.call_later(_LOOK_SECONDS, self._look, connection.loop)
        self._open.add(connection)
        self._by_address[connection.address].add(connection)
        self.wait(connection)
        is_full = len(self._by_address[connection.address]) > self._most // 2
        if is_full and not self._is_proxy(connection.address):
            next(iter(self._waiting_by_address[connection.address])).end()
        elif len(self._open) > self._most:
            next(iter(self._waiting)).end()

    def wait(self, connection: Connection) -> None:
        """Put a connection at the end of those that wait for a request."""
        self.respond(connection)
        self._waiting[connection] = self._waiting_by_address[connection.address][connection] = None

    def respond(self, connection: Connection) -> None:
        """Remove a connection from those that wait for a request."""
        self._waiting.pop(connection, None)
        self._waiting_by_address[connection.address].pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        self.respond(connection)
        self._open.discard(connection)
        self._by_address[connection.address].discard(connection)
        if not self._by_address[connection.address]:
            del self._by_address[connection.address], self._waiting_by_address[connection.address]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.look()
        if self._open:
            loop.call_later(_LOOK_SECONDS, self._look, loop)

    def look(self) -> None:
        """End the connections whose time is over."""
        now = self.clock()
        for connection in list(self._waiting):
            if not connection.is_idle and now - connection.waits_since >= HEAD_SECONDS:
                connection.end()
        sending = [connection for connection in self._open if connection.is_sending(now)]
        unsent = sum(connection.unsent for connection in sending)
        for connection in sorted(sending, key=lambda each: each.unsent, reverse=True):
            is_too_much = unsent > MAX_UNSENT and connection.stuck_seconds(now) >= STUCK_SECONDS
            if is_too_much or connection.stuck_seconds(now) >= SEND_SECONDS:
                unsent -= connection.unsent
                connection.transport.abort()


class Connection(H11Protocol):
    """One connection."""

    def __init__(self, connections: Connections, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connections = connections
        self.logger = _Quiet(self.logger)  # type: ignore[assignment]
        self.address = ""
        self.waits_since = 0.0
        self.is_idle = False  # after a response, before the first byte of the next request
        self.unsent = 0
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.waits_since = self._connections.clock()
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connections.remove(self)

    def data_received(self, data: bytes) -> None:
        if self.is_idle:  # uvicorn's time ends with the first byte of a request, so this one begins
            self.is_idle, self.waits_since = False, self._connections.clock()
        super().data_received(data)
        if not self._is_waiting:
            self._connections.respond(self)

    def on_response_complete(self) -> None:
        self.waits_since = self._connections.clock()
        self._connections.wait(self)
        super().on_response_complete()  # it may read the next request, which the client sent along
        if not self._is_waiting:
            self._connections.respond(self)
        self.is_idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    @property
    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; in the middle of a response only the end of the connection is left."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.end()

    def end(self) -> None:
        """End the connection after the data that is still unsent."""
        self._connections.respond(self)
        self.transport.close()

    def is_sending(self, now: float) -> bool:
        """Return whether data is unsent, and note how much."""
        unsent = self.transport.get_write_buffer_size()
        if not self.unsent or unsent > self.unsent or self.unsent - unsent >= LEAST_BYTES:
            self.unsent, self._sent_at = unsent, now
        elif not unsent:
            self.unsent = 0
        return unsent > 0

    def stuck_seconds(self, now: float) -> float:
        """Return for how long the client has read less than it should."""
        return now - self._sent_at


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """uvicorn's log: each client can cause its warnings, so equal ones are logged at most once a minute."""

    _logged_at: dict[str, float] = {}  # noqa: RUF012 (shared by all connections)

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self.level = logger.level

    def warning(self, msg: object, *arguments: object, **options: Any) -> None:
        """Log a warning, unless it was logged less than a minute ago."""
        if time.monotonic() - self._logged_at.get(str(msg), float("-inf")) >= _QUIET_SECONDS:
            self._logged_at[str(msg)] = time.monotonic()
            super().warning(msg, *arguments, **options)
