"""Bodies of requests for sweeps, and the sweeps that they create."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from api.http import field_errors
from api.http.idempotency import Submission
from api.rest.job_bodies import JobOptions, Name, Seeds
from api.rest.presets import sent_spec
from jobs import sweeps
from jobs.errors import FieldError, Invalid
from jobs.models import Sweep
from jobs.new_job import options_of
from jobs.sweeps import (
    HELD_OUT_SHARE,
    MAX_TRIALS,
    Design,
    Direction,
    Metric,
    NewSweep,
    Range,
    Search,
    Values,
    designed,
    located,
    parameter_pointer,
)

_EXAMPLE: dict[str, Any] = {
    "name": "temperature and rate",
    "preset": "digits-cpu",
    "search": "halving",
    "parameters": {
        "loss.temperature": [0.1, 0.2, 0.4],
        "optimizer.learning_rate": {"min": 0.03, "max": 0.3, "log": True},
    },
    "trials": 9,
    "metric": {"protocol": "few_labels", "settings": {"labels_per_class": [5]}},
}
_FIELD = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)*")
_VALUES: TypeAdapter[Any] = TypeAdapter(Values)


class _Search(BaseModel):
    name: Name
    kind: Literal["pretrain"] = "pretrain"
    spec: dict[str, Any] = Field(
        default={}, description="The spec that all trials share; with a preset only the differences from it."
    )
    preset: str | None = Field(default=None, max_length=64, description="A name from /v1/presets.")
    search: Search
    parameters: dict[Annotated[str, Field(max_length=100)], JsonValue] = Field(
        min_length=1,
        max_length=16,
        description=(
            'By dotted names of fields: a list of values, or {"min": …, "max": …} with `log` for log-uniform draws '
            "and `integer` for whole numbers."
        ),
    )
    trials: int | None = Field(default=None, ge=1, le=MAX_TRIALS, description="Number of random draws; not for `grid`.")
    metric: Metric
    direction: Direction = "maximize"
    seeds: Seeds | None = Field(
        default=None, description="Each trial is trained once with each seed; its value is the mean."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of the random draws.")
    eta: int = Field(
        default=3,
        ge=2,
        le=10,
        description="For `halving`: the best 1/eta of the trials continue at the next rung, with eta times the epochs.",
    )
    min_epochs: int | None = Field(
        default=None, ge=1, le=100_000, description="For `halving`: minimum number of epochs of the first rung."
    )
    rungs: list[Annotated[int, Field(ge=1, le=100_000)]] | None = Field(
        default=None,
        min_length=2,
        max_length=10,
        description="For `halving`: the epochs of each rung, instead of `min_epochs`.",
    )
    max_parallel: int = Field(default=4, ge=1, le=MAX_TRIALS, description="Maximum number of unfinished trials.")


class SweepBody(JobOptions, _Search):
    """A search over fields of a training spec, ranked by an evaluation on held-out images of the train split.

    `grid` tries every combination.  `random` tries `trials` random draws.  `halving` starts with `trials` draws, or
    with every combination, and trains them for the epochs of the first rung.  The best 1/eta continue at the next rung,
    where each trains from scratch.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})


def create_sweep(submission: Submission, body: SweepBody, new: NewSweep, design: Design) -> Sweep:
    """Create the sweep of a body, once for each idempotency key.

    Raises:
        Invalid: as `Submission.create` and `jobs.sweeps.submit`.
    """
    request = ("sweep", body.model_dump(mode="json", exclude_unset=True))
    return submission.create(request, Sweep, lambda session: sweeps.submit(session, new, design), design.num_runs)


def new_sweep(body: SweepBody, created_by: str) -> tuple[NewSweep, Design]:
    """Return the sweep of a body, with every trial drawn and its spec validated.

    Raises:
        Invalid: all invalid fields, each with its pointer.
    """
    _check_search(body)
    sent = sent_spec(body.preset, body.kind, body.spec)
    if body.seeds is not None and "seed" in body.spec:
        raise Invalid([FieldError("/spec/seed", "expected either this field or `seeds`, the seeds of each trial")])
    new = NewSweep(
        name=body.name,
        search=body.search,
        base=_holding_out(sent, body.spec),
        parameters=_parameters(body),
        metric=_metric(body.metric),
        direction=body.direction,
        seeds=tuple(body.seeds or (sent.get("seed", 0),)),
        seed=body.seed,
        trials=body.trials,
        eta=body.eta,
        min_epochs=body.min_epochs,
        rungs=None if body.rungs is None else tuple(body.rungs),
        max_parallel=body.max_parallel,
        options=options_of(body) | {"tags": list(dict.fromkeys(body.tags))},
        preset=body.preset,
        created_by=created_by,
    )
    design = designed(new)
    _check_specs(design)
    return new, design


def _check_search(body: SweepBody) -> None:
    """Refuse fields of another search, because they would have no effect."""
    sent = body.model_fields_set
    errors = []
    if body.search != "halving":
        names = ("eta", "min_epochs", "rungs")
        errors += [
            FieldError(f"/{name}", f"only halving has rungs, not {body.search}") for name in names if name in sent
        ]
    if body.rungs is not None and body.min_epochs is not None:
        errors.append(FieldError("/min_epochs", "expected either this field or `rungs`"))
    if body.search == "grid" and body.trials is not None:
        errors.append(FieldError("/trials", "a grid tries every combination; expected no number, or search = random"))
    if body.search == "random" and body.trials is None:
        errors.append(FieldError("/trials", "this field is required for search = random"))
    if errors:
        raise Invalid(errors)


def _parameters(body: SweepBody) -> dict[str, Values | Range]:
    parameters: dict[str, Values | Range] = {}
    errors: list[FieldError] = []
    for name, value in body.parameters.items():
        here = parameter_pointer(name)
        if not _FIELD.fullmatch(name):
            errors.append(FieldError(here, "expected the dotted name of a spec's field, such as loss.temperature"))
        elif not isinstance(value, list | dict):
            errors.append(FieldError(here, 'expected a list of values or {"min": …, "max": …}'))
        else:
            try:
                parameters[name] = (
                    Range.model_validate(value) if isinstance(value, dict) else _VALUES.validate_python(value)
                )
            except ValidationError as error:
                errors += field_errors.of_model(error, Range, here)
    if errors:
        raise Invalid(errors)
    return parameters


def _holding_out(fields: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """Hold out a share of train, unless the request sets the share."""
    data, own = fields.get("data"), sent.get("data")
    if not isinstance(data, dict) or (isinstance(own, dict) and "held_out_share" in own):
        return fields
    return fields | {"data": data | {"held_out_share": HELD_OUT_SHARE}}


def _metric(metric: Metric) -> Metric:
    data = metric.data
    if data is None or "held_out_share" in data.model_fields_set:
        return metric
    return metric.model_copy(update={"data": data.model_copy(update={"held_out_share": HELD_OUT_SHARE})})


def _check_specs(design: Design) -> None:
    errors: dict[str, FieldError] = {}
    for place in design.places:
        try:
            design.job(place)
        except ValidationError as error:
            for invalid in field_errors.of_spec(error, "pretrain"):
                error_here = located(invalid, design, place.trial)
                errors.setdefault(error_here.pointer, error_here)
        if len(errors) >= field_errors.MAX_ERRORS:
            break
    if errors:
        raise Invalid(list(errors.values()))
