"""The list of jobs: filters, order, entries that are open, and the workers that are alive.

Without a filter, trials fold into their sweep, seeds into their group and evaluations into their run.  A filter lists
every matching job by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Final, get_args
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Owner, Reader, Submitter
from api.http.dependencies import TheDatabase
from api.web.forms.refused import form_at, form_page
from api.web.job_view import JobView
from api.web.render import page
from jobs import listing, queries, verdicts, views
from jobs.database import Database, database_time
from jobs.keys import Principal
from jobs.listing import Entry, Sort
from jobs.models import Job, Worker
from jobs.queries import Archived, Filters
from jobs.references import references
from jobs.seed_groups import seedless_name
from jobs.status import Status
from jobs.waiting import Waiting, explain_all
from wcl_core.intervals import summary_of_shares
from wcl_core.protocol import KNN_TOP1, VIEW_TOP1
from wcl_core.text import counted

router = APIRouter(include_in_schema=False)

PAGE_SIZE = 50
MAX_EXPLAINED = PAGE_SIZE
MOST_COUNTED = 1_000  # jobs of a state; of more, the page says only that
MAX_OPEN = 20
STATUSES = ("running", "queued", "blocked", "paused", "succeeded", "failed", "cancelled")
KINDS = ("pretrain", "evaluate")
# Columns that sort the list, with the title and whether the first click shows the largest value first.
COLUMNS: Final[tuple[tuple[Sort, str, bool], ...]] = (
    ("name", "Job", False),
    ("status", "Status", False),
    ("method", "Method", False),
    ("dataset", "Dataset", False),
    ("", "Progress", False),
    ("knn", "kNN accuracy", True),
    ("age", "Age", False),
)
GROUP_FIELDS: Final = (  # proposals; any field of the spec is possible
    *("dataset", "method", "status", "kind", "backbone.name", "epochs", "batch_size", "seed"),
    *("loss.temperature", "optimizer.name", "optimizer.learning_rate", "data.image_size"),
)


@dataclass(frozen=True)
class View:
    """What a request shows of the list; `opened` are the ids of the entries whose jobs are shown."""

    filters: Filters
    sort: Sort = ""
    descending: bool = False
    opened: tuple[str, ...] = ()
    cursor: str = ""
    group: str = ""

    @property
    def is_folded(self) -> bool:
        return not self.filters.are_set and not self.group

    @property
    def query(self) -> str:
        """The filters alone, as a query."""
        return self.replaced(sort="", group="", opened=(), cursor="").address[2:]

    @property
    def saved(self) -> str:
        """All that a saved view keeps, as a query."""
        return self.replaced(opened=(), cursor="").address[2:]

    @property
    def address(self) -> str:
        pairs = [("status", name) for name in self.filters.status]
        pairs += [("kind", self.filters.kind), ("tag", self.filters.tag), ("q", self.filters.q)]
        pairs += [("archived", self.filters.archived), ("starred", "true" if self.filters.starred else "")]
        pairs += [("group", self.group), ("sort", self.sort)]
        pairs += [("order", "desc" if self.sort and self.descending else "")]
        pairs += [("open", entry_id) for entry_id in self.opened] + [("cursor", self.cursor)]
        query = urlencode([pair for pair in pairs if pair[1]])
        return f"/?{query}" if query else "/"

    def replaced(self, **changes: Any) -> View:
        return replace(self, **changes)

    def toggled(self, entry_id: str) -> str:
        """Return the address with an entry opened or closed."""
        others = tuple(each for each in self.opened if each != entry_id)
        opened = others if entry_id in self.opened else (*self.opened, entry_id)
        return self.replaced(opened=opened[-MAX_OPEN:]).address

    def ordered(self, sort: Sort, is_largest_first: bool) -> str:
        """Return the address of the list sorted by a column; in the other order if it is sorted by it."""
        descending = not self.descending if self.sort == sort else is_largest_first
        return self.replaced(sort=sort, descending=descending, cursor="").address


def filters_of(
    status: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006 (FastAPI copies it)
    kind: str = "",
    tag: str = "",
    q: str = "",
    archived: str = "",
    starred: str = "",
) -> Filters:
    """Return the filters of a request; unknown states are dropped, so that links of later versions still open."""
    requested = {name for part in status for name in part.split(",")}
    return Filters(
        status=tuple(name for name in STATUSES if name in requested),
        kind=kind if kind in KINDS else "",
        tag=tag[:64],
        q=q.strip()[:200],
        archived=next((name for name in get_args(Archived) if name == archived), ""),
        starred=bool(starred),
    )


def filters_of_query(query: str) -> Filters:
    """Return the filters of `?` and a query."""
    values = parse_qs(query[1:])
    names = ("kind", "tag", "q", "archived", "starred")
    return filters_of(values.get("status", []), *(values.get(name, [""])[0] for name in names))


def _view(
    filters: Annotated[Filters, Depends(filters_of)],
    sort: str = "",
    order: str = "",
    opened: Annotated[list[str], Query(alias="open", max_length=100)] = [],  # noqa: B006
    cursor: str = "",
    group: str = "",
) -> View:
    """Return the view of a request; an unknown column is dropped, as is a group that is no name of a field."""
    column: Sort = next((name for name in get_args(Sort) if name == sort), "")
    shown = tuple(dict.fromkeys(each[:36] for each in opened))[:MAX_OPEN]
    field = group.strip() if listing.GROUP_FIELD.fullmatch(group.strip()) else ""
    return View(filters, column, order == "desc", shown, cursor, field)


_View = Annotated[View, Depends(_view)]


@dataclass(frozen=True)
class Fold:
    """The jobs below a line: how many of what, whether they are shown, and the address that shows or hides them."""

    words: str
    is_open: bool
    address: str


@dataclass(frozen=True)
class Line:
    """A line of the list: a job, a seed group or a sweep, and its place below another one.

    `name` is shorter than the job's below the job that it names.  `mark` is the short id, where another line
    of the page has the same name at the same place.  `heading` is set for the first line of a value, in a list that is
    grouped by a field.
    """

    entry: Entry
    name: str
    level: int = 0
    fold: Fold | None = None
    view: JobView | None = None
    heading: tuple[str, int] | None = None  # the value, and the number of its jobs
    mark: str = ""

    @property
    def key(self) -> str:
        kind = "sweep" if self.entry.sweep else "group" if self.entry.members else "job"
        return f"{kind}-{self.entry.id}"


@dataclass(frozen=True)
class GroupFacts:
    """A seed group in a line: the status of its jobs, and the mean accuracy with half of its 95 % interval."""

    status: str
    done: int
    fraction: float
    mean: float | None
    margin: float | None


def group_facts(entry: Entry) -> GroupFacts:
    """Return the facts of a seed group; its status is the most active one of its jobs."""
    counts = Counter(member.status for member in entry.members)
    status = next(name for name in (*STATUSES[:4], "failed", "cancelled", "succeeded") if counts[name])
    values = [member.knn for member in entry.members if member.knn is not None]
    mean, _, interval = summary_of_shares(values) if values else (None, None, None)
    margin = (interval[1] - interval[0]) / 2 if interval else None
    fraction = sum(member.fraction for member in entry.members) / len(entry.members)
    return GroupFacts(status, counts["succeeded"], fraction, mean, margin)


@dataclass(frozen=True)
class JobList:
    """One page of the list, with the numbers and the workers above it."""

    lines: list[Line]
    next_cursor: str | None
    view: View
    counts: dict[str, int]
    workers: list[Worker]
    working_on: dict[str, str]
    waiting: dict[str, Waiting]
    untrained: dict[str, float]  # kNN accuracy before the first step, without labels the view accuracy, by job
    before_training: dict[str, str]  # about an accuracy that is still that of the untrained network, by job
    measured: dict[str, float]  # kNN accuracy that evaluations have measured, by job
    references: dict[str, Job]  # by dataset
    is_empty_service: bool
    now: int

    @property
    def filters(self) -> Filters:
        return self.view.filters

    def count(self, status: str) -> str:
        """Return the number of jobs in a state as text."""
        number = self.counts.get(status, 0)
        return f"{number:,}" if number <= MOST_COUNTED else f"more than {MOST_COUNTED:,}"

    def beyond_reference(self, job: Job, accuracy: float | None) -> float | None:
        """Return by how much a kNN accuracy is above that of the dataset's reference; None where either is missing."""
        pinned = self.references.get(job.dataset_name)
        base = None if pinned is None or pinned.id == job.id else (pinned.latest_metrics or {}).get(KNN_TOP1)
        return None if base is None or accuracy is None else accuracy - base


def job_list(session: Session, view: View) -> JobList:
    """Return a page of the list.

    Raises:
        Invalid: the cursor is not one of this service.
    """
    lines, next_cursor = _folded(session, view) if view.is_folded else _flat(session, view)
    lines = list(_marked(lines))
    jobs = [line.entry.job for line in lines if line.entry.job and not line.entry.members]
    tags = queries.tags(session, [job.id for job in jobs])
    lines = [
        replace(line, view=JobView(line.entry.job, tags[line.entry.job.id]))
        if line.entry.job and not line.entry.members
        else line
        for line in lines
    ]
    workers = queries.workers(session, alive_only=True)
    return JobList(
        lines=lines,
        next_cursor=next_cursor,
        view=view,
        counts=queries.bounded_counts(session, MOST_COUNTED),
        workers=workers,
        working_on=_job_names(session, workers),
        waiting=_waiting(session, jobs),
        untrained=_untrained(session, jobs),
        before_training=verdicts.before_training(session, jobs),
        measured=listing.knn_accuracies(session, jobs),
        references=references(session, {line.entry.job.dataset_name for line in lines if line.entry.job}),
        is_empty_service=not lines and session.execute(select(Job.id).limit(1)).first() is None,
        now=database_time(session),
    )


def _marked(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines, with the short id of each entry whose name another one below the same entry has, too."""
    places: list[tuple[str, ...]] = []
    above: list[str] = []
    for line in lines:
        above[line.level :] = [line.entry.id]
        places.append((*above[:-1], line.name))
    counts = Counter(places)
    for line, place in zip(lines, places, strict=True):
        yield replace(line, mark=line.entry.id[-12:]) if counts[place] > 1 else line


def _flat(session: Session, view: View) -> tuple[list[Line], str | None]:
    """Return the lines of all jobs that match, each by itself."""
    filters, cursor = view.filters, view.cursor or None
    if view.group:
        grouped = listing.grouped_jobs(session, filters, view.group, view.sort, view.descending, cursor, PAGE_SIZE)
        lines, before = [], None
        for job in grouped.page.items:
            value = grouped.value_of[job.id]
            heading = (value, grouped.counts[value]) if value != before else None
            lines.append(Line(Entry(job.id, job), job.name, heading=heading))
            before = value
        return lines, grouped.page.next_cursor
    if view.sort:
        part = listing.sorted_jobs(session, filters, view.sort, view.descending, cursor, PAGE_SIZE)
    else:
        part = queries.list_jobs(session, **asdict(filters), cursor=cursor, limit=PAGE_SIZE)
    return [Line(Entry(job.id, job), job.name) for job in part.items], part.next_cursor


def _folded(session: Session, view: View) -> tuple[list[Line], str | None]:
    """Return the lines of the entries, each followed by its jobs if it is open."""
    part = listing.entries(session, view.sort, view.descending, view.cursor or None, PAGE_SIZE)
    below = listing.jobs_below(session, view.opened)
    trainings = [job.id for jobs in below.values() for job in jobs if job.kind == "pretrain"]
    counts = listing.num_evaluations(session, trainings)
    lines = [line for entry in part.items for line in _with_jobs(entry, view, below, counts)]
    return lines, part.next_cursor


def _with_jobs(
    entry: Entry, view: View, below: Mapping[str, Sequence[Job]], counts: Mapping[str, int], level: int = 0
) -> Iterator[Line]:
    """Yield the line of an entry, and those of its jobs if it is open."""
    is_open = entry.id in view.opened
    if entry.sweep is not None:
        name, words = entry.sweep.name, _count(entry.counts.total(), "job")
    else:
        assert entry.job is not None
        of_group = bool(entry.members)
        name = seedless_name(entry.job.name) if of_group else entry.job.name
        words = _count(len(entry.members), "seed") if of_group else _count(entry.num_evaluations, "evaluation")
    yield Line(entry, name, level, Fold(words, is_open, view.toggled(entry.id)) if words else None)
    for job in below.get(entry.id, ()) if is_open else ():
        if job.kind == "evaluate" and entry.job is not None and not entry.members:
            yield Line(Entry(job.id, job), job.name.removesuffix(f" of {entry.job.name}"), level + 1)
        else:
            yield from _with_jobs(Entry(job.id, job, num_evaluations=counts[job.id]), view, below, counts, level + 1)


def _count(number: int, noun: str) -> str:
    return "" if number == 0 else counted(number, noun)


def _waiting(session: Session, jobs: Sequence[Job]) -> dict[str, Waiting]:
    """Return why jobs wait, by id; of more than a page, for the first in the queue."""
    waits = [job for job in jobs if job.status in (Status.QUEUED, Status.BLOCKED)][-MAX_EXPLAINED:]
    return explain_all(session, waits)


def _untrained(session: Session, jobs: Sequence[Job]) -> dict[str, float]:
    """Return the accuracy before the first step by job: of kNN, or without labels of the views."""
    by_metric = {KNN_TOP1: list[str](), VIEW_TOP1: list[str]()}
    for job in jobs:
        by_metric[verdicts.accuracy_of([job])].append(job.id)
    accuracies: dict[str, float] = {}
    for metric, ids in by_metric.items():
        accuracies |= verdicts.untrained_accuracies(session, ids, metric) if ids else {}
    return accuracies


def _job_names(session: Session, workers: Sequence[Worker]) -> dict[str, str]:
    """Return the names of the jobs that workers run, by id."""
    ids = [worker.job_id for worker in workers if worker.job_id]
    return dict(session.execute(select(Job.id, Job.name).where(Job.id.in_(ids))).all()) if ids else {}


@router.get("/")
def jobs_page(request: Request, view: _View, reader: Reader, database: TheDatabase) -> Response:
    """Return the page of all jobs, newest first."""
    return _rendered(request, "jobs.html", view, reader, database)


@router.get("/live")
def jobs_live(request: Request, view: _View, reader: Reader, database: TheDatabase) -> Response:
    """Return the parts of the page that change."""
    return _rendered(request, "_jobs_live.html", view, reader, database)


def _rendered(request: Request, template: str, view: View, reader: Principal, database: Database) -> Response:
    with database.read() as session:
        shown = job_list(session, view)
        saved = views.listed(session, reader) if template == "jobs.html" else ()
    context: dict[str, Any] = {
        "list": shown,
        "now": shown.now,
        "may_submit": "submit" in reader.scopes,
        "statuses": STATUSES,
        "kinds": KINDS,
        "columns": COLUMNS,
        "group_fields": GROUP_FIELDS,
        "views": saved,
        "group_facts": group_facts,
        "first_page": view.replaced(cursor="").address,
        "next_page": view.replaced(cursor=shown.next_cursor or "").address,
    }
    return page(request, template, **context)


@router.post("/views")
def save_view(
    submitter: Submitter,
    database: TheDatabase,
    name: Annotated[str, Form()] = "",
    query: Annotated[str, Form()] = "",
    shared: Annotated[bool, Form()] = False,
) -> Response:
    """Save filters, group and order of the list under a name; redirect to it."""
    row = database.write(lambda session: views.save(session, submitter, name, query, is_shared=shared))
    return RedirectResponse(f"/?{row.query}", status_code=303)


def _refused_view(request: Request, reader: Principal, database: Database) -> Response:
    query = form_at(request, "/views").value("query")
    one = {name: values[-1] for name, values in parse_qs(query).items()}
    view = _view(filters_of_query(f"?{query}"), one.get("sort", ""), one.get("order", ""), [], "", one.get("group", ""))
    return _rendered(request, "jobs.html", view, reader, database)


form_page(_refused_view, "/views")


@router.post("/views/{view_id}/remove")
def remove_view(view_id: str, submitter: Owner, database: TheDatabase) -> Response:
    """Remove a saved view; redirect to the list."""
    database.write(lambda session: views.remove(session, submitter, view_id))
    return RedirectResponse("/", status_code=303)
