"""The supervisor of one attempt, from its claim to its end: start the run, deliver its records, pass on requests.

    prepare ──► running ──► the run ends by itself ──► deliver the rest ──► its `end` record decides
                   │
                   ├─ pause or drain requested ──► it saves and stops, or is killed after a grace time
                   ├─ cancel requested ──► it stops at once, or is killed
                   ├─ silent for too long, its device broken, or its storage full ──► killed; the job gets that reason
                   └─ superseded ──► killed at once; nothing more of it is stored

A further node of an attempt on several (`worker.nodes`) runs its ranks and delivers nothing: the first node does.

An outage of the database stops nothing: the run continues to write its spool, which is delivered later.  Slow file
operations run on a thread (`BackgroundWork`), so that the lease is renewed and requests are read meanwhile.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from jobs import logs
from jobs.database import Database, is_outage
from jobs.errors import Superseded
from jobs.fault_log import FaultLog
from jobs.faults import Fault, fault_of
from jobs.gangs import Rendezvous
from jobs.settings import Settings
from jobs.status import HELD, Reason
from jobs.storage import Storage, is_full
from jobs.transitions import Claim, Requests
from wcl_core.addresses import bound
from wcl_core.protocol import OUTCOME_OF, PEER_LOST_EXIT, CacheFolder, Request, RunFile
from worker.attempt_folder import clear, mark_of, owned, place_of
from worker.background import BackgroundWork
from worker.backoff import Backoff, DrainableBackoff, KeepSpool, renew_seconds
from worker.datasets import Source
from worker.delivery import Delivery
from worker.devices import Machine
from worker.exit_reason import AttemptEnd, OomKills, exit_reason, is_disk_full, is_of_job, reason_of
from worker.nodes import OpenNode, follow_node, wait_for_nodes
from worker.open_attempt import OpenAttempt, request_of
from worker.process import TrainingProcess, World
from worker.run_file import MissingCheckpoint, MissingWeights, Prepared, run_file
from worker.standby import Standby
from worker.tracing import StartTrace, is_enabled

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_SHORTEST_POLL_SECONDS = 0.02
_DELIVER_SECONDS = 0.5
_EXIT_SECONDS = 10.0  # between a run's `end` record and its exit
_STOP_SECONDS = 60.0  # for the current step and a checkpoint after a pause
_CANCEL_SECONDS = 0.6  # after a cancel: nothing of the step under way is kept, and the run ends by itself before that
_REGISTER_SECONDS = 8.0  # of a drain's time: to register the last checkpoint, and to kill
_LEAVE_SECONDS = 4.0  # of that: to return the job, even when not everything is registered
_STANDBY_SECONDS = 60.0  # for the imports of a standby process that has just started
_CAUSE_SECONDS = 10.0  # for another node, which waits for its other ranks before it reports
_BEGIN_SECONDS = 20.0  # for the other nodes, whose workers poll each second
_SECRET_BYTES = 32
_SLOW_SECONDS = 0.2  # of a delivery, after which requests are read beside it
_LISTEN_SECONDS = 0.05  # between two looks at such reads
_MOST_READS = 2  # at once: each one uses a connection to the database
_READ_SECONDS = 1.0  # that a read takes before another one is started beside it
_FILE_SECONDS = 1.0  # between two renewals while only a file is waited for


class Supervisor:
    """The supervisor of claimed attempts, several at a time, each on a thread of its own.

    Args:
        database, storage, settings: the service.
        sources: the datasets of this worker by name.
        draining: set when this worker must stop.
        machine: the devices of this worker.
        standby: forks the runs; None starts them by command.
        network: the address and the interface for runs on several machines; None for a worker that takes none.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        settings: Settings,
        sources: dict[str, Source],
        draining: threading.Event,
        machine: Machine,
        standby: Standby | None = None,
        network: tuple[str, str] | None = None,
    ) -> None:
        self._network = network
        self._database, self._storage, self._settings = database, storage, settings
        self._machine, self._standby = machine, standby
        self._sources, self._draining = sources, draining
        self._oom_kills = OomKills()
        self._has_traces = is_enabled()
        self._deliveries: set[Delivery] = set()  # of the runs; the heartbeat reads a copy

    @property
    def lag_ms(self) -> int:
        """The milliseconds for which the oldest report of a run has waited for its delivery."""
        return max((delivery.lag_ms for delivery in self._deliveries.copy()), default=0)

    def supervise(self, claim: Claim) -> bool:
        """Run the attempt to its end; return when this worker has nothing more to do for it.

        Returns:
            Whether the attempt ended for a fault of this job's files, which does not concern other jobs.
        """
        with logs.about(job_id=claim.job_id, attempt=claim.number, request_id=claim.request_id):
            return self._supervise(claim)

    def _supervise(self, claim: Claim) -> bool:
        folder = self._settings.attempts_dir / claim.attempt.folder_of(claim.node)
        kind, is_fault_of_job = OpenNode if claim.node else OpenAttempt, False
        attempt = kind(self._database, self._settings, self._draining, claim)
        trace = StartTrace(self._database, claim) if self._has_traces and not claim.node else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with owned(folder) as is_ours:
                assert is_ours, "an attempt's token is never given twice"
                self._run(attempt, claim, folder, trace)
        except KeepSpool:
            log.warning("%s is left to the next worker of this host", claim.attempt)
            return False
        except Superseded as error:
            log.warning("%s; its run was stopped", error)
        except Exception as error:  # the folder, the process or a record could not be made: the job gets the reason
            reason, message = reason_of(error)
            is_fault_of_job = is_of_job(error)
            if reason in HELD:
                log.warning("%s ends: %s", claim.attempt, message)
            else:
                log.exception("%s failed in the supervisor", claim.attempt)
            attempt.end(AttemptEnd("failed", reason, message))
            if trace is not None:
                trace.end(message)
        clear(folder)
        return is_fault_of_job

    def _run(self, attempt: OpenAttempt, claim: Claim, folder: Path, trace: StartTrace | None) -> None:
        prepared = self._prepare(attempt, claim, folder)
        if isinstance(prepared, AttemptEnd):
            attempt.end(prepared)
            return
        run = prepared.run
        with ExitStack() as until_end:
            if claim.num_nodes > 1:
                run = self._with_rendezvous(attempt, claim, prepared, until_end)
                if claim.node == 0 and (end := wait_for_nodes(attempt, self._draining, _BEGIN_SECONDS)) is not None:
                    attempt.end(end)
                    return
            run.write(folder)
            self._follow(attempt, claim, folder, trace)

    def _with_rendezvous(self, attempt: OpenAttempt, claim: Claim, prepared: Prepared, until_end: ExitStack) -> RunFile:
        """Return the run file with the place where the ranks meet; the first node chooses it."""
        assert self._network is not None, "a worker without an address is no node"
        address, _ = self._network
        if isinstance(attempt, OpenNode):
            assert attempt.rendezvous is not None, "the run was prepared with it"
            return prepared.run.model_copy(update={"rendezvous": attempt.rendezvous.seen_from(address)})
        port = until_end.enter_context(bound(address)).getsockname()[1]
        chosen = self._announced(attempt, claim, prepared.resume_id, (address, port))
        return prepared.run.model_copy(update={"rendezvous": chosen.seen_from(address)})

    def _announced(self, attempt: OpenAttempt, claim: Claim, resume: str | None, place: tuple[str, int]) -> Rendezvous:
        """Choose a secret, and announce the rendezvous to the other nodes; retry during an outage of the database.

        Raises:
            Superseded: the attempt has ended.
            KeepSpool: the worker must stop first.
        """
        backoff = DrainableBackoff(self._draining, self._settings.lease_seconds)
        faults = FaultLog(log, f"job {claim.job_id}: the announcement of its rendezvous")
        while True:
            with faults:
                chosen = Rendezvous(*place, secrets.token_hex(_SECRET_BYTES), resume)
                attempt.announce(chosen)
                return chosen
            backoff.wait()

    def _follow(self, attempt: OpenAttempt, claim: Claim, folder: Path, trace: StartTrace | None) -> None:
        """Start the run and follow it to its end."""
        is_oom_kill = self._oom_kills.watch()
        mark, environment = mark_of(claim.attempt, place_of(folder)), self._settings.run_environment
        share, num_ranks = self._machine.share(claim.devices), claim.spec.get("processes", 1)
        world: World | None = None
        if claim.num_nodes > 1 and self._network is not None:
            world = World(claim.node * num_ranks, claim.num_nodes * num_ranks, self._network[1])
        if trace is not None:
            trace.enter("process")
        process = TrainingProcess(folder, mark, num_ranks, environment, self._standby, share, world)
        log.info("%s runs as process %d", claim.attempt, process.pid)
        if isinstance(attempt, OpenNode):
            broken = partial(self._machine.problem, claim.devices)
            try:
                follow_node(attempt, self._settings, self._draining, process, folder, is_oom_kill, broken)
            finally:
                process.kill()
                self._machine.note_faults(claim.devices, folder)
            return
        stores = (self._database, self._storage, self._settings)
        delivery = Delivery(*stores, folder, claim.attempt, attempt.ran_ms, trace.see if trace else None)
        broken = partial(self._machine.problem, claim.devices)
        run = _Run(attempt, self._settings, self._draining, process, delivery, is_oom_kill, broken, claim.num_nodes > 1)
        self._deliveries.add(delivery)
        try:
            run.follow()
        except Superseded:
            delivery.discard()
            raise
        finally:
            self._deliveries.discard(delivery)
            process.kill()
            self._machine.note_faults(claim.devices, folder)  # before the slots give the devices out again

    def _prepare(self, attempt: OpenAttempt, claim: Claim, folder: Path) -> Prepared | AttemptEnd:
        """Return the run file, or the end of an attempt that cannot start; retry during an outage of the database.

        Raises:
            KeepSpool: the worker must stop first.
        """
        source = self._sources[claim.dataset_name]
        backoff = DrainableBackoff(self._draining, self._settings.lease_seconds)
        faults = FaultLog(log, f"job {claim.job_id}: the preparation of its run")
        while True:
            if isinstance(attempt, OpenNode) and not attempt.wait_for_rendezvous():
                return AttemptEnd("drained", None, None)
            chosen = attempt.rendezvous if isinstance(attempt, OpenNode) else None
            reading = BackgroundWork(partial(self._ready_run_file, claim, source, folder, chosen))
            if (request := attempt.renew_during(reading)) is not None:
                return AttemptEnd(OUTCOME_OF[request], None, None)
            prepared: Prepared | None = None
            try:
                with faults:
                    prepared = reading.result()
            except MissingWeights as error:
                return AttemptEnd("paused", Reason.MISSING_CHECKPOINT, str(error))
            except MissingCheckpoint as error:
                return AttemptEnd("failed", Reason.MISSING_CHECKPOINT, str(error))
            if prepared is not None:
                return prepared
            attempt.renew()
            backoff.wait()

    def _ready_run_file(self, claim: Claim, source: Source, folder: Path, chosen: Rendezvous | None) -> Prepared:
        limit = self._settings.cache_bytes
        cache = None if limit == 0 else CacheFolder(folder=self._settings.resolved_cache_dir, max_bytes=limit)
        gpus = self._machine.num_gpus(claim.devices)
        prepared = run_file(self._database, self._storage, claim, source, folder, cache, gpus, chosen)
        if self._standby is not None:
            self._standby.wait(_STANDBY_SECONDS)
        return prepared


class _Run:
    """A running attempt: the loop that polls the process, delivers records and passes on requests."""

    def __init__(
        self,
        attempt: OpenAttempt,
        settings: Settings,
        draining: threading.Event,
        process: TrainingProcess,
        delivery: Delivery,
        is_oom_kill: Callable[[], bool] | None,
        broken: Callable[[], str | None],
        has_peers: bool = False,
    ) -> None:
        self._has_peers = has_peers
        self._attempt, self._process, self._delivery = attempt, process, delivery
        self._settings, self._draining = settings, draining
        self._is_oom_kill, self._broken = is_oom_kill, broken
        self._backoff = Backoff(settings.lease_seconds)
        self._faults = FaultLog(log, f"job {attempt.job_id}: the delivery of its records")
        self._next_renewal = 0.0
        self._next_delivery = 0.0
        self._kill_at: float | None = None
        self._leave_at: float | None = None
        self._was_killed = False
        self._killed_for: AttemptEnd | None = None
        self._last_report: tuple[int, float] = (-1, 0.0)  # size of the spool, and since when
        self._reads: list[BackgroundWork[Request | None]] = []  # of requests, beside deliveries
        self._is_slow = False  # the last delivery was, so requests are read also until the next one

    def follow(self) -> None:
        """Follow the run to its end, deliver all its records, and end the attempt."""
        while (code := self._process.exit_code()) is None:
            self._deliver()
            self._delivery.cap_output()
            if self._is_slow:
                self._listen()
            self._enforce()
            self._process.wait(self._pause())
        # Now: a database on the same disk takes the end only once there is room again.
        is_own_end = not self._was_killed and self._killed_for is None
        was_full = is_own_end and is_disk_full(self._delivery.folder)
        if not self._deliver_rest():
            if code == PEER_LOST_EXIT and self._has_peers:
                self._wait_for_cause()
            self._attempt.end(self._end_of(code, was_full))

    def _enforce(self) -> None:
        """Pass on a drain of the worker, and kill the run when its time to stop is over, or for a fault."""
        if self._draining.is_set():
            self._drain()
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            log.warning("job %s: the run did not stop in time and is killed", self._attempt.job_id)
            self._was_killed = True
            self._process.kill(at_once=self._process.requested == "cancel")
        elif (fault := self._fault()) is not None:
            self._killed_for = fault
            log.warning("job %s is killed: %s", self._attempt.job_id, fault.message)
            self._process.kill(at_once=True)

    def _wait_for_cause(self) -> None:
        """Give the node whose ranks failed first time to end the attempt with the cause.

        Raises:
            Superseded: it has.
        """
        deadline = time.monotonic() + _CAUSE_SECONDS
        while time.monotonic() < deadline and not self._draining.wait(_POLL_SECONDS):
            self._attempt.renew()

    def _deliver(self) -> None:
        """Deliver new records, or renew; during an outage of the database, retry later."""
        now = time.monotonic()
        if self._delivery.has_ended:  # the process is about to exit
            self._kill_at = self._kill_at or now + _EXIT_SECONDS
            return
        if now < self._next_delivery:
            return
        if now < self._next_renewal and (self._delivery.is_storing() or not self._delivery.collect()):
            return
        requests = self._send()
        if requests is None or self._delivery.obstacle:
            self._next_delivery = now + self._backoff.pause()
        else:
            self._backoff.reset()
            self._next_delivery = now + _DELIVER_SECONDS
        if requests is not None:
            self._next_renewal = now + min(renew_seconds(self._settings.lease_seconds), requests.seconds_left)
            self._pass_on(request_of(requests))

    def _send(self) -> Requests | None:
        """Deliver one batch, as far as the storage takes its files; return None during an outage of the database.

        Raises:
            OSError: the storage is full, and waiting would not help.
        """
        sending = BackgroundWork(self._delivery.send)
        self._listen_during(sending)
        try:
            requests = sending.result()
        except DBAPIError as error:
            if not is_outage(error):
                raise
            self._faults.failed(error)
            self._renew_without_records(error)
            return None
        if (obstacle := self._delivery.obstacle) is None:
            self._faults.succeeded()
        elif is_full(obstacle):
            raise obstacle
        else:
            self._faults.failed(obstacle)
        return requests

    def _listen_during(self, sending: BackgroundWork[Requests]) -> None:
        """Wait for a delivery; beside one that a slow database holds up, read requests and enforce them.

        A delivery brings the requests only after a message for each of its statements.
        """
        self._is_slow = not sending.is_done(_SLOW_SECONDS)
        while not sending.is_done(_LISTEN_SECONDS):
            if self._process.exit_code() is None:
                self._listen()
                self._enforce()

    def _listen(self) -> None:
        """Pass on the requests that were read, and read them again; beside a slow read, start another one."""
        for read in [each for each in self._reads if each.is_done()]:
            self._reads.remove(read)
            self._pass_on(read.result())
        if not self._reads or (len(self._reads) < _MOST_READS and self._reads[-1].seconds() >= _READ_SECONDS):
            self._reads.append(BackgroundWork(self._attempt.read_request))

    def _renew_without_records(self, error: DBAPIError) -> None:
        """Renew the attempt while only its records are refused, as without a right on their table."""
        if fault_of(error) is Fault.UNREACHABLE:
            return
        request = self._attempt.renew()
        if self._process.exit_code() is None:
            self._pass_on(request)

    def _pause(self) -> float:
        """Return the seconds until the next look at the run: it may have to be killed, or its time may be over."""
        next_at = min(self._next_renewal, self._kill_at or math.inf)
        return min(_POLL_SECONDS, max(_SHORTEST_POLL_SECONDS, next_at - time.monotonic()))

    def _fault(self) -> AttemptEnd | None:
        """Return why the run must be killed: one of its devices is broken, or it has stalled; None if neither."""
        if (problem := self._broken()) is not None:
            return AttemptEnd("failed", Reason.DEVICE_FAILED, f"the run was killed: {problem}")
        if self._is_silent():
            limit = self._settings.stall_seconds
            return AttemptEnd("failed", Reason.STALLED, f"the run reported nothing for {limit:g} s and was killed")
        return None

    def _is_silent(self) -> bool:
        """Return whether the run has reported nothing for longer than `stall_seconds`."""
        size, now = self._delivery.spool_bytes(), time.monotonic()
        if size != self._last_report[0]:
            self._last_report = (size, now)
        return now - self._last_report[1] > self._settings.stall_seconds

    def _drain(self) -> None:
        """Request the drain of the run, which gets a part of the drain's time; the rest is for the job's return."""
        if self._leave_at is None:
            self._leave_at = time.monotonic() + self._settings.drain_seconds - _LEAVE_SECONDS
            self._request("drain", self._settings.drain_seconds - _REGISTER_SECONDS)

    def _pass_on(self, request: Request | None) -> None:
        if request is not None:
            self._request(request, _CANCEL_SECONDS if request == "cancel" else _STOP_SECONDS)

    def _request(self, request: Request, grace_seconds: float) -> None:
        self._process.request(request)
        # A run that has reported nothing still imports: it hears no request, and there is nothing to save.
        kill_at = time.monotonic() + (grace_seconds if self._delivery.spool_bytes() else 0)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _deliver_rest(self) -> bool:
        """Deliver all records of the ended run unless the worker must stop first; return whether it has an `end`."""
        backoff = DrainableBackoff(self._draining, self._settings.lease_seconds)
        while not self._delivery.has_ended and self._delivery.collect(is_over=True) and not self._is_late():
            if self._send() is None or self._delivery.obstacle:
                backoff.wait()
            else:
                self._delivery.is_storing(_FILE_SECONDS)
        return self._delivery.has_ended

    def _is_late(self) -> bool:
        if self._draining.is_set():
            self._drain()
        return self._leave_at is not None and time.monotonic() > self._leave_at

    def _end_of(self, code: int, was_full: bool) -> AttemptEnd:
        """Determine how a run ended whose `end` record is not stored."""
        if self._is_late() and self._delivery.collect(is_over=True):
            return AttemptEnd("drained", None, "the worker had to stop before everything of the run was stored")
        if self._was_killed and self._process.requested:
            message = "the run did not stop in time and was killed" if self._delivery.spool_bytes() else None
            return AttemptEnd(OUTCOME_OF[self._process.requested], None, message)
        return self._killed_for or exit_reason(code, self._delivery.folder, self._is_oom_kill, was_full)
