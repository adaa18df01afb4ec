"""Feeds: the messages about one job, or about the lists, are read once, encoded once, and sent to all viewers.

A viewer keeps only its position.  The feed of a job holds the last frames, each with the messages between two cursors:

    frames   3.1.10 ──► 3.1.25 ──► 5.1.40   head
    viewers     ▲                     ▲
             is slow               waits for a change

A viewer whose position is behind the frames (it is new, reconnects, or reads too slowly) reads from the database up to
the head.  So dropped frames never cause a gap or a repeat.  `read` runs on a thread, all else on the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from api.rest import responses
from api.rest.responses import EventResponse, LogResponse
from jobs import changes, queries, sweeps
from jobs.changes import Changes, Cursor, Mark
from jobs.status import TERMINAL

T = TypeVar("T")
ThreadRead = Callable[[Callable[[Session], T]], Awaitable[T | None]]  # reads on a thread; None during an outage

HEARTBEAT_SECONDS = 15.0
_BATCH = 2_000
_KEPT_BYTES = 1 << 20
# Fields that have messages of their own, or none.
_UNSTABLE = frozenset({"progress", "latest_metrics", "metrics", "updated_at", "waiting", "weak_labels"})


def message(event: str, data: Any, cursor: Cursor | None = None) -> bytes:
    """Return one server-sent event; JSON escapes line breaks, so the data is one line."""
    number = f"id: {cursor}\n" if cursor else ""
    return f"{number}event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class Feed:
    """The messages of one subject for its viewers; ready after its first read."""

    def __init__(self) -> None:
        self._change_event = asyncio.Event()
        self.is_ready = False
        self.is_closed = False

    def announce(self) -> None:
        event, self._change_event = self._change_event, asyncio.Event()
        event.set()

    def close(self) -> None:
        """End all viewers; they reconnect and resume where they were."""
        self.is_closed = True
        self.announce()

    async def wait(self) -> None:
        """Wait for a change, at most as long as a stream may be silent."""
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._change_event.wait()
        except TimeoutError:
            pass


# --- one job ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The messages of a job from a cursor up to `end`; log lines are apart, because not all viewers request them."""

    end: Cursor
    messages: bytes
    logs: bytes


@dataclass(frozen=True)
class JobPoll:
    mark: Mark
    frame: Frame | None
    job: dict[str, Any]


class JobFeed(Feed):
    """Changes of one job, until it has ended and all of them were sent.

    Args:
        job_id: the job.
        project_id: that of the viewers; None for those who see all projects.
    """

    def __init__(self, job_id: str, project_id: str | None = None) -> None:
        super().__init__()
        self.job_id = job_id
        self.project_id = project_id
        self.is_over = False
        self._is_deleted = False
        self._mark: Mark | None = None
        self._head = changes.START
        self._frames: dict[Cursor, Frame] = {}  # by their first cursor
        self._reading = asyncio.Lock()
        self._job: dict[str, Any] = {}
        self._states = (0, 0)  # numbers of the job's fields and of its progress

    def read(self, session: Session, mark: Mark) -> JobPoll | None:
        """Return the changes since the last read; None if there are none."""
        if mark == self._mark and self._head == mark.cursor:
            return None
        row = queries.get_job(session, self.job_id)
        tags = queries.tags(session, [self.job_id])[self.job_id]
        job = responses.job(session, row, tags).model_dump()
        frame = _frame(session, self.job_id, self._head, mark.cursor) if self.is_ready else None
        return JobPoll(mark, frame, job)

    def publish(self, poll: JobPoll) -> bool:
        """Show the changes to the viewers; return whether there is more to read at once."""
        self._mark = poll.mark
        if poll.frame:
            self._keep(self._head, poll.frame)
        self._head = poll.frame.end if poll.frame else poll.mark.cursor
        self._show(poll.job)
        has_more = self._head != poll.mark.cursor
        self.is_over = poll.job["status"] in TERMINAL and not has_more
        self.is_ready = True
        self.announce()
        return has_more

    def end(self) -> None:
        """End all viewers, because the job is deleted."""
        self._is_deleted = True
        self.close()

    @property
    def kept_bytes(self) -> int:
        return sum(len(frame.messages) + len(frame.logs) for frame in self._frames.values())

    def _keep(self, start: Cursor, frame: Frame) -> None:
        self._frames[start] = frame
        while self.kept_bytes > _KEPT_BYTES and len(self._frames) > 1:
            del self._frames[next(iter(self._frames))]

    def _show(self, job: dict[str, Any]) -> None:
        before, self._job = self._job, job
        fields, progress = self._states
        is_changed = any(job[name] != before.get(name) for name in job.keys() - _UNSTABLE)
        self._states = (fields + is_changed, progress + (job["progress"] != before.get("progress")))

    async def follow(self, cursor: Cursor, with_logs: bool, read_on_thread: ThreadRead[Frame]) -> AsyncIterator[bytes]:
        """Yield each change after `cursor` when it is read, and empty bytes at intervals while nothing changes.

        The last message is `end`, or `deleted` of a deleted job; without one, the viewer reconnects.
        """
        while not (self.is_ready or self.is_closed):
            await self.wait()
            yield b""
        sent = self._states
        if self.is_ready:
            yield message("job", self._job, cursor)
        while not self.is_closed:
            if frame := self._frames.get(cursor):
                cursor = frame.end
                yield frame.messages + frame.logs if with_logs else frame.messages
            elif not cursor.covers(self._head):
                if not await self._catch_up(cursor, read_on_thread):
                    yield b""
            elif sent != self._states:
                state, sent = self._state(sent, cursor), self._states
                yield state
            elif self.is_over:
                yield message("end", self._job, cursor)
                return
            else:
                await self.wait()
                yield b""
        if self._is_deleted:
            yield message("deleted", {"id": self.job_id}, cursor)

    def _state(self, sent: tuple[int, int], cursor: Cursor) -> bytes:
        if sent[0] != self._states[0]:
            return message("job", self._job, cursor)
        return message("progress", self._job["progress"], cursor)

    async def _catch_up(self, cursor: Cursor, read_on_thread: ThreadRead[Frame]) -> bool:
        """Read the frame that begins at `cursor`; of many viewers that reconnect at once, one reads it for all."""
        async with self._reading:
            head = self._head
            if cursor in self._frames:
                return True
            frame = await read_on_thread(lambda session: _frame(session, self.job_id, cursor, head))
            if frame is not None:
                self._keep(cursor, frame)
            return frame is not None


def _frame(session: Session, job_id: str, start: Cursor, end: Cursor) -> Frame:
    batch = changes.changes(session, job_id, start, end, _BATCH)
    return Frame(batch.cursor, b"".join(_messages(batch, start)), _logs(batch))


def _messages(batch: Changes, start: Cursor) -> Iterator[bytes]:
    """Yield the events, each with the cursor right behind it, then the points."""
    behind = start
    for event in batch.events:
        behind = Cursor(event.seq, *start.points, *start.logs)
        yield message("event", EventResponse.of(event).model_dump(), behind)
    if batch.points:
        points = [
            {"name": name, "step": step, "value": value, "attempt": attempt}
            for attempt, name, step, value in batch.points
        ]
        yield message("metrics", {"points": points}, Cursor(behind.event_seq, *batch.cursor.points, *start.logs))


def _logs(batch: Changes) -> bytes:
    lines = [LogResponse.of(row).model_dump() for row in batch.logs]
    return message("logs", {"lines": lines}, batch.cursor) if lines else b""


# --- the list --------------------------------------------------------------------------------------------------------


_Listed = tuple[str, str]  # the name of its list in a hint, and its id


class ListFeed(Feed):
    """Hints about which of the newest and of the running jobs and sweeps changed; viewers then fetch the list again.

    A slow viewer gets all changes since its last hint at once, so no queue can grow.

    Args:
        project_id: that of the viewers; None for those who see all projects.
    """

    def __init__(self, project_id: str | None = None) -> None:
        super().__init__()
        self.project_id = project_id
        self.error: Exception | None = None  # the error of the first read, if it failed
        self._version = 0
        self._states: dict[_Listed, Any] = {}
        self._changed_at: dict[_Listed, int] = {}  # versions
        self._written: tuple[int, int, bytes] = (0, 0, b"")  # (from, to, the hint): the same for nearly all viewers

    def read(self, session: Session) -> dict[_Listed, Any]:
        states: dict[_Listed, Any] = {("changed", key): state for key, state in queries.newest_states(session).items()}
        return states | {("sweeps", key): state for key, state in sweeps.newest_states(session).items()}

    def publish(self, states: dict[_Listed, Any]) -> None:
        changed = [listed for listed, state in states.items() if self._states.get(listed) != state]
        # Deleted jobs; where newer ones come, older ones leave as well.
        gone = [] if changed else [listed for listed in self._states if listed not in states]
        self._states = states
        changed += gone
        if self.is_ready and not changed:
            return
        if self.is_ready:
            self._version += 1
            present = {*states, *gone}
            self._changed_at = {listed: at for listed, at in self._changed_at.items() if listed in present}
            self._changed_at |= dict.fromkeys(changed, self._version)
        self.is_ready = True
        self.announce()

    async def ready(self) -> None:
        """Wait for the first read.

        Raises:
            Exception: the read failed.
        """
        while not (self.is_ready or self.is_closed):
            await self.wait()
        if self.error is not None:
            raise self.error

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield hints about changes from now on, and empty bytes at intervals while nothing changes."""
        sent = self._version
        while not self.is_closed:
            if sent == self._version:
                await self.wait()
                yield b""
                continue
            hint, sent = self._hint(sent), self._version
            yield hint

    def _hint(self, sent: int) -> bytes:
        if self._written[:2] != (sent, self._version):
            hint: dict[str, list[str]] = {"changed": []}
            for (where, key), at in self._changed_at.items():
                if at > sent:
                    hint.setdefault(where, []).append(key)
            self._written = (sent, self._version, message("changed", hint))
        return self._written[2]
