"""One attempt from its claim to its end: start the run, deliver what it reports, pass on what its owner asks.

    prepare ──► running ──► the run ends by itself ──► deliver the rest ──► its `end` record decides
                   │
                   ├─ cancel, pause or drain asked ──► it saves and stops, or is killed after a grace time
                   ├─ silent for too long, or its storage is full ──► killed; why is the reason
                   └─ superseded ──► killed at once; nothing of it is stored any more

An outage of the database stops nothing: the run goes on into its spool, which is delivered later.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from jobs import transitions
from jobs.database import Database, is_outage
from jobs.errors import Superseded
from jobs.settings import Settings
from jobs.status import Reason
from jobs.storage import Storage, StorageUnavailable, is_full
from jobs.transitions import Claim, Requests
from wcl_core.failpoints import failpoint
from worker.beginning import MissingCheckpoint, checkpoint_file, resume_file
from worker.datasets import Source
from worker.delivery import Delivery
from worker.patience import Backoff, KeepSpool, Patience
from worker.process import Ask, TrainingProcess
from worker.renewal import renew_seconds, renewed
from worker.verdict import Verdict, count_oom_kills, verdict

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
LOCK_FILE = "supervisor.lock"
_LOOK_SECONDS = 0.25
_DELIVER_SECONDS = 0.5
_EXIT_SECONDS = 10.0  # between a run's last word and its end
_STOP_SECONDS = 60.0  # for the current step and a checkpoint after a cancel or a pause
_REGISTER_SECONDS = 8.0  # of a drain's time: to register the last checkpoint, and to kill
_ENDED_BY_ASKING: dict[Ask, str] = {"cancel": "cancelled", "pause": "paused", "drain": "drained"}


def mark_of(job_id: str, number: int) -> str:
    """What the processes of an attempt carry in their environment."""
    return f"{job_id}/{number}"


@contextmanager
def owned(folder: Path) -> Iterator[bool]:
    """Hold an attempt's folder; False when another living supervisor holds it."""
    with (folder / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def clear(folder: Path) -> None:
    """Remove an attempt's folder, whose content is stored or superseded."""
    failpoint("supervisor.clear")
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # another attempt's folder may stand beside it
        folder.parent.rmdir()


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
            self._end(claim, "failed", *_reason_of(error))
        clear(folder)

    def _run(self, claim: Claim, folder: Path) -> None:
        try:
            failpoint("supervisor.run_file")
            with renewed(self._database, self._settings, claim.job_id, claim.number):
                facts = self._run_file(claim)
            (folder / RUN_FILE).write_text(json.dumps(facts))
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

    def _run_file(self, claim: Claim) -> dict[str, Any]:
        source = self._sources[claim.dataset_name]
        resume = resume_file(self._database, self._storage, claim) if claim.kind == "pretrain" else None
        checkpoint = checkpoint_file(self._database, self._storage, claim)
        return {
            "job_id": claim.job_id,
            "attempt": claim.number,
            "host": socket.gethostname(),
            "kind": claim.kind,
            "spec": claim.spec,
            "dataset": {
                "kind": source.facts.kind,
                "path": str(source.path) if source.path else None,
                "digest": claim.dataset_digest,
                "lists": {name: str(path) for name, path in source.lists.items()},
            },
            "resume": str(resume) if resume else None,
            "checkpoint": str(checkpoint) if checkpoint else None,
        }

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
        self._was_killed = False
        self._has_stalled = False
        self._last_word: tuple[int, float] = (-1, 0.0)  # the spool's size, and since when

    def follow(self) -> None:
        while (code := self._process.exit_code()) is None:
            self._deliver()
            self._delivery.cap_output()
            if self._draining.is_set():
                self._ask("drain", self._settings.drain_seconds - _REGISTER_SECONDS)
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
        if now < self._next_delivery or not (self._delivery.collect() or now >= self._next_renewal):
            return
        requests = self._send()
        if requests is None or self._delivery.obstacle:
            self._next_delivery = now + self._backoff.pause()
        else:
            self._backoff.reset()
            self._next_delivery = now + _DELIVER_SECONDS
        if requests is not None:
            self._next_renewal = now + renew_seconds(self._settings)
            self._obey(requests)

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

    def _obey(self, requests: Requests) -> None:
        if requests.cancel:
            self._ask("cancel", _STOP_SECONDS)
        elif requests.pause:
            self._ask("pause", _STOP_SECONDS)
        elif requests.preempt or requests.timeout:
            self._ask("drain", _STOP_SECONDS)

    def _ask(self, what: Ask, grace_seconds: float) -> None:
        if self._process.asked in (what, "cancel"):
            return
        self._process.ask(what)
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _deliver_rest(self) -> bool:
        """Deliver all that the ended run left; whether its `end` record was among it."""
        patience = Patience(self._draining, self._settings.lease_seconds)
        while not self._delivery.has_ended and self._delivery.collect(is_over=True):
            if self._send() is None or self._delivery.obstacle:
                patience.wait()
        return self._delivery.has_ended

    def _verdict(self, code: int) -> Verdict:
        """How a run ended that left no last word."""
        if self._was_killed and self._process.asked:
            return _ENDED_BY_ASKING[self._process.asked], None, "the run did not stop in time and was killed"
        if self._has_stalled:
            limit = self._settings.stall_seconds
            return "failed", Reason.STALLED, f"the run reported nothing for {limit:g} s and was killed"
        return verdict(code, self._delivery.folder, self._oom_kills)


def _reason_of(error: Exception) -> tuple[Reason, str]:
    """(reason, message) of an attempt that could not be made or followed."""
    if is_full(error):
        assert isinstance(error, OSError)
        return Reason.DISK_FULL, f"{os.strerror(error.errno or 0)}: the run's folder or the storage of its checkpoints"
    if isinstance(error, StorageUnavailable):
        return Reason.STORAGE_UNAVAILABLE, str(error)
    return Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"[:2000]
