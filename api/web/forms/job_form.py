"""The page with the form of a new job, filled from a preset or from another job.

GET shows the form.  POST with `step=plan` shows it again with its errors or with the dry run; POST with `step=submit`
creates the job, once for each one-time key of the form.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from typing import Any

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from api.http.auth import Submitter
from api.http.dependencies import TheDatabase
from api.http.idempotency import one_time_key
from api.rest import job_bodies
from api.rest.job_bodies import JobBody
from api.rest.presets import PresetDeviation, preset_deviations, preset_fields
from api.web.forms import spec_form
from api.web.forms.fields import (
    FIRST_PRESET,
    NUMBERS,
    SpecForm,
    TheSubmission,
    Typed,
    body_of,
    number,
    options_typed,
    parts,
    spec_typed,
)
from api.web.render import page
from jobs import queries
from jobs import submission as service
from jobs.errors import Invalid
from jobs.models import Job
from jobs.new_job import kind_of
from wcl_core.config import Kind, resolve_spec
from wcl_core.config.overlay import leaves
from wcl_core.presets import described_presets, presets

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Form(SpecForm):
    plan: dict[str, Any] | None = None
    deviations: list[PresetDeviation] | None = None

    @property
    def pointers(self) -> set[str]:
        return super().pointers | {"/seeds"}

    @property
    def yaml(self) -> str:
        return yaml.safe_dump(self.request.get("spec") or {}, sort_keys=False, allow_unicode=True).strip()

    @property
    def command(self) -> str:
        """The command line that submits the same job."""
        words = ["wcl", "submit"]
        spec = self.request.get("spec") or {}
        if self.request.get("preset"):
            words += ["--preset", self.request["preset"]]
            words += [word for name, value in leaves(spec) for word in ("--set", f"{name}={_json(value)}")]
        else:
            words += ["spec.yaml"]
        words += ["--kind", "evaluate"] if self.kind == "evaluate" else []
        for name in ("name", "pool", *NUMBERS):
            words += [f"--{name.replace('_', '-')}", str(self.request[name])] if name in self.request else []
        words += ["--preemptible"] if self.request.get("preemptible") else []
        words += [word for tag in self.request.get("tags", ()) for word in ("--tag", tag)]
        words += ["--seeds", ",".join(map(str, self.request["seeds"]))] if self.request.get("seeds") else []
        return shlex.join(words)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@router.get("/submit")
def form(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    preset: str = FIRST_PRESET,
    source: str = "",
) -> Response:
    """Show the form, filled from a preset or from another job."""
    with database.read() as session:
        filled = _of_job(session, source) if source else _of_preset(preset)
        return _shown(request, session, filled)


@router.post("/submit")
def send(
    request: Request, submitter: Submitter, database: TheDatabase, typed: Typed, submission: TheSubmission
) -> Response:
    """Check or submit the form."""
    with database.read() as session:
        source = queries.get_job(session, typed["source"]) if typed.get("source") else None
    filled = _of_typed(typed, source)
    try:
        body = body_of(JobBody, filled.request)
        new = job_bodies.new_jobs(body, submitter.key_id, filled.source.id if filled.source else None)
        if typed.get("step") == "submit":
            return RedirectResponse(f"/jobs/{job_bodies.create_jobs(submission, body, new).id}", status_code=303)
        with database.read() as session:
            plan = service.plan(session, new[0])
        filled = replace(filled, plan=plan, deviations=preset_deviations(filled.preset, plan["spec"]))
    except Invalid as error:
        filled = replace(filled, errors=filled.placed(error.errors))
    with database.read() as session:
        return _shown(request, session, filled)


def _shown(request: Request, session: Session, filled: Form) -> Response:
    context = {
        "form": filled,
        "sections": spec_form.sections(filled.kind),
        "presets": described_presets(),
        "datasets": [entry.name for entry in queries.datasets(session)],
        "key": filled.typed.get("key") or one_time_key(),
    }
    return page(request, "submit.html", 422 if filled.errors else 200, **context)


def _of_preset(name: str) -> Form:
    spec = preset_fields(name, "pretrain")
    return Form("pretrain", name, None, spec_typed("pretrain", spec), spec)


def _of_job(session: Session, job_id: str) -> Form:
    job = queries.get_job(session, job_id)
    kind = kind_of(job)
    preset = presets().get(job.preset or "")
    typed = spec_typed(kind, job.spec) | options_typed(session, job)
    return Form(kind, job.preset if preset else None, job, typed, resolve_spec(preset) if preset else job.spec)


def _of_typed(typed: dict[str, str], source: Job | None) -> Form:
    kind: Kind = "evaluate" if typed.get("kind") == "evaluate" else "pretrain"
    preset = presets().get(typed.get("preset", ""))
    base = resolve_spec(preset) if preset else source.spec if source else None
    filled = Form(kind, typed["preset"] if preset else None, source, typed, base)
    return replace(filled, request=_request_of(filled))


def _request_of(filled: Form) -> dict[str, Any]:
    """Return the body of the request that the form makes."""
    spec = filled.spec_request
    request: dict[str, Any] = (
        {"kind": filled.kind} | ({"preset": filled.preset} if filled.preset else {}) | {"spec": spec}
    )
    request |= filled.options_request
    if seeds := parts(filled.typed.get("seeds", "")):
        request["seeds"] = [number(part) for part in seeds]
        spec.pop("seed", None)
    return request
