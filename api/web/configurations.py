"""Arms of a comparison: jobs whose specs agree in everything but the seed, however they were submitted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from api.web.evaluations import settings
from jobs import seed_groups
from jobs.models import Job
from jobs.seed_groups import Result
from wcl_core.config import measure_title, protocol_facts

_SEED_NAME = re.compile(r", seed \d+$")
_NOT_TRAINING = ("seed", "evaluations")


@dataclass(frozen=True)
class Arm:
    """`jobs` are by seed, the newest last; `number` counts from 1 and chooses the colour."""

    number: int
    jobs: list[Job]

    @property
    def spec(self) -> dict[str, Any]:
        """What its jobs have in common."""
        return _common(self.jobs[0])

    @property
    def name(self) -> str:
        return _SEED_NAME.sub("", self.jobs[0].name)

    @property
    def seeds(self) -> list[int]:
        return sorted({int(job.spec["seed"]) for job in self.jobs})


def arms(jobs: Sequence[Job]) -> list[Arm]:
    """In the order of their first jobs."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        common = json.dumps([job.kind, job.dataset_digest, _common(job)], sort_keys=True)
        found.setdefault(common, []).append(job)
    ordered = [sorted(members, key=lambda job: (job.spec["seed"], job.id)) for members in found.values()]
    return [Arm(number, members) for number, members in enumerate(ordered, start=1)]


def _common(job: Job) -> dict[str, Any]:
    return {name: value for name, value in job.spec.items() if name not in _NOT_TRAINING}


@dataclass(frozen=True)
class Measure:
    """What was measured and how; numbers stand beside each other only where this agrees.

    `rule` says which checkpoint of a run it was measured on: the last epoch, another one, or one that was selected.
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
        return f"{protocol_facts(self.protocol).title}, {measure_title(self.metric)}"

    @property
    def setting(self) -> str:
        """Its parameters in words."""
        return settings(json.loads(self.params))


def measured(session: Session, arms: Sequence[Arm]) -> Iterator[tuple[Arm, Measure, Result]]:
    """Yield every number that was measured on the jobs of each arm, over their seeds."""
    results = seed_groups.results_of(session, [sorted(arm.jobs, key=lambda job: job.id) for arm in arms])
    for arm, of_arm in zip(arms, results, strict=True):
        for result in of_arm:
            yield arm, _measure(arm, result), result


def _measure(arm: Arm, result: Result) -> Measure:
    if result.selection or result.epoch is None:
        rule = result.selection or ""
    else:
        rule = "last epoch" if result.epoch == arm.spec.get("epochs") else f"epoch {result.epoch}"
    return Measure(
        result.protocol,
        result.protocol_version,
        result.metric,
        json.dumps(result.params, sort_keys=True),
        result.dataset_digest,
        rule,
        result.evaluation_seed,
    )
