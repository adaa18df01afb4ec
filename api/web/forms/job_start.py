"""The first two questions of a new job: which images, and how long; together they choose a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from sqlalchemy.orm import Session

from api.web.datasets import DatasetView, dataset_list
from jobs import queries
from jobs.datasets import Refusal
from jobs.errors import Invalid
from jobs.estimates import rough_range
from jobs.models import Dataset, Job
from jobs.recommendations import Recipe, recommended_lengths, usual_content
from wcl_core.config import PretrainSpec, method_title
from wcl_core.recommendation import CONTENTS, LENGTHS, Content, Length

_FEW = 6  # datasets that are shown at once
_RECENT = 20
_CONTENTS: dict[Content, str] = {
    "photos": "Photos",
    "drawings": "Drawings, digits or text",
    "overhead": "Microscopy or satellite images",
}
_LENGTHS: dict[Length, str] = {"quick": "Quick look", "standard": "Standard", "thorough": "Thorough"}


@dataclass(frozen=True)
class Chosen:
    """A recipe, and the answers that it was chosen by."""

    dataset: str
    length: Length
    content: Content
    proposals: dict[Length, Recipe]

    @property
    def proposal(self) -> Recipe:
        return self.proposals[self.length]

    def reason(self, field: str) -> str:
        """Return the reason for the value of a field; empty for a field without one."""
        return next((each.reason for each in self.proposal.choices if each.field == field), "")


@dataclass(frozen=True)
class Choice:
    """One answer, as a link to the form that it fills.

    Attributes:
        proposal: the recipe of a length.
    """

    title: str
    address: str
    is_current: bool
    proposal: Recipe | None = None

    @property
    def method(self) -> str:
        """The method of the recipe, in words; most recipes leave it to the default."""
        spec = self.proposal.spec if self.proposal else {}
        return method_title(str(spec.get("method", PretrainSpec.model_fields["method"].default)))

    @property
    def time(self) -> str:
        """The time that the panel at the side has of the same recipe, too."""
        time = self.proposal.time if self.proposal else {}
        return rough_range(time["low_seconds"], time["high_seconds"]) if time.get("high_seconds") else "time unknown"


@dataclass(frozen=True)
class DatasetChoice:
    """A dataset to choose."""

    view: DatasetView
    address: str
    is_current: bool


@dataclass(frozen=True)
class Start:
    """The answers to choose from.

    Attributes:
        more: datasets beyond the first ones.
        refused: datasets that workers refuse.
        pending: datasets that workers are still to read.
        problem: why there is no recipe for the chosen dataset.
        runs: jobs whose spec the form can start from.
    """

    datasets: list[DatasetChoice]
    more: list[DatasetChoice]
    refused: list[Refusal]
    pending: list[str]
    contents: list[Choice]
    lengths: list[Choice]
    problem: str | None
    runs: list[Job]


def first_dataset(session: Session) -> str | None:
    """Return the dataset that a new form proposes; None without one that can be trained on."""
    return next((row.name for row in _ordered(queries.datasets(session)) if _lengths(session, row)), None)


def recipe(session: Session, name: str, length: str, content: str) -> Chosen:
    """Return the recipe for answers; missing and unknown ones have their usual value.

    Raises:
        NotFound: there is no such dataset.
        Invalid: it has too few images.
    """
    row = queries.get_dataset(session, name)
    kind = next((each for each in CONTENTS if each == content), usual_content(row))
    proposals = recommended_lengths(session, row, kind)
    return Chosen(name, next((each for each in LENGTHS if each == length), "standard"), kind, proposals)


def choices(session: Session, chosen: Chosen | None, dataset: str, problem: str | None) -> Start:
    """Return the answers to choose from.

    Args:
        session: for reading.
        chosen: the recipe of the form; None if it started from a preset.
        dataset: the chosen one.
        problem: why there is no recipe for it.
    """
    listed = dataset_list(session)
    views = {view.row.name: view for view in listed.views}
    rows = _ordered([view.row for view in listed.views])
    length = chosen.length if chosen else None
    links = [DatasetChoice(views[row.name], _address(row.name, length), row.name == dataset) for row in rows]
    shown = [each for place, each in enumerate(links) if place < _FEW or each.is_current]
    return Start(
        shown,
        [each for each in links if each not in shown],
        listed.refusals,
        [name for name in listed.unsettled.pending if name not in views],
        [] if chosen is None else _content_choices(chosen),
        _length_choices(session, chosen, views[dataset].row if dataset in views else None),
        problem,
        queries.list_jobs(session, kind="pretrain", limit=_RECENT).items,
    )


def _content_choices(chosen: Chosen) -> list[Choice]:
    return [
        Choice(title, _address(chosen.dataset, chosen.length, content), content == chosen.content)
        for content, title in _CONTENTS.items()
    ]


def _length_choices(session: Session, chosen: Chosen | None, row: Dataset | None) -> list[Choice]:
    """Return the lengths, without one whose recipe is that of a shorter one."""
    if row is None:
        return []
    proposals = chosen.proposals if chosen else _lengths(session, row)
    links: list[Choice] = []
    for length, proposal in proposals.items():
        is_current = chosen is not None and chosen.length == length
        is_new = all(each.proposal is None or each.proposal.spec != proposal.spec for each in links)
        if is_new or is_current:
            address = _address(row.name, length, chosen.content if chosen else None)
            links.append(Choice(_LENGTHS[length], address, is_current, proposal))
    return links


def _lengths(session: Session, row: Dataset) -> dict[Length, Recipe]:
    """Return the recipes for a dataset; none if it has too few images."""
    try:
        return recommended_lengths(session, row, usual_content(row))
    except Invalid:
        return {}


def _ordered(rows: Sequence[Dataset]) -> list[Dataset]:
    """Return the users' own datasets first, the newest of them first."""
    return sorted(rows, key=lambda row: (row.kind == "builtin", -row.updated_at))


def _address(dataset: str, length: str | None, content: str | None = None) -> str:
    answers = {"dataset": dataset, "length": length, "content": content}
    return f"/submit?{urlencode({name: value for name, value in answers.items() if value})}"
