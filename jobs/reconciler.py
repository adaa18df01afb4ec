"""Periodic reconciliation: reaps lost attempts, unblocks and resumes jobs, preempts, advances sweeps, wakes up workers.

Reconcilers run in every server and worker.  Each change is guarded, so that several reconcilers may make it at once.
On PostgreSQL a worker's reconciler only looks whether those of servers poll, and polls itself while none does: each
poll reads all workers, so many idle workers would keep the database busy.

No decision depends on a wall clock.  A reconciler declares an attempt lost only if all of this is true:

- it has itself seen the attempt unchanged for a whole lease of its own monotonic clock;
- no poll in between failed or was missed;
- during the second half of the lease it could write to the database.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, partial
from typing import Generic, TypeVar

from sqlalchemy import CompoundSelect, Select, String, Update, and_, delete, exists, literal, or_, select, update
from sqlalchemy.orm import Session

from jobs import keys, preemption, sweeps, transitions, workers
from jobs.attempts import AttemptRef
from jobs.database import Database, insert, is_outage, now_ms
from jobs.devices import is_node_of
from jobs.fault_log import FaultLog
from jobs.models import Attempt, AttemptDevice, AttemptNode, IdempotencyKey, Job, ReconcilerPolls, Sweep, Worker
from jobs.settings import Settings
from jobs.status import Status
from jobs.wake_up import WakeUpSender
from jobs.webhooks import subscriptions

log = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 600.0
_STOP_SECONDS = 0.5
_MISSED_POLLS = 3  # of servers, after which workers poll
_SERVERS = "servers"
# What a poll sees: nodes of open attempts, live workers, and whether jobs wait for others, are held, or are queued
_NODE, _WORKER, _WAITS, _HELD, _QUEUED = "node", "worker", "waits", "held", "queued"
T = TypeVar("T", bound=Hashable)


class Watch(Generic[T]):
    """The counters of earlier polls, and the time since which each is unchanged.

    Args:
        lease_seconds: a counter that is unchanged for so long makes its owner lost.
        max_gap_seconds: a longer pause between two polls resets every wait: this process slept, so a counter may
            have changed unseen.
    """

    def __init__(self, lease_seconds: float, max_gap_seconds: float) -> None:
        self._lease = lease_seconds
        self._max_gap = max_gap_seconds
        self._changes: dict[T, tuple[int, float]] = {}
        self._last_poll: float | None = None

    def lost(self, counters: dict[T, int], now: float) -> list[T]:
        """Record the counters of a poll; return the owners whose counter has not moved for a lease."""
        if self._last_poll is not None and now - self._last_poll > self._max_gap:
            self._changes.clear()
        self._last_poll = now
        self._changes = {
            owner: entry if (entry := self._changes.get(owner)) and entry[0] == counter else (counter, now)
            for owner, counter in counters.items()
        }
        return [owner for owner, (_, since) in self._changes.items() if now - since >= self._lease]

    def suspect(self, counters: dict[T, int], now: float) -> T | None:
        """Return one owner whose counter has not moved for half a lease, or None."""
        for owner, counter in counters.items():
            entry = self._changes.get(owner)
            if entry is not None and entry[0] == counter and now - entry[1] >= self._lease / 2:
                return owner
        return None

    def reset(self) -> None:
        """Restart every wait: a poll failed, so a change may have gone unseen."""
        self._changes.clear()


class Reconciler:
    """The loop that polls the database every few seconds; `poll` is one pass.

    Args:
        database: where the rows are.
        settings: lease, pause between polls, failure limit, broker.
        sends_wake_ups: whether it is a server's: it wakes up idle workers; a worker polls for itself.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        sends_wake_ups: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._settings = settings
        self._wake_ups = WakeUpSender(database, settings) if sends_wake_ups else None
        self._clock = clock
        gap = 2 * settings.look_seconds + 1
        # By attempt and node; the first node renews the attempt itself.
        self._attempts: Watch[tuple[AttemptRef, int]] = Watch(settings.lease_seconds, gap)
        self._workers: Watch[str] = Watch(settings.lease_seconds, gap)
        self._next_housekeeping = 0.0
        # A service on SQLite has few workers, and each write there wakes up all of its processes.
        self._shares_polls = not database.url.startswith("sqlite")
        self._polls_of_servers: int | None = None  # at the last turn
        self._polled_at = -math.inf  # when they had grown
        self._is_nudged = threading.Event()
        self._sweep_faults: dict[str, FaultLog] = {}  # of those that cannot advance

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop`; an outage of the database only makes a poll fail."""
        faults = FaultLog(log, "the poll of the reconciler")
        while not stop.wait(self._settings.look_seconds):
            try:
                self.turn()
                faults.succeeded()
            except Exception as error:  # the thread is never restarted, so it has to survive every error
                self._attempts.reset()
                self._workers.reset()
                faults.failed(error)

    def turn(self) -> None:
        """Poll, unless this is a worker's reconciler and those of servers do."""
        if self._wake_ups is None and self._do_servers_poll():
            self._attempts.reset()
            self._workers.reset()
            return
        self.poll()
        if self._wake_ups is not None and self._shares_polls:
            self._database.write(_note_poll)

    def _do_servers_poll(self) -> bool:
        """Return whether the reconciler of a server has polled successfully within the last three pauses."""
        if not self._shares_polls:
            return False
        row = self._database.read_row(_polls())
        polls, now = 0 if row is None else row.polls, self._clock()
        if self._polls_of_servers is not None and polls != self._polls_of_servers:
            self._polled_at = now
        self._polls_of_servers = polls
        return now - self._polled_at < _MISSED_POLLS * self._settings.look_seconds

    def nudge(self) -> None:
        """Let `run_nudged` advance jobs that wait for others: the needs of some may be met."""
        self._is_nudged.set()

    def run_nudged(self, stop: threading.Event) -> None:
        """Advance jobs that wait for others right after each nudge, until `stop`; a poll repeats what fails here."""
        faults = FaultLog(log, "the advance of waiting jobs")
        while not stop.is_set():
            if self._is_nudged.wait(_STOP_SECONDS):
                self._is_nudged.clear()
                try:
                    self._advance_waiting()
                    faults.succeeded()
                except Exception as error:
                    faults.failed(error)

    def poll(self) -> None:
        """Reap lost attempts, mark lost workers, advance jobs that wait and sweeps, preempt, wake up, clean up."""
        seen = self._database.read_once(_look)
        attempts, heartbeats = seen.attempts, seen.heartbeats
        self._prove_writable(attempts, heartbeats)
        for node in self._attempts.lost(attempts, self._clock()):
            self._reap(*node, attempts[node])
        for worker_id in self._workers.lost(heartbeats, self._clock()):
            lost = partial(workers.mark_lost, worker_id=worker_id, heartbeats=heartbeats[worker_id])
            self._database.write(lost)
        if _WAITS in seen.kinds:
            self._advance_waiting()
        if _HELD in seen.kinds:
            self._database.write(transitions.resume_held)
        if attempts and self._has_victim() and (chosen := self._database.write(transitions.preempt)):
            log.info("requested to give way to job %s: job %s", chosen.for_job_id, ", ".join(chosen.job_ids))
        if self._wake_ups is not None and _QUEUED in seen.kinds:
            self._wake_ups.start()
        if self._clock() >= self._next_housekeeping:
            self._next_housekeeping = self._clock() + _HOUSEKEEPING_SECONDS
            self._database.write(self._clean_up)

    def _has_victim(self) -> bool:
        with self._database.read() as session:
            return preemption.choose(session) is not None

    def _advance_waiting(self) -> None:
        """Advance what waits for other jobs: dependent jobs and sweeps."""
        with self._database.read() as session:
            has_blocked = session.execute(_any_blocked()).scalar_one()
            due_sweeps = sweeps.due(session)
        if has_blocked:
            self._database.write(transitions.unblock)
        self._advance(due_sweeps)

    def _prove_writable(self, attempts: dict[tuple[AttemptRef, int], int], heartbeats: dict[str, int]) -> None:
        """Write to the database before anything is declared lost.

        Workers may be silent because they cannot write: a stopped process holds SQLite's lock, or PostgreSQL is
        read-only.  A failure here, or a long wait, makes this a failed or a missed poll, which resets every wait.
        """
        now = self._clock()
        if (node := self._attempts.suspect(attempts, now)) is not None:
            same = update(Attempt).where(node[0].is_row())
            self._database.write(partial(_execute, same.values(renewals=Attempt.renewals)))
        elif (worker_id := self._workers.suspect(heartbeats, now)) is not None:
            same = update(Worker).where(Worker.id == worker_id)
            self._database.write(partial(_execute, same.values(heartbeats=Worker.heartbeats)))

    def _reap(self, attempt: AttemptRef, node: int, renewals: int) -> None:
        reaped = self._database.write(
            lambda s: transitions.reap(s, attempt, renewals, node=node, max_failures=self._settings.max_failures)
        )
        if reaped:
            log.warning("%s was not renewed for a lease and is declared lost", attempt)

    def _advance(self, due_sweeps: list[str]) -> None:
        for sweep_id in due_sweeps:
            try:
                while self._database.write(partial(sweeps.advance, sweep_id=sweep_id)).begin:
                    pass
                self._sweep_faults.pop(sweep_id, None)
            except Exception as error:  # a sweep that fails here, as without its plugin, must not end the poll
                if is_outage(error):
                    raise
                faults = self._sweep_faults.setdefault(sweep_id, FaultLog(log, f"the advance of sweep {sweep_id}"))
                faults.failed(error)

    def _clean_up(self, session: Session) -> None:
        oldest = now_ms() - int(self._settings.idempotency_hours * 3_600_000)
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < oldest))
        keys.expire(session)
        subscriptions.expire(session, self._settings.webhook_log_days)
        # A server of an older version has ended these attempts, and knows no devices.
        of_ended = exists().where(
            Attempt.job_id == AttemptDevice.job_id,
            Attempt.number == AttemptDevice.attempt,
            Attempt.ended_at.is_not(None),
        )
        held = update(AttemptDevice).where(AttemptDevice.released_at.is_(None), of_ended)
        session.execute(held.values(released_at=now_ms()))


@cache
def _polls() -> Select[int]:
    return select(ReconcilerPolls.polls).where(ReconcilerPolls.name == _SERVERS)


@cache
def _any_blocked() -> Select[bool]:
    return select(transitions.has_blocked())


def _note_poll(session: Session) -> None:
    first = insert(session, ReconcilerPolls).values(name=_SERVERS, polls=1)
    session.execute(first.on_conflict_do_update(index_elements=["name"], set_={"polls": ReconcilerPolls.polls + 1}))


def _execute(statement: Update, session: Session) -> None:
    session.execute(statement)


@dataclass(frozen=True)
class _Seen:
    """What a poll sees at once, so that one statement is enough while nothing waits.

    Attributes:
        attempts: the renewals of each node of the open attempts.  The first node judges a node that has not begun: it
            waits for a time of its own (`worker.nodes`).
        heartbeats: of the live workers.
        kinds: of what waits.
    """

    attempts: dict[tuple[AttemptRef, int], int]
    heartbeats: dict[str, int]
    kinds: frozenset[str]


def _look(session: Session) -> _Seen:
    rows = session.execute(_everything()).all()
    nodes = [row[1:] for row in rows if row[0] == _NODE]
    return _Seen(
        {(AttemptRef(job_id, number, token), node): renewals for job_id, number, token, node, renewals in nodes},
        {row[1]: row[5] for row in rows if row[0] == _WORKER},
        frozenset(row[0] for row in rows),
    )


@cache
def _everything() -> CompoundSelect[str, str, int, str | None, int, int]:
    """Make the statement of each poll once, since its making takes longer than its execution."""
    names, is_open = (Attempt.job_id, Attempt.number, Attempt.token), Attempt.ended_at.is_(None)
    first = select(literal(_NODE), *names, literal(0), Attempt.renewals).where(is_open)
    further = select(literal(_NODE), *names, AttemptNode.node, AttemptNode.renewals).join(AttemptNode, is_node_of())
    has_begun = and_(AttemptNode.node > 0, AttemptNode.renewals > 0, AttemptNode.ended_at.is_(None))
    no_attempt = literal(0), literal(None, String), literal(0)
    live = select(literal(_WORKER), Worker.id, *no_attempt, Worker.heartbeats).where(Worker.is_live)
    waiting = {
        _WAITS: or_(transitions.has_blocked(), exists().where(Sweep.status == Status.RUNNING)),
        _HELD: transitions.has_held(),
        _QUEUED: exists().where(Job.status == Status.QUEUED),
    }
    kinds = [select(literal(kind), literal(""), *no_attempt, literal(0)).where(is_) for kind, is_ in waiting.items()]
    return first.union_all(further.where(is_open, has_begun), live, *kinds)
