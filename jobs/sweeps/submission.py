"""A new sweep into its rows, with its first jobs; and what it would be, without making it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from jobs import submission
from jobs.checks import check
from jobs.database import new_id
from jobs.errors import FieldError, Invalid
from jobs.models import Dataset, Sweep, SweepTrial
from jobs.status import Status
from jobs.sweeps.progress import take
from jobs.sweeps.trials import Design, NewSweep, Place, located


def submit(session: Session, new: NewSweep, design: Design) -> Sweep:
    """Add the sweep and begin its first trials.

    Raises:
        Invalid: what the database knows to be wrong with any trial.
    """
    dataset = _checked(session, design)
    sweep = Sweep(
        id=new_id(),
        created_by=new.created_by,
        name=new.name,
        search=new.search,
        status=Status.RUNNING,
        preset=new.preset,
        base=new.base,
        parameters={name: _plain(values) for name, values in new.parameters.items()},
        metric=new.metric.model_dump(mode="json"),
        direction=new.direction,
        seeds=list(new.seeds),
        seed=new.seed,
        eta=new.eta,
        rungs=[asdict(rung) for rung in design.rungs],
        max_parallel=new.max_parallel,
        options=design.options,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
    )
    session.add(sweep)
    session.flush()
    trials = enumerate(design.trials)
    session.add_all(SweepTrial(sweep_id=sweep.id, number=number, settings=settings) for number, settings in trials)
    session.flush()
    take(session, sweep)
    session.refresh(sweep)
    return sweep


def plan(session: Session, design: Design) -> dict[str, Any]:
    """What `submit` would make of it: trials, rungs, numbers of jobs, and who could run them.

    Raises:
        Invalid: as `submit`.
    """
    _checked(session, design)
    longest = submission.plan(session, design.job(_at_last_rung(design, 0)))
    return {
        "name": design.name,
        "trials": [{"number": number, "settings": settings} for number, settings in enumerate(design.trials)],
        "rungs": [asdict(rung) for rung in design.rungs],
        "seeds": list(design.seeds),
        "jobs": {"pretrain": design.num_runs, "evaluate": design.num_runs},
        "epochs": design.num_epochs,
        "held_out_share": held_out_share(design.base, design.metric.model_dump(mode="json")),
        "dataset": longest["dataset"],
        "workers": longest["workers"],
        "warnings": longest["warnings"],
    }


def held_out_share(base: dict[str, Any], metric: dict[str, Any]) -> float:
    """Of the train split that the metric is measured on; 0 where that is the test split."""
    data = metric.get("data") or base.get("data") or {}
    return float(data.get("held_out_share", 0))


def _checked(session: Session, design: Design) -> Dataset:
    """The dataset, when every trial could run; what a rung changes, the database has no say in."""
    errors: dict[str, FieldError] = {}
    dataset = None
    for trial in range(len(design.trials)):
        try:
            dataset = check(session, design.job(_at_last_rung(design, trial)))
        except Invalid as invalid:
            for error in invalid.errors:
                found = located(error, design, trial)
                errors.setdefault(found.pointer, found)
    if errors:
        raise Invalid(list(errors.values()))
    assert dataset is not None
    return dataset


def _at_last_rung(design: Design, trial: int) -> Place:
    return Place(trial, len(design.rungs) - 1, design.seeds[0])


def _plain(values: Any) -> Any:
    return values if isinstance(values, list) else values.model_dump(mode="json")
