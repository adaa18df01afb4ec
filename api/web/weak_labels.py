"""The weak labels of a job: the groups of its monitor batch at an epoch, and one image's same-label images by epoch.

All choices are in the address: `?epoch=&order=&image=`.  A thumbnail is a window onto the picture of the monitor batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.http.auth import Reader
from api.http.dependencies import TheDatabase, TheStorage
from api.rest.weak_labels import read_monitor_batch
from api.web import job
from api.web.job import Run
from api.web.render import page
from api.web.thumbnails import Sheet, Thumbnail, colour_of
from jobs import queries, weak_labels
from jobs.models import Artifact
from jobs.storage import Storage
from jobs.weak_labels import Moment, WeakGroup, weak_groups
from wcl_core.config import why_no_weak_labels
from wcl_core.protocol import MONITOR_BATCH_FACTS, MONITOR_BATCH_PICTURE, MonitorBatchFacts

router = APIRouter(include_in_schema=False)

ORDERS = ("largest", "purest", "worst")
_MAX_BARS = 40
_MAX_ROWS = 8
_TOPS = (0.25, 0.5, 1.0)
_EPOCH = Annotated[int | None, Query(ge=0, lt=2**31)]


@dataclass(frozen=True)
class Choices:
    """The choices in the address; no epoch stands for the latest one."""

    epoch: int | None
    order: str
    image: int | None

    def query(self, **changes: object) -> str:
        """Return the query string with some choices changed; defaults are omitted."""
        choices = vars(self) | changes
        pairs = {name: value for name, value in choices.items() if value is not None and value != ORDERS[0]}
        return f"?{urlencode(pairs)}"


@dataclass(frozen=True)
class Bar:
    """An epoch in the bar chart; `value` is the pair precision, or without classes the share of possible groups."""

    moment: Moment
    num_groups: int
    precision: float | None
    value: float


@dataclass(frozen=True)
class SameLabelImages:
    """The same-label images of one image at an epoch; `kept` are those it also had in the row above."""

    moment: Moment
    images: list[Thumbnail]
    kept: frozenset[int]
    num_alike: int | None


@dataclass(frozen=True)
class Shown:
    """Everything that the page shows of a job that has reported weak labels."""

    choices: Choices
    moments: Sequence[Moment]
    chosen: Moment
    labels: dict[Moment, list[int]]
    monitor_batch: MonitorBatchFacts | None
    sheet: Sheet | None

    @cached_property
    def classes(self) -> list[int] | None:
        return self.monitor_batch.known_classes if self.monitor_batch else None

    @cached_property
    def chance(self) -> float | None:
        return weak_labels.chance(self.classes)

    @cached_property
    def groups(self) -> list[WeakGroup]:
        """The groups of at least two images, in the requested order."""
        groups = [group for group in weak_groups(self.labels[self.chosen], self.classes) if len(group.members) > 1]
        if self.order == "purest":
            return sorted(groups, key=lambda group: -(group.precision or 0))
        return sorted(groups, key=lambda group: group.precision or 0) if self.order == "worst" else groups

    @cached_property
    def alone(self) -> list[Thumbnail]:
        """Images without same-label images."""
        groups = weak_groups(self.labels[self.chosen], None)
        return [self.thumbnail(group.members[0]) for group in groups if len(group.members) == 1]

    @property
    def order(self) -> str:
        """The requested order; without classes there is only one."""
        return self.choices.order if self.classes else ORDERS[0]

    @property
    def precision(self) -> float | None:
        return weak_labels.pair_precision(self.groups)

    @property
    def num_images(self) -> int:
        return len(self.labels[self.chosen])

    def thumbnail(self, place: int) -> Thumbnail:
        if self.monitor_batch is None:
            return Thumbnail(place, None, None, None)
        label = self.monitor_batch.classes[place]
        name = None if label is None else self.monitor_batch.name_of(label)
        return Thumbnail(place, self.monitor_batch.indices[place], label, name)

    def thumbnails(self, places: Sequence[int]) -> list[Thumbnail]:
        return [self.thumbnail(place) for place in places]

    def images_of(self, group: WeakGroup) -> list[Thumbnail]:
        """Return the images of a group by class, the most frequent class first."""
        rank = {label: place for place, label in enumerate(group.classes or {})}
        images = self.thumbnails(group.members)
        return sorted(images, key=lambda image: 0 if image.label is None else rank.get(image.label, 0))

    def classes_of(self, group: WeakGroup) -> list[tuple[str, int, int]]:
        """Return name, colour and count of each class in a group, the most frequent first."""
        assert self.monitor_batch
        return [
            (self.monitor_batch.name_of(label), colour_of(label), count)
            for label, count in (group.classes or {}).items()
        ]

    def class_counts(self) -> list[tuple[Thumbnail, int]]:
        """Return one image and the number of images of each class, by class."""
        first: dict[int, int] = {}
        for place, label in enumerate(self.classes or []):
            first.setdefault(label, place)
        return [(self.thumbnail(first[label]), (self.classes or []).count(label)) for label in sorted(first)]

    @cached_property
    def bars(self) -> list[Bar]:
        return [self._bar(moment) for moment in self.labels]

    def _bar(self, moment: Moment) -> Bar:
        groups = weak_groups(self.labels[moment], self.classes)
        precision = weak_labels.pair_precision(groups)
        value = 2 * len(groups) / self.num_images if precision is None else precision
        return Bar(moment, len(groups), precision, value)

    @cached_property
    def top(self) -> float:
        """The value of a bar of full height."""
        highest = max(bar.value for bar in self.bars)
        return next((top for top in _TOPS if highest <= top), _TOPS[-1])

    def height(self, value: float) -> float:
        """Return the height of a bar, in percent."""
        return round(100 * min(1.0, value / self.top), 1)

    def neighbour(self, distance: int) -> Moment | None:
        """Return the reported epoch before (-1) or after (1) the chosen one."""
        place = self.moments.index(self.chosen) + distance
        return self.moments[place] if 0 <= place < len(self.moments) else None

    @cached_property
    def image(self) -> Thumbnail | None:
        """The chosen image, if it is in the monitor batch."""
        indices = self.monitor_batch.indices if self.monitor_batch else list(range(self.num_images))
        return self.thumbnail(indices.index(self.choices.image)) if self.choices.image in indices else None

    @cached_property
    def same_label(self) -> list[SameLabelImages]:
        """The same-label images of the chosen image, at epochs from the first to the last and at the chosen one."""
        if self.image is None:
            return []
        rows: list[SameLabelImages] = []
        before: frozenset[int] = frozenset()
        for moment in spread(list(self.labels), _MAX_ROWS, self.chosen):
            rows.append(self._same_label(moment, self.image.place, before))
            before = frozenset(image.place for image in rows[-1].images)
        return rows

    def _same_label(self, moment: Moment, own: int, before: frozenset[int]) -> SameLabelImages:
        labels = self.labels[moment]
        places = [place for place, label in enumerate(labels) if label == labels[own] and place != own]
        num_alike = None if self.classes is None else sum(self.classes[place] == self.classes[own] for place in places)
        kept = before & set(places)
        images = self.thumbnails(sorted(places, key=lambda place: place not in kept))
        return SameLabelImages(moment, images, kept, num_alike)


def spread(moments: Sequence[Moment], count: int, chosen: Moment) -> list[Moment]:
    """Return at most `count` moments, evenly from the first to the last, and the chosen one."""
    if len(moments) <= count:
        return list(moments)
    evenly = {moments[round(number * (len(moments) - 1) / (count - 2))] for number in range(count - 1)}
    return sorted(evenly | {chosen}, key=lambda moment: moment.step)


@router.get("/jobs/{job_id}/weak-labels")
def weak_labels_page(
    request: Request,
    job_id: str,
    reader: Reader,
    database: TheDatabase,
    storage: TheStorage,
    epoch: _EPOCH = None,
    order: str = ORDERS[0],
    image: _EPOCH = None,
) -> Response:
    """Return the page of a job's weak labels."""
    choices = Choices(epoch, order if order in ORDERS else ORDERS[0], image)
    with database.read() as session:
        run = job.run(session, job_id)
        moments = weak_labels.moments(session, job_id)
        chosen = _chosen(moments, epoch)
        labels = weak_labels.labels(session, job_id, spread(moments, _MAX_BARS, chosen)) if chosen else {}
        kept = {artifact.name: artifact for artifact in queries.artifacts(session, job_id)}
    shown = _shown(storage, choices, moments, chosen, labels, kept) if chosen else None
    sections = job.sections(run, f"/jobs/{job_id}")
    return page(request, "weak_labels.html", run=run, now=run.now, sections=sections, shown=shown, why=_why_none(run))


def _chosen(moments: Sequence[Moment], epoch: int | None) -> Moment | None:
    """Return the report of an epoch, or the nearest earlier one, since a link may name an epoch without a report."""
    before = [moment for moment in moments if epoch is None or moment.epoch <= epoch]
    return before[-1] if before else next(iter(moments), None)


def _shown(
    storage: Storage,
    choices: Choices,
    moments: Sequence[Moment],
    chosen: Moment,
    labels: dict[Moment, list[int]],
    kept: dict[str, Artifact],
) -> Shown:
    monitor_batch = read_monitor_batch(storage, kept.get(MONITOR_BATCH_FACTS), len(labels[chosen]))
    sheet = None
    if monitor_batch and (picture := kept.get(MONITOR_BATCH_PICTURE)):
        address = f"/v1/jobs/{picture.job_id}/artifacts/{MONITOR_BATCH_PICTURE}"
        sheet = Sheet(address, monitor_batch.tile, monitor_batch.columns, len(monitor_batch.indices))
    return Shown(choices, moments, chosen, labels, monitor_batch, sheet)


def _why_none(run: Run) -> str:
    """Return why a job shows no weak labels."""
    spec = run.job.spec
    if run.job.kind != "pretrain":
        return "An evaluation does not train, so it has no weak labels."
    if reason := why_no_weak_labels(str(spec.get("method"))):
        return reason
    if spec.get("monitor_every_epochs") == 0:
        return "This job has no monitor batch: its spec sets monitor_every_epochs to 0."
    if run.view.is_over:
        return "This job reported no weak labels: it ended before the first report, or its method makes none."
    return "Weak labels appear after the first epoch."
