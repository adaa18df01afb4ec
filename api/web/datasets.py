"""The list of datasets: their images by split and class, samples, and the workers that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.forms.refused import form_page
from api.web.render import page
from jobs import dataset_sources, datasets, queries
from jobs.access import Principal
from jobs.database import Database, database_time
from jobs.dataset_sources import Added
from jobs.datasets import DatasetState, Refusal, SheetLayout, Unsettled
from jobs.models import Dataset, Worker
from wcl_core.data.kinds import HIDDEN
from wcl_core.text import capitalised

router = APIRouter(include_in_schema=False)

_SPLITS = ("train", "test", "unlabelled")


@dataclass(frozen=True)
class ClassView:
    """A class with its number of images by split; None if the worker did not count them.

    Attributes:
        row: of the sheet of samples; None if the sheet has no row for the class.
        cells: number of images in that row.
    """

    name: str
    counts: dict[str, int] | None
    row: int | None
    cells: int


@dataclass(frozen=True)
class Sample:
    """An image of the sheet of samples; `name` is that of its class, empty without labels."""

    name: str
    row: int
    column: int


@dataclass(frozen=True)
class Remark:
    """A line about a dataset; a problem keeps images or jobs out."""

    text: str
    is_problem: bool = False


@dataclass(frozen=True)
class DatasetView:
    """A dataset with its sheet of samples and the running workers that have it.

    Attributes:
        holders: workers with the registered version.
        others: workers with another version, which cannot run new jobs on it.
    """

    row: Dataset
    state: DatasetState
    sheet: SheetLayout | None
    holders: list[Worker]
    others: list[Worker]

    @property
    def splits(self) -> list[tuple[str, int]]:
        """Number of images by split, train first, without empty splits."""
        rank = {name: place for place, name in enumerate(_SPLITS)}
        filled = [entry for entry in self.row.counts.items() if entry[1]]
        return sorted(filled, key=lambda entry: (rank.get(entry[0], len(rank)), entry[0]))

    @property
    def classes(self) -> list[ClassView]:
        """Classes in the order of their labels."""
        return [self._class(label, name) for label, name in enumerate(self.row.classes)]

    @property
    def unlabelled(self) -> ClassView | None:
        """The row of samples of a dataset without labels."""
        if self.row.classes or self.sheet is None:
            return None
        return ClassView("unlabelled", None, 0, min(self.sheet.columns, sum(self.row.counts.values())))

    def samples(self, count: int) -> list[Sample]:
        """Return the first image of each class, then the second ones, and so on."""
        if (images := self.unlabelled) is not None:
            return [Sample("", 0, column) for column in range(min(count, images.cells))]
        shown = [each for each in self.classes if each.cells]
        columns = range(max((each.cells for each in shown), default=0))
        places = (
            Sample(each.name, each.row or 0, column) for column in columns for each in shown if column < each.cells
        )
        return list(islice(places, count))

    @property
    def side(self) -> str:
        """The shorter side of the median image in pixels; empty where unknown."""
        report = self.row.report or {}
        if median := report.get("median"):
            about = "about " if report.get("smallest") != report.get("largest") else ""
            return f"{about}{min(median)} px"
        return f"{self.row.image_size} px" if self.row.image_size else ""

    @property
    def trouble(self) -> str:
        """The reason why a job on it would wait or is refused; empty for a dataset that is ready."""
        if self.state.state == "being_read":
            return f"being read, {self.state.share or 0:.0%}"
        return self.state.message or ""

    @property
    def remarks(self) -> list[Remark]:
        """The trouble, the files that were left out, and what is odd about the others."""
        report = self.row.report or {}
        trouble = [Remark(capitalised(self.trouble), is_problem=True)] if self.trouble else []
        left_out = [
            Remark(f"Left out: {_counted(each)}", is_problem=each["text"] != HIDDEN)
            for each in report.get("left_out", ())
        ]
        odd = [Remark(capitalised(_counted(each))) for each in report.get("odd", ())]
        layout = [Remark(capitalised(report["layout"]))] if report.get("layout") else []
        return [*trouble, *left_out, *odd, *layout]

    @property
    def note(self) -> str | None:
        return datasets.note(self.row)

    def _class(self, label: int, name: str) -> ClassView:
        by_split = self.row.class_counts or {}
        counts = {split: by_split[split][label] for split in _SPLITS if label < len(by_split.get(split, ()))}
        is_shown = self.sheet is not None and label < self.sheet.rows
        cells = min(self.sheet.columns, counts.get("train", 0)) if self.sheet and is_shown else 0
        return ClassView(name, counts or None, label if cells else None, cells)

    @property
    def is_even(self) -> bool:
        """Whether all classes have the same number of images."""
        by_split = (self.row.class_counts or {}).values()
        return bool(by_split) and all(len(set(counts)) == 1 for counts in by_split)


def _counted(entry: Mapping[str, Any]) -> str:
    return f"{entry['text']} ({entry['count']:,})"


@dataclass(frozen=True)
class DatasetList:
    """All datasets; `added` has those that administrators have added, with their paths."""

    views: list[DatasetView]
    unsettled: Unsettled
    added: dict[str, Added]
    now: int

    @property
    def refusals(self) -> list[Refusal]:
        """The refused datasets that are not registered; the card of a registered one says it."""
        names = {view.row.name for view in self.views}
        return [each for each in self.unsettled.refused if each.name not in names]


def dataset_list(session: Session) -> DatasetList:
    sheets, workers = datasets.sheet_layouts(session), queries.workers(session, alive_only=True)
    states = datasets.states(session)
    views = [dataset_view(row, states[row.name], sheets.get(row.name), workers) for row in queries.datasets(session)]
    return DatasetList(views, datasets.unsettled(session), dataset_sources.added(session), database_time(session))


def dataset_view(
    row: Dataset, state: DatasetState, sheet: SheetLayout | None, workers: Sequence[Worker]
) -> DatasetView:
    """Return a dataset with those of the live workers that have it."""
    having = [worker for worker in workers if row.name in worker.datasets]
    holders = [worker for worker in having if worker.datasets[row.name] == row.digest]
    return DatasetView(row, state, sheet, holders, [worker for worker in having if worker not in holders])


@router.get("/datasets")
def datasets_page(request: Request, reader: Reader, database: TheDatabase, add: bool = False) -> Response:
    """Return the page of all datasets; with `add`, its form for another one is open."""
    return _datasets_page(request, reader, database, opens_form=add)


def _datasets_page(request: Request, reader: Principal, database: Database, *, opens_form: bool = False) -> Response:
    with database.read() as session:
        view = dataset_list(session)
    may = {"may_add": reader.manages_service(), "may_submit": "submit" in reader.scopes, "opens_form": opens_form}
    return page(request, "datasets.html", list=view, now=view.now, **may)


form_page(_datasets_page, "/datasets", conflicting="name")
