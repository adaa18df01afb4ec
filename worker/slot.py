"""The one place where this worker's work happens: `while claim(): supervise()`, whoever rang."""

from __future__ import annotations

import logging
import threading

from jobs import transitions, workers
from jobs.database import Database
from jobs.eligibility import WorkerFacts
from jobs.transitions import Claim
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)


class Slot:
    """Works through claimable jobs, one at a time.

    Args:
        database: where the jobs are.
        facts: what this worker can run.
        supervisor: runs one claimed attempt.
        draining: set when no further job may be taken.
    """

    def __init__(
        self, database: Database, facts: WorkerFacts, supervisor: Supervisor, draining: threading.Event
    ) -> None:
        self._database, self._facts, self._supervisor, self._draining = database, facts, supervisor, draining
        self._busy = threading.Lock()
        self._is_open = threading.Event()
        self.job_id: str | None = None

    def open(self) -> None:
        """From now on it may take jobs: nothing is left that an earlier worker of this host ran."""
        self._is_open.set()

    def is_open(self) -> bool:
        """Whether it may take jobs."""
        return self._is_open.is_set()

    def is_busy(self) -> bool:
        """Whether somebody works in it."""
        return self._busy.locked()

    def has_work(self) -> bool:
        """Whether a job waits that this worker could take: a read, so that looking often costs little."""
        if self._draining.is_set() or not self.is_open():
            return False
        with self._database.read() as session:
            return transitions.is_claimable(session, self._facts)

    def work(self) -> None:
        """Claim and supervise until nothing waits; a call while another one works returns at once."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            while self.has_work():
                if (claim := self._claim()) is not None:
                    self._run(claim)
        finally:
            self._busy.release()

    def work_once(self) -> bool:
        """Claim and supervise one job as soon as it may; whether there was one."""
        self._is_open.wait()
        with self._busy:
            while self.has_work():
                if (claim := self._claim()) is not None:
                    self._run(claim)
                    return True
        return False

    def _claim(self) -> Claim | None:
        return self._database.write(lambda session: transitions.claim(session, self._facts))

    def _run(self, claim: Claim) -> None:
        self.job_id = claim.job_id
        try:
            self._supervisor.supervise(claim)
        finally:
            self.job_id = None
        self._database.write(lambda session: workers.beat(session, self._facts.id, None))

    def wait(self, seconds: float) -> None:
        """Wait until nobody works in it."""
        if self._busy.acquire(timeout=seconds):
            self._busy.release()
