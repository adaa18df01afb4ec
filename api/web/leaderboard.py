"""The leaderboard: configurations by their mean over seeds, one table per measure, beside published values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session, load_only

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.csv_files import file, inert
from api.web.published import Reference, references
from api.web.render import page
from jobs.configurations import Configuration, Measure, configurations_of, measured
from jobs.database import database_time, now_ms
from jobs.models import Checkpoint, Dataset, Evaluation, Job, JobEvaluation
from jobs.seed_groups import Result, share_interval
from jobs.status import Status
from wcl_core.config import protocol_facts, protocol_place
from wcl_core.text import counted

router = APIRouter(include_in_schema=False)

MAX_JOBS = 5_000  # measured ones of a tab, the newest; a statement names each
PAGE_SIZE = 100  # entries of each board
COLUMNS: Final = (
    *("dataset", "digest", "protocol", "version", "metric", "settings", "checkpoint", "kind", "name", "setup"),
    *("mean", "low_95", "high_95", "interval_over", "seeds", "job_ids"),
)
_MOST_UNMEASURED = 200  # of the newest trainings, those without an evaluation are named
_ROOM = 0.08


@dataclass(frozen=True)
class Tab:
    """A dataset and a protocol with evaluations; the protocol is empty for a dataset without any."""

    dataset: str
    digest: str
    protocol: str

    @property
    def address(self) -> str:
        query = {"dataset": self.dataset} | ({"protocol": self.protocol} if self.protocol else {})
        return f"/leaderboard?{urlencode(query)}"


@dataclass(frozen=True)
class Baseline:
    """What every configuration should beat: the raw pixels, or an untrained network."""

    name: str
    setup: str


@dataclass(frozen=True)
class Entry:
    """An entry of a board: a configuration with its result, a baseline, or a published value.

    `over` is what its interval is over: its seeds, or the images of a single one.
    """

    value: float
    interval: tuple[float, float] | None = None
    over: str = ""
    configuration: Configuration | None = None
    result: Result | None = None
    reference: Reference | None = None
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Board:
    """Entries of one measure, best first; `low` and `high` are the ends of the axis.

    The page shows those from the number `start` on.
    """

    measure: Measure
    entries: list[Entry]
    low: float
    high: float
    start: int = 0

    @property
    def shown(self) -> list[Entry]:
        return self.entries[self.start : self.start + PAGE_SIZE]

    @property
    def num_before(self) -> int:
        """The number of configurations before those that are shown."""
        return sum(entry.configuration is not None for entry in self.entries[: self.start])

    def place(self, value: float) -> float:
        """Return the position of a value on the axis, in percent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Leaderboard:
    """The boards of a tab.

    Attributes:
        tabs: with evaluations.
        without: the datasets that have none.
        chosen: None if there is no evaluation at all and no dataset was asked for.
        num_left_out: configurations that were measured at another epoch only.
        evaluable: the address of the trainings that can be evaluated, if there are some; only without boards.
        unmeasured: trainings that have succeeded and have no evaluation by the protocol; only with boards.
    """

    tabs: list[Tab]
    without: list[Tab]
    chosen: Tab | None
    boards: list[Board]
    num_left_out: int
    now: int
    start: int = 0
    evaluable: str = ""
    unmeasured: Sequence[Job] = ()

    @property
    def previous(self) -> int | None:
        """The number of the first entry of the page before; None on the first page."""
        return max(0, self.start - PAGE_SIZE) if self.start else None

    @property
    def following(self) -> int | None:
        """The number of the first entry of the page after; None on the last page."""
        after = self.start + PAGE_SIZE
        return after if any(len(board.entries) > after for board in self.boards) else None


def leaderboard(session: Session, dataset: str, protocol: str, start: int = 0) -> Leaderboard:
    """Return the boards of a dataset and protocol, or of the first ones if there are no such."""
    every, now = _tabs(session)
    tabs = [tab for tab in every if tab.protocol]
    with_tabs = {tab.dataset for tab in tabs}
    without = [tab for tab in every if tab.dataset not in with_tabs]
    of_dataset = [tab for tab in (*tabs, *without) if tab.dataset == dataset]
    exact = [tab for tab in of_dataset if tab.protocol == protocol]
    chosen = next(iter(exact or of_dataset or tabs), None)
    boards, num_left_out = ([], 0) if chosen is None or not chosen.protocol else _boards(session, chosen)
    shown = [replace(board, start=start) for board in boards]
    evaluable = "" if shown else _evaluable(session, chosen)
    unmeasured = _unmeasured(session, chosen) if shown and chosen else []
    return Leaderboard(
        tabs,
        without,
        chosen,
        shown,
        num_left_out,
        now or database_time(session),
        start,
        evaluable=evaluable,
        unmeasured=unmeasured,
    )


def _evaluable(session: Session, tab: Tab | None) -> str:
    """Return the address of the trainings that have succeeded, on the dataset of a tab if there is one; "" for none."""
    trained = select(Job.id).where(Job.kind == "pretrain", Job.status == Status.SUCCEEDED)
    query = {"kind": "pretrain", "status": Status.SUCCEEDED.value}
    if tab is not None:
        trained, query = trained.where(Job.dataset_name == tab.dataset), query | {"q": tab.dataset}
    return f"/?{urlencode(query)}" if session.execute(trained.limit(1)).first() else ""


def _unmeasured(session: Session, tab: Tab) -> list[Job]:
    """Return the newest trainings on a dataset that have succeeded and that no evaluation by the protocol measured."""
    is_measured = (
        select(Evaluation.id)
        .join(Checkpoint, Checkpoint.sha256 == Evaluation.features_digest)
        .where(Checkpoint.job_id == Job.id, Evaluation.dataset_digest == tab.digest)
        .where(Evaluation.protocol == tab.protocol)
        .exists()
    )
    newest = (
        select(Job.id, is_measured.label("is_measured"))
        .where(Job.kind == "pretrain", Job.status == Status.SUCCEEDED, Job.dataset_digest == tab.digest)
        .where(Job.sweep_id.is_(None), Job.archived_at.is_(None))
        .order_by(Job.id.desc())
        .limit(_MOST_UNMEASURED)
        .subquery()
    )
    unmeasured = select(Job).join(newest, newest.c.id == Job.id).where(newest.c.is_measured.is_(False))
    return list(session.execute(unmeasured.order_by(Job.id.desc()).options(load_only(Job.id, Job.name))).scalars())


def _tabs(session: Session) -> tuple[list[Tab], int]:
    """Return all datasets with their protocols, the last one empty, and the time of the database if there are some."""
    first = select(func.min(Evaluation.protocol)).where(Evaluation.dataset_digest == Dataset.digest)
    pairs = select(Dataset.name, Dataset.digest, first.scalar_subquery().label("protocol")).cte(recursive=True)
    # Each step reads the next protocol of a dataset from an index.
    of_dataset = Evaluation.dataset_digest == pairs.c.digest, Evaluation.protocol > pairs.c.protocol
    later = select(func.min(Evaluation.protocol)).where(*of_dataset).correlate(pairs)
    following = select(pairs.c.name, pairs.c.digest, later.scalar_subquery()).where(pairs.c.protocol.is_not(None))
    pairs = pairs.union_all(following)
    rows = session.execute(select(pairs, now_ms().label("now"))).all()
    tabs = [Tab(name, digest, protocol or "") for name, digest, protocol, _ in rows]
    return sorted(tabs, key=lambda tab: (tab.dataset, protocol_place(tab.protocol))), rows[0].now if rows else 0


def _boards(session: Session, tab: Tab) -> tuple[list[Board], int]:
    """Return the boards of the newest jobs that were measured on the dataset with the protocol.

    The number is of configurations that no board lists: they were measured at another epoch only.
    """
    of_tab = Evaluation.dataset_digest == tab.digest, Evaluation.protocol == tab.protocol
    ids = select(Checkpoint.job_id).join(Evaluation, Evaluation.features_digest == Checkpoint.sha256).where(*of_tab)
    statement = select(Job).where(Job.kind == "pretrain", Job.id.in_(ids)).order_by(Job.id.desc()).limit(MAX_JOBS)
    columns = load_only(Job.id, Job.kind, Job.name, Job.dataset_digest, Job.spec, raiseload=True)
    newest = list(session.execute(statement.options(columns)).scalars())
    table: dict[Measure, list[Entry]] = {}
    every, listed = set(), set()
    for configuration, measure, result in measured(session, configurations_of(newest), *of_tab):
        every.add(configuration.number)
        if not measure.rule.startswith("epoch "):  # of the last or of a selected checkpoint
            listed.add(configuration.number)
            table.setdefault(measure, []).append(
                Entry(result.mean, result.shown_interval, result.interval_over, configuration, result)
            )
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
        over = counted(entry.n, "image") if entry.n else ""
        of_measure.setdefault(baseline, Entry(entry.value, share_interval(entry), over, baseline=baseline))
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
    ends += [end for entry in entries for end in entry.interval or ()]
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
    start: Annotated[int, Query(ge=0, le=MAX_JOBS * 10)] = 0,
) -> Response:
    """Return the leaderboard of a dataset and a protocol, from an entry on."""
    with database.read() as session:
        view = leaderboard(session, dataset, protocol, start)
    return page(request, "leaderboard.html", leaderboard=view, now=view.now, may_submit="submit" in reader.scopes)


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
    low, high = entry.interval or (None, None)
    seeds = " ".join(map(str, result.seeds)) if result else ""
    of_measure = (measure.protocol, measure.version, measure.metric, measure.params, measure.rule)
    values = (entry.value, low, high, entry.over if entry.interval else "", seeds, " ".join(job.id for job in jobs))
    return (tab.dataset, tab.digest, *of_measure, kind, inert(name), inert(setup), *values)
