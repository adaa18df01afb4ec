"""Responses with server-sent events: their number is limited, they send heartbeats, and they end with the process.

`api.streams.feeds` produces the messages, and `api.streams.watcher` reads the database.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.http import descriptors
from api.http.problems import TooMany
from api.streams import feeds
from api.streams.watcher import Watcher
from jobs.changes import Cursor
from jobs.database import Database
from jobs.keys import Principal

_MAX_STREAMS = 2_000
_MAX_STREAMS_PER_KEY = 100
_Queue = asyncio.Queue[tuple[int | None, bytes]]  # the place of a job, None for the lists, and a chunk


class Streams:
    """All open streams of this process; they end with the process, with their key and with their session."""

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

    async def chunks(self, messages: AsyncIterator[bytes], principal: Principal) -> AsyncIterator[bytes]:
        """Yield the messages of a feed, and a heartbeat after a long silence."""
        yield b": open\n\n"
        sent_at = time.monotonic()
        async for chunk in messages:
            if self._stopping.is_set() or self.watcher.has_ended(principal):
                return
            if not chunk and time.monotonic() - sent_at >= feeds.HEARTBEAT_SECONDS:
                chunk = b": heartbeat\n\n"
            if chunk:
                sent_at = time.monotonic()
                yield chunk


class _EventStream(StreamingResponse):
    """A response that occupies one slot while it lasts."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, principal: Principal) -> None:
        super().__init__(iter(()), headers={"X-Accel-Buffering": "no"})
        self._streams = streams
        self._principal = principal

    async def _send(self, messages: AsyncIterator[bytes], scope: Scope, receive: Receive, send: Send) -> None:
        self.body_iterator = self._streams.chunks(messages, self._principal)
        await super().__call__(scope, receive, send)


class JobStream(_EventStream):
    """The changes of one job until it ends."""

    def __init__(self, streams: Streams, principal: Principal, job_id: str, cursor: Cursor, with_logs: bool) -> None:
        super().__init__(streams, principal)
        self._job_id, self._cursor, self._with_logs = job_id, cursor, with_logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = self._streams.watcher
        with self._streams.slot(self._principal.key_id), watcher.job(self._job_id, self._principal) as feed:
            await self._send(feed.follow(self._cursor, self._with_logs, watcher.read_on_thread), scope, receive, send)


class ListStream(_EventStream):
    """Hints about the lists, and with them the changes of some jobs, each named by its place in `followed`.

    All windows of a browser share one such stream, since browsers allow six connections to a server.
    """

    def __init__(self, streams: Streams, principal: Principal, followed: Sequence[tuple[str, Cursor]] = ()) -> None:
        super().__init__(streams, principal)
        self._followed = followed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = self._streams.watcher
        with self._streams.slot(self._principal.key_id), ExitStack() as stack:
            lists = stack.enter_context(watcher.list(self._principal))
            jobs = [(stack.enter_context(watcher.job(job_id, self._principal)), at) for job_id, at in self._followed]
            await lists.ready()  # so that a reader that fetches the list afterwards misses nothing
            if not jobs:
                await self._send(lists.follow(), scope, receive, send)
                return
            parts: list[tuple[int | None, AsyncIterator[bytes]]] = [(None, lists.follow())]
            parts += [(place, feed.follow(at, True, watcher.read_on_thread)) for place, (feed, at) in enumerate(jobs)]
            queue: _Queue = asyncio.Queue(maxsize=1)  # a slow reader holds up the feeds
            pumps = [asyncio.create_task(_pump(place, messages, queue)) for place, messages in parts]
            try:
                await self._send(_merged(queue, pumps), scope, receive, send)
            finally:
                for pump in pumps:
                    pump.cancel()


async def _pump(place: int | None, messages: AsyncIterator[bytes], queue: _Queue) -> None:
    async for chunk in messages:
        await queue.put((place, chunk))


async def _merged(queue: _Queue, pumps: Sequence[asyncio.Task[None]]) -> AsyncIterator[bytes]:
    """Yield the chunks of all feeds; a `subject` message names the place of the job that the next messages are about.

    The feed of a job ends with the job, the one of the lists only with the watcher.
    """
    subject = None
    while not pumps[0].done() and not any(pump.done() and pump.exception() for pump in pumps):
        try:
            async with asyncio.timeout(feeds.HEARTBEAT_SECONDS):
                place, chunk = await queue.get()
        except TimeoutError:
            continue
        if chunk and place is not None and place != subject:
            subject = place
            chunk = feeds.message("subject", place) + chunk
        yield chunk
