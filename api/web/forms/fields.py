"""Shared parts of the forms of jobs and sweeps: the spec as typed, and the spec that the form started from."""

from __future__ import annotations

import re
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
from api.web.forms.labels import OPTION_LABELS, label_of
from jobs import queries
from jobs.errors import FieldError, Invalid, OverLimit
from jobs.models import Job
from wcl_core.config import Kind
from wcl_core.config.overlay import changed_fields, changes_from, followed, leaves, merged

FIRST_PRESET = "digits-cpu"
NUMBERS = {"priority": "0", "gpus": "", "max_seconds": ""}  # defaults, as typed
_OPTIONS = ("name", "pool", "tags", "preemptible", *NUMBERS)
_INTEGER = re.compile(r"-?[0-9]{1,11}")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class SpecForm:
    """A form: the fields as typed, the spec that they started from (`base`), and the request that they make."""

    kind: Kind
    preset: str | None
    source: Job | None
    typed: dict[str, str]
    base: dict[str, Any] | None
    errors: dict[str, str] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)

    def default(self, entry: spec_form.Field) -> str | None:
        """Return the field's original value, if it was changed."""
        before = None if self.base is None else entry.shown(self.base)
        now = self.typed.get(f"spec.{entry.name}", "")
        return before if before is not None and entry.read(before) != entry.read(now) else None

    def concerns(self, section: spec_form.Section) -> bool:
        """Return whether a field of the section is invalid or was changed."""
        return any(entry.pointer in self.errors or self.default(entry) is not None for entry in section.fields)

    def changed(self, section: spec_form.Section) -> int:
        """Return how many fields of the section were changed."""
        return sum(self.default(entry) is not None for entry in section.fields)

    @property
    def origin(self) -> str:
        """The word for the values that the form started from."""
        return "preset" if self.preset else "before"

    @property
    def concerns_jobs(self) -> bool:
        """Whether an option beside the spec is invalid."""
        return any(f"/{name}" in self.errors for name in _OPTIONS[1:])

    @property
    def pointers(self) -> set[str]:
        return {entry.pointer for entry in spec_form.fields(self.kind)} | {f"/{name}" for name in _OPTIONS}

    def placed(self, errors: Sequence[FieldError]) -> dict[str, str]:
        """Return the errors by the pointers of the form; an error within a field is shown beside the field."""
        by_pointer: dict[str, list[str]] = {}
        for error in errors:
            home = max(
                (each for each in self.pointers if f"{error.pointer}/".startswith(f"{each}/")),
                key=len,
                default=error.pointer,
            )
            within = error.pointer.removeprefix(home).strip("/")
            by_pointer.setdefault(home, []).append(f"{within}: {error.detail}" if within else error.detail)
        return {home: "; ".join(details) for home, details in by_pointer.items()}

    @property
    def wrong_fields(self) -> list[tuple[str, str, str]]:
        """The errors: id of the input (empty for an error of no single one), its label, and what is wrong."""
        labels = {entry.pointer: (f"spec.{entry.name}", entry.label) for entry in spec_form.fields(self.kind)}
        labels |= {f"/{name}": (name, label) for name, label in OPTION_LABELS.items() if f"/{name}" in self.pointers}
        return [(*labels.get(pointer, ("", label_of(pointer))), text) for pointer, text in self.errors.items()]

    @property
    def spec_request(self) -> dict[str, Any]:
        """The spec of the request; with a preset only the fields that differ from it."""
        spec = merged(spec_form.read(self.kind, self.typed), self._moved)
        return changes_from(self.base, spec) if self.preset and self.base is not None else spec

    @property
    def _moved(self) -> dict[str, Any]:
        """The fields that the user left alone and that follow a changed one."""
        if (start := self.source.spec if self.source else self.base) is None:
            return {}
        changes = changed_fields(spec_form.read(self.kind, self.typed), start)
        return changed_fields(followed(start, dict(leaves(changes))), start)

    def follows(self, entry: spec_form.Field) -> str | None:
        """Return the value of a field that follows a changed one; None if it has its typed value."""
        return entry.shown(self._moved) or None

    @property
    def options_request(self) -> dict[str, Any]:
        """The fields of the request beside the spec."""
        typed, options = self.typed, dict[str, Any]()
        for name in ("name", "pool"):
            text = typed.get(name, "").strip()
            options |= {name: text} if text and (name, text) != ("pool", "default") else {}
        options |= numbers(typed, NUMBERS)
        if (preemptible := typed.get("preemptible", "false")) != "false":
            options["preemptible"] = preemptible == "true" or preemptible
        return options | ({"tags": tags} if (tags := parts(typed.get("tags", ""))) else {})


# --- typed values ----------------------------------------------------------------------------------------------------


async def _typed(request: Request) -> dict[str, str]:
    async with request.form(max_files=0, max_fields=bodies.MAX_FORM_FIELDS) as sent:
        return {name: value for name, value in sent.items() if isinstance(value, str)}


Typed = Annotated[dict[str, str], Depends(_typed)]


async def _submission(principal: Submitter, database: TheDatabase, response: Response, typed: Typed) -> Submission:
    return Submission(database, principal.key_id, typed.get("key"), response, is_form=True)


TheSubmission = Annotated[Submission, Depends(_submission)]


def spec_typed(kind: Kind, spec: Mapping[str, Any]) -> dict[str, str]:
    """Return a spec as a user would type it."""
    return {f"spec.{entry.name}": entry.shown(spec) for entry in spec_form.fields(kind)}


def options_typed(session: Session, job: Job) -> dict[str, str]:
    """Return the options of a job beside its spec, as a user would type them."""
    typed = {"name": job.name, "pool": job.pool, "preemptible": "true" if job.preemptible else "false"}
    typed["tags"] = ", ".join(queries.tags(session, [job.id])[job.id])
    return typed | {name: str(value) for name in NUMBERS if (value := getattr(job, name))}


def parts(text: str) -> list[str]:
    """Return the parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number(text: str) -> Any:
    """Return an integer; any other text stays text, which the validation of the request then refuses."""
    return int(text) if _INTEGER.fullmatch(text) else text


def numbers(typed: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, Any]:
    """Return the integers of fields by their names, without those that have their defaults."""
    values = {name: typed.get(name, "").strip() for name in defaults}
    return {name: number(text) for name, text in values.items() if text not in ("", defaults[name])}


def body_of(model: type[M], values: Mapping[str, Any]) -> M:
    """Return the validated body of a request with this JSON.

    Raises:
        Invalid: with the pointers of the REST interface.
    """
    bodies.check_values(dict(values))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        raise Invalid(field_errors.of_request(entries)) from error


def limited(shown: Response, over: OverLimit | None) -> Response:
    """Return the response with a form, marked as the refusal of a request that is beyond a limit of the key."""
    if over is not None:
        shown.status_code = over.status_code
        shown.headers["Retry-After"] = str(over.retry_seconds)
    return shown
