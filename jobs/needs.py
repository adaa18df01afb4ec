"""The files and jobs that unfinished jobs and running sweeps need: what no deletion, retention or report may give away.

    a job   needs the checkpoint that it starts from or evaluates, the weights that it starts from, and the jobs that it
            waits for
    a sweep needs the weights that its jobs start from, also those that it has yet to submit

A checkpoint is named by its id or its sha256, imported weights by their sha256.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from sqlalchemy import literal, select, union_all
from sqlalchemy.orm import Session

from jobs.models import Dependency, Job, Sweep, SweepTrial
from jobs.status import TERMINAL, Status

_MOST_NAMES = 500  # of one statement; more are compared here


class Need(NamedTuple):
    """An unfinished job or a running sweep, and what it needs: the id or digest of a file, or the id of a job."""

    kind: Literal["job", "sweep"]
    user_id: str
    needed: str

    @property
    def user(self) -> str:
        """The job or sweep, for messages."""
        return f"{self.kind} {self.user_id}"


def of_files(session: Session, names: Collection[str]) -> list[Need]:
    """Return the needs for files.

    Args:
        session: a transaction; there is one statement.
        names: ids and digests.
    """
    if not names:
        return []
    is_unfinished, is_running = Job.status.not_in(TERMINAL), Sweep.status == Status.RUNNING
    of_job = (
        Job.resume_checkpoint_id,
        Job.spec["features"]["checkpoint_id"].as_string(),
        Job.spec["weights"].as_string(),
    )
    base, trial = Sweep.base["weights"].as_string(), SweepTrial.settings["weights"].as_string()
    trials = select(literal("sweep"), Sweep.id, trial).join(SweepTrial, SweepTrial.sweep_id == Sweep.id)
    all_needs = union_all(
        *(select(literal("job").label("kind"), Job.id, name.label("needed")).where(is_unfinished) for name in of_job),
        select(literal("sweep"), Sweep.id, base).where(is_running),
        trials.where(is_running),
    ).subquery()
    statement = select(all_needs).where(all_needs.c.needed.is_not(None))
    if len(names) <= _MOST_NAMES:
        statement = statement.where(all_needs.c.needed.in_(names))
    chosen = set(names)
    needs = [Need(*row) for row in session.execute(statement)]
    return sorted(each for each in needs if each.needed in chosen)


def of_jobs(session: Session, ids: Collection[str]) -> list[Need]:
    """Return the needs for the success or a checkpoint of jobs that are waited for."""
    waiting = select(Dependency.job_id, Dependency.needs_job_id).join(Job, Job.id == Dependency.job_id)
    rows = session.execute(waiting.where(Dependency.needs_job_id.in_(ids), Job.status.not_in(TERMINAL)))
    return [Need("job", *row) for row in rows]
