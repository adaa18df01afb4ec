"""Links without a key: the page of links for those who create them, and the pages that a link shows.

A route below `/shared/` needs no key.  Each of them depends on `TheShared`, which checks the secret in the address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from api.http.auth import Owner, Submitter
from api.http.dependencies import TheDatabase, TheSettings
from api.rest import responses
from api.rest.shares import ShareBody, address_of
from api.web.forms.fields import body_of
from api.web.forms.refused import form_at, form_page
from api.web.picture import drawings
from api.web.render import page, picture
from jobs import curves, shares
from jobs.access import Principal
from jobs.comparisons import MAX_JOBS, chosen_jobs, comparison
from jobs.configurations import configurations_of
from jobs.database import Database, database_time
from jobs.errors import NotFound
from jobs.step_times import step_times
from wcl_core.metrics import is_hardware

router = APIRouter(include_in_schema=False)

_MAX_POINTS = 1000


# --- for those who create links --------------------------------------------------------------------------------------


@router.get("/shares")
def shares_page(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    job: Annotated[list[str], Query(max_length=MAX_JOBS)] = [],  # noqa: B006 (FastAPI copies it)
) -> Response:
    """Return the page of links, with a form for a link to the jobs that the address names."""
    with database.read() as session:
        chosen = chosen_jobs(session, list(dict.fromkeys(job)))
    return _shares_page(request, submitter, database, chosen=chosen)


@router.post("/shares")
def create(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    settings: TheSettings,
    job: Annotated[list[str], Form(max_length=MAX_JOBS)] = [],  # noqa: B006
    days: Annotated[str, Form()] = "",
    key: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Create a link and show its address once; a form that is sent again creates nothing."""
    shares.check_allowed(settings.shared_links)
    body = body_of(ShareBody, {"jobs": job, "days": days.strip()})
    created = database.write(lambda session: shares.create(session, body.jobs, body.days, submitter, key or None))
    if created is None:
        return RedirectResponse("/shares", status_code=303)
    return _shares_page(request, submitter, database, url=address_of(request, created[1]))


@router.post("/shares/{share_id}/revoke")
def revoke(share_id: str, submitter: Owner, database: TheDatabase) -> Response:
    """Revoke a link; redirect to the page of links."""
    database.write(lambda session: shares.revoke(session, share_id, submitter))
    return RedirectResponse("/shares", status_code=303)


def _shares_page(request: Request, submitter: Principal, database: Database, **more: Any) -> Response:
    with database.read() as session:
        links, now = shares.links(session, submitter), database_time(session)
    limits = {"days": shares.DAYS, "max_days": shares.MAX_DAYS}
    context: dict[str, Any] = {"links": links, "chosen": [], "url": ""} | limits | more
    return page(request, "shares.html", **context, now=now)


def _refused_share(request: Request, submitter: Principal, database: Database) -> Response:
    with database.read() as session:
        chosen = chosen_jobs(session, list(form_at(request, "/shares").all("job")))
    return _shares_page(request, submitter, database, chosen=chosen)


form_page(_refused_share, "/shares")


# --- what a link shows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """The secret of a link that works, the ids of its jobs, and the database that shows the link's project only."""

    secret: str
    job_ids: list[str]
    database: Database


async def _shared(request: Request, secret: str) -> Shared:
    """Return the jobs of the link.

    Raises:
        NotFound: the link is unknown, expired or revoked, its jobs are deleted, or links are off: one text for all.
        TooMany: the client has sent too many wrong secrets.
    """
    database, is_allowed = cast(Database, request.app.state.database), request.app.state.settings.shared_links
    shown = await run_in_threadpool(_shown, database, secret) if is_allowed else None
    if shown is None:
        request.app.state.failures.note(request)
        raise NotFound("this link does not exist, is expired or is revoked; ask its author for a new one")
    visitor, job_ids = shown
    return Shared(secret, job_ids, database.acting_for(visitor))


def _shown(database: Database, secret: str) -> tuple[shares.Visitor, list[str]] | None:
    with database.read() as session:
        return shares.find(session, secret)


TheShared = Annotated[Shared, Depends(_shared)]


@router.get("/shared/{secret}")
def shared_page(request: Request, shared: TheShared) -> Response:
    """Return what a link shows: names, states, settings, notes, evaluations and curves of its jobs."""
    with shared.database.read() as session:
        compared = comparison(session, shared.job_ids, with_reference=False)
        now = database_time(session)
    metrics = sorted({name for job in compared.jobs for name in job.latest_metrics or {} if not is_hardware(name)})
    response = page(request, "shared.html", comparison=compared, secret=shared.secret, metrics=metrics, now=now)
    response.headers["Referrer-Policy"] = "no-referrer"  # the address holds the secret
    return response


@router.get("/shared/{secret}/jobs/{job_id}/metrics")
def shared_metrics(
    job_id: str,
    shared: TheShared,
    max_points: Annotated[int, Query(ge=1, le=_MAX_POINTS)] = _MAX_POINTS,
    from_step: Annotated[int, Query(ge=0, le=curves.LAST_STEP)] = 0,
    to_step: Annotated[int, Query(ge=0, le=curves.LAST_STEP)] = curves.LAST_STEP,
    times: bool = False,
) -> Response:
    """Return the curves of a job of the link, without those of its hardware; as `/v1/jobs/{job_id}/metrics`."""
    if job_id not in shared.job_ids:
        raise NotFound(f"this link does not show a job {job_id}")
    with shared.database.read() as session:
        by_name = curves.metrics(session, job_id, None, max_points, from_step, to_step)
        samples = step_times(session, job_id, first=from_step, last=to_step) if times else []
    series = [responses.series(name, points) for name, points in by_name.items() if not is_hardware(name)]
    return JSONResponse({"series": series, "times": [responses.step_time(sample) for sample in samples]})


@router.get("/shared/{secret}/curve.svg")
def shared_picture(shared: TheShared, name: Annotated[str, Query(max_length=100)]) -> Response:
    """Return one metric of the link's jobs as a picture, for browsers without scripts."""
    if is_hardware(name):
        raise NotFound(f"this link does not show {name}")
    with shared.database.read() as session:
        points = max(1, _MAX_POINTS // len(shared.job_ids))
        lines = [
            (curves.metrics(session, job.id, [name], points).get(name, []), each.number)
            for each in configurations_of(chosen_jobs(session, shared.job_ids))
            for job in each.jobs
        ]
    return picture("curve.svg", **drawings(lines, name))
