"""The fields of the form of a sweep as the user types them, and the body of the request that they make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args

from api.rest.sweep_bodies import SweepBody
from api.web.forms import spec_form
from api.web.forms.fields import SpecForm, number, numbers, parts
from jobs.errors import FieldError
from jobs.sweeps import HELD_OUT_SHARE, MEASURES, Search, parameter_pointer
from wcl_core.text import visible_json

MAX_ROWS = 16
_MAX_NAME = 200
FIRST_ROWS = 1
SEARCHES: tuple[str, ...] = get_args(Search)
HOWS = {"values": "list of values", "even": "uniform range", "log": "log-uniform range"}
METRICS = [f"{protocol}/{name}" for protocol, names in MEASURES.items() for name in names]
# The setting of a protocol that a sweep sets most often, by protocol: its name, label and hint.
METRIC_FIELDS = {
    "knn": ("knn_k", "Neighbours", "how many vote; by default 20, fewer for small classes"),
    "few_labels": ("labels_per_class", "Labelled images a class", "one number, such as 5"),
}
ELSEWHERE = ("seed", "data.held_out_share")  # fields of a spec that a sweep sets itself
_OF_METRIC = {"/metric/settings", *(f"/metric/settings/{name}" for name, *_ in METRIC_FIELDS.values())}
_NUMBERS = {"max_parallel": "4"}  # defaults, as typed
_OF_SEARCH: dict[str, dict[str, str]] = {
    "grid": {},
    "random": {"trials": "", "seed": "0"},
    "halving": {"trials": "", "seed": "0", "eta": "3", "min_epochs": ""},
}
_NOT_SEARCHED = (*ELSEWHERE, "evaluations", "data.name")


@cache
def _fields() -> dict[str, spec_form.Field]:
    return {entry.name: entry for entry in spec_form.fields("pretrain")}


@dataclass(frozen=True)
class Row:
    """A row of the form: a searched field and its values, as typed."""

    place: int
    field: str
    how: str
    values: str
    min: str
    max: str
    is_again: bool = False  # an earlier row has the same field

    @classmethod
    def of(cls, typed: Mapping[str, str], place: int) -> Row:
        field, how, values, low, high = (
            typed.get(f"row.{place}.{name}", "").strip() for name in ("field", "how", "values", "min", "max")
        )
        return cls(place, field, how if how in HOWS else "values", values, low, high)

    @property
    def is_empty(self) -> bool:
        return not (self.field or self.values or self.min or self.max)

    @property
    def pointer(self) -> str:
        """The place of the row in the request, or in the form while it cannot be part of a request."""
        return f"/rows/{self.place}" if self.is_again or not self.field else parameter_pointer(self.field)

    @property
    def error(self) -> FieldError | None:
        """The reason why the row cannot be part of a request."""
        if self.is_again:
            return FieldError(self.pointer, f"another row has the field {self.field}; remove one of the two")
        return None if self.field else FieldError(self.pointer, "expected the name of a field")

    @property
    def request(self) -> Any:
        """The part of the request that the row makes."""
        entry = _fields().get(self.field)
        if self.how == "values":
            return _values(self.values, entry)
        bounds = {name: _value(text, None) for name, text in (("min", self.min), ("max", self.max)) if text}
        whole = {"integer": True} if entry is not None and entry.type.startswith("integer") else {}
        return bounds | ({"log": True} if self.how == "log" else {}) | whole


def _values(text: str, entry: spec_form.Field | None) -> list[Any]:
    """Return the values between commas, or those of a JSON list."""
    if entry is None or not entry.is_text:
        values = spec_form.json_or_text(f"[{text}]")
        if isinstance(values, list):
            is_list = len(values) == 1 and isinstance(values[0], list) and not (entry and entry.is_json)
            return list(values[0] if is_list else values)
    return [_value(part, entry) for part in parts(text)]


def _value(text: str, entry: spec_form.Field | None) -> Any:
    return text if entry is not None and entry.is_text else spec_form.json_or_text(text)


def _with_value(label: str, value: str) -> str:
    return f"{label}: now {value[:40] or 'none'}"


@dataclass(frozen=True)
class SweepForm(SpecForm):
    plan: dict[str, Any] | None = None
    more_rows: int = 0

    @property
    def rows(self) -> list[Row]:
        """All rows of the form, with the empty ones."""
        places = [int(name.split(".")[1]) for name in self.typed if _is_row(name)]
        count = min(MAX_ROWS, max([FIRST_ROWS - 1, *places]) + 1 + self.more_rows)
        rows: list[Row] = []
        for place in range(count):
            row = Row.of(self.typed, place)
            is_again = bool(row.field) and row.field in (each.field for each in rows)
            rows.append(replace(row, is_again=is_again))
        return rows

    @property
    def search(self) -> str:
        return search if (search := self.typed.get("search", "")) in SEARCHES else SEARCHES[0]

    @property
    def metric(self) -> str:
        return metric if (metric := self.typed.get("metric", "")) in METRICS else METRICS[0]

    @property
    def pointers(self) -> set[str]:
        own = {f"/{name}" for name in SweepBody.model_fields if name not in ("spec", "preset", "kind")}
        return (super().pointers - {"/spec/seed"}) | own | _OF_METRIC | {row.pointer for row in self.rows}

    def now(self, row: Row) -> str:
        """Return the value of a searched field in the spec that all trials share; empty for an unknown field."""
        entry = _fields().get(row.field)
        if entry is None:
            return ""
        return f"base value {self.typed.get(f'spec.{row.field}', '') or 'none'}; {entry.type}"

    @property
    def searchable(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The fields that a row may name, by section: each name with the label and the present value."""
        groups = []
        for section in spec_form.sections("pretrain"):
            named = [(each.name, each.label, self.typed.get(f"spec.{each.name}", "")) for each in section.fields]
            fields = [(name, _with_value(label, value)) for name, label, value in named if name not in _NOT_SEARCHED]
            groups.append((section.text.title, fields))
        options = spec_form.json_or_text(self.typed.get("spec.method_options", ""))
        if isinstance(options, dict) and options:
            own = [(f"method_options.{name}", _with_value(name, json.dumps(value))) for name, value in options.items()]
            groups.append(("Options of the method", own))
        return groups

    @property
    def default_name(self) -> str:
        """The name of a sweep without one: its searched fields and its dataset."""
        fields = [row.field for row in self.rows if row.field]
        labels = " and ".join(_fields()[name].label if name in _fields() else name for name in fields)
        dataset = self.typed.get("spec.data.name", "").strip()
        return f"{labels} on {dataset}"[:_MAX_NAME] if labels and dataset else ""

    @property
    def row_errors(self) -> list[FieldError]:
        return [error for row in self.rows if not row.is_empty and (error := row.error)]

    @property
    def json(self) -> str:
        """The body of the request, in the format of a file for the command line."""
        return visible_json(_json(self.request))


def _json(value: Any, depth: int = 0) -> str:
    """Return JSON with one field a line, for the first two levels."""
    if not isinstance(value, dict) or not value or depth > 1:
        return json.dumps(value, ensure_ascii=False)
    inner, outer = "  " * (depth + 1), "  " * depth
    lines = [
        f"{inner}{json.dumps(name, ensure_ascii=False)}: {_json(below, depth + 1)}" for name, below in value.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{outer}}}"


def _is_row(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[0] == "row" and parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 3


def shared_by_all(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec as the base of a sweep: a share of train is held out, unless the spec sets the share."""
    data = dict(spec["data"])
    return {**spec, "data": data | {"held_out_share": data.get("held_out_share") or HELD_OUT_SHARE}}


def request_of(form: SweepForm) -> dict[str, Any]:
    """Return the body of the request that the form makes, without the fields of other searches."""
    typed = form.typed
    spec, options = form.spec_request, form.options_request
    request: dict[str, Any] = {"name": options.pop("name", "") or form.default_name}
    request |= {"preset": form.preset} if form.preset else {}
    request |= {"spec": spec} if spec else {}
    request["search"] = form.search
    request |= numbers(typed, _OF_SEARCH[form.search])
    if form.search == "halving" and (rungs := parts(typed.get("rungs", ""))):
        request["rungs"] = [number(part) for part in rungs]
    request["parameters"] = {row.field: row.request for row in form.rows if not row.is_empty and row.error is None}
    request["metric"] = _metric(form)
    if seeds := parts(typed.get("seeds", "")):
        request["seeds"] = [number(part) for part in seeds]
    return request | numbers(typed, _NUMBERS) | options


def _metric(form: SweepForm) -> dict[str, Any]:
    protocol, name = form.metric.split("/")
    request: dict[str, Any] = {"protocol": protocol} | ({"name": name} if name != MEASURES[protocol][0] else {})
    text = form.typed.get("metric.settings", "").strip()
    settings = _value(text, None) if text else {}
    field, *_ = METRIC_FIELDS.get(protocol, ("",))
    if isinstance(settings, dict) and (text := form.typed.get(f"metric.{field}", "").strip()):
        settings = settings | {field: _values(text, None) if field == "labels_per_class" else number(text)}
    return request | ({"settings": settings} if settings else {})
