"""A new sweep: its request, its design, its submission and its dry run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from jobs import access, activity, submission
from jobs.checks import check
from jobs.database import new_id
from jobs.datasets import hold, pinned_digest
from jobs.errors import FieldError, Invalid
from jobs.models import Dataset, Sweep, SweepTrial
from jobs.status import Status
from jobs.sweeps import halving, space
from jobs.sweeps.halving import Rung
from jobs.sweeps.metric import Direction, Metric
from jobs.sweeps.progress import take
from jobs.sweeps.space import Parameters
from jobs.sweeps.trials import Design, Place, epochs_of, located

MAX_RUNS = 1000
HELD_OUT_SHARE = 0.2  # of the train split, by default
Search = Literal["grid", "random", "halving"]
_WHY_NOT = {
    "seed": "use `seeds` to set the seeds of each trial",
    "evaluations": "the metric measures every trial",
    "spec_version": "all trials have the same version",
    "data.name": "values on different data cannot be ranked",
    "data.held_out_share": "values on different images cannot be ranked",
}


@dataclass(frozen=True)
class NewSweep:
    """A requested sweep.

    `trials` of None means every combination.  `rungs` are epochs, for halving only.  `options` are fields of `NewJob`
    that all jobs of the sweep share.
    """

    name: str
    search: Search
    base: dict[str, Any]
    parameters: Parameters
    metric: Metric
    direction: Direction = "maximize"
    seeds: tuple[int, ...] = (0,)
    seed: int = 0
    trials: int | None = None
    eta: int = 3
    min_epochs: int | None = None
    rungs: tuple[int, ...] | None = None
    max_parallel: int = 4
    options: dict[str, Any] | None = None
    preset: str | None = None
    created_by: str | None = None


# --- design ----------------------------------------------------------------------------------------------------------


def designed(new: NewSweep) -> Design:
    """Draw the trials and set up the rungs.

    Raises:
        Invalid: the search is invalid; the trials' specs are validated when their jobs are built.
    """
    _check_parameters(new)
    trials = space.grid(new.parameters) if new.trials is None else space.draws(new.parameters, new.trials, new.seed)
    design = Design(
        name=new.name,
        base=new.base,
        metric=new.metric,
        seeds=new.seeds,
        trials=trials,
        rungs=_rungs(new, len(trials)),
        options=new.options or {},
        preset=new.preset,
        created_by=new.created_by,
    )
    if design.num_runs > MAX_RUNS:
        detail = f"all rungs and seeds together are {design.num_runs} training runs; expected at most {MAX_RUNS}"
        raise Invalid([FieldError("/trials" if new.trials else "/parameters", detail)])
    return design


def _check_parameters(new: NewSweep) -> None:
    errors = [
        FieldError(space.pointer(name), f"{name} cannot be searched: {_WHY_NOT[name]}")
        for name in new.parameters
        if name in _WHY_NOT
    ]
    if new.search == "halving" and "epochs" in new.parameters:
        errors.append(FieldError(space.pointer("epochs"), "epochs cannot be searched: the rungs set them"))
    names = sorted(new.parameters)
    errors += [
        FieldError(space.pointer(inner), f"expected either this field or {outer}, which contains it")
        for outer in names
        for inner in names
        if inner.startswith(f"{outer}.")
    ]
    if not isinstance(new.base.get("evaluations", []), list):
        errors.append(FieldError("/spec/evaluations", "expected a list"))
    if errors:
        raise Invalid(errors)


def _rungs(new: NewSweep, trials: int) -> list[Rung]:
    if new.search != "halving":
        return [Rung(trials)]
    if new.rungs is not None:
        return halving.explicit(trials, new.rungs, new.eta)
    return halving.rungs(trials, epochs_of(new.base), new.eta, new.min_epochs)


# --- submission ------------------------------------------------------------------------------------------------------


def submit(session: Session, new: NewSweep, design: Design) -> Sweep:
    """Add the sweep and start its first trials.

    Raises:
        Invalid: the job of a trial is invalid.
    """
    hold(session, design.job(_at_last_rung(design, 0)).spec)
    dataset, gpus = _checked(session, design)
    sweep = Sweep(
        id=new_id(),
        project_id=access.new_project(session),
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
        options=design.options | {"gpus": gpus},  # the same for all trials, whatever the pool has later
        dataset_name=dataset.name,
        dataset_digest=pinned_digest(session, dataset),
    )
    session.add(sweep)
    session.flush()
    trials = enumerate(design.trials)
    session.add_all(SweepTrial(sweep_id=sweep.id, number=number, settings=settings) for number, settings in trials)
    session.flush()
    activity.note(session, "sweep.submit", sweep.id, sweep.name)
    take(session, sweep)
    session.refresh(sweep)
    return sweep


def plan(session: Session, design: Design) -> dict[str, Any]:
    """Return the dry run of a sweep: trials, rungs, numbers of jobs, their time, and the workers that could run them.

    `seconds` is the time of all trainings, one after the other, by the speed of a similar run; None without one.

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
        "seconds": _seconds(longest, design.num_epochs),
        "held_out_share": held_out_share(design.base, design.metric.model_dump(mode="json")),
        "dataset": longest["dataset"],
        "workers": longest["workers"],
        "warnings": longest["warnings"],
    }


def _seconds(longest: dict[str, Any], epochs: int) -> float | None:
    """Return the time of so many epochs, by the estimate for a job of the sweep."""
    seconds = (longest["estimate"]["like"] or {}).get("seconds")
    return None if seconds is None else float(seconds * epochs / longest["spec"]["epochs"])


def held_out_share(base: dict[str, Any], metric: dict[str, Any]) -> float:
    """Return the share of the train split that the metric is measured on; 0 if it is measured on the test split."""
    data = metric.get("data") or base.get("data") or {}
    return float(data.get("held_out_share", 0))


def _checked(session: Session, design: Design) -> tuple[Dataset, int]:
    """Validate the job of every trial at its last rung; return the dataset, and the number of GPUs of each run."""
    errors: dict[str, FieldError] = {}
    checked = None
    for trial in range(len(design.trials)):
        try:
            checked = check(session, design.job(_at_last_rung(design, trial)))
        except Invalid as invalid:
            for error in invalid.errors:
                moved = located(error, design, trial)
                errors.setdefault(moved.pointer, moved)
    if errors:
        raise Invalid(list(errors.values()))
    assert checked is not None
    new, dataset = checked
    return dataset, new.gpus or 0


def _at_last_rung(design: Design, trial: int) -> Place:
    return Place(trial, len(design.rungs) - 1, design.seeds[0])


def _plain(values: Any) -> Any:
    return values if isinstance(values, list) else values.model_dump(mode="json")
