"""The steps of a sweep.  The next step follows from the results of its jobs; no other state is stored.

    a trial starts       while fewer than `max_parallel` are unfinished, in the order of their numbers
    a rung is ranked     once every trial of it is measured or failed; a failed trial is never promoted
    the sweep ends       after its last rung, or when no trial is left, or when a user cancels it

Several reconcilers may advance a sweep at once: each locks the sweep's row, and a unique index refuses a second job of
one place.  A step is one transaction, so after a crash the next poll takes the step again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session, aliased

from jobs import access, activity, transitions
from jobs.checks import completed
from jobs.database import new_id, now_ms
from jobs.errors import Conflict, NotFound
from jobs.models import Dataset, Job, Sweep, SweepTrial
from jobs.new_job import add
from jobs.status import TERMINAL, Status
from jobs.sweeps.halving import Rung, ranked
from jobs.sweeps.metric import Metric
from jobs.sweeps.trial_results import TrialResults, trial_results
from jobs.sweeps.trials import Design, Place

_RUNS_AT_ONCE = 32  # keeps transactions short; the reconciler repeats the step until no trial is left to start


@dataclass(frozen=True)
class Step:
    """The next step: trials to start, as (trial, rung); or the end, with the best trial and its value."""

    begin: list[tuple[int, int]] = field(default_factory=list)
    is_end: bool = False
    best: tuple[int, float] | None = None

    def __bool__(self) -> bool:
        return bool(self.begin) or self.is_end


def next_step(sweep: Sweep, results: TrialResults) -> Step:
    """Return the next step; it depends only on the sweep and on the results of its trials."""
    entered = list(range(sweep.rungs[0]["trials"]))
    for rung in range(len(sweep.rungs)):
        waiting = [trial for trial in entered if (trial, rung) not in results]
        unfinished = [t for t in entered if (t, rung) in results and results[t, rung].state == "unfinished"]
        if waiting or unfinished:
            room = min(max(0, sweep.max_parallel - len(unfinished)), max(1, _RUNS_AT_ONCE // len(sweep.seeds)))
            return Step([(trial, rung) for trial in waiting[:room]])
        values = {trial: results[trial, rung].value for trial in entered}
        order = ranked(values, maximize=sweep.direction == "maximize")
        if not order or rung == len(sweep.rungs) - 1:
            return Step(is_end=True, best=order[0] if order else None)
        entered = [trial for trial, _ in order[: sweep.rungs[rung + 1]["trials"]]]
    raise AssertionError("unreachable")


def due(session: Session) -> list[str]:
    """Return the ids of the running sweeps that have a next step; it reads the results of all of them."""
    running = session.execute(_running()).scalars()
    return [sweep.id for sweep in running if next_step(sweep, trial_results(session, sweep))]


@cache
def _running() -> Select[Sweep]:
    """Make the statement of each poll once, since its making takes as long as its execution."""
    return select(Sweep).where(Sweep.status == Status.RUNNING).order_by(Sweep.id)


def advance(session: Session, sweep_id: str) -> Step:
    """Take the next step of a sweep, unless another reconciler has locked it."""
    running = select(Sweep).where(Sweep.id == sweep_id, Sweep.status == Status.RUNNING)
    sweep = session.execute(running.with_for_update(skip_locked=True)).scalar_one_or_none()
    return Step() if sweep is None else take(session, sweep)


def take(session: Session, sweep: Sweep) -> Step:
    """Take the next step of a sweep that this transaction has locked."""
    step = next_step(sweep, trial_results(session, sweep))
    if step.begin:
        _begin(session, sweep, step)
    elif step.best is not None:
        number, value = step.best
        _end(session, sweep.id, Status.SUCCEEDED, best_trial=number, best_value=value)
    elif step.is_end:
        _end(session, sweep.id, Status.FAILED, status_message="no trial has a result")
    return step


def _begin(session: Session, sweep: Sweep, step: Step) -> None:
    named = select(Dataset).where(Dataset.name == sweep.dataset_name)
    dataset = session.execute(named).scalar_one_or_none()
    if dataset is None or sweep.dataset_digest not in ("", dataset.digest):  # empty while the dataset is being read
        message = f"the dataset {sweep.dataset_name} has changed since the first trials; start a new sweep"
        _end(session, sweep.id, Status.FAILED, status_message=message)
        return
    design = design_of(session, sweep)
    for trial, rung in step.begin:
        group = {"group_id": new_id()} if len(sweep.seeds) > 1 else {}
        for seed in sweep.seeds:
            new = design.job(Place(trial, rung, seed), sweep_id=sweep.id, **group)
            add(session, completed(session, new, []), dataset, waits=False, digest=sweep.dataset_digest)
    session.execute(update(Sweep).where(Sweep.id == sweep.id).values(updated_at=now_ms()))


def design_of(session: Session, sweep: Sweep) -> Design:
    """Return the design that the sweep was submitted with."""
    statement = select(SweepTrial.settings).where(SweepTrial.sweep_id == sweep.id).order_by(SweepTrial.number)
    return Design(
        name=sweep.name,
        base=sweep.base,
        metric=Metric.model_validate(sweep.metric),
        seeds=sweep.seeds,
        trials=list(session.execute(statement).scalars()),
        rungs=[Rung(**rung) for rung in sweep.rungs],
        options=sweep.options,
        preset=sweep.preset,
        created_by=sweep.created_by,
    )


def _end(session: Session, sweep_id: str, status: Status, **values: Any) -> bool:
    statement = (
        update(Sweep)
        .where(Sweep.id == sweep_id, Sweep.status == Status.RUNNING)
        .values(status=status, ended_at=now_ms(), updated_at=now_ms(), **values)
        .returning(Sweep.id)
    )
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return result.scalar_one_or_none() is not None


def cancel(session: Session, sweep_id: str) -> None:
    """End the sweep and cancel its jobs: waiting ones at once, running ones after they have saved.

    Raises:
        NotFound: there is no such sweep.
        Conflict: it has ended.
    """
    row = session.execute(select(Sweep.created_by).where(Sweep.id == sweep_id)).one_or_none()
    if row is not None:
        access.check_owner(session, row.created_by, f"sweep {sweep_id}")
    if not _end(session, sweep_id, Status.CANCELLED):
        status = session.execute(select(Sweep.status).where(Sweep.id == sweep_id)).scalar_one_or_none()
        if status is None:
            raise NotFound(f"there is no sweep {sweep_id!r}")
        raise Conflict(f"cannot cancel a sweep that is {status}")
    name = session.execute(select(Sweep.name).where(Sweep.id == sweep_id)).scalar_one()
    activity.note(session, "sweep.cancel", sweep_id, name)
    parent = aliased(Job)
    own = select(Job.id).where(Job.sweep_id == sweep_id, Job.status.not_in(TERMINAL))
    measuring = (
        select(Job.id)
        .join(parent, parent.id == Job.parent_id)
        .where(parent.sweep_id == sweep_id, Job.kind == "evaluate", Job.status.not_in(TERMINAL))
    )
    for job_id in sorted({*session.execute(own).scalars(), *session.execute(measuring).scalars()}):
        with suppress(Conflict):  # the job has just ended
            transitions.cancel_below(session, job_id)
