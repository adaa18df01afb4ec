"""What a run tells the world, and what the world may ask of it.

The loop knows only these verbs; none of them ever waits for a service.  Every verb becomes one JSON record, so that
each reporter is a single method:

    Reporter ── NullReporter      forgets everything
             ├─ MemoryReporter    keeps the records in a list
             ├─ ConsoleReporter   prints what a person wants to read
             └─ SpoolReporter     appends numbered JSON lines to a file, the record that a supervisor delivers
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from wcl_core.failpoints import failpoint

Request = Literal["cancel", "drain", "pause"]
Outcome = Literal["succeeded", "failed", "cancelled", "drained", "paused"]
Phase = Literal["load", "train", "evaluate", "save"]
MediaType = Literal["image/png", "application/json"]
Record = dict[str, Any]

OUTCOME_OF: dict[Request, Outcome] = {"cancel": "cancelled", "drain": "drained", "pause": "paused"}

_RESERVE_BYTES = 32_768


class Reporter:
    """The verbs; a subclass says where a record goes."""

    def emit(self, record: Record) -> None:
        """Take one record `{"type": ..., ...}` of JSON values."""
        raise NotImplementedError

    def request(self) -> Request | None:
        """What the run was asked to do; it looks after every step."""
        return None

    def started(self, **facts: Any) -> None:
        """Facts of the environment and where the run starts; exact resume holds only while they stay equal."""
        self.emit({"type": "started", **facts})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Named values at a step; one that is not finite is reported as null, beside a warning."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.emit({"type": "metrics", "step": step, "values": finite})
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
    ) -> None:
        """How far the run is; only the latest one matters."""
        self.emit(
            {
                "type": "progress",
                "step": step,
                "total_steps": total_steps,
                "epoch": round(epoch, 4),
                "total_epochs": total_epochs,
                "images_per_second": None if images_per_second is None else round(images_per_second, 2),
                "eta_seconds": None if eta_seconds is None else round(eta_seconds, 1),
                "phase": phase,
            }
        )

    def checkpoint(
        self,
        *,
        step: int,
        epoch: int,
        path: str,
        sha256: str,
        size: int,
        metrics: Mapping[str, float],
        kind: Literal["training", "embeddings"] = "training",
    ) -> None:
        """A checkpoint file lies whole at `path`, relative to the run's folder; `size` in bytes.

        A file of another `kind` is kept and served in the same way, but no run starts from it.
        """
        self.emit(
            {
                "type": "checkpoint",
                "step": step,
                "epoch": epoch,
                "path": path,
                "sha256": sha256,
                "size": size,
                "metrics": dict(metrics),
                **({} if kind == "training" else {"kind": kind}),
            }
        )

    def artifact(self, *, name: str, path: str, sha256: str, size: int, media_type: MediaType) -> None:
        """A small file to be looked at lies whole at `path`, relative to the run's folder; see `artifacts.keep`."""
        file = {"path": path, "sha256": sha256, "size": size, "media_type": media_type}
        self.emit({"type": "artifact", "name": name, **file})

    def groups(self, *, epoch: int, step: int, labels: Sequence[int]) -> None:
        """Weak labels of the probe's images, in the order of `probe.png`, after so many epochs."""
        self.emit({"type": "groups", "epoch": epoch, "step": step, "labels": list(labels)})

    def evaluation(self, result: Mapping[str, Any]) -> None:
        """One measured value with its protocol, version, data digests and parameters."""
        self.emit({"type": "evaluation", **result})

    def warning(self, reason: str, message: str) -> None:
        """Something the owner of the run should know; the run goes on."""
        self.emit({"type": "warning", "reason": reason, "message": _plain(message)})

    def log(self, message: str, level: str = "info") -> None:
        """A line for people."""
        self.emit({"type": "log", "level": level, "message": _plain(message)})

    def end(self, outcome: Outcome, reason: str | None = None, message: str | None = None) -> None:
        """The last record of a run."""
        text = None if message is None else _plain(message)
        self.emit({"type": "end", "outcome": outcome, "reason": reason, "message": text})


class NullReporter(Reporter):
    """Forgets everything."""

    def emit(self, record: Record) -> None:
        del record


class MemoryReporter(Reporter):
    """Keeps every record; `ask` is called after each step with the last record's list and may request an end."""

    def __init__(self, ask: Callable[[list[Record]], Request | None] | None = None) -> None:
        self.records: list[Record] = []
        self._ask = ask

    def emit(self, record: Record) -> None:
        self.records.append(record)

    def request(self) -> Request | None:
        return self._ask(self.records) if self._ask else None

    def of(self, kind: str) -> list[Record]:
        """The records of one type, in order."""
        return [record for record in self.records if record["type"] == kind]


class ConsoleReporter(Reporter):
    """Prints metrics, evaluations, checkpoints, artifacts and warnings, one line each.

    Args:
        request: reads what the run was asked to do.
        stream: stderr when none is given.
    """

    def __init__(self, request: Callable[[], Request | None] = lambda: None, stream: TextIO | None = None) -> None:
        self._request = request
        self._stream = stream

    def emit(self, record: Record) -> None:
        fields = dict(record)
        kind = fields.pop("type")
        if kind in ("progress", "groups"):
            return
        if kind == "metrics":
            fields = {"step": fields["step"], **fields["values"]}
        text = "  ".join(f"{name}={_brief(value)}" for name, value in fields.items() if value is not None)
        print(f"{kind:<10} {text}", file=self._stream or sys.stderr, flush=True)

    def request(self) -> Request | None:
        return self._request()


def _brief(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


class SpoolReporter(Reporter):
    """Appends one JSON line per record, numbered from 1 without a gap.

    A line is in the kernel when `emit` returns, so it survives the death of the process; checkpoints and the end are
    also forced to the disk, since what they promise must survive the death of the machine.  What a full disk did not
    take is written before the next record, so a line is never torn; the end has room set aside for it.

    Args:
        path: the spool; it must not exist yet.
        request: reads what the run was asked to do.
    """

    def __init__(self, path: Path, request: Callable[[], Request | None] = lambda: None) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._request = request
        self._seq = 0
        self._unwritten = b""
        self._reserve = _reserve(path.parent)

    def emit(self, record: Record) -> None:
        line = json.dumps({"seq": self._seq + 1, **record}, separators=(",", ":"), allow_nan=False) + "\n"
        self._seq += 1
        self._unwritten += line.encode()
        try:
            failpoint("spool.write")
            self._write()
        except OSError:
            if record["type"] != "end" or self._reserve is None:
                raise
            self._reserve.close()
            self._write()
        if record["type"] in ("checkpoint", "end"):
            failpoint("spool.fsync")
            os.fsync(self._descriptor)

    def request(self) -> Request | None:
        return self._request()

    def _write(self) -> None:
        while self._unwritten:  # a nearly full disk may take only a part
            self._unwritten = self._unwritten[os.write(self._descriptor, self._unwritten) :]


def _reserve(folder: Path) -> IO[bytes] | None:
    """A nameless file whose disk space closing it gives back."""
    try:
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (lives as long as its reporter)
        file.write(os.urandom(_RESERVE_BYTES))  # random, since some file systems compress or skip zeros
        os.fsync(file.fileno())
    except OSError:
        return None
    return file


def _plain(text: str) -> str:
    """Text that every database takes: no lone surrogates, as in undecodable file names, and no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
