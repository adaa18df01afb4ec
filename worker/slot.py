"""The slot: the one place where this worker claims and supervises jobs, one at a time."""

from __future__ import annotations

import logging
import threading

from sqlalchemy import select

from jobs import transitions, workers
from jobs.database import Database
from jobs.eligibility import WorkerFacts
from jobs.fault_log import FaultLog
from jobs.models import Attempt
from jobs.transitions import Claim
from worker.ability import Ability
from worker.room import RoomCheck
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class Slot:
    """The loop that claims and supervises jobs until no waiting job fits; wake-ups and polls start it.

    Args:
        facts: the properties of this worker that a job must match.
        supervisor: runs one claimed attempt.
        draining: set when no further job may be claimed.
        ability: whether this worker can take jobs.
        room: the check that learns from the ends of attempts.

    Attributes:
        job_id: of the job that runs now.
        ability: as given.
    """

    def __init__(
        self,
        database: Database,
        facts: WorkerFacts,
        supervisor: Supervisor,
        draining: threading.Event,
        ability: Ability,
        room: RoomCheck,
    ) -> None:
        self._database, self._facts, self._supervisor, self._draining = database, facts, supervisor, draining
        self.ability, self._room = ability, room
        self._busy = threading.Lock()
        self._is_open = threading.Event()
        self._faults = FaultLog(log, "the claim of jobs")
        self.job_id: str | None = None

    def open(self) -> None:
        """Allow claims, once no run of an earlier worker of this host is alive."""
        self._is_open.set()

    def is_open(self) -> bool:
        """Return whether claims are allowed."""
        return self._is_open.is_set()

    def is_busy(self) -> bool:
        return self._busy.locked()

    def has_work(self) -> bool:
        """Return whether a job waits that this worker can take now; a read, so frequent polls cost little."""
        if self._draining.is_set() or not self.is_open():
            return False
        with self._database.read() as session:
            if not transitions.is_claimable(session, self._facts):
                return False
        return self.ability.check() is None  # last: the claim follows

    def work(self) -> None:
        """Claim and supervise jobs until none waits; return at once while another thread works in the slot."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            with self._faults:  # the next poll tries again
                while self.has_work():
                    self._run_next()
        finally:
            self._busy.release()

    def work_once(self) -> bool:
        """Claim and supervise one job as soon as claims are allowed; return whether there was one."""
        self._is_open.wait()
        with self._busy:
            while not self._draining.is_set():
                has_run: bool | None = None
                with self._faults:
                    has_run = self._run_one()
                if has_run is not None:
                    return has_run
                self._draining.wait(_RETRY_SECONDS)
        return False

    def _run_one(self) -> bool:
        while self.has_work():
            if self._run_next():
                return True
        return False

    def _run_next(self) -> bool:
        """Claim the next job and supervise it; return False when another worker has claimed it first."""
        if (claim := self._claim()) is None:
            return False
        self._run(claim)
        return True

    def _claim(self) -> Claim | None:
        return self._database.write(lambda session: transitions.claim(session, self._facts))

    def _run(self, claim: Claim) -> None:
        self.job_id = claim.job_id
        try:
            self._supervisor.supervise(claim)
        finally:
            self.job_id = None
        with FaultLog(log, "the heartbeat after a job"):
            self._note_end(claim)
            self._database.write(lambda session: workers.heartbeat(session, self._facts.id, None, self.ability.unable))

    def _note_end(self, claim: Claim) -> None:
        """Tell the checks why the attempt ended: a fault of this worker would meet the next job, too."""
        ended = select(Attempt.end_reason).where(claim.attempt.is_row())
        with self._database.read() as session:
            self._room.note_end(session.execute(ended).scalar_one_or_none())

    def wait(self, seconds: float) -> None:
        """Wait for at most `seconds` until no thread works in the slot."""
        if self._busy.acquire(timeout=seconds):
            self._busy.release()
