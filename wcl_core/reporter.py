"""Reporters: the reports of a run to its owner, and the requests of the owner.

The training loop calls only these methods, and none of them waits for a service.  Each method makes one typed record of
`wcl_core.protocol`, so a reporter implements a single method:

    Reporter ── NullReporter      drops every record
             ├─ MemoryReporter    keeps the records in a list
             ├─ ConsoleReporter   prints the records that a person reads
             └─ SpoolReporter     appends numbered JSON lines to the file that a worker delivers
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from wcl_core.failpoints import failpoint
from wcl_core.protocol import (
    ArtifactRecord,
    CheckpointRecord,
    EndRecord,
    EvaluationRecord,
    LogRecord,
    MediaType,
    MetricsRecord,
    Outcome,
    Phase,
    ProgressRecord,
    Record,
    Request,
    StartedRecord,
    WarningRecord,
    WeakLabelRecord,
    storable,
    to_json,
)
from wcl_core.text import write_line

_RESERVED_BYTES = 32_768


class Reporter:
    """Base class; a subclass implements `emit`.

    Attributes:
        owes_save: whether the run has finished steps that no reported checkpoint holds.  A request ends a run that owes
            no save at once, whatever it does; a cancel ends every run so.
    """

    owes_save = False

    def emit(self, record: Record) -> None:
        """Take one record."""
        raise NotImplementedError

    def request(self) -> Request | None:
        """Return the latest request to end the run; the run calls this after every step."""
        return None

    def started(self, *, start_step: int, **facts: Any) -> None:
        """Report the start of the run and the facts of its environment."""
        self.emit(StartedRecord(start_step=start_step, **facts))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Report values by name at a step; a value that is not finite becomes null, with a warning."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.emit(MetricsRecord(step=step, values=finite))
        if missing := [name for name, value in finite.items() if value is None]:
            self.warning("non_finite_metric", f"not finite at step {step}: {', '.join(missing)}")

    def progress(
        self,
        *,
        step: int,
        total_steps: int,
        epoch: float,
        total_epochs: float,
        phase: Phase,
        images_per_second: float | None = None,
        eta_seconds: float | None = None,
        share: float | None = None,
        part: str | None = None,
    ) -> None:
        """Report the progress of the run; only the latest report matters.

        Args:
            eta_seconds: of the run, or of a phase with a share of its own.
            share: the finished part of the phase, 0 to 1, if steps and epochs do not show it.
            part: the present part of an evaluation, for people.
        """
        self.emit(
            ProgressRecord(
                step=step,
                total_steps=total_steps,
                epoch=round(epoch, 4),
                total_epochs=total_epochs,
                images_per_second=None if images_per_second is None else round(images_per_second, 2),
                eta_seconds=None if eta_seconds is None else round(eta_seconds, 1),
                phase=phase,
                share=None if share is None else round(share, 4),
                part=part,
            )
        )

    def checkpoint(
        self,
        *,
        step: int,
        epoch: int,
        file: str,
        sha256: str,
        size: int,
        metrics: Mapping[str, float],
        kind: Literal["training", "embeddings"] = "training",
    ) -> None:
        """Report a checkpoint that is complete on the disk.

        Args:
            step, epoch: the numbers of finished steps and epochs.
            file: place in the run's folder.
            sha256, size: of the file, in bytes.
            metrics: latest values at its step.
            kind: a file of another kind than `training` is stored in the same way, but no run starts from it.
        """
        self.emit(
            CheckpointRecord(
                step=step, epoch=epoch, file=file, sha256=sha256, size=size, metrics=dict(metrics), kind=kind
            )
        )

    def artifact(self, *, name: str, file: str, sha256: str, size: int, media_type: MediaType) -> None:
        """Report a small file that is complete at `file` in the run's folder; see `artifacts.keep`."""
        self.emit(ArtifactRecord(name=name, file=file, sha256=sha256, size=size, media_type=media_type))

    def weak_labels(self, *, epoch: int, step: int, labels: Sequence[int]) -> None:
        """Report the weak labels of the monitor batch after an epoch, in the order of its picture."""
        self.emit(WeakLabelRecord(epoch=epoch, step=step, labels=list(labels)))

    def evaluation(self, result: Mapping[str, Any]) -> None:
        """Report one measured value with its protocol, version, data digests and parameters."""
        self.emit(EvaluationRecord.model_validate(dict(result)))

    def warning(self, reason: str, message: str) -> None:
        """Report a problem that does not end the run."""
        self.emit(WarningRecord(reason=reason, message=storable(message)))

    def log(self, message: str, level: str = "info") -> None:
        """Report a line for people."""
        self.emit(LogRecord(level=level, message=storable(message)))

    def end(self, outcome: Outcome, reason: str | None = None, message: str | None = None) -> None:
        """Report the end; no record follows."""
        self.emit(EndRecord(outcome=outcome, reason=reason, message=None if message is None else storable(message)))


class NullReporter(Reporter):
    """A reporter that drops every record."""

    def emit(self, record: Record) -> None:
        """Drop the record."""


class MemoryReporter(Reporter):
    """A reporter that keeps the JSON object of every record in a list.

    Args:
        next_request: called after each step with the list; returns a request to end the run, or None.
    """

    def __init__(self, next_request: Callable[[list[dict[str, Any]]], Request | None] | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self._next_request = next_request

    def emit(self, record: Record) -> None:
        self.records.append(to_json(record))

    def request(self) -> Request | None:
        """Return the request of `next_request`, if any."""
        return self._next_request(self.records) if self._next_request else None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of one type, in order."""
        return [record for record in self.records if record["type"] == kind]


class ConsoleReporter(Reporter):
    """A reporter that prints metrics, evaluations, checkpoints, artifacts and warnings, one line each.

    Args:
        request: returns the latest request to end the run.
        stream: stderr by default.
    """

    def __init__(self, request: Callable[[], Request | None] = lambda: None, stream: TextIO | None = None) -> None:
        self._request = request
        self._stream = stream

    def emit(self, record: Record) -> None:
        """Print the record, unless it is progress or weak labels."""
        if isinstance(record, ProgressRecord | WeakLabelRecord):
            return
        fields = {"step": record.step, **record.values} if isinstance(record, MetricsRecord) else record.fields()
        text = "  ".join(f"{name}={_brief(value)}" for name, value in fields.items() if value is not None)
        write_line(f"{record.type:<10} {text}", self._stream or sys.stderr)

    def request(self) -> Request | None:
        return self._request()


def _brief(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


class SpoolReporter(Reporter):
    """A reporter that appends one JSON line per record, numbered from 1 without a gap.

    The kernel has a line when `emit` returns, so the line survives a crash of the process.  A checkpoint and the end
    must also survive a crash of the machine, so `emit` forces them to the disk.  When the disk is full, the unwritten
    rest comes before the next record, so no line is ever torn; a reserved file makes room for the end.  Several threads
    may call `emit`; the first `end` is the last record.

    Args:
        path: the spool; it must not exist yet.
        request: returns the latest request to end the run.
    """

    def __init__(self, path: Path, request: Callable[[], Request | None] = lambda: None) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._request = request
        self._lock = threading.Lock()
        self._seq = 0
        self._has_ended = False
        self._unwritten = b""
        self._reserve = _reserve(path.parent)

    def emit(self, record: Record) -> None:
        """Append the record.

        Raises:
            OSError: the disk is full; a later call writes the rest.
            ValueError, TypeError: the record holds what JSON cannot hold.
        """
        with self._lock:
            self._append(record)

    def abandon(self, outcome: Outcome, exit_code: int) -> None:
        """Report the end in place of the working thread, and exit; do nothing if the run owes a save or has ended.

        A cancelled run owes none.
        """
        with self._lock:  # and keep it: the other thread reports nothing more
            owes_save = self.owes_save and outcome != "cancelled"
            if not owes_save and not self._has_ended:
                self._append(EndRecord(outcome=outcome))
                os._exit(exit_code)

    def _append(self, record: Record) -> None:
        line = json.dumps({"seq": self._seq + 1, **to_json(record)}, separators=(",", ":"), allow_nan=False) + "\n"
        self._seq += 1
        self._unwritten += line.encode()
        try:
            failpoint("spool.write")
            self._write()
        except OSError:
            if not isinstance(record, EndRecord) or self._reserve is None:
                raise
            self._reserve.close()
            self._write()
        self._has_ended = isinstance(record, EndRecord)
        if isinstance(record, CheckpointRecord | EndRecord):
            failpoint("spool.fsync")
            os.fsync(self._descriptor)
        if self._has_ended and self._reserve is not None:
            self._reserve.close()

    def request(self) -> Request | None:
        return self._request()

    def _write(self) -> None:
        while self._unwritten:  # a nearly full disk may take only a part
            self._unwritten = self._unwritten[os.write(self._descriptor, self._unwritten) :]


def _reserve(folder: Path) -> IO[bytes] | None:
    """Make a file without a name; closing it gives its disk space back."""
    try:
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (lives as long as its reporter)
        file.write(os.urandom(_RESERVED_BYTES))  # random, since some file systems compress or skip zeros
        os.fsync(file.fileno())
    except OSError:
        return None
    return file
