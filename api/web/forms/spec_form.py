"""A spec as fields of a form, from its published JSON schema, and the typed fields as a spec again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from api.http import bodies
from api.rest.openapi import type_of
from api.web.forms.labels import LABELS, SECTIONS, SectionText
from jobs.errors import JobsError
from wcl_core.config import EvaluateSpec, Kind, PretrainSpec
from wcl_core.config.overlay import with_fields

_MODELS: dict[Kind, type[BaseModel]] = {"pretrain": PretrainSpec, "evaluate": EvaluateSpec}


@dataclass(frozen=True)
class Field:
    """One value of a spec: one of `choices`, or text that `type` describes.

    `path` is its place in the spec.  A user types `is_json` values as JSON, and may leave `is_nullable` values empty.
    """

    path: tuple[str, ...]
    type: str
    description: str
    choices: tuple[str, ...] = ()
    is_json: bool = False
    is_text: bool = False
    is_nullable: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def pointer(self) -> str:
        return "/spec/" + "/".join(self.path)

    @property
    def label(self) -> str:
        """The field in plain words, with its unit."""
        return LABELS[self.name]

    def shown(self, spec: Mapping[str, Any]) -> str:
        """Return the value as a user would type it."""
        value: Any = spec
        for part in self.path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            return ""
        return value if isinstance(value, str) and not self.is_json else json.dumps(value, ensure_ascii=False)

    def read(self, typed: str) -> Any:
        """Return the typed value; malformed values stay text, which the validation of the spec then refuses."""
        text = typed.strip()
        if not text and self.is_nullable:
            return None
        return text if self.is_text else json_or_text(text)


def json_or_text(text: str) -> Any:
    """Parse text as JSON; malformed JSON stays text, which the validation of the request then refuses."""
    try:
        value = json.loads(text)
        bodies.check_values(value)  # the page shows what it has parsed, so it must be able to
    except (ValueError, RecursionError, JobsError):
        return text
    return value


@dataclass(frozen=True)
class Section:
    """Fields that belong together, with the texts of their section."""

    text: SectionText
    fields: list[Field]

    @property
    def count(self) -> int:
        return len(self.fields)

    def summary(self, typed: Mapping[str, str]) -> str:
        """Return the main values of the section, as typed."""
        values = ((before, typed.get(f"spec.{name}", ""), after) for before, name, after in self.text.summary)
        return ", ".join(f"{before}{value}{after}" for before, value, after in values if value)


@cache
def sections(kind: Kind) -> tuple[Section, ...]:
    """Return all fields of a kind's spec by section; fields of JSON, which need the whole width, last."""
    schema = _MODELS[kind].model_json_schema()
    by_part: dict[str, list[Field]] = {}
    for name, body in schema["properties"].items():
        inner = _resolved(body, schema)
        if "properties" in inner:
            by_part[name] = [_field((name, part), each, schema) for part, each in inner["properties"].items()]
        else:
            by_part[name] = [_field((name,), body, schema)]
    of_section = {text: [field for part in text.parts for field in by_part[part]] for text in SECTIONS[kind]}
    return tuple(Section(text, sorted(own, key=lambda field: field.is_json)) for text, own in of_section.items())


def fields(kind: Kind) -> Iterator[Field]:
    for section in sections(kind):
        yield from section.fields


def _resolved(body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = body.get("$ref")
    return body if reference is None else dict(schema["$defs"][reference.rsplit("/", 1)[1]])


def _field(path: tuple[str, ...], body: dict[str, Any], schema: dict[str, Any]) -> Field:
    options = [_resolved(each, schema) for each in body.get("anyOf", [body])]
    present = [each for each in options if each.get("type") != "null"]
    main = _resolved(present[0], schema)
    kind = main.get("type")
    choices = tuple(main.get("enum", ())) if kind == "string" else ("true", "false") if kind == "boolean" else ()
    is_json = kind in ("array", "object") or kind is None
    expected = "JSON" if is_json else type_of(main)
    return Field(
        path=path,
        type=expected,
        description=body.get("description", ""),
        choices=choices,
        is_json=is_json,
        is_text=kind == "string",
        is_nullable=len(present) < len(options),
    )


def read(kind: Kind, typed: Mapping[str, str]) -> dict[str, Any]:
    """Return the spec of a form whose fields are named `spec.NAME`; missing fields stay missing."""
    sent = ((field, typed.get(f"spec.{field.name}")) for field in fields(kind))
    return with_fields({}, {field.name: field.read(text) for field, text in sent if text is not None})
