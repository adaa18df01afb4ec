"""The page with the form of a new job, filled from a recipe that fits a dataset, from a preset or from another job.

The form asks three questions: which images, how long, and a name.  The first two choose the recipe (`job_start`); all
settings are folded below.

GET shows the form.  POST with `step=plan` shows it again with its errors or with the dry run; POST with `step=submit`
creates the job, once for each one-time key of the form.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.http.auth import Submitter
from api.http.dependencies import TheDatabase
from api.http.idempotency import one_time_key
from api.rest import job_bodies
from api.rest.job_bodies import JobBody
from api.rest.presets import PresetDeviation, preset_deviations, preset_fields
from api.web.forms import job_start, spec_form
from api.web.forms.fields import (
    FIRST_PRESET,
    NUMBERS,
    SpecForm,
    TheSubmission,
    Typed,
    body_of,
    limited,
    number,
    options_typed,
    parts,
    spec_typed,
)
from api.web.forms.job_start import Chosen, Start
from api.web.forms.labels import LABELS
from api.web.render import page
from jobs import queries, weights
from jobs import submission as service
from jobs.errors import Invalid, OverLimit
from jobs.estimates import rough_range
from jobs.new_job import default_name, kind_of
from wcl_core.config import Kind, PretrainSpec, parse_spec, resolve_spec
from wcl_core.config.overlay import changes_from, leaves, merged, overlaid
from wcl_core.presets import described_presets, presets

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Form(SpecForm):
    """The form of a job.

    Attributes:
        recipe: the one that it started from; None if it started from a preset or a job.
        problem: why there is no recipe for the dataset.
    """

    plan: dict[str, Any] | None = None
    deviations: list[PresetDeviation] | None = None
    recipe: Chosen | None = None
    problem: str | None = None

    @property
    def spec_request(self) -> dict[str, Any]:
        """The spec of the request; of a recipe, its own fields and those that differ from it."""
        if self.recipe is None or self.base is None:
            return super().spec_request
        spec = merged(spec_form.read(self.kind, self.typed), self._moved)
        return overlaid(self.recipe.proposal.spec, changes_from(self.base, spec))

    @property
    def origin(self) -> str:
        return "proposed" if self.recipe else super().origin

    @property
    def verdict(self) -> Verdict:
        """The judgement of the panel: a job that waits, does not fit or hardly learns is not ready."""
        plan = self.plan or {}
        if len(plan["workers"]) < plan["spec"].get("nodes", 1):
            return Verdict("paused", "It would wait: no running worker can take it")
        if ((plan.get("estimate") or {}).get("memory") or {}).get("warning"):
            return Verdict("warning", "It does not fit into the memory")
        if self.warnings:
            return Verdict("warning", "It would hardly learn")
        return Verdict("succeeded", "Ready to submit")

    @property
    def warnings(self) -> list[str]:
        """The warnings of the dry run; those of a proposal stand beside the choice."""
        shown = self.recipe.proposal.warnings if self.recipe else []
        return [text for text in (self.plan or {})["warnings"] if text not in shown]

    @property
    def time(self) -> str | None:
        """The estimated time of one training, as a range; None where unknown."""
        time = ((self.plan or {}).get("estimate") or {}).get("time") or {}
        if time.get("high_seconds") is None:
            return None
        return rough_range(time["low_seconds"], time["high_seconds"])

    @property
    def pointers(self) -> set[str]:
        return super().pointers | {"/seeds"}

    @property
    def yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.request.get("spec") or {}, sort_keys=False, allow_unicode=True).strip()

    @property
    def file(self) -> str:
        """The name of a file for the spec."""
        return f"{self.recipe.dataset if self.recipe else 'spec'}.yaml"

    @property
    def command(self) -> str:
        """The command line that submits the same job."""
        words = ["wcl", "submit"]
        spec = self.request.get("spec") or {}
        if self.request.get("preset"):
            words += ["--preset", self.request["preset"]]
            words += [word for name, value in leaves(spec) for word in ("--set", f"{name}={_json(value)}")]
        else:
            words += [self.file]
        words += ["--kind", "evaluate"] if self.kind == "evaluate" else []
        for name in ("name", "pool", *NUMBERS):
            words += [f"--{name.replace('_', '-')}", str(self.request[name])] if name in self.request else []
        words += ["--preemptible"] if self.request.get("preemptible") else []
        words += [word for tag in self.request.get("tags", ()) for word in ("--tag", tag)]
        words += ["--seeds", ",".join(map(str, self.request["seeds"]))] if self.request.get("seeds") else []
        return shlex.join(words)


class Verdict(NamedTuple):
    """A judgement in a few words, with the icon of a state."""

    state: str
    text: str


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@router.get("/submit")
def form(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    preset: str = "",
    source: str = "",
    dataset: str = "",
    length: str = "",
    content: str = "",
    name: str = "",
) -> Response:
    """Show the form, filled from a recipe, from a preset or from another job."""
    with database.read() as session:
        if source:
            filled = _of_job(session, source)
        elif preset or (chosen := dataset or job_start.first_dataset(session)) is None:
            filled = _of_preset(preset or FIRST_PRESET)
        else:
            filled = _of_dataset(session, chosen, length, content)
        filled = replace(filled, typed=filled.typed | ({"name": name} if name else {}))
        return _shown(request, session, filled)


@router.post("/submit")
def send(
    request: Request, submitter: Submitter, database: TheDatabase, typed: Typed, submission: TheSubmission
) -> Response:
    """Check or submit the form."""
    over: OverLimit | None = None
    with database.read() as session:
        filled = _of_typed(session, typed)
    try:
        body = body_of(JobBody, filled.request)
        new = job_bodies.new_jobs(body, submitter.key_id, filled.source.id if filled.source else None)
        if typed.get("step") == "submit":
            job_id = job_bodies.create_jobs(submission, body, new, lambda _session, job: job.id)
            return RedirectResponse(f"/jobs/{job_id}", status_code=303)
        with database.read() as session:
            plan = service.plan(session, new[0])
        filled = replace(filled, plan=plan, deviations=preset_deviations(filled.preset, plan["spec"]))
    except Invalid as error:
        filled = replace(filled, errors=filled.placed(error.errors))
    except OverLimit as error:
        filled, over = replace(filled, errors={"": error.detail}), error
    with database.read() as session:
        return limited(_shown(request, session, filled), over)


def _shown(request: Request, session: Session, filled: Form) -> Response:
    context = {
        "form": filled,
        "sections": spec_form.sections(filled.kind),
        "presets": described_presets(),
        "datasets": [entry.name for entry in queries.datasets(session)],
        "imported": weights.every(session),
        "key": filled.typed.get("key") or one_time_key(),
        "labels": LABELS,
        "default_name": _default_name(filled),
        "start": None if filled.source else _start(session, filled),
    }
    return page(request, "submit.html", 422 if filled.errors else 200, **context)


def _of_preset(name: str) -> Form:
    spec = preset_fields(name, "pretrain")
    return Form("pretrain", name, None, spec_typed("pretrain", spec), spec)


def _default_name(filled: Form) -> str:
    """Return the name of a job without one; empty for an invalid spec."""
    try:
        return default_name(parse_spec(filled.kind, spec_form.read(filled.kind, filled.typed)))
    except ValidationError:
        return ""


def _start(session: Session, filled: Form) -> Start:
    if filled.recipe:
        return job_start.choices(session, filled.recipe, filled.recipe.dataset, None)
    return job_start.choices(session, None, str(filled.typed.get("spec.data.name", "")), filled.problem)


def _of_dataset(session: Session, name: str, length: str, content: str) -> Form:
    """Return the form of a dataset's recipe; of the first preset, with the problem, for a dataset that is too small."""
    try:
        recipe = job_start.recipe(session, name, length, content)
    except Invalid as error:
        filled = _of_preset(FIRST_PRESET)
        return replace(filled, typed=filled.typed | {"spec.data.name": name}, problem=error.errors[0].detail)
    spec = resolve_spec(PretrainSpec.model_validate(recipe.proposal.spec))
    return Form("pretrain", None, None, spec_typed("pretrain", spec), spec, recipe=recipe)


def _of_job(session: Session, job_id: str) -> Form:
    job = queries.get_job(session, job_id)
    kind = kind_of(job)
    preset = presets().get(job.preset or "")
    typed = spec_typed(kind, job.spec) | options_typed(session, job) | {"name": service.free_name(session, job.name)}
    return Form(kind, job.preset if preset else None, job, typed, resolve_spec(preset) if preset else job.spec)


def _of_typed(session: Session, typed: dict[str, str]) -> Form:
    kind: Kind = "evaluate" if typed.get("kind") == "evaluate" else "pretrain"
    source = queries.get_job(session, typed["source"]) if typed.get("source") else None
    preset, recipe = presets().get(typed.get("preset", "")), None
    base = resolve_spec(preset) if preset else source.spec if source else None
    if base is None and typed.get("dataset"):
        recipe = job_start.recipe(session, typed["dataset"], typed.get("length", ""), typed.get("content", ""))
        base = resolve_spec(PretrainSpec.model_validate(recipe.proposal.spec))
    if kind == "pretrain" and base is not None:
        typed = _with_network(session, typed, base)
    filled = Form(kind, typed["preset"] if preset else None, source, typed, base, recipe=recipe)
    return replace(filled, request=_request_of(filled))


def _with_network(session: Session, typed: dict[str, str], base: dict[str, Any]) -> dict[str, str]:
    """Return what was typed with the network of the imported weights that it names, unless a network was typed, too."""
    entries = [entry for entry in spec_form.fields("pretrain") if entry.path[0] == "backbone"]
    row = next((each for each in weights.every(session) if each.sha256 == typed.get("spec.weights")), None)
    is_typed = any(typed.get(f"spec.{entry.name}", entry.shown(base)) != entry.shown(base) for entry in entries)
    if row is None or is_typed:
        return typed
    return typed | {f"spec.{entry.name}": entry.shown({"backbone": row.backbone}) for entry in entries}


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
