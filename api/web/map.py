"""The map of a checkpoint's feature space, and the nearest neighbours of one image.

All choices are in the address: `?layout=&colour=&only=&image=`.  The server draws the points as paths; scripts draw
them on a canvas that can be zoomed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase, TheStorage
from api.rest.stored_files import read_artifact
from api.web import job
from api.web.job import Run
from api.web.render import page
from api.web.thumbnails import Sheet, Thumbnail, colour_of
from jobs import queries
from jobs.baselines import Source
from jobs.models import Artifact, Checkpoint, Job
from jobs.storage import Storage
from wcl_core.protocol import MAP_FACTS, MAP_PICTURE, MapFacts

log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False)

LAYOUTS = {"tsne": "t-SNE", "pca": "PCA"}
COLOURS = {"class": "Class", "weak": "Weak label"}
_MAX_LEGEND = 24
_NUMBER = Annotated[int | None, Query(ge=0, lt=2**31)]


@dataclass(frozen=True)
class Choices:
    """The choices in the address; `only` is a class or a weak label, `image` an index in the split."""

    layout: str
    colour: str
    only: int | None
    image: int | None

    def query(self, **changes: object) -> str:
        """Return the query string with some choices changed; defaults are omitted."""
        choices = vars(self) | changes
        pairs = {name: value for name, value in choices.items() if value is not None and value not in ("tsne", "class")}
        return f"?{urlencode(pairs)}"


@dataclass(frozen=True)
class Entry:
    """An entry of the legend: a class or a weak label, with its number of images."""

    key: int
    name: str
    colour: int
    count: int


@dataclass(frozen=True)
class Near:
    """A neighbour of the chosen image; `is_alike` is whether their classes agree, None if one is unknown."""

    image: Thumbnail
    cosine: float
    is_alike: bool | None


@dataclass(frozen=True)
class Shown:
    """A map with the choices of the address."""

    choices: Choices
    map: MapFacts
    sheet: Sheet

    @cached_property
    def keys(self) -> list[int | None]:
        """The class or weak label that colours each image."""
        return list(self.map.components or []) if self.colour == "weak" else self.map.labels

    @property
    def colour(self) -> str:
        """The requested colouring; by class if the map has no weak labels, by weak label if it has no classes."""
        if not self.map.components:
            return "class"
        return self.choices.colour if self.map.class_names else "weak"

    @property
    def points(self) -> list[tuple[float, float]]:
        return self.map.pca if self.choices.layout == "pca" else self.map.tsne

    def paths(self) -> Iterator[tuple[int, bool, str]]:
        """Yield colour, whether faded, and path of the points, faded ones first; a point is a line of length zero."""
        drawn: dict[tuple[bool, int], list[str]] = {}
        for key, (x, y) in zip(self.keys, self.points, strict=True):
            is_faded = self.choices.only is not None and key != self.choices.only
            colour = 0 if key is None else colour_of(key)
            drawn.setdefault((not is_faded, colour), []).append(f"M{x:g} {y:g}h0")
        for (is_kept, colour), points in sorted(drawn.items()):
            yield colour, not is_kept, "".join(points)

    @cached_property
    def legend(self) -> list[Entry]:
        """Classes in the order of their labels; weak labels by size."""
        counts = Counter(key for key in self.keys if key is not None)
        if self.colour == "class":
            ordered = sorted(counts.items())
        else:
            ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return [Entry(key, self._name(key), colour_of(key), count) for key, count in ordered]

    @property
    def short_legend(self) -> list[Entry]:
        """The first entries of the legend, and the chosen one."""
        return self.legend[:_MAX_LEGEND] + [each for each in self.legend[_MAX_LEGEND:] if each.key == self.choices.only]

    def _name(self, key: int) -> str:
        if self.colour == "class":
            return self._class_name(key)
        classes = Counter(
            label for own, label in zip(self.keys, self.map.labels, strict=True) if own == key and label is not None
        )
        commonest = classes.most_common(1)
        return f"mostly {self._class_name(commonest[0][0])}" if commonest else f"weak label {key + 1}"

    def _class_name(self, label: int) -> str:
        return self.map.class_names[label] if label < len(self.map.class_names) else str(label)

    def thumbnail(self, place: int) -> Thumbnail:
        label = self.map.labels[place]
        class_name = None if label is None else self._class_name(label)
        file = None if self.map.files is None else self.map.files[place]
        return Thumbnail(place, self.map.indices[place], label, class_name, file)

    @cached_property
    def place(self) -> int | None:
        """The place of the chosen image in the lists."""
        return self.map.indices.index(self.choices.image) if self.choices.image in self.map.indices else None

    @property
    def image(self) -> Thumbnail | None:
        return None if self.place is None else self.thumbnail(self.place)

    @property
    def neighbours(self) -> list[Near]:
        """The neighbours of the chosen image, nearest first."""
        if self.place is None:
            return []
        own = self.map.labels[self.place]
        pairs = zip(self.map.neighbours[self.place], self.map.cosines[self.place], strict=True)
        labels = self.map.labels
        return [
            Near(self.thumbnail(near), cosine, None if own is None or labels[near] is None else labels[near] == own)
            for near, cosine in pairs
        ]


@router.get("/jobs/{job_id}/map")
def map_page(
    request: Request,
    job_id: str,
    reader: Reader,
    database: TheDatabase,
    storage: TheStorage,
    layout: str = "tsne",
    colour: str = "class",
    only: _NUMBER = None,
    image: _NUMBER = None,
) -> Response:
    """Return the page of the map that an evaluation has made."""
    choices = Choices(layout if layout in LAYOUTS else "tsne", colour if colour in COLOURS else "class", only, image)
    with database.read() as session:
        run = job.run(session, job_id)
        artifacts = queries.artifacts(session, job_id)
        source = _source(session, run.job)
    facts = next((each for each in artifacts if each.name == MAP_FACTS), None)
    embedding_map = _read_map(storage, facts)
    context: dict[str, Any] = {
        "run": run,
        "source": source,
        "shown": Shown(choices, embedding_map, _sheet(facts, embedding_map)) if facts and embedding_map else None,
        "why": _why_none(run, facts),
        "layouts": LAYOUTS,
        "colours": COLOURS,
        "facts_address": f"/v1/jobs/{job_id}/artifacts/{MAP_FACTS}",
        "sections": job.sections(run, f"/jobs/{job_id}"),
    }
    return page(request, "map.html", now=run.now, **context)


def _read_map(storage: Storage, facts: Artifact | None) -> MapFacts | None:
    """Return the map; None when its file is missing, damaged or invalid."""
    if facts is None or (content := read_artifact(storage, facts)) is None:
        return None
    try:
        return MapFacts.model_validate_json(content)
    except ValidationError as error:
        log.warning("the map of job %s cannot be read: %s", facts.job_id, error)
        return None


def _sheet(facts: Artifact, embedding_map: MapFacts) -> Sheet:
    address = f"/v1/jobs/{facts.job_id}/artifacts/{MAP_PICTURE}"
    return Sheet(address, embedding_map.tile, embedding_map.columns, len(embedding_map.indices))


def _source(session: Session, job: Job) -> Source | None:
    checkpoint = session.get(Checkpoint, job.spec.get("features", {}).get("checkpoint_id") or "")
    trained = session.get(Job, checkpoint.job_id) if checkpoint else None
    if checkpoint is None or trained is None:
        return None
    return Source(trained.id, trained.name, checkpoint.step, checkpoint.epoch)


def _why_none(run: Run, facts: Artifact | None) -> str:
    """Return why a job shows no map."""
    if facts is not None:
        return "The file of the map is missing or unreadable."
    if run.job.kind != "evaluate" or "map" not in run.job.spec.get("protocols", ()):
        return "This job has no map. Create one from the checkpoints of a training job."
    if run.view.is_over:
        return "This job ended without a map."
    return "The map appears here when the job has finished it."
