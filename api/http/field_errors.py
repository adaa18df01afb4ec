"""Validation errors of pydantic as JSON pointers, each with a sentence about the expected value."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jobs.errors import FieldError
from wcl_core.config import EvaluateSpec, Kind, PretrainSpec
from wcl_core.text import counted

E = TypeVar("E", bound=Mapping[str, Any])
MAX_ERRORS = 50  # of one request; the work for each grows with the number of fields
_MODELS: dict[Kind, type[BaseModel]] = {"pretrain": PretrainSpec, "evaluate": EvaluateSpec}


def of_spec(error: ValidationError, kind: Kind, prefix: str = "/spec") -> list[FieldError]:
    """Return the invalid fields of a spec that `parse_spec` refused."""
    return of_model(error, _MODELS[kind], prefix)


def of_model(error: ValidationError, model: type[BaseModel], prefix: str) -> list[FieldError]:
    """Return the invalid fields of a value at `prefix` that a model refused."""
    entries = _without_echoes(error.errors(include_url=False))
    return [_field_error(entry, model, prefix) for entry in entries]


def of_request(errors: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """Return invalid fields of a body by their pointers, and invalid parameters of the address by their names."""
    return [_request_error(entry) for entry in _without_echoes(errors)]


def _without_echoes(errors: Sequence[E]) -> list[E]:
    """Drop "too short" of a list whose items were refused: pydantic counts the valid items only."""
    errors = errors[:MAX_ERRORS]
    return [
        entry
        for entry in errors
        if entry["type"] != "too_short"
        or not any(len(other["loc"]) > len(loc := entry["loc"]) and other["loc"][: len(loc)] == loc for other in errors)
    ]


def _request_error(entry: Mapping[str, Any]) -> FieldError:
    source, *path = entry["loc"]
    pointer = "".join(f"/{escaped(part)}" for part in path) if source == "body" else ".".join(map(str, path))
    return FieldError(pointer, _detail(entry, None))


def _field_error(entry: ErrorDetails, model: type[BaseModel], prefix: str) -> FieldError:
    path, owner = _walk(model, entry["loc"])
    if entry["type"].startswith("union_tag_"):
        path.append(entry["ctx"]["discriminator"].strip("'"))
    elif entry["type"] == "field_below":
        path.append(entry["ctx"]["field"])
    detail = _of_value(entry, owner, path) or _detail(entry, owner, model)
    return FieldError(prefix + "".join(f"/{escaped(part)}" for part in path), detail)


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[int | str], type[BaseModel] | None]:
    """Return the path in the document, and the model of its last step.

    pydantic adds the tag of a discriminated union to the location, although the document has no such level.
    """
    path: list[int | str] = []
    owner: type[BaseModel] | None = None
    here: Any = model
    steps = iter(location)
    for step in steps:
        path.append(step)
        owner = here if isinstance(here, type) and issubclass(here, BaseModel) else None
        field = owner.model_fields.get(str(step)) if owner else None
        here = field.annotation if field else None
        if field and isinstance(field.discriminator, str):
            here = _member(field.annotation, field.discriminator, steps)
    return path, owner


def _member(union: Any, discriminator: str, steps: Iterator[int | str]) -> Any:
    """Consume the next step, a tag, and return the member of the union that it names."""
    tag = next(steps, None)
    for member in get_args(union):
        if tag in get_args(member.model_fields[discriminator].annotation):
            return member
    return None


def _detail(entry: Mapping[str, Any], owner: type[BaseModel] | None, root: type[BaseModel] | None = None) -> str:
    """Return what is wrong with a field.

    Args:
        entry: pydantic's error.
        owner: the model that holds the field; None if it is unknown.
        root: the whole model, whose other parts may have the field that was meant.
    """
    if entry["type"] == "extra_forbidden":
        if entry["loc"][0] == "method_options":
            return "unknown field; the method has no option of this name"
        return "unknown field" + (_suggestion(str(entry["loc"][-1])[:100], owner, root or owner) if owner else "")
    if entry["type"] in ("missing", "union_tag_not_found"):
        return "this field is required"
    if entry["type"] == "union_tag_invalid":
        return f"expected one of {entry['ctx']['expected_tags']}"
    if entry["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "expected an object"
    if entry["type"].endswith("_parsing"):  # of text: in an address, in a form, or in quotation marks
        return _PARSED.get(entry["type"], "expected another type")
    if entry["type"] in _LIMITS:
        return _beyond(entry)
    message = str(entry["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    return _SHOULD.sub("expected ", message, count=1).replace(
        "expected match pattern", "expected text to match pattern"
    )


def _beyond(entry: Mapping[str, Any]) -> str:
    """Return the limit of a number, a text or a list, and the number that is beyond it."""
    words, name, noun = _LIMITS[entry["type"]]
    limit, given = entry["ctx"][name], entry["ctx"].get("actual_length", entry.get("input"))
    end = f", not {_number(given)}" if isinstance(given, int | float) and not isinstance(given, bool) else ""
    return f"expected {words} {counted(limit, noun) if noun else _number(limit)}{end}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _of_value(entry: Mapping[str, Any], owner: type[BaseModel] | None, path: Sequence[int | str]) -> str | None:
    """Return which field to set instead, and to what, for a plain value where an object or a list is expected."""
    value, field = entry["input"], owner.model_fields.get(str(path[-1])) if owner and path else None
    if owner is None or field is None or isinstance(value, dict | list):
        return None
    given, place = json.dumps(value, default=str)[:_LONGEST], ".".join(map(str, path))
    if entry["type"] == "tuple_type":
        is_item = _refusal(owner, str(path[-1]), [value]) is None
        return f"expected a list; set it to [{given}]" if is_item else "expected a list"
    if entry["type"] == "dict_type":
        return f"expected an object; set its fields, each as '{place}.NAME'"
    if entry["type"] not in ("model_type", "model_attributes_type"):
        return None
    models = [each for each in get_args(field.annotation) or (field.annotation,) if hasattr(each, "model_fields")]
    refusals = {name: _refusal(each, name, value) for each in models for name in each.model_fields}
    accepting = [name for name in refusals if any(_refusal(each, name, value) is None for each in models)]
    leading = field.discriminator if isinstance(field.discriminator, str) else "name"
    if leading in accepting:
        return f"expected an object; set '{place}.{leading}' to {given}"
    if not accepting and isinstance(value, str) and leading in refusals:
        return f"expected an object; set '{place}.{leading}': {refusals[leading]}"
    fields = ", ".join(f"{place}.{name}" for name in accepting or refusals)
    return f"expected an object; set one of its fields: {fields}"


def _refusal(model: type[BaseModel], name: str, value: Any) -> str | None:
    """Return what is wrong with a value of a field, apart from other fields; None if nothing is."""
    if name not in model.model_fields:
        return "unknown field"
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        own = [entry for entry in error.errors(include_url=False) if entry["loc"][:1] == (name,)]
        return _detail(own[0], model) if own else None
    return None


_LONGEST = 100  # characters of a value that a message repeats
_LIMITS = {  # words, the limit's name in the context of pydantic's error, and what it counts
    "greater_than_equal": ("at least", "ge", ""),
    "less_than_equal": ("at most", "le", ""),
    "greater_than": ("more than", "gt", ""),
    "less_than": ("less than", "lt", ""),
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "value"),
    "too_long": ("at most", "max_length", "value"),
}
_SHOULD = re.compile(r"^\w+ should (be |have |)")
_PARSED = {
    "int_parsing": "expected an integer",
    "float_parsing": "expected a number",
    "bool_parsing": "expected true or false",
    "uuid_parsing": "expected an id, a UUID",
}


@lru_cache(1_000)  # each trial of a sweep may have the same unknown fields
def _suggestion(name: str, owner: type[BaseModel], root: type[BaseModel]) -> str:
    """Return the field that was meant: a similar one beside it, or one of this name, or a similar one, elsewhere."""
    beside = sorted(owner.model_fields)
    elsewhere = _dotted(root)
    last = {field: field.rsplit(".", 1)[-1] for field in elsewhere}
    word = name.rsplit(".", 1)[-1]
    if same := [field for field in elsewhere if last[field] == word]:
        return f"; did you mean {' or '.join(map(repr, same))}?"
    if close := difflib.get_close_matches(word, beside, n=1):
        return f"; did you mean {close[0]!r}?"
    if close := difflib.get_close_matches(word, set(last.values()), n=1, cutoff=0.75):
        return f"; did you mean {' or '.join(repr(field) for field in elsewhere if last[field] == close[0])}?"
    return f"; expected some of {', '.join(beside)}"


@lru_cache(8)
def _dotted(model: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """Return the dotted names of all fields of a model that are no objects themselves."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            names += _dotted(below, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return tuple(names)


def escaped(part: str | int) -> str:
    """Return one step of a JSON pointer (RFC 6901)."""
    return str(part).replace("~", "~0").replace("/", "~1")
