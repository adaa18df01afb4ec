"""One attempt from its claim to its end: start the run, deliver what it reports, pass on what its owner asks.

    prepare ──► running ──► the run ends by itself ──► deliver the rest ──► its `end` record decides
                   │
                   ├─ cancel, pause or drain asked ──► it saves and stops, or is killed after a grace time
                   └─ superseded ──► killed at once; nothing of it is stored any more

An outage of the database stops nothing: the run goes on into its spool, which is delivered later.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import shutil
import signal
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
from jobs.storage import Storage, sha256_of
from jobs.transitions import CheckpointRef, Claim, Requests
from wcl_core.failpoints import failpoint
from worker.datasets import Source
from worker.delivery import Delivery
from worker.process import PEER_LOST_EXIT, Ask, TrainingProcess, failure_of

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
LOCK_FILE = "supervisor.lock"
_LOOK_SECONDS = 0.25
_DELIVER_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_STOP_SECONDS = 60.0  # for the current step and a checkpoint after a cancel or a pause
_REGISTER_SECONDS = 8.0  # of a drain's time: to register the last checkpoint, and to kill
_ENDED_BY_ASKING: dict[Ask, str] = {"cancel": "cancelled", "pause": "paused", "drain": "drained"}


class MissingCheckpoint(Exception):  # noqa: N818 (named as the reason it becomes)
    """The run cannot start: the file it begins from is absent or not the registered one."""


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
            self._end(claim, "failed", _reason_of(error), f"{type(error).__name__}: {error}"[:2000])
        clear(folder)

    def _run(self, claim: Claim, folder: Path) -> None:
        try:
            failpoint("supervisor.run_file")
            (folder / RUN_FILE).write_text(json.dumps(self._run_file(claim)))
        except MissingCheckpoint as error:
            self._end(claim, "failed", Reason.MISSING_CHECKPOINT, str(error))
            return
        process = TrainingProcess(folder, mark_of(claim.job_id, claim.number), claim.spec.get("processes", 1))
        log.info("job %s: attempt %d runs as process %d", claim.job_id, claim.number, process.pid)
        delivery = Delivery(
            self._database, self._storage, folder, claim.job_id, claim.number, self._settings.max_failures
        )
        run = _Run(self, claim, process, delivery)
        try:
            run.follow()
        except Superseded:
            delivery.discard()
            raise
        finally:
            process.kill()

    def _run_file(self, claim: Claim) -> dict[str, Any]:
        source = self._sources[claim.dataset_name]
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
            },
            "resume": self._file_of(claim.resume) if claim.kind == "pretrain" else None,
            "checkpoint": self._file_of(claim.checkpoint),
        }

    def _file_of(self, reference: CheckpointRef | None) -> str | None:
        """The local file of a checkpoint, read back and compared with its registered digest."""
        if reference is None:
            return None
        try:
            path = self._storage.path(reference.path)
        except FileNotFoundError as error:
            raise MissingCheckpoint(f"checkpoint {reference.id}: {error}") from error
        if sha256_of(path) != reference.sha256:
            raise MissingCheckpoint(f"checkpoint {reference.id}: its file is damaged, the digest differs")
        return str(path)

    def _end(self, claim: Claim, outcome: str, reason: str | None, message: str | None) -> None:
        """End the attempt, whenever the database takes it."""
        patience = _Patience(self._draining)
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

    def __init__(self, owner: Supervisor, claim: Claim, process: TrainingProcess, delivery: Delivery) -> None:
        self._owner, self._claim, self._process, self._delivery = owner, claim, process, delivery
        self._settings, self._draining = owner._settings, owner._draining
        self._renew_seconds = min(3.0, self._settings.lease_seconds / 6)
        self._next_renewal = 0.0
        self._next_delivery = 0.0
        self._kill_at: float | None = None
        self._was_killed = False

    def follow(self) -> None:
        while (code := self._process.exit_code()) is None:
            self._deliver()
            if self._draining.is_set():
                self._ask("drain", self._settings.drain_seconds - _REGISTER_SECONDS)
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                log.warning("job %s: the run did not stop in time and is killed", self._claim.job_id)
                self._was_killed = True
                self._process.kill()
            time.sleep(_LOOK_SECONDS)
        if not self._deliver_rest():
            self._owner._end(self._claim, *self._verdict(code))

    def _deliver(self) -> None:
        """Deliver what is there, or renew; while the database is away, only try again later."""
        now = time.monotonic()
        if now < self._next_delivery or not (self._delivery.collect() or now >= self._next_renewal):
            return
        requests = self._send()
        if requests is None:
            self._next_delivery = now + _RETRY_SECONDS
            return
        self._next_delivery, self._next_renewal = now + _DELIVER_SECONDS, now + self._renew_seconds
        self._obey(requests)

    def _send(self) -> Requests | None:
        """Deliver one batch; None while the database or the storage does not take it."""
        try:
            return self._delivery.send()
        except DBAPIError as error:
            if not is_outage(error):
                raise
            log.warning("job %s: records are not delivered yet: %s", self._claim.job_id, error.orig)
        except OSError as error:
            log.warning("job %s: a checkpoint is not stored yet: %s", self._claim.job_id, error)
        return None

    def _obey(self, requests: Requests) -> None:
        if requests.cancel:
            self._ask("cancel", _STOP_SECONDS)
        elif requests.pause:
            self._ask("pause", _STOP_SECONDS)
        elif requests.preempt:
            self._ask("drain", _STOP_SECONDS)

    def _ask(self, what: Ask, grace_seconds: float) -> None:
        if self._process.asked in (what, "cancel"):
            return
        self._process.ask(what)
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _deliver_rest(self) -> bool:
        """Deliver all that the ended run left; whether its `end` record was among it."""
        patience = _Patience(self._draining)
        while self._delivery.collect(is_over=True):
            if self._send() is None:
                patience.wait()
        return self._delivery.has_ended

    def _verdict(self, code: int) -> tuple[str, str | None, str]:
        """(outcome, reason, message) of a run that ended without a last word."""
        if self._was_killed and self._process.asked:
            return _ENDED_BY_ASKING[self._process.asked], None, "the run did not stop in time and was killed"
        if _is_disk_full(self._settings.attempts_dir):
            return "failed", Reason.DISK_FULL, "the disk of the worker is full"
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", perhaps by the kernel for lack of memory" if -code == signal.SIGKILL else ""
            return "failed", Reason.KILLED, f"the training process was killed by {name}{hint}"
        if (left := failure_of(self._delivery.folder)) is not None:
            return left
        if code == PEER_LOST_EXIT:
            return "failed", Reason.KILLED, "the ranks of the run lost each other; the log may say why"
        message = f"the training process ended with exit code {code} and without a last word; its log may say why"
        return "failed", Reason.INTERNAL_ERROR, message


class KeepSpool(Exception):  # noqa: N818 (an instruction)
    """The worker stops before everything could be delivered: the folder stays for the next worker of this host."""


class _Patience:
    """Waits for the database between two tries; not for long once the worker has to stop."""

    def __init__(self, draining: threading.Event) -> None:
        self._draining = draining
        self._gives_up_at: float | None = None

    def wait(self) -> None:
        """Sleep a little.

        Raises:
            KeepSpool: the worker has to stop and the database stayed away.
        """
        if self._draining.is_set():
            self._gives_up_at = self._gives_up_at or time.monotonic() + _REGISTER_SECONDS / 2
            if time.monotonic() > self._gives_up_at:
                raise KeepSpool
        time.sleep(_RETRY_SECONDS)


def _reason_of(error: Exception) -> Reason:
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Reason.DISK_FULL if is_full else Reason.INTERNAL_ERROR


def _is_disk_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 1 << 20
