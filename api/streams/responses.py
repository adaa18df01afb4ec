"""Responses with server-sent events: their number is limited, they send heartbeats, and they end with the process.

`api.streams.feeds` produces the messages, and `api.streams.watcher` reads the database.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.http import descriptors
from api.http.problems import TooMany
from api.streams import feeds
from api.streams.watcher import Watcher
from jobs.changes import Cursor
from jobs.database import Database

_MAX_STREAMS = 2_000
_MAX_STREAMS_PER_KEY = 100


class Streams:
    """All open streams of this process; they end when the process stops or their key is revoked."""

    def __init__(self, database: Database, stopping: threading.Event) -> None:
        self.watcher = Watcher(database, stopping)
        self._stopping = stopping
        self._open: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self._open.total()

    @contextmanager
    def slot(self, key_id: str) -> Iterator[None]:
        """Occupy one of the streams that a key, and this process, may hold at a time.

        Raises:
            TooMany: all of them are occupied.
        """
        if self._open[key_id] >= _MAX_STREAMS_PER_KEY:
            raise TooMany(f"this key has {_MAX_STREAMS_PER_KEY} open streams, the maximum; close one first")
        most = min(_MAX_STREAMS, descriptors.limit() // 2)  # other requests need descriptors, too
        if self.count >= most:
            raise TooMany(f"this server has {most} open streams, the maximum; try again later")
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1

    async def chunks(self, messages: AsyncIterator[bytes], key_id: str) -> AsyncIterator[bytes]:
        """Yield the messages of a feed, and a heartbeat after a long silence."""
        yield b": open\n\n"
        sent_at = time.monotonic()
        async for chunk in messages:
            if self._stopping.is_set() or self.watcher.is_revoked(key_id):
                return
            if not chunk and time.monotonic() - sent_at >= feeds.HEARTBEAT_SECONDS:
                chunk = b": heartbeat\n\n"
            if chunk:
                sent_at = time.monotonic()
                yield chunk


class _EventStream(StreamingResponse):
    """A response that occupies one slot while it lasts."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, key_id: str) -> None:
        super().__init__(iter(()), headers={"X-Accel-Buffering": "no"})
        self._streams = streams
        self._key_id = key_id

    async def _send(self, messages: AsyncIterator[bytes], scope: Scope, receive: Receive, send: Send) -> None:
        self.body_iterator = self._streams.chunks(messages, self._key_id)
        await super().__call__(scope, receive, send)


class JobStream(_EventStream):
    def __init__(self, streams: Streams, key_id: str, job_id: str, cursor: Cursor, with_logs: bool) -> None:
        super().__init__(streams, key_id)
        self._job_id, self._cursor, self._with_logs = job_id, cursor, with_logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = self._streams.watcher
        with self._streams.slot(self._key_id), watcher.job(self._job_id, self._key_id) as feed:
            await self._send(feed.follow(self._cursor, self._with_logs, watcher.read_on_thread), scope, receive, send)


class ListStream(_EventStream):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = self._streams.watcher
        with self._streams.slot(self._key_id), watcher.list(self._key_id) as feed:
            await feed.ready()  # so that a reader that fetches the list afterwards misses nothing
            await self._send(feed.follow(), scope, receive, send)
