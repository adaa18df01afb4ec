"""The watcher polls the database for all viewers of this process, while there are any.

A poll is one short transaction, however many viewers there are: it reads which keys and sessions have ended, which of
the watched jobs have changed, and their changes.  Each server has its own watcher.  The messages come from the rows
only, so viewers may move from one server to another.
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

from api.streams.feeds import Feed, JobFeed, JobPoll, ListFeed
from jobs import changes, keys
from jobs.database import Database, is_outage, within
from jobs.fault_log import FaultLog
from jobs.keys import Principal

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS = 0.7
_STOP_CHECK_SECONDS = 0.2
_READERS = 4


@dataclass(frozen=True)
class _Poll:
    ended: set[Principal]
    gone: list[JobFeed]  # of jobs that are deleted
    jobs: list[tuple[JobFeed, JobPoll]]
    states: list[tuple[ListFeed, dict[tuple[str, str], object]]]


class Watcher:
    """The feeds with viewers of one event loop, and the task that refreshes them."""

    def __init__(self, database: Database, stopping: threading.Event) -> None:
        self._database = database
        self._stopping = stopping
        self._jobs: dict[tuple[str, str | None], JobFeed] = {}  # by job and project of the viewers
        self._lists: dict[str | None, ListFeed] = {}  # by project of the viewers
        self._viewers: Counter[Feed] = Counter()
        self._principals: Counter[Principal] = Counter()
        self._ended: set[Principal] = set()
        self._poll_requested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._threads = anyio.CapacityLimiter(_READERS)
        self._faults = FaultLog(log, "the poll of the streams")

    @property
    def kept_bytes(self) -> int:
        """Number of bytes that the feeds of jobs keep for slow viewers."""
        return sum(feed.kept_bytes for feed in self._jobs.values())

    # --- viewers

    def has_ended(self, principal: Principal) -> bool:
        """Return whether the key is revoked or the browser session is over."""
        return principal in self._ended

    @contextmanager
    def job(self, job_id: str, principal: Principal) -> Iterator[JobFeed]:
        """Return the feed of a job, and keep it while it has a viewer."""
        place = (job_id, principal.project_id)
        feed = self._jobs.get(place)
        if feed is None or feed.is_over or feed.is_closed:  # over: changes after the end start another feed
            feed = self._jobs[place] = JobFeed(*place)
        with self._viewed(feed, principal):
            yield feed

    @contextmanager
    def list(self, principal: Principal) -> Iterator[ListFeed]:
        """Return the feed of the lists, and keep it while it has a viewer."""
        feed = self._lists.get(principal.project_id)
        if feed is None or feed.is_closed:
            feed = self._lists[principal.project_id] = ListFeed(principal.project_id)
        with self._viewed(feed, principal):
            yield feed

    @contextmanager
    def _viewed(self, feed: Feed, principal: Principal) -> Iterator[None]:
        self._viewers[feed] += 1
        self._principals[principal] += 1
        self._start(feed)
        try:
            yield
        finally:
            self._leave(feed, principal)

    def _start(self, feed: Feed) -> None:
        if not feed.is_ready:
            self._poll_requested.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    def _leave(self, feed: Feed, principal: Principal) -> None:
        self._viewers -= Counter([feed])  # drops those without any
        self._principals -= Counter([principal])
        if principal not in self._principals:
            self._ended.discard(principal)
        if feed in self._viewers:
            return
        if isinstance(feed, JobFeed) and self._jobs.get((feed.job_id, feed.project_id)) is feed:
            del self._jobs[feed.job_id, feed.project_id]
        elif isinstance(feed, ListFeed) and self._lists.get(feed.project_id) is feed:
            del self._lists[feed.project_id]

    async def read_on_thread(self, read: Callable[[Session], T]) -> T | None:
        """Read on a thread; return None, after a pause, if the database does not respond."""
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
                self._poll_requested.clear()
                if not await self._poll():
                    await self._pause()
        except Exception:
            log.exception("the streams of this process end; their clients reconnect")
        finally:
            for feed in self._viewers:
                feed.close()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._poll_requested.wait()
        except TimeoutError:
            pass

    async def _poll(self) -> bool:
        """Poll once; return whether there is more to read at once."""
        principals = set(self._principals)
        feeds = [feed for feed in self._jobs.values() if not feed.is_over]
        lists = list(self._lists.values())
        reading = asyncio.create_task(
            anyio.to_thread.run_sync(
                self._read, lambda session: _poll(session, principals, feeds, lists), abandon_on_cancel=True
            )
        )
        while not (await asyncio.wait([reading], timeout=_STOP_CHECK_SECONDS))[0]:
            if self._stopping.is_set():  # the database may not answer for longer than a stop may take
                reading.cancel()
                return False
        try:
            has_more = self._publish(reading.result())
        except Exception as error:
            if not is_outage(error):
                raise
            self._faults.failed(error)
            for each in lists:
                if not each.is_ready:
                    each.error = error
                    each.close()
            return False
        self._faults.succeeded()
        return has_more

    def _publish(self, result: _Poll) -> bool:
        for lists, states in result.states:
            lists.publish(states)
        has_more = [feed.publish(poll) for feed, poll in result.jobs]
        for gone in result.gone:
            gone.end()
        if ended := (result.ended & self._principals.keys()) - self._ended:
            self._ended |= ended
            for feed in self._viewers:
                feed.announce()
        return any(has_more)


def _poll(session: Session, principals: set[Principal], feeds: Sequence[JobFeed], lists: Sequence[ListFeed]) -> _Poll:
    marks = changes.marks(session, [feed.job_id for feed in feeds]) if feeds else {}
    polls = []
    for feed in feeds:
        if feed.job_id in marks:
            with within(session, feed.project_id):  # what else the messages name
                polls.append((feed, feed.read(session, marks[feed.job_id])))
    states = []
    for each in lists:
        with within(session, each.project_id):
            states.append((each, each.read(session)))
    return _Poll(
        gone=[feed for feed in feeds if feed.job_id not in marks],
        ended=keys.ended(session, principals),
        jobs=[(feed, poll) for feed, poll in polls if poll is not None],
        states=states,
    )
