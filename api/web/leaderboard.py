"""The leaderboard: configurations by their mean over seeds, one table per measure, beside published values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.csv_files import file, inert
from api.web.published import Reference, references
from api.web.render import page
from jobs.configurations import Configuration, Measure, configurations_of, measured
from jobs.database import database_time
from jobs.models import Checkpoint, Dataset, Evaluation, Job, JobEvaluation
from jobs.seed_groups import Result
from wcl_core.config import protocol_facts, protocol_place

router = APIRouter(include_in_schema=False)

MAX_JOBS = 300
COLUMNS: Final = (
    *("dataset", "digest", "protocol", "version", "metric", "settings", "checkpoint", "kind", "name", "setup"),
    *("mean", "low_95", "high_95", "seeds", "job_ids"),
)
_ROOM = 0.08


@dataclass(frozen=True)
class Tab:
    """A dataset and a protocol with evaluations."""

    dataset: str
    digest: str
    protocol: str

    @property
    def address(self) -> str:
        return f"/leaderboard?{urlencode({'dataset': self.dataset, 'protocol': self.protocol})}"


@dataclass(frozen=True)
class Baseline:
    """What every configuration should beat: the raw pixels, or an untrained network."""

    name: str
    setup: str


@dataclass(frozen=True)
class Entry:
    """An entry of a board: a configuration with its result, a baseline, or a published value."""

    value: float
    configuration: Configuration | None = None
    result: Result | None = None
    reference: Reference | None = None
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Board:
    """Entries of one measure, best first; `low` and `high` are the ends of the axis."""

    measure: Measure
    entries: list[Entry]
    low: float
    high: float

    def place(self, value: float) -> float:
        """Return the position of a value on the axis, in percent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Leaderboard:
    tabs: list[Tab]
    chosen: Tab | None
    boards: list[Board]
    num_left_out: int  # configurations that were measured at another epoch only
    now: int


def leaderboard(session: Session, dataset: str, protocol: str) -> Leaderboard:
    """Return the boards of a dataset and protocol, or of the first ones if those have no evaluations."""
    tabs = _tabs(session)
    of_dataset = [tab for tab in tabs if tab.dataset == dataset]
    exact = [tab for tab in of_dataset if tab.protocol == protocol]
    chosen = next(iter(exact or of_dataset or tabs), None)
    boards, num_left_out = ([], 0) if chosen is None else _boards(session, chosen)
    return Leaderboard(tabs, chosen, boards, num_left_out, database_time(session))


def _tabs(session: Session) -> list[Tab]:
    statement = (
        select(Dataset.name, Evaluation.dataset_digest, Evaluation.protocol)
        .join(Dataset, Dataset.digest == Evaluation.dataset_digest)
        .distinct()
        .order_by(Dataset.name, Evaluation.protocol)
    )
    tabs = [Tab(*row) for row in session.execute(statement)]
    return sorted(tabs, key=lambda tab: (tab.dataset, protocol_place(tab.protocol)))


def _boards(session: Session, tab: Tab) -> tuple[list[Board], int]:
    """Return the boards of the newest jobs that were measured on the dataset with the protocol.

    The number is of configurations that no board lists: they were measured at another epoch only.
    """
    ids = (
        select(Checkpoint.job_id)
        .join(Evaluation, Evaluation.features_digest == Checkpoint.sha256)
        .where(Evaluation.dataset_digest == tab.digest, Evaluation.protocol == tab.protocol)
    )
    statement = select(Job).where(Job.kind == "pretrain", Job.id.in_(ids)).order_by(Job.id.desc()).limit(MAX_JOBS)
    newest = list(session.execute(statement).scalars())
    table: dict[Measure, list[Entry]] = {}
    every, listed = set(), set()
    for configuration, measure, result in measured(session, configurations_of(newest)):
        is_of_tab = (measure.dataset_digest, measure.protocol) == (tab.digest, tab.protocol)
        if is_of_tab:
            every.add(configuration.number)
        if is_of_tab and not measure.rule.startswith("epoch "):  # of the last or of a selected checkpoint
            listed.add(configuration.number)
            table.setdefault(measure, []).append(Entry(result.mean, configuration, result))
    baselines = _baselines(session, tab)
    boards = [
        _board(measure, [*entries, *baselines.get((measure.version, measure.metric, measure.params), {}).values()], tab)
        for measure, entries in table.items()
    ]
    facts = protocol_facts(tab.protocol)
    ordered = sorted(
        boards, key=lambda board: (board.measure.rule != "last epoch", not facts.is_main(board.measure.metric))
    )
    return ordered, len(every - listed)


def _baselines(session: Session, tab: Tab) -> dict[tuple[int, str, str], dict[Baseline, Entry]]:
    """Return the newest value of each baseline by protocol version, metric and parameters."""
    statement = (
        select(Evaluation, Job.spec)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .join(Job, Job.id == JobEvaluation.job_id)
        .where(
            Evaluation.checkpoint_id.is_(None),
            Evaluation.dataset_digest == tab.digest,
            Evaluation.protocol == tab.protocol,
            Evaluation.value.is_not(None),
            Job.spec["features"]["kind"].as_string().in_(("pixels", "untrained")),
        )
        .order_by(Evaluation.id.desc())
        .limit(MAX_JOBS)
    )
    values: dict[tuple[int, str, str], dict[Baseline, Entry]] = {}
    for entry, spec in session.execute(statement):
        backbone = spec["features"].get("backbone")
        name = f"untrained {backbone['name']}" if backbone else "raw pixels"
        baseline = Baseline(name, f"{spec['data']['image_size']} px")
        of_measure = values.setdefault(
            (entry.protocol_version, entry.metric, json.dumps(entry.params, sort_keys=True)), {}
        )
        of_measure.setdefault(baseline, Entry(entry.value, baseline=baseline))
    return values


def _board(measure: Measure, entries: Sequence[Entry], tab: Tab) -> Board:
    params = json.loads(measure.params)
    # Published values are of the test split, so they do not compare with held-out train images.
    held_out = "held_out_share" in params
    values = [] if held_out else references(tab.dataset, tab.protocol, measure.metric, params.get("share"))
    published = [Entry(reference.value, reference=reference) for reference in values]
    sign = -1 if protocol_facts(tab.protocol).is_higher_better(measure.metric) else 1
    every = sorted([*entries, *published], key=lambda entry: sign * entry.value)
    ends = [entry.value for entry in every]
    ends += [end for entry in entries if entry.result and entry.result.interval for end in entry.result.interval]
    low, high = max(0.0, min(ends)), min(1.0, max(ends))
    room = _ROOM * ((high - low) or 0.1)
    return Board(measure, every, max(0.0, low - room), min(1.0, high + room))


@router.get("/leaderboard")
def leaderboard_page(
    request: Request,
    reader: Reader,
    database: TheDatabase,
    dataset: Annotated[str, Query(max_length=64)] = "",
    protocol: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Return the leaderboard of a dataset and a protocol."""
    with database.read() as session:
        view = leaderboard(session, dataset, protocol)
    return page(request, "leaderboard.html", leaderboard=view, now=view.now)


@router.get("/leaderboard.csv")
def leaderboard_table(
    reader: Reader,
    database: TheDatabase,
    dataset: Annotated[str, Query(max_length=64)] = "",
    protocol: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Return the leaderboard of a dataset and a protocol as a CSV file, best first for each measure."""
    with database.read() as session:
        view = leaderboard(session, dataset, protocol)
    rows = [
        _cells(view.chosen, board.measure, entry) for board in view.boards for entry in board.entries if view.chosen
    ]
    return file("leaderboard.csv", [COLUMNS, *rows])


def _cells(tab: Tab, measure: Measure, entry: Entry) -> tuple[object, ...]:
    jobs, result = ([], None) if entry.configuration is None else (entry.configuration.jobs, entry.result)
    if entry.configuration is not None:
        kind, name, setup = "configuration", entry.configuration.name, str(entry.configuration.spec.get("method"))
    elif entry.baseline is not None:
        kind, name, setup = "baseline", entry.baseline.name, entry.baseline.setup
    else:
        assert entry.reference is not None
        kind, name, setup = "published", entry.reference.mark, entry.reference.setup
    low, high = (result.interval if result else None) or (None, None)
    seeds = " ".join(map(str, result.seeds)) if result else ""
    of_measure = (measure.protocol, measure.version, measure.metric, measure.params, measure.rule)
    values = (entry.value, low, high, seeds, " ".join(job.id for job in jobs))
    return (tab.dataset, tab.digest, *of_measure, kind, inert(name), inert(setup), *values)
