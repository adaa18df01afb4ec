"""Attempts of a host whose worker has died: their folders with valid spools, for a recovery."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs import queries, transitions, workers
from jobs.attempts import AttemptRef
from jobs.database import Database, new_id
from jobs.datasets import DatasetFacts
from jobs.eligibility import WorkerFacts
from jobs.models import Attempt, Event, Job
from jobs.settings import Settings
from jobs.storage import LocalStorage
from tests.worker.running import SHORT, Jobs
from wcl_core.protocol import SPOOL_FILE, RunFile
from worker.attempt_folder import place_of

PRECIOUS = b"a file of the user"
_SPEC = SHORT | {"checkpoints": {"keep_last": 1}}


class Leftovers:
    """A database, a storage, and the attempts of a worker that has died.

    Args:
        database: migrated and without rows.
        folder: of the host; `precious` in it is a file that no attempt may touch.
        stall_seconds: a setting.

    Attributes:
        precious: as above.
    """

    def __init__(self, database: Database, folder: Path, stall_seconds: float = 3600) -> None:
        self.database = database
        self.settings = Settings(data_dir=folder / "data", stall_seconds=stall_seconds)
        self.storage = LocalStorage(self.settings.checkpoints_dir)
        self.precious = folder / "precious"
        self.precious.write_bytes(PRECIOUS)
        self._worker = WorkerFacts(new_id(), "w", "default", (), {"digits": "d" * 64}, (1,))
        dataset = DatasetFacts("digits", "builtin", "d" * 64, {"train": 1437, "test": 360}, list("0123456789"))
        database.write(lambda session: workers.register(session, self._worker, 1, [dataset]))

    def attempt(self) -> AttemptRef:
        """Claim a job, and leave its folder with a run file and without a spool."""
        Jobs(self.database).submit(_SPEC)
        claim = self.database.write(lambda session: transitions.claim(session, self._worker))
        assert claim
        folder = self.folder(claim.attempt)
        folder.mkdir(parents=True)
        write_run_file(folder, claim.attempt)
        return claim.attempt

    def folder(self, attempt: AttemptRef) -> Path:
        return self.settings.attempts_dir / attempt.folder

    def write_spool(self, attempt: AttemptRef, lines: list[bytes]) -> None:
        (self.folder(attempt) / SPOOL_FILE).write_bytes(b"".join(line + b"\n" for line in lines))

    def job(self, attempt: AttemptRef) -> Job:
        with self.database.read() as session:
            return queries.get_job(session, attempt.job_id)

    def has_ended(self, attempt: AttemptRef) -> bool:
        with self.database.read() as session:
            row = session.execute(select(Attempt.ended_at).where(attempt.is_row())).one()
        return row.ended_at is not None

    def warnings(self, job_id: str) -> list[str]:
        """Return the reasons of the job's warnings."""
        with self.database.read() as session:
            events = session.execute(select(Event.data).filter_by(job_id=job_id, type="warning").order_by(Event.seq))
            return [data["reason"] for data in events.scalars()]

    def foreign_files(self) -> list[str]:
        """Return the stored files that are not those of `valid_records`."""
        files = [path for path in self.storage.root.rglob("*") if path.is_file() or path.is_symlink()]
        return [str(path) for path in files if not path.is_file() or path.read_bytes() == PRECIOUS]


def write_run_file(folder: Path, attempt: AttemptRef, /, **changes: Any) -> None:
    """Write the run file as a worker of this host does."""
    identity = {"job_id": attempt.job_id, "attempt": attempt.number, "token": attempt.token, "kind": "pretrain"}
    facts = {"host": socket.gethostname(), "place": place_of(folder), "spec": {}, "dataset": {"kind": "builtin"}}
    RunFile.model_validate(identity | facts | changes).write(folder)


def valid_records(folder: Path) -> list[dict[str, Any]]:
    """Write the files of a run that has succeeded, and return its records."""
    (folder / "checkpoints").mkdir()
    checkpoint, artifact = b"weights" * 100, b"{}"
    (folder / "checkpoints/step-00000005.safetensors").write_bytes(checkpoint)
    (folder / "map.json").write_bytes(artifact)
    records: list[dict[str, Any]] = [
        {"type": "started", "start_step": 0, "torch": "2.15", "devices": ["cpu"], "threads": 1},
        {"type": "progress", "step": 1, "total_steps": 5, "epoch": 0.2, "total_epochs": 1, "phase": "train"},
        {"type": "metrics", "step": 1, "values": {"train/loss": 1.5, "train/lr": 0.1, "weak/components": None}},
        {"type": "log", "level": "info", "message": "epoch 1 of 1"},
        {"type": "groups", "epoch": 1, "step": 5, "labels": [0, 0, 1, 2]},
        {"type": "warning", "reason": "collapse", "message": "the embeddings collapse"},
        {
            "type": "checkpoint",
            "step": 5,
            "epoch": 1,
            "path": "checkpoints/step-00000005.safetensors",
            "sha256": hashlib.sha256(checkpoint).hexdigest(),
            "size": len(checkpoint),
            "metrics": {"train/loss": 1.5},
        },
        {
            "type": "artifact",
            "name": "map.json",
            "path": "map.json",
            "sha256": hashlib.sha256(artifact).hexdigest(),
            "size": len(artifact),
            "media_type": "application/json",
        },
        {"type": "end", "outcome": "succeeded", "reason": None, "message": None},
    ]
    return [{"seq": seq} | record for seq, record in enumerate(records, 1)]


def renumbered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records in this order, with the numbers of a valid spool."""
    return [record | {"seq": seq} for seq, record in enumerate(records, 1)]


def lines_of(records: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(record).encode() for record in records]
