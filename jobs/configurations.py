"""Configurations: jobs whose specs differ only in the seed, whether or not they were submitted as a seed group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from jobs import seed_groups
from jobs.models import Job
from jobs.seed_groups import Result, seedless_name, training_settings
from wcl_core.config import result_title


@dataclass(frozen=True)
class Configuration:
    """A configuration; `jobs` are ordered by seed, then by age, and `number` counts from 1 and selects the colour."""

    number: int
    jobs: list[Job]

    @property
    def spec(self) -> dict[str, Any]:
        """The fields that all its jobs share."""
        return _common(self.jobs[0])

    @property
    def name(self) -> str:
        return seedless_name(self.jobs[0].name)

    @property
    def seeds(self) -> list[int]:
        return sorted({int(job.spec["seed"]) for job in self.jobs})


def configurations_of(jobs: Sequence[Job]) -> list[Configuration]:
    """Group jobs into configurations, in the order of their first jobs."""
    by_spec: dict[str, list[Job]] = {}
    for job in jobs:
        common = json.dumps([job.kind, job.dataset_digest, _common(job)], sort_keys=True)
        by_spec.setdefault(common, []).append(job)
    ordered = [sorted(members, key=lambda job: (job.spec["seed"], job.id)) for members in by_spec.values()]
    return [Configuration(number, members) for number, members in enumerate(ordered, start=1)]


def _common(job: Job) -> dict[str, Any]:
    return training_settings(job.spec)


@dataclass(frozen=True)
class Measure:
    """A metric with its settings; only numbers of the same measure are compared.

    `rule` names the checkpoint of a job that was measured: the last epoch, another epoch, or a selected one.
    """

    protocol: str
    version: int
    metric: str
    params: str
    dataset_digest: str
    rule: str
    evaluation_seed: int | None

    @property
    def title(self) -> str:
        return result_title(self.protocol, self.metric)

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters by name."""
        return dict(json.loads(self.params))


def measured(
    session: Session, configurations: Sequence[Configuration], *only: ColumnElement[bool]
) -> Iterator[tuple[Configuration, Measure, Result]]:
    """Yield every number that was measured on the jobs of each configuration, over their seeds.

    Args:
        session: a reading transaction.
        configurations: those that are compared.
        only: conditions for evaluations; by default all count.
    """
    groups = [sorted(each.jobs, key=lambda job: job.id) for each in configurations]
    results = seed_groups.results_of(session, groups, *only)
    for configuration, of_one in zip(configurations, results, strict=True):
        for result in of_one:
            yield configuration, _measure(configuration, result), result


def _measure(configuration: Configuration, result: Result) -> Measure:
    if result.selection or result.epoch is None:
        rule = result.selection or ""
    else:
        rule = "last epoch" if result.epoch == configuration.spec.get("epochs") else f"epoch {result.epoch}"
    return Measure(
        result.protocol,
        result.protocol_version,
        result.metric,
        json.dumps(result.params, sort_keys=True),
        result.dataset_digest,
        rule,
        result.evaluation_seed,
    )
