"""The page that begins a sweep: a form from a preset or a job's spec, planned before it is sent, and sent once.

GET shows the form; POST with `step=plan` shows it again with what is wrong or which trials there would be, with
`step=row` it has one more row of fields, with `step=submit` it makes the sweep.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from api.http.auth import Submitter
from api.http.dependencies import TheDatabase
from api.rest.sweep_bodies import SweepBody, new_sweep
from api.web import parallel
from api.web.forms import spec_form, sweep_fields
from api.web.forms.fields import FIRST_PRESET, Typed, body_of, options_typed, preset_spec, sent_once, spec_typed
from api.web.forms.spec_form import Section
from api.web.forms.sweep_fields import SweepForm, shared_by_all
from api.web.render import page
from jobs import queries, sweeps
from jobs.errors import FieldError, Invalid
from jobs.idempotency import once
from jobs.models import Job
from jobs.sweeps import Design, NewSweep
from wcl_core.config import resolve_spec
from wcl_core.presets import described_presets, presets

router = APIRouter(include_in_schema=False)


@router.get("/sweeps/new")
def form(
    request: Request, submitter: Submitter, database: TheDatabase, preset: str = FIRST_PRESET, source: str = ""
) -> Response:
    """An empty form over a preset, or over the spec of a job."""
    with database.read() as session:
        made = _of_job(session, source) if source else _of_preset(preset)
        return _shown(request, session, made)


@router.post("/sweeps/new")
def send(request: Request, submitter: Submitter, database: TheDatabase, typed: Typed) -> Response:
    """Plan or begin what was typed, or show one more row."""
    with database.read() as session:
        source = queries.get_job(session, typed["source"]) if typed.get("source") else None
    made = _of_typed(typed, source)
    if typed.get("step") == "row":
        made = replace(made, more_rows=1)
    else:
        try:
            new, design = _new(made, submitter.key_id)
            if typed.get("step") == "submit":
                key, digest = sent_once(made)
                owner = submitter.key_id
                sweep_id, _ = once(database, key, owner, digest, lambda session: sweeps.submit(session, new, design).id)
                return RedirectResponse(f"/sweeps/{sweep_id}", status_code=303)
            with database.read() as session:
                made = replace(made, plan=sweeps.plan(session, design))
        except Invalid as error:
            made = replace(made, errors=made.placed(error.errors))
    with database.read() as session:
        return _shown(request, session, made)


def _new(made: SweepForm, asker: str) -> tuple[NewSweep, Design]:
    """Raises Invalid with pointers as `POST /v1/sweeps` does, and for rows that cannot be part of a request."""
    errors = made.row_errors
    try:
        new = new_sweep(body_of(SweepBody, made.said), asker)
    except Invalid as invalid:
        raise Invalid([*errors, *invalid.errors]) from invalid
    if errors:
        raise Invalid(errors)
    return new


def _shown(request: Request, session: Session, made: SweepForm) -> Response:
    context: dict[str, Any] = {
        "form": made,
        "sections": _sections(),
        "held_out": next(entry for entry in spec_form.fields("pretrain") if entry.name == "data.held_out_share"),
        "presets": described_presets(),
        "datasets": [entry.name for entry in queries.datasets(session)],
        "key": made.typed.get("key") or secrets.token_hex(16),
        "choices": sweep_fields,
        "text": parallel.text,
    }
    return page(request, "sweep_form.html", 422 if made.errors else 200, **context)


def _sections() -> list[Section]:
    """What all trials share, but for what a sweep has a place of its own for."""
    return [
        replace(section, fields=[entry for entry in section.fields if entry.name not in sweep_fields.ELSEWHERE])
        for section in spec_form.sections("pretrain")
    ]


def _of_preset(name: str) -> SweepForm:
    spec = shared_by_all(preset_spec(name))
    typed = spec_typed("pretrain", spec) | {"seeds": str(spec["seed"])}
    return SweepForm("pretrain", name, None, typed, spec)


def _of_job(session: Session, job_id: str) -> SweepForm:
    job = queries.get_job(session, job_id)
    if job.kind != "pretrain":
        raise Invalid([FieldError("source", "expected a job that trains: sweeps are over fields of its spec")])
    known = presets().get(job.preset or "")
    spec = _own_spec(job)
    typed = spec_typed("pretrain", spec) | options_typed(session, job) | {"seeds": str(spec["seed"])}
    base = shared_by_all(resolve_spec(known)) if known else spec
    return SweepForm("pretrain", job.preset if known else None, job, typed, base)


def _own_spec(job: Job) -> dict[str, Any]:
    """Without the evaluation that a sweep has added as its metric."""
    spec = shared_by_all(job.spec)
    return spec | {"evaluations": spec["evaluations"][:-1]} if job.sweep_id else spec


def _of_typed(typed: dict[str, str], source: Job | None) -> SweepForm:
    known = presets().get(typed.get("preset", ""))
    base = shared_by_all(resolve_spec(known)) if known else _own_spec(source) if source else None
    made = SweepForm("pretrain", typed["preset"] if known else None, source, typed, base)
    return replace(made, said=sweep_fields.body(made))
