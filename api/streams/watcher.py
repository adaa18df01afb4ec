"""One look at the database for all viewers of this process, again and again while there are any.

However many watch, a look is one short transaction: which keys still count, which of the watched jobs have changed,
and what those told.  Each server has a watcher of its own; what they say comes from the rows, so viewers may move
from one server to another.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
import anyio.to_thread
from sqlalchemy.orm import Session

from api.streams.feeds import Feed, JobFeed, JobLook, ListFeed
from jobs import changes, keys
from jobs.database import Database, is_outage

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS = 0.7
_STOP_LOOK_SECONDS = 0.2
_READERS = 4


@dataclass(frozen=True)
class _Look:
    revoked: set[str]
    jobs: list[tuple[JobFeed, JobLook]]
    states: dict[tuple[str, str], object] | None


class Watcher:
    """Feeds that have viewers, and the task that keeps them fresh; of one event loop."""

    def __init__(self, database: Database, stopping: threading.Event) -> None:
        self._database = database
        self._stopping = stopping
        self._jobs: dict[str, JobFeed] = {}
        self._list: ListFeed | None = None
        self._viewers: Counter[Feed] = Counter()
        self._keys: Counter[str] = Counter()
        self._revoked: set[str] = set()
        self._wanted = asyncio.Event()  # a look, at once
        self._task: asyncio.Task[None] | None = None
        self._threads = anyio.CapacityLimiter(_READERS)

    @property
    def kept_bytes(self) -> int:
        """What all feeds of jobs hold for viewers that are behind."""
        return sum(feed.kept_bytes for feed in self._jobs.values())

    # --- viewers

    def is_revoked(self, key_id: str) -> bool:
        return key_id in self._revoked

    @contextmanager
    def job(self, job_id: str, key_id: str) -> Iterator[JobFeed]:
        """The feed of a job while it is viewed."""
        feed = self._jobs.get(job_id)
        if feed is None or feed.is_over or feed.is_closed:  # over: what is told after the end begins another feed
            feed = self._jobs[job_id] = JobFeed(job_id)
        with self._viewed(feed, key_id):
            yield feed

    @contextmanager
    def list(self, key_id: str) -> Iterator[ListFeed]:
        """The feed of the list while it is viewed."""
        if self._list is None or self._list.is_closed:
            self._list = ListFeed()
        with self._viewed(self._list, key_id):
            yield self._list

    @contextmanager
    def _viewed(self, feed: Feed, key_id: str) -> Iterator[None]:
        self._viewers[feed] += 1
        self._keys[key_id] += 1
        self._start(feed)
        try:
            yield
        finally:
            self._leave(feed, key_id)

    def _start(self, feed: Feed) -> None:
        if not feed.is_ready:
            self._wanted.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    def _leave(self, feed: Feed, key_id: str) -> None:
        self._viewers -= Counter([feed])  # drops those without any
        self._keys -= Counter([key_id])
        if feed in self._viewers:
            return
        if isinstance(feed, JobFeed) and self._jobs.get(feed.job_id) is feed:
            del self._jobs[feed.job_id]
        elif feed is self._list:
            self._list = None

    async def ask(self, read: Callable[[Session], T]) -> T | None:
        """Read on a thread; None, after a while, when the database does not answer."""
        try:
            return await anyio.to_thread.run_sync(self._read, read, limiter=self._threads)
        except Exception as error:
            if not is_outage(error):
                raise
            await asyncio.sleep(POLL_SECONDS)
            return None

    def _read(self, read: Callable[[Session], T]) -> T:
        with self._database.read() as session:
            return read(session)

    # --- the task

    async def _watch(self) -> None:
        try:
            while self._viewers and not self._stopping.is_set():
                self._wanted.clear()
                if not await self._look():
                    await self._pause()
        except Exception:
            log.exception("the streams of this process end; their readers come again")
        finally:
            for feed in self._viewers:
                feed.close()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._wanted.wait()
        except TimeoutError:
            pass

    async def _look(self) -> bool:
        """True when there is more to read at once."""
        asked = set(self._keys)
        feeds = [feed for feed in self._jobs.values() if not feed.is_over]
        lists = self._list
        reading = asyncio.create_task(
            anyio.to_thread.run_sync(
                self._read, lambda session: _look(session, asked, feeds, lists), abandon_on_cancel=True
            )
        )
        while not (await asyncio.wait([reading], timeout=_STOP_LOOK_SECONDS))[0]:
            if self._stopping.is_set():  # the database may be silent for longer than a stop may take
                reading.cancel()
                return False
        try:
            return self._publish(reading.result(), lists)
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("the database does not answer the streams; looking again")
            if lists is not None and not lists.is_ready:
                lists.error = error
                lists.close()
            return False

    def _publish(self, found: _Look, lists: ListFeed | None) -> bool:
        if found.states is not None and lists is not None:
            lists.publish(found.states)
        has_more = [feed.publish(look) for feed, look in found.jobs]
        if found.revoked - self._revoked:
            self._revoked |= found.revoked
            for feed in self._viewers:
                feed.announce()
        return any(has_more)


def _look(session: Session, asked: set[str], feeds: Sequence[JobFeed], lists: ListFeed | None) -> _Look:
    marks = changes.marks(session, [feed.job_id for feed in feeds]) if feeds else {}
    looks = [(feed, feed.read(session, marks[feed.job_id])) for feed in feeds if feed.job_id in marks]
    return _Look(
        revoked=asked - keys.active(session, asked),
        jobs=[(feed, look) for feed, look in looks if look is not None],
        states=lists.read(session) if lists is not None else None,
    )
