"""The page of one sweep: its trials, rungs and parallel coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from api.http.auth import Owner, Reader
from api.http.dependencies import TheDatabase
from api.web import parallel
from api.web.evaluations import settings
from api.web.format import epochs
from api.web.parallel import Drawing
from api.web.render import page
from jobs import sweeps
from jobs.comparisons import MAX_CONFIGURATIONS, MAX_JOBS
from jobs.database import database_time
from jobs.keys import Principal
from jobs.models import Sweep
from jobs.status import TERMINAL
from jobs.sweeps import Standing
from wcl_core.config import result_title

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class View:
    """The choices in the address: the order of the trials, a rung, a trial."""

    sort: str = "value"
    order: str = ""
    rung: int = 0
    trial: int | None = None

    def address(self, **changes: Any) -> str:
        """Return the query string with some choices changed; defaults are omitted."""
        choices = vars(replace(self, **changes))
        pairs = {name: choices[name] for name, default in vars(View()).items() if choices[name] != default}
        return f"?{urlencode(pairs)}" if pairs else "?"


def _view(
    sort: Annotated[str, Query(max_length=100)] = "value",
    order: Annotated[str, Query(max_length=4)] = "",
    rung: Annotated[int, Query(ge=0, le=20)] = 0,
    trial: Annotated[int | None, Query(ge=0, le=100_000)] = None,
) -> View:
    return View(sort, order if order in ("asc", "desc") else "", rung, trial)


_View = Annotated[View, Depends(_view)]


@dataclass(frozen=True)
class Column:
    """A sortable column; `next_order` is the order that its link requests."""

    key: str
    title: str
    is_number: bool
    sorted: str  # ascending, descending, or empty
    next_order: str


@dataclass(frozen=True)
class RungView:
    """A rung with its numbers of planned, started and finished trials."""

    number: int
    epochs: int | None
    planned: int
    begun: int
    settled: int
    best: float | None


@dataclass(frozen=True)
class SweepView:
    """A sweep with everything that its page shows."""

    sweep: Sweep
    view: View
    table: list[Standing]
    columns: list[Column]
    rungs: list[RungView]
    drawing: Drawing
    best: Standing | None
    held_out_share: float
    runs: int
    runs_ended: int
    now: int

    @property
    def is_over(self) -> bool:
        return self.sweep.status in TERMINAL

    @property
    def compared(self) -> str:
        """The address that compares the first trials shown, each with its first seed."""
        return _comparison([each.measured.runs[0].job_id for each in self.table if each.measured][:MAX_CONFIGURATIONS])

    def compared_with_best(self, trial: Standing) -> str:
        """Return the address that compares a trial with the best one after as many epochs.

        For the best trial itself, the address compares its rungs.
        """
        last = trial.by_rung[-1:]
        is_best = self.best is None or self.best.number == trial.number
        others = [] if is_best or self.best is None else self.best.by_rung[: len(trial.by_rung)][-1:]
        outcomes = (trial.by_rung if is_best else [*others, *last])[-MAX_CONFIGURATIONS:]
        return _comparison(run.job_id for each in outcomes for run in each.runs[: MAX_JOBS // len(outcomes)])

    @property
    def metric(self) -> str:
        chosen = self.sweep.metric["settings"].items()
        words = settings({name: value[0] if isinstance(value, list) else value for name, value in chosen})
        name = result_title(self.sweep.metric["protocol"], self.sweep.metric["name"])
        return f"{name} ({words})" if words else name


def _comparison(job_ids: Iterable[str]) -> str:
    """Return the address that compares jobs; empty for fewer than two."""
    jobs = [("job", job_id) for job_id in job_ids]
    return f"/compare?{urlencode(jobs)}" if len(jobs) > 1 else ""


def sweep_view(session: Session, sweep_id: str, view: View) -> SweepView:
    """Return a sweep in the requested order and at the requested rung.

    Raises:
        NotFound: there is no such sweep.
    """
    sweep = sweeps.get_sweep(session, sweep_id)
    table = sweeps.standings(session, sweep)
    view = replace(view, rung=min(view.rung, len(sweep.rungs) - 1))
    runs = [run for standing in table for outcome in standing.by_rung for run in outcome.runs]
    return SweepView(
        sweep=sweep,
        view=view,
        table=_sorted(sweep, table, view),
        columns=_columns(sweep, view),
        rungs=[_rung(sweep, table, number) for number in range(len(sweep.rungs))],
        drawing=parallel.drawing(sweep, table, view.rung),
        best=sweeps.leader(sweep, table),
        held_out_share=sweeps.held_out_share(sweep.base, sweep.metric),
        runs=sum(rung["trials"] for rung in sweep.rungs) * len(sweep.seeds),
        runs_ended=sum(run.state != "unfinished" for run in runs),
        now=database_time(session),
    )


def _rung(sweep: Sweep, table: Sequence[Standing], number: int) -> RungView:
    outcomes = [each.by_rung[number] for each in table if len(each.by_rung) > number]
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    pick = max if sweep.direction == "maximize" else min
    return RungView(
        number=number,
        epochs=sweep.rungs[number]["epochs"],
        planned=sweep.rungs[number]["trials"],
        begun=len(outcomes),
        settled=sum(outcome.state != "unfinished" for outcome in outcomes),
        best=pick(values, default=None),
    )


# --- the order of the trials -----------------------------------------------------------------------------------------


def _columns(sweep: Sweep, view: View) -> list[Column]:
    names = [
        ("trial", "Trial", True),
        *((name, name, _is_numeric(sweep.parameters[name])) for name in sweep.parameters),
    ]
    names += [(f"rung-{place}", title, True) for place, title in enumerate(_rung_titles(sweep))]
    names += [("state", "State", False)]
    best_first = "desc" if sweep.direction == "maximize" else "asc"
    columns = []
    for key, title, is_number in names:
        first = best_first if key.startswith("rung-") else "asc"
        now = (view.order or first) if key == view.sort else ""
        later = {"asc": "desc", "desc": "asc"}.get(now, first)
        columns.append(Column(key, title, is_number, {"asc": "ascending", "desc": "descending"}.get(now, ""), later))
    return columns


def _rung_titles(sweep: Sweep) -> list[str]:
    if len(sweep.rungs) == 1:
        return ["Value"]
    return [epochs(rung["epochs"]) for rung in sweep.rungs]


def _is_numeric(searched: Any) -> bool:
    values = [] if isinstance(searched, dict) else searched
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _sorted(sweep: Sweep, table: Sequence[Standing], view: View) -> list[Standing]:
    """Return the trials in order; those without a value are last, ties are in the order of their numbers."""
    key = _key(sweep, view.sort)
    default = "desc" if sweep.direction == "maximize" and view.sort.startswith(("rung-", "value")) else "asc"
    having = [each for each in table if key(each) is not None]
    ordered = sorted(having, key=key, reverse=(view.order or default) == "desc")
    return ordered + [each for each in table if key(each) is None]


def _key(sweep: Sweep, sort: str) -> Callable[[Standing], Any]:
    if sort in sweep.parameters:
        numeric = _is_numeric(sweep.parameters[sort])
        return lambda each: each.settings.get(sort) if numeric else parallel.text(each.settings.get(sort))
    if sort.startswith("rung-") and sort[5:].isdecimal():
        rung = int(sort[5:])
        return lambda each: each.by_rung[rung].value if len(each.by_rung) > rung else None
    if sort == "state":
        return lambda each: each.state
    if sort == "trial":
        return lambda each: each.number
    # Later rungs first, then better values: a value after more epochs is worth more than one after few.
    sign = 1 if sweep.direction == "maximize" else -1
    return lambda each: None if each.measured is None else (sign * each.measured.rung, each.value)


@router.get("/sweeps/{sweep_id}")
def sweep_page(request: Request, sweep_id: str, view: _View, reader: Reader, database: TheDatabase) -> Response:
    """Return the page of a sweep."""
    return _rendered(request, "sweep.html", sweep_id, view, reader, database)


@router.get("/sweeps/{sweep_id}/live")
def sweep_live(request: Request, sweep_id: str, view: _View, reader: Reader, database: TheDatabase) -> Response:
    """Return the parts of the page that change."""
    return _rendered(request, "_sweep_live.html", sweep_id, view, reader, database)


@router.post("/sweeps/{sweep_id}/cancel")
def cancel(sweep_id: str, submitter: Owner, database: TheDatabase) -> Response:
    """Cancel a sweep, from a browser without scripts; redirect to its page."""
    database.write(lambda session: sweeps.cancel(session, sweep_id))
    return RedirectResponse(f"/sweeps/{sweep_id}", status_code=303)


def _rendered(
    request: Request, template: str, sweep_id: str, view: View, reader: Principal, database: TheDatabase
) -> Response:
    with database.read() as session:
        shown = sweep_view(session, sweep_id, view)
    may_submit = "submit" in reader.scopes
    may = {"may_submit": may_submit, "may_change": may_submit and reader.may_change(shown.sweep.created_by)}
    return page(request, template, shown=shown, now=shown.now, text=parallel.text, **may)
