"""The promises that rows and files must keep after any faults.

`jobs.audit` replays every event; this module reads the files, and compares the promises to clients
with the rows: each accepted job, the job of each key, the value of each step.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs.audit import audit
from jobs.database import Database
from jobs.models import Attempt, Checkpoint, IdempotencyKey, Job
from tests.chaos.body import STEPS_PER_EPOCH, value
from tests.jobs import rows


@dataclass(frozen=True)
class Accepted:
    """A job that a server accepted: its request, and the end states that it may have.

    Without `epochs` it is a real training, and the value of a step is not checked.
    """

    job_id: str
    seed: int
    epochs: int | None
    may_end: frozenset[str]
    key: str | None = None


class Ledger:
    """Reads all rows and files once; `problems` has a line for each broken promise.

    Args:
        database, checkpoints_dir: the service.
        flipped: storage keys of files that a fault has damaged.
    """

    def __init__(self, database: Database, checkpoints_dir: Path, flipped: Collection[str] = ()) -> None:
        self._folder, self._flipped = checkpoints_dir, flipped
        self._findings = [f"{each.job_id}: {each.message}" for each in audit(database).findings]
        self._points = _grouped(rows.stored_points(database))
        with database.read() as session:
            self.jobs: dict[str, Any] = {row.id: row for row in session.execute(select(Job)).scalars()}
            self._attempts = _grouped(session.execute(select(Attempt).order_by(Attempt.number)).scalars())
            self._checkpoints = _grouped(session.execute(select(Checkpoint)).scalars())
            keys = session.execute(select(IdempotencyKey.key, IdempotencyKey.job_id)).all()
            self._keys: dict[str, str] = dict(keys)  # type: ignore[arg-type]

    def problems(self, accepted: Iterable[Accepted]) -> list[str]:
        """Return a line for each broken promise."""
        result = self._findings + [problem for job in self.jobs.values() for problem in self._of_job(job)]
        accepted = list(accepted)
        for each in accepted:
            result += [f"{each.job_id}: {problem}" for problem in self._of_accepted(each)]
        doubled = [job for job, count in Counter(each.job_id for each in accepted).items() if count > 1]
        return result + [f"{job}: two keys made one job" for job in doubled]

    def num_attempts(self) -> int:
        return sum(map(len, self._attempts.values()))

    def reaped(self) -> list[Any]:
        """Return the attempts that were declared lost."""
        return [row for rows in self._attempts.values() for row in rows if row.end_reason == "worker_lost"]

    def killed(self) -> list[Any]:
        """Return the attempts whose training process was killed."""
        return [row for rows in self._attempts.values() for row in rows if row.end_reason == "killed"]

    def counts(self) -> Counter[str]:
        """Return the number of jobs by status."""
        return Counter(job.status for job in self.jobs.values())

    def _of_job(self, job: Any) -> Iterator[str]:
        attempts = self._attempts[job.id]
        for one, other in pairwise(attempts):
            if one.ended_at is None or other.started_at < one.ended_at:
                yield f"{job.id}: attempts {one.number} and {other.number} overlap"
        yield from self._of_files(job)

    def _of_files(self, job: Any) -> Iterator[str]:
        for row in self._checkpoints[job.id]:
            path = self._folder / row.storage_key
            if row.deleted_at is not None or row.storage_key in self._flipped:
                continue
            if row.damaged_at is not None:
                yield f"{job.id}: checkpoint {row.storage_key} is marked as damaged and was never damaged"
            if not path.is_file():
                yield f"{job.id}: the file of checkpoint {row.storage_key} is missing"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
                yield f"{job.id}: the file of checkpoint {row.storage_key} is not the registered one"

    def _of_accepted(self, each: Accepted) -> Iterator[str]:
        job = self.jobs.get(each.job_id)
        if job is None:
            yield "it was accepted and is lost"
            return
        if each.key is not None and self._keys.get(each.key) != each.job_id:
            yield f"its key {each.key} made {self._keys.get(each.key)}"
        if job.status not in each.may_end:
            yield f"it is {job.status} ({job.status_reason}: {job.status_message}), not {' or '.join(each.may_end)}"
        if each.epochs is None:
            return
        curve = self._curve(each.job_id)
        if job.status == "succeeded" and sorted(curve) != list(range(1, each.epochs * STEPS_PER_EPOCH + 1)):
            yield f"its curve has steps {sorted(curve)}"
        wrong = [step for step, values in curve.items() if values != [value(each.seed, step)]]
        if wrong:
            yield f"steps {wrong} are doubled or not of its own"

    def _curve(self, job_id: str) -> dict[int, list[float]]:
        """Return the value of each step; an attempt counts up to the step where a later one started."""
        starts = [(row.number, row.start_step) for row in self._attempts[job_id] if row.start_step is not None]
        curve: dict[int, list[float]] = defaultdict(list)
        for point in self._points[job_id]:
            later = [start for number, start in starts if number > point.attempt]
            if point.step <= min(later, default=point.step):
                curve[point.step].append(point.value)
        return curve


def _grouped(rows: Iterable[Any]) -> dict[str, list[Any]]:
    result: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        result[row.job_id].append(row)
    return result
