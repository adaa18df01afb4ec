"""The comparison of jobs: verdict, results, settings that differ, and warnings about unfair comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import queries, seed_groups, verdicts
from jobs.baselines import Beside, beside
from jobs.configurations import Configuration, Measure, configurations_of, measured
from jobs.errors import FieldError, Invalid
from jobs.models import Dataset, Job
from jobs.references import references
from jobs.seed_groups import Result
from jobs.status import TERMINAL
from jobs.verdicts import Contrast
from wcl_core.config import protocol_facts, protocol_place
from wcl_core.config.overlay import leaves
from wcl_core.intervals import Difference
from wcl_core.text import listed, quoted

MAX_CONFIGURATIONS, MAX_JOBS = 8, 40
_BUDGET = {
    "epochs": "epochs",
    "batch_size": "batch size",
    "data.name": "dataset",
    "data.image_size": "image size",
    "backbone.name": "backbone",
    "backbone.width": "width",
    "multi_crop.crops": "small crops",
}


@dataclass(frozen=True)
class FieldDifference:
    """A field of the spec with its value in each configuration."""

    field: str
    values: list[Any]


@dataclass(frozen=True)
class Lead:
    """The best result of a measure against the second one, in words and as a difference."""

    sentence: str
    difference: Difference
    is_shown: bool


@dataclass(frozen=True)
class Row:
    """A measure with the result of each configuration; None where it was not measured.

    `lead` is None where fewer than two configurations were measured.
    `difference` is that of the first of two configurations to the second one.
    `reference` is the result of the comparison's reference.  `to_beat` are the accuracies that all configurations must
    beat, by name: of the largest class, the raw pixels and the untrained network, where each has the same.
    """

    measure: Measure
    dataset: str
    results: list[Result | None]
    lead: Lead | None
    difference: Difference | None
    reference: Result | None = None
    to_beat: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Comparison:
    """Configurations, the verdict about them, and all that they share or not.

    `contrast` says whether the best configuration by kNN accuracy is shown to be better than the second one; without
    labels, by view accuracy.
    `reference` is the one of these, or a further one, that has the reference of their dataset.
    `unevaluated` are trainings without any result, where others have one.
    """

    configurations: list[Configuration]
    contrast: Contrast | None
    differences: list[FieldDifference]
    rows: list[Row]
    warnings: list[str]
    reference: Configuration | None = None
    unevaluated: Sequence[Job] = ()

    @property
    def jobs(self) -> list[Job]:
        return [job for each in self.configurations for job in each.jobs]

    @property
    def accuracies(self) -> dict[int, tuple[str, float]]:
        """The metric and the mean of the accuracy that the trainings measured last, by number of the configuration."""
        every = [*self.configurations, *([self.reference] if self.reference else [])]
        metrics = {each.number: verdicts.accuracy_of(each.jobs) for each in every}
        latest = {
            each.number: [value for job in each.jobs if (value := (job.latest_metrics or {}).get(metrics[each.number]))]
            for each in every
        }
        return {number: (metrics[number], fmean(values)) for number, values in latest.items() if values}


def comparison(
    session: Session,
    job_ids: Sequence[str],
    group_ids: Sequence[str] = (),
    *,
    with_twin: bool = False,
    with_reference: bool = True,
) -> Comparison:
    """Compare jobs and the jobs of seed groups.

    Args:
        with_twin: whether to add the other seeds of each job, and the jobs of its twin.
        with_reference: whether to add the reference of the dataset, if it is none of these jobs.

    Raises:
        NotFound: there is no such job or group.
        Invalid: these are too many jobs for one comparison.
    """
    jobs = {job.id: job for job in chosen_jobs(session, job_ids)}
    jobs |= {job.id: job for group_id in group_ids for job in seed_groups.members(session, group_id)}
    if with_twin:
        sides = [side for job in [*jobs.values()] if job.kind == "pretrain" for side in verdicts.sides(session, job)]
        jobs |= {job.id: job for side in sides for job in side.values()}
    chosen = configurations_of(list(jobs.values()))
    if len(chosen) > MAX_CONFIGURATIONS or len(jobs) > MAX_JOBS:
        detail = f"expected at most {MAX_CONFIGURATIONS} configurations and {MAX_JOBS} jobs, not {len(chosen)} and "
        raise Invalid([FieldError("job", f"{detail}{len(jobs)}")])
    pinned = _reference(session, chosen) if with_reference else None
    contrast = _contrast(session, chosen)
    rows = _rows(session, chosen, pinned, contrast)
    return Comparison(
        configurations=chosen,
        contrast=contrast,
        differences=list(_differences(chosen)),
        rows=rows,
        warnings=[*_warnings(chosen, rows)],
        unevaluated=_unevaluated(chosen, rows),
        reference=pinned,
    )


def _reference(session: Session, chosen: Sequence[Configuration]) -> Configuration | None:
    """Return the reference of the dataset that all configurations share."""
    names = {each.jobs[0].dataset_name for each in chosen}
    pinned = references(session, names) if len(names) == 1 else {}
    for job in pinned.values():
        own = next((each for each in chosen if job.id in {member.id for member in each.jobs}), None)
        return own or Configuration(len(chosen) + 1, [job])
    return None


def _contrast(session: Session, chosen: Sequence[Configuration]) -> Contrast | None:
    """Return the best configuration against the second one, at the last step that all have measured."""
    if len(chosen) < 2 or any(job.kind != "pretrain" for each in chosen for job in each.jobs):
        return None
    sides = [{int(job.spec["seed"]): job for job in each.jobs} for each in chosen]
    return verdicts.best_of(session, sides, _distinct_names(chosen))


def _distinct_names(chosen: Sequence[Configuration]) -> list[str]:
    """Return the names of the configurations, with their numbers where two are equal."""
    names = [each.name for each in chosen]
    return names if len(set(names)) == len(names) else [f"{each.name} ({each.number})" for each in chosen]


def chosen_jobs(session: Session, job_ids: Sequence[str]) -> list[Job]:
    """Return the jobs in the order of their ids, read by one statement.

    Raises:
        NotFound: there is no job with one of the ids.
    """
    rows = session.execute(select(Job).where(Job.id.in_(job_ids))).scalars()
    by_id = {job.id: job for job in rows}
    return [by_id.get(job_id) or queries.get_job(session, job_id) for job_id in job_ids]


def _differences(chosen: Sequence[Configuration]) -> Iterator[FieldDifference]:
    tables = [dict(leaves(each.spec)) for each in chosen]
    for field in dict.fromkeys(name for table in tables for name in table):
        values = [table.get(field) for table in tables]
        if any(value != values[0] for value in values):
            yield FieldDifference(field, values)


def _rows(
    session: Session, chosen: Sequence[Configuration], pinned: Configuration | None, contrast: Contrast | None
) -> list[Row]:
    table: dict[Measure, list[Result | None]] = {}
    further = [pinned] if pinned and pinned not in chosen else []
    of_reference: dict[Measure, Result] = {}
    for configuration, measure, result in measured(session, [*chosen, *further]):
        if configuration not in further:
            table.setdefault(measure, [None] * len(chosen))[configuration.number - 1] = result
        if configuration is pinned:
            of_reference[measure] = result
    names = dict(session.execute(select(Dataset.digest, Dataset.name)).all())
    table = {each: results for each, results in table.items() if not _is_outdated(each, results, table)}
    around = beside(
        session, [own for results in table.values() for each in results if each for own in each.evaluations]
    )
    rows = [
        Row(
            measure=each,
            dataset=names.get(each.dataset_digest, f"{each.dataset_digest[:12]}…"),
            results=results,
            lead=lead,
            difference=_of_two(results),
            reference=of_reference.get(each),
            to_beat=_to_beat(results, around),
        )
        for (each, results), lead in zip(table.items(), _leads(table, _distinct_names(chosen), contrast), strict=True)
    ]
    return sorted(
        rows,
        key=lambda row: (
            row.dataset,
            row.measure.rule != "last epoch",
            protocol_place(row.measure.protocol),
            row.measure.title,
        ),
    )


def _to_beat(results: Sequence[Result | None], around: Mapping[str, Beside]) -> list[tuple[str, float]]:
    """Return the accuracies beside the results, by name, that are the same for all of them."""
    every = [dict(around[own.id].values) for each in results if each for own in each.evaluations if own.id in around]
    return [
        (name, value)
        for name, value in (every[0] if every else {}).items()
        if all((name, value) in each.items() for each in every)
    ]


def _is_outdated(each: Measure, results: list[Result | None], table: dict[Measure, list[Result | None]]) -> bool:
    """Return whether a row has one configuration alone, at an earlier epoch than a row that has it too."""
    measured = [place for place, result in enumerate(results) if result]
    later = table.get(replace(each, rule="last epoch"), [])
    is_alone = len(results) > 1 and len(measured) == 1
    return each.rule.startswith("epoch ") and is_alone and bool(later) and later[measured[0]] is not None


def _of_two(results: Sequence[Result | None]) -> Difference | None:
    """Return the difference of two results; None for more of them."""
    if len(results) != 2 or results[0] is None or results[1] is None:
        return None
    return verdicts.between(results[0], results[1])


class _Best(NamedTuple):
    """The best result of a measure against the second one."""

    name: str
    other: str
    difference: Difference


def _leads(
    table: Mapping[Measure, Sequence[Result | None]], names: Sequence[str], contrast: Contrast | None
) -> list[Lead | None]:
    """Return the lead of each measure; the main measures are corrected together for their number, so are the others.

    Args:
        contrast: the headline, whose accuracy counts with the main measures unless it is one of them.
    """
    best = {measure: each for measure, results in table.items() if (each := _best(measure, results, names))}
    leads: dict[Measure, Lead] = {}
    for is_main in (True, False):
        own = {each: one for each, one in best.items() if protocol_facts(each.protocol).is_main(each.metric) == is_main}
        gaps = [each.difference for each in own.values()]
        if is_main and contrast and not any(each.protocol == "knn" for each in own):
            gaps.append(contrast.difference)
        shown = verdicts.all_shown(gaps) if gaps else []
        for (measure, (name, other, gap)), is_shown in zip(own.items(), shown, strict=False):
            sentence = verdicts.headline(gap, other, True, name, count=len(gaps), is_shown=is_shown)
            leads[measure] = Lead(sentence, gap, is_shown)
    return [leads.get(each) for each in table]


def _best(measure: Measure, results: Sequence[Result | None], names: Sequence[str]) -> _Best | None:
    """Return the best result against the second one; None where fewer than two can be compared."""
    if not protocol_facts(measure.protocol).is_higher_better(measure.metric):
        return None
    measured = sorted(
        ((result, name) for result, name in zip(results, names, strict=True) if result),
        key=lambda pair: -pair[0].mean,
    )
    if len(measured) < 2:
        return None
    (best, name), (second, other) = measured[:2]
    gap = verdicts.between(best, second)
    if gap is not None and gap.value < 0:  # over the seeds that both have, the second one is better
        name, other, gap = other, name, gap.reversed
    return None if gap is None else _Best(name, other, gap)


def _warnings(chosen: Sequence[Configuration], rows: Sequence[Row]) -> Iterator[str]:
    if len(chosen) < 2:
        return
    yield from _budgets(chosen)
    yield from _protocols(chosen, rows)
    if any(row.measure.rule == "last epoch" for row in rows):
        alone = [each.name for each in chosen if len(each.seeds) == 1]
        if alone:
            yield f"Only one seed: {listed(alone)}. Differences may be noise."
    unfinished = [job.name for each in chosen for job in each.jobs if job.status not in TERMINAL]
    if unfinished:
        yield f"Not finished: {listed(unfinished[:5])}{' and more' if len(unfinished) > 5 else ''}."


def _unevaluated(chosen: Sequence[Configuration], rows: Sequence[Row]) -> list[Job]:
    """Return the trainings with a checkpoint that have no result, while others have one; the newest of each."""
    without = [place for place in range(len(chosen)) if not any(row.results[place] for row in rows)]
    trained = [[job for job in chosen[place].jobs if job.kind == "pretrain" and job.attempt] for place in without]
    return [jobs[-1] for jobs in trained if jobs] if rows else []


def _budgets(chosen: Sequence[Configuration]) -> Iterator[str]:
    tables = [dict(leaves(each.spec)) for each in chosen]
    differing = []
    for field, name in _BUDGET.items():
        values = [str(table.get(field, "–")) for table in tables]
        if len(set(values)) > 1:
            differing.append(f"{name} {' / '.join(values)}")
    if differing:
        yield f"Different budgets: {'; '.join(differing)}."
    digests = {each.jobs[0].dataset_digest for each in chosen}
    names = {each.jobs[0].dataset_name for each in chosen}
    if len(digests) > len(names):
        yield "The dataset changed between these jobs: one name, different digests."


def _protocols(chosen: Sequence[Configuration], rows: Sequence[Row]) -> Iterator[str]:
    """Warn of protocols with which not all configurations were measured alike; one sentence for each cause."""
    unmeasured: dict[str, list[str]] = {}  # protocols by configuration
    at_epochs: dict[str, list[str]] = {}  # protocols by the epochs that were measured
    others: list[str] = []
    for name in dict.fromkeys(row.measure.protocol for row in rows):
        own = [row for row in rows if row.measure.protocol == name]
        title = protocol_facts(name).title
        present = [place for place in range(len(chosen)) if any(row.results[place] for row in own)]
        for place in sorted(set(range(len(chosen))) - set(present)):
            unmeasured.setdefault(chosen[place].name, []).append(title)
        if any(all(row.results[place] for place in present) for row in own):
            continue
        rules = {place: ", ".join(sorted({row.measure.rule for row in own if row.results[place]})) for place in present}
        if len(set(rules.values())) > 1:
            places = "; ".join(f"{quoted(chosen[place].name)}: {rule}" for place, rule in rules.items())
            at_epochs.setdefault(places, []).append(title)
        else:
            others.append(title)
    for name, titles in unmeasured.items():
        yield f"{quoted(name)} is not evaluated with {', '.join(titles)}."
    for places, titles in at_epochs.items():
        yield f"Measured at different epochs with {', '.join(titles)}: {places}. Measure the last epoch of each."
    if others:
        yield f"Measured with different settings of {', '.join(others)}: no line has a result of each."
