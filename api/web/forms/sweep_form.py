"""The page with the form of a new sweep, filled from a preset or from a job's spec.

GET shows the form.  POST with `step=plan` shows it again with its errors or with the dry run, with `step=row` with one
more row of fields; POST with `step=submit` creates the sweep, once for each one-time key of the form.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from api.http.auth import Submitter
from api.http.dependencies import TheDatabase
from api.http.idempotency import one_time_key
from api.rest.presets import preset_fields
from api.rest.sweep_bodies import SweepBody, create_sweep, new_sweep
from api.web import parallel
from api.web.forms import spec_form, sweep_fields
from api.web.forms.fields import FIRST_PRESET, TheSubmission, Typed, body_of, limited, options_typed, spec_typed
from api.web.forms.spec_form import Section
from api.web.forms.sweep_fields import SweepForm, shared_by_all
from api.web.render import page
from jobs import queries, sweeps, weights
from jobs.errors import FieldError, Invalid, OverLimit
from jobs.models import Job
from jobs.sweeps import Design, NewSweep
from wcl_core.config import resolve_spec
from wcl_core.presets import described_presets, presets

router = APIRouter(include_in_schema=False)


@router.get("/sweeps/new")
def form(
    request: Request, submitter: Submitter, database: TheDatabase, preset: str = FIRST_PRESET, source: str = ""
) -> Response:
    """Show the form, filled from a preset or from the spec of a job."""
    with database.read() as session:
        filled = _of_job(session, source) if source else _of_preset(preset)
        return _shown(request, session, filled)


@router.post("/sweeps/new")
def send(
    request: Request, submitter: Submitter, database: TheDatabase, typed: Typed, submission: TheSubmission
) -> Response:
    """Check or submit the form, or show one more row."""
    over: OverLimit | None = None
    with database.read() as session:
        source = queries.get_job(session, typed["source"]) if typed.get("source") else None
    filled = _of_typed(typed, source)
    if typed.get("step") == "row":
        filled = replace(filled, more_rows=1)
    else:
        try:
            body, new, design = _new(filled, submitter.key_id)
            if typed.get("step") == "submit":
                sweep = create_sweep(submission, body, new, design)
                return RedirectResponse(f"/sweeps/{sweep.id}", status_code=303)
            with database.read() as session:
                filled = replace(filled, plan=sweeps.plan(session, design))
        except Invalid as error:
            filled = replace(filled, errors=filled.placed(error.errors))
        except OverLimit as error:
            filled, over = replace(filled, errors={"": error.detail}), error
    with database.read() as session:
        return limited(_shown(request, session, filled), over)


def _new(filled: SweepForm, created_by: str) -> tuple[SweepBody, NewSweep, Design]:
    """Return the request that the form makes.

    Raises:
        Invalid: with the pointers of `POST /v1/sweeps`, and for rows that cannot be part of a request.
    """
    errors = filled.row_errors
    try:
        body = body_of(SweepBody, filled.request)
        new, design = new_sweep(body, created_by)
    except Invalid as invalid:
        raise Invalid([*errors, *invalid.errors]) from invalid
    if errors:
        raise Invalid(errors)
    return body, new, design


def _shown(request: Request, session: Session, filled: SweepForm) -> Response:
    context: dict[str, Any] = {
        "form": filled,
        "sections": _sections(),
        "held_out": next(entry for entry in spec_form.fields("pretrain") if entry.name == "data.held_out_share"),
        "presets": described_presets(),
        "datasets": [entry.name for entry in queries.datasets(session)],
        "imported": weights.every(session),
        "key": filled.typed.get("key") or one_time_key(),
        "choices": sweep_fields,
        "text": parallel.text,
    }
    return page(request, "sweep_form.html", 422 if filled.errors else 200, **context)


def _sections() -> list[Section]:
    """Return the fields that all trials share, without those that a sweep sets itself."""
    return [
        replace(section, fields=[entry for entry in section.fields if entry.name not in sweep_fields.ELSEWHERE])
        for section in spec_form.sections("pretrain")
    ]


def _of_preset(name: str) -> SweepForm:
    spec = shared_by_all(preset_fields(name, "pretrain"))
    typed = spec_typed("pretrain", spec) | {"seeds": str(spec["seed"])}
    return SweepForm("pretrain", name, None, typed, spec)


def _of_job(session: Session, job_id: str) -> SweepForm:
    job = queries.get_job(session, job_id)
    if job.kind != "pretrain":
        raise Invalid([FieldError("source", "expected a training job; a sweep searches fields of a training spec")])
    preset = presets().get(job.preset or "")
    spec = _own_spec(job)
    typed = spec_typed("pretrain", spec) | options_typed(session, job) | {"seeds": str(spec["seed"])}
    base = shared_by_all(resolve_spec(preset)) if preset else spec
    return SweepForm("pretrain", job.preset if preset else None, job, typed, base)


def _own_spec(job: Job) -> dict[str, Any]:
    """Return the job's spec, without the evaluation that a sweep has added as its metric."""
    spec = shared_by_all(job.spec)
    return spec | {"evaluations": spec["evaluations"][:-1]} if job.sweep_id else spec


def _of_typed(typed: dict[str, str], source: Job | None) -> SweepForm:
    preset = presets().get(typed.get("preset", ""))
    base = shared_by_all(resolve_spec(preset)) if preset else _own_spec(source) if source else None
    filled = SweepForm("pretrain", typed["preset"] if preset else None, source, typed, base)
    return replace(filled, request=sweep_fields.request_of(filled))
