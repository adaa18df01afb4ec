"""What a worker keeps its free part for, and for how long: a large job, or a gang that another worker starts.

Both are judged by the worker's own monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from jobs import gangs, transitions
from jobs.devices import Free
from jobs.eligibility import WorkerFacts
from jobs.holding import PassedOver, passed_over

_LEADER_SECONDS = 30.0  # in which a worker starts a gang that can start: it polls each second
_AVOID_SECONDS = 600.0


class Patience:
    """What one worker waits for.

    Args:
        hold_seconds: for which smaller jobs may pass a job that needs more devices than are free.
        clock: monotonic seconds.

    Attributes:
        kept_for: the id of the job that the worker keeps its free part for, also while no part is free.
    """

    def __init__(self, hold_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hold_seconds, self._clock = hold_seconds, clock
        self.kept_for: str | None = None
        self._passed_over: tuple[str, float] | None = None  # a job, and since when
        self._awaited: tuple[tuple[str, str], float, float] | None = None  # leader and job, since when, last seen
        self._avoided: dict[str, float] = {}  # leaders, each until when

    def reset(self) -> None:
        """Note that no job waits."""
        self.kept_for = self._passed_over = self._awaited = None

    def held(self, session: Session, facts: WorkerFacts, free: Free) -> PassedOver | None:
        """Return the job that the worker keeps its free devices for; None if there is none yet."""
        unused = transitions.unused(session, facts, free)
        if unused.is_empty or (facts.address is None and not unused.devices):
            return None  # no job can pass it
        held = self._held(session, facts, unused)
        self.kept_for = held.job_id if held is not None else None
        return held

    def _held(self, session: Session, facts: WorkerFacts, unused: Free) -> PassedOver | None:
        if (job := passed_over(session, facts, unused)) is None:
            self._passed_over = None
            return None
        if job.is_urgent:
            return job
        if self._passed_over is None or self._passed_over[0] != job.job_id:
            self._passed_over = job.job_id, self._clock()
        is_over = self._clock() - self._passed_over[1] >= self._hold_seconds
        return job if job.is_here and is_over else None

    def avoided(self, session: Session, facts: WorkerFacts, free: Free) -> frozenset[str]:
        """Return the ids of workers that did not start a gang that could start with this one.

        This worker keeps its room for no gang of theirs, and starts the gang without them if it can.
        """
        now = self._clock()
        self._avoided = {leader: until for leader, until in self._avoided.items() if now < until}
        avoided = frozenset(self._avoided)
        if facts.address is None:
            return avoided
        gang = gangs.startable(session, facts, transitions.unused(session, facts, free), avoided)
        if gang.joined is None or gang.leader is None:
            self._awaited = None
            return avoided
        awaited, since, seen = (gang.leader, gang.joined.id), now, now
        if self._awaited is not None and self._awaited[0] == awaited and now - self._awaited[2] < _LEADER_SECONDS:
            since = self._awaited[1]
        self._awaited = awaited, since, seen
        if now - since >= _LEADER_SECONDS:
            self._avoided[gang.leader], self._awaited = now + _AVOID_SECONDS, None
        return frozenset(self._avoided)
