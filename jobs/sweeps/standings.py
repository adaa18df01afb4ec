"""Standings of a sweep's trials for display; no decision depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from jobs.errors import existing
from jobs.models import Sweep, SweepTrial
from jobs.queries import Page
from jobs.status import Status
from jobs.sweeps.halving import ranked
from jobs.sweeps.space import Settings
from jobs.sweeps.trial_results import TrialResult, trial_results

# waiting: not started; stopped: measured, but not promoted; finished: measured at the last rung
State = Literal["waiting", "unfinished", "measured", "stopped", "finished", "failed", "cancelled"]


@dataclass(frozen=True)
class Standing:
    """A trial; `by_rung` holds its result at each rung that it has started."""

    number: int
    settings: Settings
    state: State
    by_rung: list[TrialResult]

    @property
    def measured(self) -> TrialResult | None:
        """The result at the last rung where the trial has a value."""
        measured = [outcome for outcome in self.by_rung if outcome.value is not None]
        return measured[-1] if measured else None

    @property
    def doing(self) -> str:
        """The most advanced activity of its unfinished runs; empty if there is none."""
        unfinished = [run for run in self.by_rung[-1].runs if run.state == "unfinished"] if self.by_rung else []
        activities = {"measuring" if run.status == Status.SUCCEEDED else run.status for run in unfinished}
        return next((word for word in ("running", "measuring", "paused", "queued") if word in activities), "")

    @property
    def value(self) -> float | None:
        return self.measured.value if self.measured else None


def get_sweep(session: Session, sweep_id: str) -> Sweep:
    """Return one sweep.

    Raises:
        NotFound: there is no such sweep.
    """
    return existing(session.get(Sweep, sweep_id), "sweep", sweep_id)


def list_sweeps(
    session: Session, *, status: Sequence[str] = (), cursor: str | None = None, limit: int = 50
) -> Page[Sweep]:
    """Return a page of sweeps, newest first; `cursor` is the last id of the previous page."""
    statement = select(Sweep).order_by(Sweep.id.desc()).limit(limit + 1)
    if status:
        statement = statement.where(Sweep.status.in_(status))
    if cursor:
        statement = statement.where(Sweep.id < cursor[:36])
    rows = list(session.execute(statement).scalars())
    return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)


def newest_states(session: Session, limit: int = 50) -> dict[str, tuple[str, int]]:
    """Return status and time of change by id, of the newest sweeps and of all running ones."""
    newest = select(Sweep.id).order_by(Sweep.id.desc()).limit(limit).subquery()
    shown = or_(Sweep.status == Status.RUNNING, Sweep.id.in_(select(newest.c.id)))
    rows = session.execute(select(Sweep.id, Sweep.status, Sweep.updated_at).where(shown))
    return {sweep_id: (status, updated_at) for sweep_id, status, updated_at in rows}


def trial_counts(session: Session, sweep_ids: Sequence[str]) -> dict[str, int]:
    statement = select(SweepTrial.sweep_id, func.count()).where(SweepTrial.sweep_id.in_(sweep_ids))
    return {row[0]: row[1] for row in session.execute(statement.group_by(SweepTrial.sweep_id))}


def standings(session: Session, sweep: Sweep) -> list[Standing]:
    """Return the standing of every trial, in the order of their numbers."""
    results = trial_results(session, sweep)
    started = {rung for _, rung in results}
    trials = select(SweepTrial).where(SweepTrial.sweep_id == sweep.id).order_by(SweepTrial.number)
    table = []
    for trial in session.execute(trials).scalars():
        by_rung = [results[trial.number, rung] for rung in range(len(sweep.rungs)) if (trial.number, rung) in results]
        state = _state(sweep, by_rung, is_passed=len(by_rung) in started)
        table.append(Standing(trial.number, trial.settings, state, by_rung))
    return table


def _state(sweep: Sweep, by_rung: Sequence[TrialResult], *, is_passed: bool) -> State:
    if not by_rung:
        return "waiting"
    state = by_rung[-1].state
    if by_rung[-1].is_cancelled and state == "failed":
        return "cancelled"
    if state != "measured":
        return state
    if len(by_rung) == len(sweep.rungs):
        return "finished"
    return "stopped" if is_passed or sweep.status != Status.RUNNING else "measured"


def leader(sweep: Sweep, table: Sequence[Standing]) -> Standing | None:
    """Return the best trial: that of an ended sweep, or so far the best of the furthest rung with a value."""
    if sweep.best_trial is not None:
        return table[sweep.best_trial]
    for rung in reversed(range(len(sweep.rungs))):
        order = ranked(values_at(table, rung), maximize=sweep.direction == "maximize")
        if order:
            return table[order[0][0]]
    return None


def values_at(table: Sequence[Standing], rung: int) -> dict[int, float | None]:
    """Return the values of the trials that have started a rung, by number."""
    return {each.number: each.by_rung[rung].value for each in table if len(each.by_rung) > rung}
