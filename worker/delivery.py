"""From an attempt's folder into the database: records strictly in order, files before their rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from jobs import artifacts, transitions
from jobs.database import Database
from jobs.settings import Settings
from jobs.storage import Damaged, Storage, file_key, verified
from jobs.transitions import Requests
from wcl_core.failpoints import failpoint
from worker.background import Errand, must_go_on
from worker.garbage import sweep
from worker.process import OUTPUT_FILE
from worker.spool import Output, Records

log = logging.getLogger(__name__)

SPOOL_FILE = "report.jsonl"
_BATCH = 500
_PATIENCE_SECONDS = 0.2  # most files are there by then


class Delivery:
    """Delivers one attempt's spool.  What could not be delivered stays pending, so a failed call is simply repeated.

    Files go into the storage beside, one at a time, however long that takes; what follows in the spool waits for them.

    Args:
        database, storage, settings: the service.
        folder: the attempt's folder.
        job_id, number: the attempt.
    """

    def __init__(
        self, database: Database, storage: Storage, settings: Settings, folder: Path, job_id: str, number: int
    ) -> None:
        self._database, self._storage, self._settings = database, storage, settings
        self.folder, self._job_id, self._number = folder, job_id, number
        self._records = Records(folder / SPOOL_FILE)
        self._output = Output(folder / OUTPUT_FILE)
        self._pending: list[dict[str, Any]] = []
        self._pending_output: list[tuple[int, str]] = []
        self._num_prepared = 0  # pending records, from the first on, whose files are in the storage
        self._storing: Errand[dict[str, Any]] | None = None  # the file of the record behind those
        self._sweeping: Errand[None] | None = None
        self.has_ended = False
        self.obstacle: OSError | None = None

    def collect(self, is_over: bool = False) -> bool:
        """Read what the run has appended, with `is_over` to its very end; whether anything waits for delivery."""
        if len(self._pending) < _BATCH:
            self._pending += self._records.new()
        if len(self._pending_output) < _BATCH:
            self._pending_output += self._output.new(is_over)
        return bool(self._pending or self._pending_output)

    def is_storing(self, seconds: float = 0.0) -> bool:
        """Whether a file is on its way into the storage, after waiting for it so long at most."""
        return self._storing is not None and not self._storing.is_done(seconds)

    def send(self) -> Requests:
        """Deliver the next pending batch, or only renew the attempt.

        A file that the storage does not take stays pending with all that follows, and `obstacle` says why; what
        came before it is delivered, and the attempt stays alive.

        Raises:
            Superseded: the attempt has ended.
            DBAPIError: the database does not take it now; everything stays pending.
            StorageUnavailable: the storage has held up a file for longer than a run may be silent.
        """
        if self._storing is not None and not self._storing.is_done():
            must_go_on(self._storing, self._settings)
        lines, output = self._prepared(), self._pending_output[:_BATCH]
        if len(self._pending_output) > _BATCH and lines and lines[-1]["type"] == "end":
            lines = lines[:-1]  # nothing is stored after it
        if lines and lines[-1]["type"] == "end":
            failpoint("delivery.end")
        requests = self._database.write(self._change(lines, output))
        del self._pending[: len(lines)]
        del self._pending_output[: len(output)]
        self._num_prepared = 0
        types = {line["type"] for line in lines}
        self.has_ended = self.has_ended or "end" in types
        if "checkpoint" in types and not self.is_sweeping():  # older ones may have to make room
            self._sweeping = Errand(partial(sweep, self._database, self._storage, [self._job_id]))
        return requests

    def is_sweeping(self) -> bool:
        """Whether files that no checkpoint claims any more are being removed."""
        return self._sweeping is not None and not self._sweeping.is_done()

    def cap_output(self) -> None:
        """Keep stdout and stderr from filling the disk, also while nothing can be delivered."""
        self._output.cap()

    def spool_bytes(self) -> int:
        """How much the run has reported so far; it grows while the run gives signs of life."""
        path = self.folder / SPOOL_FILE
        return path.stat().st_size if path.exists() else 0

    def discard(self) -> None:
        """Remove stored files that were never registered, as soon as none is on its way: the attempt was superseded.

        Only the rows tell which those are: a delivery whose answer was lost may have been committed, and what the
        supervisor before this one delivered is read from the spool again.
        """
        last = self._storing

        def tidy() -> None:
            if last is not None:
                last.is_done(None)
            sweep(self._database, self._storage, [self._job_id])

        self._sweeping = Errand(tidy)

    def _prepared(self) -> list[dict[str, Any]]:
        """The next records, with their files in the storage; each is put and read back once."""
        self.obstacle = None
        try:
            while self._num_prepared < min(_BATCH, len(self._pending)):
                if (line := self._with_file(self._pending[self._num_prepared])) is None:
                    break
                self._pending[self._num_prepared] = line
                self._num_prepared += 1
        except OSError as error:
            self.obstacle = error
        return self._pending[: self._num_prepared]

    def _with_file(self, line: dict[str, Any]) -> dict[str, Any] | None:
        """A record whose file, if it is of one, lies in the storage; None while that is on its way."""
        if line["type"] not in ("checkpoint", "artifact"):
            return line
        storing = self._storing = self._storing or Errand(partial(self._stored, line))
        if not storing.is_done(_PATIENCE_SECONDS):
            return None
        self._storing = None
        return storing.result()

    def _change(self, lines: list[dict[str, Any]], output: list[tuple[int, str]]) -> Callable[[Session], Requests]:
        def change(session: Session) -> Requests:
            return transitions.deliver(
                session, self._job_id, self._number, lines, output, max_failures=self._settings.max_failures
            )

        return change

    def _stored(self, line: dict[str, Any]) -> dict[str, Any]:
        """A record of a file once that lies in the storage and was read back; of any other file only a warning."""
        if line["type"] == "artifact" and (wrong := artifacts.refusal(line)):
            return self._warning(line, "refused_artifact", f"{_called(line)} was not kept: {wrong}")
        source = self.folder / line["path"]
        # A name that is made again has another key, so whatever row is in force has its own bytes.
        name = source.name if line["type"] == "checkpoint" else f"{line['sha256'][:16]}-{line['name']}"
        key = file_key(self._job_id, self._number, name)
        try:
            self._storage.put(source, key)
            verified(self._storage, key, line["sha256"], line["size"])
        except (FileNotFoundError, Damaged):
            wrong = "is missing or damaged on the disk and was not registered"
            return self._warning(line, f"damaged_{line['type']}", f"{_called(line)} {wrong}")
        return line | {"path": key}

    def _warning(self, line: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
        log.error("job %s: %s", self._job_id, message)
        return {"seq": line["seq"], "type": "warning", "reason": reason, "message": message}


def _called(line: dict[str, Any]) -> str:
    return f"the checkpoint of step {line['step']}" if line["type"] == "checkpoint" else f"the artifact {line['name']}"
