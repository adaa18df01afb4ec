"""Trials: the settings over the base spec, with the epochs of a rung and the evaluation of the metric."""

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
from wcl_core.config.overlay import followed, overlaid, with_fields
from wcl_core.text import counted


class Place(NamedTuple):
    """One training run of a sweep."""

    trial: int
    rung: int
    seed: int

    @property
    def origin(self) -> str:
        """The `origin` of its job, unique in the sweep."""
        return f"trial/{self.trial}/rung/{self.rung}/seed/{self.seed}"

    @classmethod
    def of(cls, origin: str) -> Place:
        return cls(*map(int, origin.split("/")[1::2]))


@dataclass(frozen=True)
class Design:
    """A sweep with all trials drawn and all rungs set."""

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
        """Return the spec of a run, as a client would send it."""
        base = {"epochs": epochs_of(self.base)} | self.base  # lengths are shares of it
        settings = self.trials[place.trial]
        fields = with_fields(followed(base, settings), settings)
        if (epochs := self.rungs[place.rung].epochs) is not None:
            fields = overlaid(fields, {"epochs": epochs})
        plans = [*fields.get("evaluations", ()), self.metric.plan]
        return fields | {"seed": place.seed, "evaluations": plans}

    def job(self, place: Place, **belonging: str) -> NewJob:
        """Return the job of a run; `belonging` are `sweep_id` and `group_id`.

        Raises:
            pydantic.ValidationError: its spec is invalid.
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
        after = f", {counted(rung.epochs, 'epoch')}" if rung.epochs and len(self.rungs) > 1 else ""
        end = f", trial {place.trial}{after}"
        end += f", seed {place.seed}" if len(self.seeds) > 1 else ""
        return self.name[: 200 - len(end)] + end

    @property
    def places(self) -> Iterator[Place]:
        """Yield every trial at every rung, with the first seed."""
        for rung in range(len(self.rungs)):
            for trial in range(len(self.trials)):
                yield Place(trial, rung, self.seeds[0])

    @property
    def num_runs(self) -> int:
        """Number of training runs; each is followed by an evaluation."""
        return sum(rung.trials for rung in self.rungs) * len(self.seeds)

    @property
    def num_epochs(self) -> int:
        """Epochs of all training runs together."""
        whole = (epochs_of(with_fields(self.base, settings)) for settings in self.trials)
        each = [sum(whole) if rung.epochs is None else rung.trials * rung.epochs for rung in self.rungs]
        return sum(each) * len(self.seeds)


def epochs_of(base: dict[str, Any]) -> int:
    epochs = base.get("epochs", PretrainSpec.model_fields["epochs"].default)
    if not isinstance(epochs, int) or epochs < 1:
        raise Invalid([FieldError("/spec/epochs", "expected a whole number above 0")])
    return epochs


def located(error: FieldError, design: Design, trial: int) -> FieldError:
    """Return the error of a trial's spec with a pointer into the sweep's request, and with the trial's settings."""
    metric = f"/spec/evaluations/{len(design.base.get('evaluations', ()))}"
    if error.pointer == metric or error.pointer.startswith(f"{metric}/"):
        rest = error.pointer.removeprefix(metric)
        return FieldError(f"/metric{rest if rest.startswith('/data') else '/settings' + rest}", error.detail)
    settings = design.trials[trial]
    for name in settings:
        own = "/spec/" + name.replace("~", "~0").replace("/", "~1").replace(".", "/")
        if f"{error.pointer}/".startswith(f"{own}/") or own.startswith(f"{error.pointer}/"):
            return FieldError(space.pointer(name), f"{error.detail} (trial {trial}: {settings[name]})")
    values = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return FieldError(error.pointer, f"{error.detail} (trial {trial}: {values})")
