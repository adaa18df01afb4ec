"""What the forms of a new job and of a new sweep have in common: a spec as it is typed, and what it started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from api.http import bodies, field_errors
from api.http.auth import Submitter
from api.http.dependencies import TheDatabase
from api.http.idempotency import Submission
from api.web.forms import spec_form
from jobs import queries
from jobs.errors import FieldError, Invalid
from jobs.models import Job
from wcl_core.config import Kind
from wcl_core.config.overlay import changed_fields

FIRST_PRESET = "digits-cpu"
NUMBERS = {"priority": "0", "gpus": "0", "max_seconds": ""}  # as typed when nothing is asked for
_OPTIONS = ("name", "pool", "tags", "preemptible", *NUMBERS)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class SpecForm:
    """What a page shows: the fields as typed, what they were measured against, and the request that they make."""

    kind: Kind
    preset: str | None
    source: Job | None
    typed: dict[str, str]
    base: dict[str, Any] | None
    errors: dict[str, str] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)

    def default(self, entry: spec_form.Field) -> str | None:
        """How a field stands in what the form started from, where it now stands otherwise."""
        before = None if self.base is None else entry.shown(self.base)
        now = self.typed.get(f"spec.{entry.name}", "")
        return before if before is not None and entry.read(before) != entry.read(now) else None

    def concerns(self, section: spec_form.Section) -> bool:
        """Whether a field of the section is wrong or was changed."""
        return any(entry.pointer in self.errors or self.default(entry) is not None for entry in section.fields)

    @property
    def concerns_jobs(self) -> bool:
        """Whether something is wrong beside the spec that all jobs share."""
        return any(f"/{name}" in self.errors for name in _OPTIONS[1:])

    @property
    def pointers(self) -> set[str]:
        """Of everything that the form has a place for."""
        return {entry.pointer for entry in spec_form.fields(self.kind)} | {f"/{name}" for name in _OPTIONS}

    def placed(self, errors: Sequence[FieldError]) -> dict[str, str]:
        """What is wrong by the pointers of the form: what is wrong within a field is told beside the field."""
        found: dict[str, list[str]] = {}
        for error in errors:
            home = max(
                (each for each in self.pointers if f"{error.pointer}/".startswith(f"{each}/")),
                key=len,
                default=error.pointer,
            )
            within = error.pointer.removeprefix(home).strip("/")
            found.setdefault(home, []).append(f"{within}: {error.detail}" if within else error.detail)
        return {home: "; ".join(details) for home, details in found.items()}

    @property
    def other_errors(self) -> list[str]:
        """Those that belong to no field of the form."""
        places = self.pointers
        return [f"{pointer}: {text}".lstrip(": ") for pointer, text in self.errors.items() if pointer not in places]

    @property
    def spec_said(self) -> dict[str, Any]:
        """The request's spec: with a preset only what differs from it."""
        spec = spec_form.read(self.kind, self.typed)
        return changed_fields(spec, self.base) if self.preset and self.base is not None else spec

    @property
    def options_said(self) -> dict[str, Any]:
        """What the request says of jobs beside their spec."""
        typed, said = self.typed, dict[str, Any]()
        for name in ("name", "pool"):
            text = typed.get(name, "").strip()
            said |= {name: text} if text and (name, text) != ("pool", "default") else {}
        said |= numbers(typed, NUMBERS)
        if (preemptible := typed.get("preemptible", "false")) != "false":
            said["preemptible"] = preemptible == "true" or preemptible
        return said | ({"tags": tags} if (tags := parts(typed.get("tags", ""))) else {})


# --- what was typed --------------------------------------------------------------------------------------------------


async def _typed(request: Request) -> dict[str, str]:
    async with request.form(max_files=0, max_fields=500) as sent:
        return {name: value for name, value in sent.items() if isinstance(value, str)}


Typed = Annotated[dict[str, str], Depends(_typed)]


async def _submission(principal: Submitter, database: TheDatabase, response: Response, typed: Typed) -> Submission:
    return Submission(database, principal.key_id, typed.get("key"), response, is_form=True)


TheSubmission = Annotated[Submission, Depends(_submission)]


def spec_typed(kind: Kind, spec: Mapping[str, Any]) -> dict[str, str]:
    """A spec as it would be typed."""
    return {f"spec.{entry.name}": entry.shown(spec) for entry in spec_form.fields(kind)}


def options_typed(session: Session, job: Job) -> dict[str, str]:
    """What a job has beside its spec, as it would be typed."""
    typed = {"name": job.name, "pool": job.pool, "preemptible": "true" if job.preemptible else "false"}
    typed["tags"] = ", ".join(queries.tags(session, [job.id])[job.id])
    return typed | {name: str(value) for name in NUMBERS if (value := getattr(job, name))}


def parts(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number(text: str) -> Any:
    """A whole number; any other text as it is, which the request then refuses by name."""
    return int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 12 else text


def numbers(typed: Mapping[str, str], nothing: Mapping[str, str]) -> dict[str, Any]:
    """Whole numbers of fields by their names, without those that stand as in `nothing`."""
    said = {name: typed.get(name, "").strip() for name in nothing}
    return {name: number(text) for name, text in said.items() if text not in ("", nothing[name])}


# --- what was typed as a request -------------------------------------------------------------------------------------


def body_of(model: type[M], said: Mapping[str, Any]) -> M:
    """The body that a request with this JSON has.

    Raises:
        Invalid: with pointers as the REST interface has them.
    """
    bodies.check_values(dict(said))
    try:
        return model.model_validate(said)
    except ValidationError as error:
        entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        raise Invalid(field_errors.of_request(entries)) from error
