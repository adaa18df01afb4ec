"""Finds what nobody else moves on: attempts without a supervisor, jobs whose needs are met, jobs behind lesser ones.

Many run at once, in servers and workers; every change they make is guarded, so that two of them do no harm.  No wall
clock decides: an attempt counts as lost only after this very reconciler has seen it unchanged for a whole lease of its
own monotonic clock, with no failed and no missed look in between, and could itself write all through the second half.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy import Update, delete, select, update
from sqlalchemy.orm import Session

from jobs import keys, preemption, sweeps, transitions, wake_up
from jobs import workers as registry
from jobs.database import Database, is_outage, now_ms
from jobs.models import Attempt, IdempotencyKey, Worker
from jobs.settings import Settings

log = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 600.0
T = TypeVar("T", bound=Hashable)


class Watch(Generic[T]):
    """What was seen unchanged, and since when.

    Args:
        lease_seconds: how long unchanged makes lost.
        max_gap_seconds: a longer pause between two looks starts every wait again: this process slept, so others may
            have changed and changed back unseen.
    """

    def __init__(self, lease_seconds: float, max_gap_seconds: float) -> None:
        self._lease = lease_seconds
        self._max_gap = max_gap_seconds
        self._seen: dict[T, tuple[int, float]] = {}
        self._last_look: float | None = None

    def lost(self, counters: dict[T, int], now: float) -> list[T]:
        """Take a look; the things whose counter has not moved for a lease."""
        if self._last_look is not None and now - self._last_look > self._max_gap:
            self._seen.clear()
        self._last_look = now
        self._seen = {
            thing: known if (known := self._seen.get(thing)) and known[0] == counter else (counter, now)
            for thing, counter in counters.items()
        }
        return [thing for thing, (_, since) in self._seen.items() if now - since >= self._lease]

    def doubtful(self, counters: dict[T, int], now: float) -> T | None:
        """One of those whose counter has not moved for half a lease, if there are any."""
        for thing, counter in counters.items():
            known = self._seen.get(thing)
            if known is not None and known[0] == counter and now - known[1] >= self._lease / 2:
                return thing
        return None

    def forget(self) -> None:
        """A look failed: whatever it would have shown is unknown, so every wait starts again."""
        self._seen.clear()


class Reconciler:
    """One pass is `look`; `run` takes one every few seconds until it is told to stop.

    Args:
        database: where the rows are.
        settings: lease, pause between looks, failure limit, broker.
        rings: whether it rings doorbells (servers do; a worker rings itself).
        clock: monotonic seconds.
    """

    def __init__(
        self, database: Database, settings: Settings, *, rings: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._settings = settings
        self._ringer = wake_up.Ringer(database, settings) if rings else None
        self._clock = clock
        gap = 2 * settings.look_seconds + 1
        self._attempts: Watch[tuple[str, int]] = Watch(settings.lease_seconds, gap)
        self._workers: Watch[str] = Watch(settings.lease_seconds, gap)
        self._next_housekeeping = 0.0

    def run(self, stop: threading.Event) -> None:
        """Look until `stop`; an outage of the database only makes a look fail."""
        while not stop.wait(self._settings.look_seconds):
            try:
                self.look()
            except Exception as error:  # nobody would start it again: it has to survive whatever comes
                self._attempts.forget()
                self._workers.forget()
                if is_outage(error):
                    log.warning("the database does not answer; looking again in %g s", self._settings.look_seconds)
                else:
                    log.exception("a look failed")

    def look(self) -> None:
        """Reap lost attempts, mark lost workers, move blocked jobs and sweeps on, preempt, ring, clean up."""
        with self._database.read() as session:
            attempts = _open_attempts(session)
            workers = _live_workers(session)
        self._prove_writable(attempts, workers)
        for attempt in self._attempts.lost(attempts, self._clock()):
            self._reap(*attempt, attempts[attempt])
        for worker in self._workers.lost(workers, self._clock()):
            self._database.write(partial(registry.mark_lost, worker_id=worker, beats=workers[worker]))
        with self._database.read() as session:
            has_blocked = transitions.has_blocked(session)
            has_victim = preemption.choose(session) is not None
            due_sweeps = sweeps.due(session)
        if has_blocked:
            self._database.write(transitions.unblock)
        if has_victim and (chosen := self._database.write(transitions.preempt)):
            log.info("job %s is asked to give way to job %s", chosen.job_id, chosen.for_job_id)
        self._advance(due_sweeps)
        if self._ringer is not None:
            self._ringer.ring()
        if self._clock() >= self._next_housekeeping:
            self._next_housekeeping = self._clock() + _HOUSEKEEPING_SECONDS
            self._database.write(self._clean_up)

    def _prove_writable(self, attempts: dict[tuple[str, int], int], workers: dict[str, int]) -> None:
        """Write something before an attempt is declared lost.

        A silent worker may be unable to write, as while a stopped process holds SQLite's lock or PostgreSQL is
        read-only.  A failure here, or a long wait, makes this a failed poll, and every wait starts again.
        """
        now = self._clock()
        if (attempt := self._attempts.doubtful(attempts, now)) is not None:
            job_id, number = attempt
            as_it_is = update(Attempt).where(Attempt.job_id == job_id, Attempt.number == number)
            self._database.write(partial(_touch, as_it_is.values(renewals=Attempt.renewals)))
        elif (worker := self._workers.doubtful(workers, now)) is not None:
            same = update(Worker).where(Worker.id == worker).values(beats=Worker.beats)
            self._database.write(partial(_touch, same))

    def _reap(self, job_id: str, number: int, renewals: int) -> None:
        reaped = self._database.write(
            lambda s: transitions.reap(s, job_id, number, renewals, max_failures=self._settings.max_failures)
        )
        if reaped:
            log.warning("job %s: attempt %d was not renewed for a lease and counts as lost", job_id, number)

    def _advance(self, due_sweeps: list[str]) -> None:
        for sweep_id in due_sweeps:
            try:
                while self._database.write(partial(sweeps.advance, sweep_id=sweep_id)).begin:
                    pass
            except Exception as error:  # one that cannot go on here, as without its plugin, must not end the look
                if is_outage(error):
                    raise
                log.exception("sweep %s does not go on", sweep_id)

    def _clean_up(self, session: Session) -> None:
        oldest = now_ms() - int(self._settings.idempotency_hours * 3_600_000)
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < oldest))
        keys.expire(session)


def _touch(statement: Update, session: Session) -> None:
    session.execute(statement)


def _open_attempts(session: Session) -> dict[tuple[str, int], int]:
    rows = session.execute(select(Attempt.job_id, Attempt.number, Attempt.renewals).where(Attempt.ended_at.is_(None)))
    return {(job_id, number): renewals for job_id, number, renewals in rows}


def _live_workers(session: Session) -> dict[str, int]:
    rows = session.execute(select(Worker.id, Worker.beats).where(Worker.is_live))
    return dict(rows.all())
