"""The page that submits: a form from a preset or another job, checked as it is filled in, planned before it is sent.

GET shows the form; POST with `step=plan` shows it again with what is wrong or what would happen, with `step=submit` it
makes the job.  The same form sent twice, as by a double click, makes one job.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from api import bodies, field_errors, spec_forms, submissions
from api.auth import Submitter
from api.deviations import Deviation, of_preset
from api.page_render import page
from api.state import TheDatabase
from api.submissions import JobBody
from jobs import queries, service
from jobs.errors import FieldError, Invalid
from jobs.models import Job
from jobs.submission import NewJob
from wcl_core.config import Kind, resolve_spec
from wcl_core.presets import described_presets, presets

router = APIRouter(include_in_schema=False)

_FIRST_PRESET = "digits-cpu"
_NUMBERS = {"priority": "0", "gpus": "0", "max_seconds": ""}  # as typed when nothing is asked for


@dataclass(frozen=True)
class Form:
    """What the page shows: the fields as typed, and what they were measured against."""

    kind: Kind
    preset: str | None
    source: Job | None
    typed: dict[str, str]
    base: dict[str, Any] | None
    errors: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    deviations: list[Deviation] | None = None
    said: dict[str, Any] = field(default_factory=dict)

    def default(self, entry: spec_forms.Field) -> str | None:
        """How a field stands in what the form started from, where it now stands otherwise."""
        before = None if self.base is None else entry.shown(self.base)
        now = self.typed.get(f"spec.{entry.name}", "")
        return before if before is not None and entry.read(before) != entry.read(now) else None

    def concerns(self, section: spec_forms.Section) -> bool:
        """Whether a field of the section is wrong or was changed."""
        return any(entry.pointer in self.errors or self.default(entry) is not None for entry in section.fields)

    @property
    def other_errors(self) -> list[str]:
        """Those that belong to no field of the form."""
        known = {entry.pointer for entry in spec_forms.fields(self.kind)}
        known |= {f"/{name}" for name in ("name", "tags", "pool", "seeds", "preemptible", *_NUMBERS)}
        return [f"{pointer}: {text}".lstrip(": ") for pointer, text in self.errors.items() if pointer not in known]

    @property
    def yaml(self) -> str:
        return yaml.safe_dump(self.said.get("spec") or {}, sort_keys=False, allow_unicode=True).strip()

    @property
    def command(self) -> str:
        """The same by the command line."""
        words = ["wcl", "submit"]
        spec = self.said.get("spec") or {}
        if self.said.get("preset"):
            words += ["--preset", self.said["preset"]]
            words += [word for name, value in _leaves(spec) for word in ("--set", f"{name}={_json(value)}")]
        else:
            words += ["spec.yaml"]
        words += ["--kind", "evaluate"] if self.kind == "evaluate" else []
        for name in ("name", "pool", *_NUMBERS):
            words += [f"--{name.replace('_', '-')}", str(self.said[name])] if name in self.said else []
        words += ["--preemptible"] if self.said.get("preemptible") else []
        words += [word for tag in self.said.get("tags", ()) for word in ("--tag", tag)]
        words += ["--seeds", ",".join(map(str, self.said["seeds"]))] if self.said.get("seeds") else []
        return shlex.join(words)


def _leaves(spec: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in spec.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [(prefix + name, value)]
    return found


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- requests --------------------------------------------------------------------------------------------------------


async def _typed(request: Request) -> dict[str, str]:
    async with request.form(max_files=0, max_fields=500) as sent:
        return {name: value for name, value in sent.items() if isinstance(value, str)}


_Typed = Annotated[dict[str, str], Depends(_typed)]


@router.get("/submit")
def form(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    preset: str = _FIRST_PRESET,
    source: str = "",
) -> Response:
    """An empty form, filled from a preset, or from another job to be changed and sent again."""
    with database.read() as session:
        made = _of_job(session, source) if source else _of_preset(preset)
        return _shown(request, session, made)


@router.post("/submit")
def send(request: Request, submitter: Submitter, database: TheDatabase, typed: _Typed) -> Response:
    """Plan or submit what was typed."""
    with database.read() as session:
        source = queries.get_job(session, typed["source"]) if typed.get("source") else None
    made = _of_typed(typed, source)
    try:
        new = _new_jobs(made, submitter.key_id)
        if typed.get("step") == "submit":
            key = f"form {typed.get('key', '')[:64]} {_digest(made.said)}"
            wanted = new[0] if "seeds" not in made.said else new
            digest = _digest(made.said)
            job, _ = service.submit_once(database, key, submitter.key_id, digest, lambda session: wanted)
            return RedirectResponse(f"/jobs/{job.id}", status_code=303)
        with database.read() as session:
            plan = service.plan(session, new[0])
        made = replace(made, plan=plan, deviations=of_preset(made.preset, plan["spec"]))
    except Invalid as error:
        made = replace(made, errors={entry.pointer: entry.detail for entry in error.errors})
    with database.read() as session:
        return _shown(request, session, made)


def _shown(request: Request, session: Session, made: Form) -> Response:
    context = {
        "form": made,
        "sections": spec_forms.sections(made.kind),
        "presets": described_presets(),
        "datasets": [entry.name for entry in queries.datasets(session)],
        "key": made.typed.get("key") or secrets.token_hex(16),
    }
    return page(request, "submit.html", 422 if made.errors else 200, **context)


def _of_preset(name: str) -> Form:
    known = presets()
    if name not in known:
        raise Invalid([FieldError("preset", f"there is no such preset; expected one of {', '.join(known)}")])
    spec = resolve_spec(known[name])
    return Form("pretrain", name, None, _as_typed("pretrain", spec), spec)


def _of_job(session: Session, job_id: str) -> Form:
    job = queries.get_job(session, job_id)
    kind: Kind = "pretrain" if job.kind == "pretrain" else "evaluate"
    known = presets().get(job.preset or "")
    typed = _as_typed(kind, job.spec) | {"name": job.name, "pool": job.pool}
    typed["tags"] = ", ".join(queries.tags(session, [job.id])[job.id])
    typed |= {name: str(value) for name in _NUMBERS if (value := getattr(job, name))}
    typed["preemptible"] = "true" if job.preemptible else "false"
    return Form(kind, job.preset if known else None, job, typed, resolve_spec(known) if known else job.spec)


def _of_typed(typed: dict[str, str], source: Job | None) -> Form:
    kind: Kind = "evaluate" if typed.get("kind") == "evaluate" else "pretrain"
    known = presets().get(typed.get("preset", ""))
    base = resolve_spec(known) if known else source.spec if source else None
    made = Form(kind, typed["preset"] if known else None, source, typed, base)
    return replace(made, said=_said(made))


def _as_typed(kind: Kind, spec: Mapping[str, Any]) -> dict[str, str]:
    return {f"spec.{entry.name}": entry.shown(spec) for entry in spec_forms.fields(kind)}


def _said(made: Form) -> dict[str, Any]:
    """The request's body: with a preset only what differs from it."""
    typed = made.typed
    spec = spec_forms.read(made.kind, typed)
    if made.preset and made.base is not None:
        spec = spec_forms.differing(spec, made.base)
    said: dict[str, Any] = {"kind": made.kind} | ({"preset": made.preset} if made.preset else {}) | {"spec": spec}
    for name in ("name", "pool"):
        said |= {name: text} if (text := typed.get(name, "").strip()) and (name, text) != ("pool", "default") else {}
    for name, nothing in _NUMBERS.items():
        said |= {name: _number(text)} if (text := typed.get(name, "").strip()) not in ("", nothing) else {}
    if (preemptible := typed.get("preemptible", "false")) != "false":
        said["preemptible"] = preemptible == "true" or preemptible
    said |= {"tags": tags} if (tags := _parts(typed.get("tags", ""))) else {}
    if seeds := _parts(typed.get("seeds", "")):
        said["seeds"] = [_number(part) for part in seeds]
        spec.pop("seed", None)
    return said


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> Any:
    return int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 12 else text


def _new_jobs(made: Form, asker: str) -> list[NewJob]:
    """Raises Invalid with pointers as `POST /v1/jobs` does."""
    bodies.check_values(made.said)
    try:
        body = JobBody.model_validate(made.said)
    except ValidationError as error:
        entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        raise Invalid(field_errors.of_request(entries)) from error
    parent = made.source.id if made.source else None
    return [replace(new, parent_id=parent) for new in submissions.new_jobs(body, asker)]


def _digest(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
