"""The slots: the one place where this worker claims jobs, as many at a time as its devices and CPU slots hold."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs import transitions, workers
from jobs.database import Database
from jobs.devices import Free, working
from jobs.eligibility import WorkerFacts
from jobs.fault_log import FaultLog
from jobs.gangs import has_gang
from jobs.models import Attempt
from jobs.status import Reason
from jobs.transitions import Claim
from worker.ability import Ability
from worker.devices import Machine
from worker.patience import Patience
from worker.room import RoomCheck
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class Slots:
    """Claims jobs until no waiting job fits, and supervises each on a thread; wake-ups, polls and ends start it.

    Args:
        facts: the properties of this worker that a job must match.
        supervisor: runs one claimed attempt.
        draining: set when no further job may be claimed.
        ability: whether this worker can take jobs.
        room: the check that learns from the ends of attempts.
        machine: the devices that attempts get.
        hold_seconds: for which smaller jobs may pass a job that needs more devices than are free.
        clock: monotonic seconds.
        on_bad_data: called with the name of the dataset of each job that ends so.
        node_wait_seconds: for which `work_once` waits for the other workers of a job of several nodes.
        absent: returns the names of the datasets whose files are not there now; their jobs are not claimed.

    Attributes:
        ability, machine: as given.
    """

    def __init__(
        self,
        database: Database,
        facts: WorkerFacts,
        supervisor: Supervisor,
        draining: threading.Event,
        ability: Ability,
        room: RoomCheck,
        machine: Machine,
        hold_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        on_bad_data: Callable[[str], None] = lambda _: None,
        node_wait_seconds: float = 600.0,
        absent: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._on_bad_data, self._absent = on_bad_data, absent
        self._node_wait_seconds, self._has_begun = node_wait_seconds, False
        self._clock, self._patience = clock, Patience(hold_seconds, clock)
        self._database, self._facts, self._supervisor, self._draining = database, facts, supervisor, draining
        self.ability, self._room, self.machine = ability, room, machine
        self._running: list[Claim] = []  # the oldest first
        self._changed = threading.Condition()  # guards the list
        self._claiming = threading.Lock()
        self._is_requested = threading.Event()  # a look at the queue, which another thread may be about to end
        self._is_open = threading.Event()
        self._announcing = threading.Lock()
        self._announced: str | None = None  # the job that the row of this worker says that it keeps its free part for
        self._faults = FaultLog(log, "the claim of jobs")

    def open(self) -> None:
        """Allow claims, once no run of an earlier worker of this host is alive."""
        self._is_open.set()

    def is_open(self) -> bool:
        """Return whether claims are allowed."""
        return self._is_open.is_set()

    @property
    def job_id(self) -> str | None:
        """The id of the job that has run here for the longest time; None if none runs."""
        with self._changed:
            return self._running[0].job_id if self._running else None

    @property
    def address(self) -> str | None:
        """The address for jobs of several nodes; None while this worker takes none."""
        is_over = self._facts.takes_one and self._has_begun
        return self._facts.address if self.is_open() and not self._draining.is_set() and not is_over else None

    @property
    def disk_free_bytes(self) -> int | None:
        """The free bytes of the fuller of the disks that runs write to, as of the last check; None before it."""
        return self._room.free

    @property
    def lag_ms(self) -> int:
        """The milliseconds for which the oldest report of a run has waited for its delivery."""
        return self._supervisor.lag_ms

    def free(self) -> Free:
        """Return the working devices and the CPU slots that no attempt of this worker uses."""
        with self._changed:
            used = {device for claim in self._running for device in claim.devices}
            num_others = sum(not claim.devices for claim in self._running)
        return Free(working(self.machine.devices), max(0, self.machine.cpu_slots - num_others)).without(used)

    def has_work(self) -> bool:
        """Return whether a job waits that this worker can take now; a read, so frequent polls cost little."""
        if not self._has_room():
            return False
        free, facts = self.free(), self._present_facts()
        if not self._database.read_once(lambda session: transitions.may_have_work(session, facts)):
            self._patience.reset()
            if facts.address is not None:
                self._announce()
            return False
        with self._database.read() as session:
            if facts.address is not None and transitions.has_node(session, facts.id, free):
                return True  # whatever this worker lacks, the attempt has begun and gets the reason
            avoided = self._patience.avoided(session, facts, free)
            held = self._patience.held(session, facts, free)
            is_claimable = transitions.is_claimable(session, facts, free, held, avoided)
        if facts.address is not None:  # else no gang takes its devices
            self._announce()
        if not is_claimable:
            return False
        return self.ability.check() is None  # last: the claim follows

    def _announce(self) -> None:
        """Announce for which job this worker keeps its free part, if that has changed."""
        with self._announcing:  # two threads look at the queue; the row ends with the newer of their results
            job_id = self._patience.kept_for
            if job_id != self._announced:
                self._database.write(lambda session: workers.keep_for(session, self._facts.id, job_id))
                self._announced = job_id

    def _has_room(self) -> bool:
        return not self._draining.is_set() and self.is_open() and not self.free().is_empty

    def work(self) -> None:
        """Claim and start jobs until none fits; return at once while another thread claims, which then looks again."""
        self._is_requested.set()
        while self._is_requested.is_set() and self._claiming.acquire(blocking=False):
            try:
                self._is_requested.clear()
                with self._faults:  # the next poll tries again
                    while self._has_room() and (self._start_next() or self.has_work()):
                        pass
            finally:
                self._claiming.release()

    def work_once(self, is_awaited: Callable[[], bool] = lambda: False) -> bool:
        """Claim and supervise one job as soon as claims are allowed; return whether there was one.

        If a job of several nodes waits for other workers, this one waits, too.

        Args:
            is_awaited: whether this worker must first read a dataset that a job waits for, or that is new.
        """
        self._is_open.wait()
        gives_up_at = self._clock() + self._node_wait_seconds
        while not self._draining.is_set():
            has_run: bool | None = None
            with self._faults:
                may_come = is_awaited()  # before the look at the queue: the dataset may be ready now
                may_come |= self._clock() < gives_up_at and self._may_be_node()
                has_run = self._run_one() or (None if may_come else False)
            if has_run is not None:
                return has_run
            self._draining.wait(_RETRY_SECONDS)
        return False

    def _may_be_node(self) -> bool:
        if self._facts.address is None:
            return False
        with self._database.read() as session:
            return has_gang(session, self._present_facts())

    def _run_one(self) -> bool:
        while self.has_work():
            if (claim := self._claim()) is not None:
                self._run(claim)
                return True
        return False

    def _start_next(self) -> bool:
        """Claim the next job and start a thread that supervises it; return whether there was one."""
        if (claim := self._claim()) is None:
            return False
        thread = threading.Thread(target=self._run_and_look, args=(claim,), name=f"job {claim.job_id}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there is no thread left: this one supervises, and claims nothing meanwhile
            self._run(claim)
        return True

    def _claim(self) -> Claim | None:
        is_able = self.ability.check() is None
        free, facts = self.free(), self._present_facts()

        def take(session: Session) -> Claim | None:
            node = transitions.begin_node(session, facts.id, free) if facts.address is not None else None
            if node is not None or not is_able:
                return node
            avoided = self._patience.avoided(session, facts, free)
            return transitions.claim(session, facts, free, self._patience.held(session, facts, free), avoided)

        try:
            claim = self._database.write(take)
        except IntegrityError:
            log.warning("another worker has taken a device of this one; no job is claimed now")
            return None
        if claim is not None:
            with self._changed:
                self._running.append(claim)
                self._has_begun = True
        return claim

    def _present_facts(self) -> WorkerFacts:
        absent = self._absent()
        datasets = {name: digest for name, digest in self._facts.datasets.items() if name not in absent}
        return replace(self._facts, devices=self.machine.devices, datasets=datasets)

    def _run_and_look(self, claim: Claim) -> None:
        self._run(claim)
        self.work()

    def _run(self, claim: Claim) -> None:
        began = time.monotonic()
        try:
            is_fault_of_job = self._supervisor.supervise(claim)
            with FaultLog(log, "the look at the end of a job"):  # before another job may take its place
                self._note_end(claim, began, is_fault_of_job)
        finally:
            with self._changed:
                self._running.remove(claim)
                self._changed.notify_all()
        with FaultLog(log, "the heartbeat after a job"):
            self._database.write(self._beat)

    def _note_end(self, claim: Claim, began: float, is_fault_of_job: bool) -> None:
        """Note why an attempt ended, since a fault of this worker would meet the next job, too."""
        ended = select(Attempt.end_reason).where(claim.attempt.is_row())
        with self._database.read() as session:
            reason = session.execute(ended).scalar_one_or_none()
        if not is_fault_of_job:
            self._room.note_end(reason, began)
        if reason == Reason.BAD_DATA:
            self._on_bad_data(claim.dataset_name)

    def _beat(self, session: Session) -> None:
        workers.heartbeat(session, self._facts.id, self.job_id, self.ability.unable, address=self.address)

    def wait(self, seconds: float) -> None:
        """Wait for at most `seconds` until no attempt runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, seconds)
