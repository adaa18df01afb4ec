"""How a sweep goes on.  What comes next follows from what its jobs have come to, and nothing else is remembered.

    a trial begins       while fewer than `max_parallel` are unfinished, in the order of their numbers
    a rung is ranked     once every trial that entered it is measured or failed; a failed one never goes on
    the sweep ends       after its last rung, or when nobody is left; or a person cancels it

Many reconcilers may do this at once: who goes on holds the sweep's row, and a place that has its job cannot get a
second one, by a unique index.  A crash leaves the step whole or undone, and whoever looks next takes it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session, aliased

from jobs import transitions
from jobs.database import new_id, now_ms
from jobs.errors import Conflict, NotFound
from jobs.models import Dataset, Job, Sweep, SweepTrial
from jobs.new_job import add
from jobs.status import TERMINAL, Status
from jobs.sweeps.halving import Rung, ranked
from jobs.sweeps.metric import Metric
from jobs.sweeps.trial_results import TrialResults, trial_results
from jobs.sweeps.trials import Design, Place

_RUNS_AT_ONCE = 32  # so that no transaction is long; whoever begins them goes on until there is nothing to begin


@dataclass(frozen=True)
class Step:
    """What has to be done now: trials to begin, as (trial, rung); or the end, with the best trial and its value."""

    begin: list[tuple[int, int]] = field(default_factory=list)
    is_end: bool = False
    best: tuple[int, float] | None = None

    def __bool__(self) -> bool:
        return bool(self.begin) or self.is_end


def next_step(sweep: Sweep, found: TrialResults) -> Step:
    """A function of the sweep and of what its trials have come to."""
    entered = list(range(sweep.rungs[0]["trials"]))
    for rung in range(len(sweep.rungs)):
        waiting = [trial for trial in entered if (trial, rung) not in found]
        unfinished = [t for t in entered if (t, rung) in found and found[t, rung].state == "unfinished"]
        if waiting or unfinished:
            room = min(max(0, sweep.max_parallel - len(unfinished)), max(1, _RUNS_AT_ONCE // len(sweep.seeds)))
            return Step([(trial, rung) for trial in waiting[:room]])
        values = {trial: found[trial, rung].value for trial in entered}
        order = ranked(values, maximize=sweep.direction == "maximize")
        if not order or rung == len(sweep.rungs) - 1:
            return Step(is_end=True, best=order[0] if order else None)
        entered = [trial for trial, _ in order[: sweep.rungs[rung + 1]["trials"]]]
    raise AssertionError("unreachable")


def due(session: Session) -> list[str]:
    """Ids of the sweeps that have something to do."""
    running = session.execute(select(Sweep).where(Sweep.status == Status.RUNNING).order_by(Sweep.id)).scalars()
    return [sweep.id for sweep in running if next_step(sweep, trial_results(session, sweep))]


def advance(session: Session, sweep_id: str) -> Step:
    """Take the next step of a sweep, unless somebody else is just doing so."""
    mine = select(Sweep).where(Sweep.id == sweep_id, Sweep.status == Status.RUNNING)
    sweep = session.execute(mine.with_for_update(skip_locked=True)).scalar_one_or_none()
    return Step() if sweep is None else take(session, sweep)


def take(session: Session, sweep: Sweep) -> Step:
    """Take the next step of a sweep whose row this transaction holds."""
    step = next_step(sweep, trial_results(session, sweep))
    if step.begin:
        _begin(session, sweep, step)
    elif step.best is not None:
        number, value = step.best
        _end(session, sweep.id, Status.SUCCEEDED, best_trial=number, best_value=value)
    elif step.is_end:
        _end(session, sweep.id, Status.FAILED, status_message="no trial could be measured")
    return step


def _begin(session: Session, sweep: Sweep, step: Step) -> None:
    known = (Dataset.name == sweep.dataset_name, Dataset.digest == sweep.dataset_digest)
    dataset = session.execute(select(Dataset).where(*known)).scalar_one_or_none()
    if dataset is None:
        message = f"the dataset {sweep.dataset_name} is not what the first trials were trained on any more"
        _end(session, sweep.id, Status.FAILED, status_message=message)
        return
    design = design_of(session, sweep)
    for trial, rung in step.begin:
        group = {"group_id": new_id()} if len(sweep.seeds) > 1 else {}
        for seed in sweep.seeds:
            new = design.job(Place(trial, rung, seed), sweep_id=sweep.id, **group)
            add(session, new, dataset, waits=False)
    session.execute(update(Sweep).where(Sweep.id == sweep.id).values(updated_at=now_ms()))


def design_of(session: Session, sweep: Sweep) -> Design:
    """The sweep as it was designed when it was submitted."""
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
    """End the sweep and cancel its jobs: those that wait at once, running ones after they have saved.

    Raises:
        NotFound, Conflict: no such sweep; it has ended.
    """
    if not _end(session, sweep_id, Status.CANCELLED):
        status = session.execute(select(Sweep.status).where(Sweep.id == sweep_id)).scalar_one_or_none()
        if status is None:
            raise NotFound(f"there is no sweep {sweep_id}")
        raise Conflict(f"cannot cancel a sweep that is {status}")
    parent = aliased(Job)
    own = select(Job.id).where(Job.sweep_id == sweep_id, Job.status.not_in(TERMINAL))
    measuring = (
        select(Job.id)
        .join(parent, parent.id == Job.parent_id)
        .where(parent.sweep_id == sweep_id, Job.kind == "evaluate", Job.status.not_in(TERMINAL))
    )
    for job_id in sorted({*session.execute(own).scalars(), *session.execute(measuring).scalars()}):
        with suppress(Conflict):  # it has just ended by itself
            transitions.cancel(session, job_id)
