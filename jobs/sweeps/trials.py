"""What each trial of a sweep is: its settings laid over the base, as long as its rung, and measured by the metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobs.errors import FieldError, Invalid
from jobs.new_job import NewJob
from jobs.sweeps import space
from jobs.sweeps.halving import Rung
from jobs.sweeps.metric import Metric
from jobs.sweeps.space import Settings
from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.config.overlay import with_fields

_WITH_THE_EPOCHS = ("warmup_epochs", "weak_augmentation_epochs")


class Place(NamedTuple):
    """One training run of a sweep."""

    trial: int
    rung: int
    seed: int

    @property
    def origin(self) -> str:
        """As its job carries it, unique in the sweep."""
        return f"trial/{self.trial}/rung/{self.rung}/seed/{self.seed}"

    @classmethod
    def of(cls, origin: str) -> Place:
        """The place that an origin names."""
        return cls(*map(int, origin.split("/")[1::2]))


@dataclass(frozen=True)
class Design:
    """A sweep with everything drawn: what each trial tries, and the rungs."""

    name: str
    base: dict[str, Any]
    metric: Metric
    seeds: Sequence[int]
    trials: Sequence[Settings]
    rungs: Sequence[Rung]
    options: dict[str, Any]
    preset: str | None
    created_by: str | None

    def fields(self, place: Place) -> dict[str, Any]:
        """The spec of a run as it would be sent."""
        fields = with_fields(self.base, self.trials[place.trial])
        if (epochs := self.rungs[place.rung].epochs) is not None:
            fields = _as_long_as(fields, epochs)
        plans = [*fields.get("evaluations", ()), self.metric.plan]
        return fields | {"seed": place.seed, "evaluations": plans}

    def job(self, place: Place, **belonging: str) -> NewJob:
        """The job of a run; `belonging` are `sweep_id` and `group_id`.

        Raises:
            pydantic.ValidationError: its spec is wrong.
        """
        fields = self.fields(place)
        return NewJob(
            kind="pretrain",
            spec_sent=fields,
            spec=parse_spec("pretrain", fields),
            name=self._job_name(place),
            created_by=self.created_by,
            preset=self.preset,
            origin=place.origin,
            **self.options,
            **belonging,  # type: ignore[arg-type]
        )

    def _job_name(self, place: Place) -> str:
        rung = self.rungs[place.rung]
        after = f", {rung.epochs} epoch{'' if rung.epochs == 1 else 's'}"
        end = f", trial {place.trial}" + (after if len(self.rungs) > 1 else "")
        end += f", seed {place.seed}" if len(self.seeds) > 1 else ""
        return self.name[: 200 - len(end)] + end

    @property
    def places(self) -> Iterator[Place]:
        """Every trial at every rung that it may reach, under the first seed."""
        for rung in range(len(self.rungs)):
            for trial in range(len(self.trials)):
                yield Place(trial, rung, self.seeds[0])

    @property
    def num_runs(self) -> int:
        """Training runs from the first to the last, each followed by an evaluation."""
        return sum(rung.trials for rung in self.rungs) * len(self.seeds)

    @property
    def num_epochs(self) -> int:
        """Of all training runs together; every trial's spec has to be right."""
        whole = (epochs_of(with_fields(self.base, settings)) for settings in self.trials)
        each = [sum(whole) if rung.epochs is None else rung.trials * rung.epochs for rung in self.rungs]
        return sum(each) * len(self.seeds)


def epochs_of(base: dict[str, Any]) -> int:
    epochs = base.get("epochs", PretrainSpec.model_fields["epochs"].default)
    if not isinstance(epochs, int) or epochs < 1:
        raise Invalid([FieldError("/spec/epochs", "expected a whole number above 0")])
    return epochs


def _as_long_as(fields: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The same run over so many epochs: what is counted in epochs from its start keeps its share of the run."""
    whole = epochs_of(fields)
    scaled = {name: fields[name] * epochs / whole for name in _WITH_THE_EPOCHS if _is_number(fields.get(name))}
    if "weak_augmentation_epochs" in scaled:
        scaled["weak_augmentation_epochs"] = int(scaled["weak_augmentation_epochs"])
    return fields | scaled | {"epochs": epochs}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def located(error: FieldError, design: Design, trial: int) -> FieldError:
    """The error of a trial's spec, pointing to where the request said it, with the trial where others are right."""
    metric = f"/spec/evaluations/{len(design.base.get('evaluations', ()))}"
    if error.pointer == metric or error.pointer.startswith(f"{metric}/"):
        rest = error.pointer.removeprefix(metric)
        return FieldError(f"/metric{rest if rest.startswith('/data') else '/settings' + rest}", error.detail)
    settings = design.trials[trial]
    for name in settings:
        own = "/spec/" + name.replace("~", "~0").replace("/", "~1").replace(".", "/")
        if f"{error.pointer}/".startswith(f"{own}/") or own.startswith(f"{error.pointer}/"):
            return FieldError(space.pointer(name), f"{error.detail} (trial {trial}: {settings[name]})")
    told = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return FieldError(error.pointer, f"{error.detail} (trial {trial}: {told})")
