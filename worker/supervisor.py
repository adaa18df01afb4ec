"""One attempt from its claim to its end: start the run, deliver what it reports, pass on what its owner asks.

    prepare ──► running ──► the run ends by itself ──► deliver the rest ──► its `end` record decides
                   │
                   ├─ cancel, pause or drain asked ──► it saves and stops, or is killed after a grace time
                   ├─ silent for too long, or its storage is full ──► killed; why is the reason
                   └─ superseded ──► killed at once; nothing of it is stored any more

An outage of the database stops nothing: the run goes on into its spool, which is delivered later.  What takes long on
files is done beside (`Errand`), so that a lease is renewed and whatever is asked is heard meanwhile.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from jobs import transitions
from jobs.database import Database, is_outage
from jobs.errors import Superseded
from jobs.settings import Settings
from jobs.status import Reason
from jobs.storage import Storage, is_full
from jobs.transitions import Claim, Requests
from worker.attempt_folder import RUN_FILE, clear, mark_of, owned
from worker.background import Errand, must_go_on
from worker.backoff import Backoff, KeepSpool, Patience, renew_seconds
from worker.datasets import Source
from worker.delivery import Delivery
from worker.exit_reason import Verdict, count_oom_kills, reason_of, verdict
from worker.process import Ask, TrainingProcess
from worker.run_file import MissingCheckpoint, run_file

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_DELIVER_SECONDS = 0.5
_EXIT_SECONDS = 10.0  # between a run's last word and its end
_STOP_SECONDS = 60.0  # for the current step and a checkpoint after a cancel or a pause
_REGISTER_SECONDS = 8.0  # of a drain's time: to register the last checkpoint, and to kill
_LEAVE_SECONDS = 4.0  # of that: to return the job, whatever is not registered by then
_FILE_SECONDS = 1.0  # between two renewals while nothing but a file is waited for
_ENDED_BY_ASKING: dict[Ask, str] = {"cancel": "cancelled", "pause": "paused", "drain": "drained"}


class Supervisor:
    """Runs claimed attempts, one at a time.

    Args:
        database, storage, settings: the service.
        sources: the datasets of this worker by name.
        draining: set when this worker has to stop.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        settings: Settings,
        sources: dict[str, Source],
        draining: threading.Event,
    ) -> None:
        self._database, self._storage, self._settings = database, storage, settings
        self._sources, self._draining = sources, draining

    def supervise(self, claim: Claim) -> None:
        """Run the attempt to its end; returns when nothing of it is left to do here."""
        folder = self._settings.attempts_dir / claim.job_id / str(claim.number)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with owned(folder) as is_ours:
                assert is_ours, "an attempt's number is never given twice"
                self._run(claim, folder)
        except KeepSpool:
            log.warning("job %s: attempt %d is left to the next worker of this host", claim.job_id, claim.number)
            return
        except Superseded as error:
            log.warning("%s; its run was stopped", error)
        except Exception as error:  # the folder, the process or a record could not be made: the job has to say so
            log.exception("job %s: attempt %d was given up", claim.job_id, claim.number)
            self._end(claim, "failed", *reason_of(error))
        clear(folder)

    def _run(self, claim: Claim, folder: Path) -> None:
        source = self._sources[claim.dataset_name]
        reading = Errand(lambda: run_file(self._database, self._storage, claim, source))
        if (asked := self._asked_while(reading, claim)) is not None:
            self._end(claim, _ENDED_BY_ASKING[asked], None, None)
            return
        try:
            (folder / RUN_FILE).write_text(json.dumps(reading.result()))
        except MissingCheckpoint as error:
            self._end(claim, "failed", Reason.MISSING_CHECKPOINT, str(error))
            return
        oom_kills = count_oom_kills()
        process = TrainingProcess(folder, mark_of(claim.job_id, claim.number), claim.spec.get("processes", 1))
        log.info("job %s: attempt %d runs as process %d", claim.job_id, claim.number, process.pid)
        delivery = Delivery(self._database, self._storage, self._settings, folder, claim.job_id, claim.number)
        run = _Run(self, claim, process, delivery, oom_kills)
        try:
            run.follow()
        except Superseded:
            delivery.discard()
            raise
        finally:
            process.kill()

    def _asked_while(self, reading: Errand[Any], claim: Claim) -> Ask | None:
        """Renew the attempt until its files are read; what was asked before that, so that no run has to begin.

        Raises:
            Superseded, StorageUnavailable: the attempt has ended; the files take for ever.
        """
        asked: Ask | None = None
        pause = renew_seconds(self._settings.lease_seconds)
        next_renewal = time.monotonic() + pause
        while asked is None and not reading.is_done(_LOOK_SECONDS):
            must_go_on(reading, self._settings)
            if self._draining.is_set():
                asked = "drain"
            elif time.monotonic() >= next_renewal:
                next_renewal = time.monotonic() + pause
                asked = self._renew(claim)
        return asked

    def _renew(self, claim: Claim) -> Ask | None:
        try:
            return _ask_of(self._database.write(lambda s: transitions.deliver(s, claim.job_id, claim.number, [])))
        except DBAPIError as error:
            if not is_outage(error):
                raise
            log.warning("job %s: its attempt is not renewed: %s", claim.job_id, error.orig)
            return None

    def _end(self, claim: Claim, outcome: str, reason: str | None, message: str | None) -> None:
        """End the attempt, whenever the database takes it."""
        patience = Patience(self._draining, self._settings.lease_seconds)
        while True:
            try:
                self._database.write(
                    lambda session: transitions.end_attempt(
                        session,
                        claim.job_id,
                        claim.number,
                        outcome,
                        reason,
                        message,
                        max_failures=self._settings.max_failures,
                    )
                )
                return
            except Superseded:
                return
            except DBAPIError as error:
                if not is_outage(error):
                    raise
                log.warning("job %s: its end is not stored yet: %s", claim.job_id, error.orig)
            patience.wait()


class _Run:
    """A living attempt: the loop of looking, delivering and asking."""

    def __init__(
        self,
        owner: Supervisor,
        claim: Claim,
        process: TrainingProcess,
        delivery: Delivery,
        oom_kills: int | None,
    ) -> None:
        self._owner, self._claim, self._process, self._delivery = owner, claim, process, delivery
        self._settings, self._draining = owner._settings, owner._draining
        self._oom_kills = oom_kills
        self._backoff = Backoff(self._settings.lease_seconds)
        self._next_renewal = 0.0
        self._next_delivery = 0.0
        self._kill_at: float | None = None
        self._leave_at: float | None = None
        self._was_killed = False
        self._has_stalled = False
        self._last_word: tuple[int, float] = (-1, 0.0)  # the spool's size, and since when

    def follow(self) -> None:
        while (code := self._process.exit_code()) is None:
            self._deliver()
            self._delivery.cap_output()
            if self._draining.is_set():
                self._drain()
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                log.warning("job %s: the run did not stop in time and is killed", self._claim.job_id)
                self._was_killed = True
                self._process.kill()
            elif self._is_silent():
                log.warning("job %s: the run is silent for too long and is killed", self._claim.job_id)
                self._has_stalled = True
                self._process.kill()
            time.sleep(_LOOK_SECONDS)
        if not self._deliver_rest():
            self._owner._end(self._claim, *self._verdict(code))

    def _deliver(self) -> None:
        """Deliver what is there, or renew; while the database is away, only try again later."""
        now = time.monotonic()
        if self._delivery.has_ended:  # all is said, and the process is on its way out
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
            self._next_renewal = now + renew_seconds(self._settings.lease_seconds)
            if (asked := _ask_of(requests)) is not None:
                self._ask(asked, _STOP_SECONDS)

    def _send(self) -> Requests | None:
        """Deliver one batch, or what the storage takes of it; None while the database takes nothing.

        Raises:
            OSError: the storage is full; waiting would make no room.
        """
        try:
            requests = self._delivery.send()
        except DBAPIError as error:
            if not is_outage(error):
                raise
            log.warning("job %s: records are not delivered yet: %s", self._claim.job_id, error.orig)
            return None
        if (obstacle := self._delivery.obstacle) is not None:
            if is_full(obstacle):
                raise obstacle
            log.warning("job %s: a checkpoint is not stored yet: %s", self._claim.job_id, obstacle)
        return requests

    def _is_silent(self) -> bool:
        """Whether the run has reported nothing for longer than it may."""
        size, now = self._delivery.spool_bytes(), time.monotonic()
        if size != self._last_word[0]:
            self._last_word = (size, now)
        return now - self._last_word[1] > self._settings.stall_seconds

    def _drain(self) -> None:
        """The worker has to stop: the run has some of its time, and the job is back in the queue before it is over."""
        if self._leave_at is None:
            self._leave_at = time.monotonic() + self._settings.drain_seconds - _LEAVE_SECONDS
            self._ask("drain", self._settings.drain_seconds - _REGISTER_SECONDS)

    def _ask(self, what: Ask, grace_seconds: float) -> None:
        self._process.ask(what)
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _deliver_rest(self) -> bool:
        """Deliver all that the ended run left, unless the worker must be gone first; whether its `end` was among it."""
        patience = Patience(self._draining, self._settings.lease_seconds)
        while not self._delivery.has_ended and self._delivery.collect(is_over=True) and not self._is_late():
            if self._send() is None or self._delivery.obstacle:
                patience.wait()
            else:
                self._delivery.is_storing(_FILE_SECONDS)
        return self._delivery.has_ended

    def _is_late(self) -> bool:
        if self._draining.is_set():
            self._drain()
        return self._leave_at is not None and time.monotonic() > self._leave_at

    def _verdict(self, code: int) -> Verdict:
        """How a run ended whose last word is not stored."""
        if self._is_late() and self._delivery.collect(is_over=True):
            return "drained", None, "the worker had to stop before everything of the run was stored"
        if self._was_killed and self._process.asked:
            return _ENDED_BY_ASKING[self._process.asked], None, "the run did not stop in time and was killed"
        if self._has_stalled:
            limit = self._settings.stall_seconds
            return "failed", Reason.STALLED, f"the run reported nothing for {limit:g} s and was killed"
        return verdict(code, self._delivery.folder, self._oom_kills)


def _ask_of(requests: Requests) -> Ask | None:
    """What a run is asked for; a cancel before all."""
    if requests.cancel:
        return "cancel"
    if requests.pause:
        return "pause"
    return "drain" if requests.preempt or requests.timeout else None
