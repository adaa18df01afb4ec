"""Delivery of an attempt's folder into the database: records strictly in order, each file before its row."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import transitions
from jobs.attempts import AttemptRef
from jobs.checked_files import BadFile
from jobs.database import Database
from jobs.errors import RecordsMissing
from jobs.ingest import Delivered, StoredFile
from jobs.models import Attempt
from jobs.settings import Settings
from jobs.storage import Storage, StorageUnavailable, file_key
from jobs.transitions import Requests
from wcl_core.failpoints import failpoint
from wcl_core.protocol import (
    OUTPUT_FILE,
    SPOOL_FILE,
    ArtifactRecord,
    CheckpointRecord,
    EndRecord,
    Record,
    WarningRecord,
)
from worker.background import BackgroundWork, check_not_stalled
from worker.exit_reason import log_end
from worker.garbage import collect_garbage
from worker.spool import Output, Records

log = logging.getLogger(__name__)

_BATCH = 500
_BAD_PLACE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES})  # waiting changes nothing
_FILE_SECONDS = 0.2  # wait for a file; most are in the storage by then


class Delivery:
    """The delivery of the spool and the output of one attempt.

    Undelivered records stay pending, so the caller can repeat a failed call.  One file at a time goes into the
    storage in the background; the records after it wait for it.

    Args:
        database, storage, settings: the service.
        ran_ms: returns the running time of the attempt so far; None for an attempt whose worker died.
        see: is called with each record as it is read, before its delivery.

    Attributes:
        has_ended: whether the `end` record is delivered.
        obstacle: the error of the storage at the next file; None without an error.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        settings: Settings,
        folder: Path,
        attempt: AttemptRef,
        ran_ms: Callable[[], int | None] = lambda: None,
        see: Callable[[Record], None] | None = None,
    ) -> None:
        self._database, self._storage, self._settings = database, storage, settings
        self.folder, self._attempt, self._job_id, self._ran_ms = folder, attempt, attempt.job_id, ran_ms
        self._see = see
        self._start_over()
        self._collecting: BackgroundWork[None] | None = None
        self.has_ended = False
        self.obstacle: OSError | None = None
        self._refused_since: float | None = None  # by a monotonic clock
        self._waits_since: float | None = None  # of the oldest record that waits, as this object has seen it

    def _start_over(self) -> None:
        """Read spool and output from their starts; the fence skips the records that are stored."""
        self._records = Records(self.folder / SPOOL_FILE)
        self._output = Output(self.folder / OUTPUT_FILE)
        self._pending: deque[Record] = deque()
        self._ready: list[Delivered] = []  # the records before the pending ones; their files are in the storage
        self._pending_output: list[tuple[int, str]] = []
        self._digests: dict[str, str] = {}  # of the stored checkpoints, by the name of their file
        self._has_read_end = False
        self._storing: BackgroundWork[StoredFile | WarningRecord] | None = None  # of the first pending record

    def collect(self, is_over: bool = False) -> bool:
        """Read what the run has appended, and return whether anything waits for delivery.

        Args:
            is_over: the run has ended, and its files are read to their very end.
        """
        if len(self._pending) < _BATCH and not self._has_read_end:
            self._take(self._records.new(is_over))
        if len(self._pending_output) < _BATCH:
            self._pending_output += self._output.new(is_over)
        waits = bool(self._ready or self._pending or self._pending_output or (is_over and self._has_more()))
        self._waits_since = (self._waits_since or time.monotonic()) if waits else None
        return waits

    @property
    def lag_ms(self) -> int:
        """The milliseconds since when there has always been a record that waits; 0 if none waits."""
        since = self._waits_since
        return 0 if since is None else round(1000 * (time.monotonic() - since))

    def _take(self, records: list[Record]) -> None:
        """Let records wait for their delivery, up to the end of the run; nothing can be stored after it."""
        for record in records:
            if self._see is not None:
                self._see(record)
            self._pending.append(record)
            if isinstance(record, EndRecord):
                self._has_read_end = True
                return

    def _has_more(self) -> bool:
        return not self._has_read_end and self._records.has_more()

    def is_storing(self, seconds: float = 0.0) -> bool:
        """Wait for at most `seconds`, and return whether a file is still on its way into the storage."""
        return self._storing is not None and not self._storing.is_done(seconds)

    def send(self) -> Requests:
        """Deliver the next batch, or only renew the attempt.

        A file that the storage rejects stays pending with all records after it, and `obstacle` is the error.  The
        records before it are delivered, and the attempt is renewed.

        Raises:
            Superseded: the attempt has ended.
            DBAPIError: the database rejects the batch now; all of it stays pending.
            StorageUnavailable: a file has waited for the storage, or was refused by it, for longer than a run may be
                silent.
        """
        if self._storing is not None and not self._storing.is_done():
            check_not_stalled(self._storing, self._settings)
        self._prepare()
        self._check_obstacle()
        records, output = self._ready[:], self._pending_output[:_BATCH]
        has_end = bool(records) and isinstance(records[-1], EndRecord)
        if has_end and len(self._pending_output) > _BATCH:
            del records[-1]  # nothing can be stored after the end
            has_end = False
        if has_end:
            failpoint("delivery.end")
        try:
            requests = self._database.write(self._change(records, output))
        except RecordsMissing as error:
            log.warning("%s is delivered again from its start: %s", self._attempt, error)
            if self._storing is None or self._storing.is_done():
                self._start_over()
            return self._database.write(self._change([], []))
        del self._ready[: len(records)]
        del self._pending_output[: len(output)]
        if has_end and isinstance(end := records[-1], EndRecord):
            log_end(self._attempt, end.outcome, end.reason, end.message)
        self.has_ended = self.has_ended or has_end
        if not (self._ready or self._pending or self._pending_output):
            self._waits_since = None
        if any(_is_checkpoint(record) for record in records) and not self.is_collecting_garbage():
            work = partial(collect_garbage, self._database, self._storage, [self._job_id])
            self._collecting = BackgroundWork(work)  # a new checkpoint may have replaced an older one
        return requests

    def is_collecting_garbage(self) -> bool:
        """Return whether files that belong to no row are being removed."""
        return self._collecting is not None and not self._collecting.is_done()

    def cap_output(self) -> None:
        """Keep stdout and stderr from filling the disk, also while nothing can be delivered."""
        self._output.cap()

    def spool_bytes(self) -> int:
        """Return the size of the spool; it grows while the run is alive."""
        path = self.folder / SPOOL_FILE
        return path.stat().st_size if path.exists() else 0

    def discard(self) -> None:
        """Remove the stored files of a superseded attempt that were never registered, in the background.

        Only the rows identify these files: the database may have committed a delivery and lost the response, and
        this object reads the spool again from the start after a restart of the worker.
        """
        storing = self._storing

        def collect() -> None:
            if storing is not None:
                storing.is_done(None)
            collect_garbage(self._database, self._storage, [self._job_id])

        self._collecting = BackgroundWork(collect)

    def _prepare(self) -> None:
        """Move pending records to the ready ones until a batch is full or a file is missing in the storage."""
        self.obstacle = None
        try:
            while self._pending and len(self._ready) < _BATCH:
                if (record := self._with_file(self._pending[0])) is None:
                    return
                self._ready.append(record)
                self._pending.popleft()
        except OSError as error:
            self.obstacle = error

    def _check_obstacle(self) -> None:
        now = time.monotonic()
        self._refused_since = None if self.obstacle is None else self._refused_since or now
        if self._refused_since is not None and now - self._refused_since > self._settings.stall_seconds:
            reason = os.strerror(self.obstacle.errno) if self.obstacle and self.obstacle.errno else self.obstacle
            raise StorageUnavailable(f"the storage has refused a file for {now - self._refused_since:.0f} s: {reason}")

    def _with_file(self, record: Record) -> Delivered | None:
        """Return a record whose file, if any, is in the storage; None while the file is on its way."""
        if not isinstance(record, CheckpointRecord | ArtifactRecord):
            return record
        storing = self._storing = self._storing or BackgroundWork(partial(self._store, record))
        if not storing.is_done(_FILE_SECONDS):
            return None
        self._storing = None
        return storing.result()

    def _change(self, records: list[Delivered], output: list[tuple[int, str]]) -> Callable[[Session], Requests]:
        def change(session: Session) -> Requests:
            limit = self._settings.max_failures
            return transitions.deliver(
                session, self._attempt, records, output, max_failures=limit, ran_ms=self._ran_ms()
            )

        return change

    def _store(self, record: CheckpointRecord | ArtifactRecord) -> StoredFile | WarningRecord:
        """Store a record's file and read it back; a file that is refused or damaged becomes a warning."""
        if isinstance(record, ArtifactRecord) and (refusal := record.refusal()):
            return self._warning(record, "refused_artifact", f"{_name_of(record)} was not kept: {refusal}")
        source = self.folder / record.file
        if (refusal := _refusal(source, self.folder)) is not None:
            return self._warning(record, f"refused_{record.type}", f"{_name_of(record)} was not kept: {refusal}")
        # A later artifact of the same name has another key, so each row has its own bytes.
        name = source.name if isinstance(record, CheckpointRecord) else f"{record.sha256[:16]}-{record.name}"
        storage_key = file_key(self._attempt, name)
        if self._digests.get(name, record.sha256) != record.sha256:
            problem = "another checkpoint has the name of its file"
            return self._warning(record, f"refused_{record.type}", f"{_name_of(record)} was not kept: {problem}")
        try:
            self._storage.put(source, storage_key)
            self._storage.confirm(storage_key, record.sha256, record.size)
        except (FileNotFoundError, BadFile):
            message = f"{_name_of(record)} is missing or damaged on the disk and was not registered"
            if record.seq <= self._database.read_once(self._stored_seq):  # registered, and removed since
                return WarningRecord(seq=record.seq, reason=f"damaged_{record.type}", message=message)  # is skipped
            return self._warning(record, f"damaged_{record.type}", message)
        self._digests[name] = record.sha256
        return StoredFile(record, storage_key)

    def _stored_seq(self, session: Session) -> int:
        """Return the number of the last record that is stored; the fence skips the others."""
        stored = select(Attempt.delivered_seq).where(self._attempt.is_row())
        return session.execute(stored).scalar_one_or_none() or 0

    def _warning(self, record: Record, reason: str, message: str) -> WarningRecord:
        log.error("job %s: %s", self._job_id, message)
        return WarningRecord(seq=record.seq, reason=reason, message=message)


def _refusal(source: Path, folder: Path) -> str | None:
    """Return the reason to reject a run's file; None for one that is in the run's folder, or absent."""
    try:
        is_file = stat.S_ISREG(source.lstat().st_mode)
    except FileNotFoundError:
        return None  # an earlier delivery may have moved it
    except OSError as error:
        if error.errno not in _BAD_PLACE:
            raise
        return f"its place is not usable ({error.strerror})"
    real, root = os.path.realpath(source.parent), os.path.realpath(folder)
    is_inside = real == root or real.startswith(root + os.sep)
    return None if is_file and is_inside else "expected a regular file in the run's folder"


def _is_checkpoint(record: Delivered) -> bool:
    return isinstance(record, StoredFile) and isinstance(record.record, CheckpointRecord)


def _name_of(record: CheckpointRecord | ArtifactRecord) -> str:
    if isinstance(record, CheckpointRecord):
        return f"the checkpoint of step {record.step}"
    return f"the artifact {record.name}"
