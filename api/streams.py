"""Server-sent events: a job as it runs, and hints for lists.

A stream polls the database by short reads on a thread and holds nothing in between.  Each message of a job's stream
carries the cursor behind it, so a reader that comes back with `Last-Event-ID` misses nothing and sees nothing twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import anyio.to_thread
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api import rendering
from api.problems import TooMany
from jobs import keys, queries, waiting
from jobs.database import Database, is_outage
from jobs.queries import Changes, Cursor
from jobs.status import TERMINAL

log = logging.getLogger(__name__)

POLL_SECONDS = 0.7
HEARTBEAT_SECONDS = 15.0
_BATCH = 2_000
_READERS = 4
_MAX_STREAMS_PER_KEY = 100
# These have messages of their own, or none.
_UNSTABLE = frozenset({"progress", "latest_metrics", "updated_at", "waiting"})


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    event: str
    data: Any
    id: str | None = None

    def encoded(self) -> bytes:
        # JSON escapes line breaks, so the data is one line.
        number = f"id: {self.id}\n" if self.id else ""
        return f"{number}event: {self.event}\ndata: {json.dumps(self.data, separators=(',', ':'))}\n\n".encode()


@dataclass(frozen=True)
class Batch:
    """What one look found; `has_more` asks for the next look at once."""

    messages: list[Message]
    has_more: bool = False
    is_last: bool = False


class Source(Protocol):
    """Something that a stream looks at again and again."""

    def look(self) -> Batch:
        """Read once, quickly; called on a thread."""


class JobSource:
    """Changes of one job after a cursor, until it has ended and everything was told."""

    def __init__(self, database: Database, job_id: str, cursor: Cursor, key_id: str) -> None:
        self._database = database
        self._job_id = job_id
        self._cursor = cursor
        self._key_id = key_id
        self._shown: dict[str, Any] | None = None
        self._progress: Any = None

    def look(self) -> Batch:
        with self._database.read() as session:
            if not keys.is_active(session, self._key_id):
                return Batch([], is_last=True)
            changes = queries.changes(session, self._job_id, self._cursor, _BATCH)
            tags = queries.tags(session, [self._job_id])[self._job_id]
            why = waiting.explain(session, changes.job)
        job = rendering.job(changes.job, tags, why)
        before, self._cursor = self._cursor, changes.cursor
        messages = [*self._job(dict(job), before), *_told(changes, before), *self._progressed(changes)]
        is_last = changes.job.status in TERMINAL and changes.cursor == before
        if is_last:
            messages.append(Message("end", job, str(changes.cursor)))
        has_more = changes.job.status in TERMINAL or len(changes.events) + len(changes.points) > _BATCH // 2
        return Batch(messages, has_more, is_last)

    def _job(self, job: dict[str, Any], cursor: Cursor) -> Iterator[Message]:
        stable = {name: value for name, value in job.items() if name not in _UNSTABLE}
        if stable != self._shown:
            self._shown, self._progress = stable, job["progress"]
            yield Message("job", job, str(cursor))

    def _progressed(self, changes: Changes) -> Iterator[Message]:
        progress = changes.job.progress
        if progress is not None and progress != self._progress:
            self._progress = progress
            yield Message("progress", progress, str(changes.cursor))


def _told(changes: Changes, before: Cursor) -> Iterator[Message]:
    """Events, each with the cursor right behind it, then the points of the same look."""
    for event in changes.events:
        behind = Cursor(event.seq, before.attempt, before.delivered_seq)
        yield Message("event", rendering.event(event), str(behind))
    if changes.points:
        points = [
            {"name": name, "step": step, "value": value, "attempt": attempt}
            for attempt, name, step, value in changes.points
        ]
        yield Message("metrics", {"points": points}, str(changes.cursor))


class ListSource:
    """Which of the newest and the running jobs changed; a hint only, the list itself is read again."""

    def __init__(self, database: Database, key_id: str) -> None:
        self._database = database
        self._key_id = key_id
        # Before the stream opens: a reader that fetches the list once it is open misses nothing in between.
        with database.read() as session:
            self._seen = queries.newest_states(session)

    def look(self) -> Batch:
        with self._database.read() as session:
            if not keys.is_active(session, self._key_id):
                return Batch([], is_last=True)
            found = queries.newest_states(session)
        seen, self._seen = self._seen, found
        changed = [job_id for job_id, state in found.items() if seen.get(job_id) != state]
        return Batch([Message("changed", {"changed": changed})] if changed else [])


class Streams:
    """All open streams of this process: their limit, their threads, and their end when the process stops."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._open: Counter[str] = Counter()
        self._threads = anyio.CapacityLimiter(_READERS)

    @property
    def count(self) -> int:
        return self._open.total()

    @contextmanager
    def slot(self, key_id: str) -> Iterator[None]:
        """One of the streams that a key may hold at a time.

        Raises:
            TooMany: it holds them all.
        """
        if self._open[key_id] >= _MAX_STREAMS_PER_KEY:
            raise TooMany(f"this key has {_MAX_STREAMS_PER_KEY} streams open already")
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1

    async def chunks(self, source: Source) -> AsyncIterator[bytes]:
        """Look at `source` until its last batch or the end of the process."""
        yield b": open\n\n"
        said_at = time.monotonic()
        while not self._stopping.is_set():
            batch = await self._look(source)
            for message in batch.messages:
                yield message.encoded()
            if batch.is_last:
                return
            now = time.monotonic()
            if batch.messages:
                said_at = now
            elif now - said_at >= HEARTBEAT_SECONDS:
                said_at = now
                yield b": heartbeat\n\n"
            await asyncio.sleep(0.01 if batch.has_more else POLL_SECONDS)

    async def _look(self, source: Source) -> Batch:
        try:
            return await anyio.to_thread.run_sync(source.look, limiter=self._threads)
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("the database does not answer a stream; looking again")
            return Batch([])


class EventStream(StreamingResponse):
    """The response that holds one slot while it lasts."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, source: Source, key_id: str) -> None:
        super().__init__(streams.chunks(source), headers={"X-Accel-Buffering": "no"})
        self._streams = streams
        self._key_id = key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.slot(self._key_id):
            await super().__call__(scope, receive, send)
