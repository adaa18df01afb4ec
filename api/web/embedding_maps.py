"""A map of the feature space as the evaluation `map` left it: its two artifacts, read and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import queries
from jobs.models import Artifact, Checkpoint, Job
from jobs.storage import Storage

log = logging.getLogger(__name__)

FACTS, PICTURE = "map.json", "map.png"
_MAX_IMAGES = 2000


class EmbeddingMap(BaseModel):
    """All lists have the order of the picture's tiles.

    Attributes:
        indices: places of the images in their split, ascending.
        labels: true classes, null where nobody gave one.
        components: weak labels among these images; None where no head makes any.
        pca, tsne: x and y within -1 and 1; `pca_shares` of the variance, by axis.
        neighbours, cosines: the nearest images of each, nearest first, as places in these lists.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    dataset: str
    split: str
    split_images: int
    class_names: list[str]
    tile: int = Field(ge=1, le=512)
    columns: int = Field(ge=1)
    indices: list[int] = Field(max_length=_MAX_IMAGES)
    labels: list[int | None]
    components: list[int] | None
    pca: list[tuple[float, float]]
    pca_shares: list[float]
    tsne: list[tuple[float, float]]
    perplexity: float
    neighbours: list[list[int]]
    cosines: list[list[float]]

    @model_validator(mode="after")
    def _lists_agree(self) -> Self:
        count = len(self.indices)
        lists: list[Sized] = [self.labels, self.pca, self.tsne, self.neighbours, self.cosines]
        lists += [] if self.components is None else [self.components]
        if any(len(each) != count for each in lists):
            raise ValueError("lists of different lengths")
        if any(not 0 <= place < count for row in self.neighbours for place in row):
            raise ValueError("a neighbour that is no image of the map")
        if any(len(near) != len(cosines) for near, cosines in zip(self.neighbours, self.cosines, strict=True)):
            raise ValueError("neighbours without a cosine")
        return self


def read_map(storage: Storage, facts: Artifact | None) -> EmbeddingMap | None:
    """The map; None when its file is away or is none."""
    if facts is None:
        return None
    try:
        return EmbeddingMap.model_validate_json(storage.path(facts.path).read_bytes())
    except (OSError, ValidationError) as error:
        log.warning("the map of job %s cannot be read: %s", facts.job_id, error)
        return None


def facts_of(session: Session, job_id: str) -> Artifact | None:
    """The map that a job has made."""
    return next((artifact for artifact in queries.artifacts(session, job_id) if artifact.name == FACTS), None)


def maps_of(session: Session, job_id: str, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """By checkpoint of a training job: the newest job that has made a map of it, whoever asked for that one."""
    below = select(Job.id).where(Job.parent_id == job_id, Job.kind == "evaluate").cte(recursive=True)
    below = below.union(select(Job.id).where(Job.parent_id == below.c.id, Job.kind == "evaluate"))  # retries, clones
    checkpoint_id = Job.spec["features"]["checkpoint_id"].as_string()
    made = select(checkpoint_id, Job.id).join(Artifact, Artifact.job_id == Job.id)
    made = made.where(Job.id.in_(select(below.c.id)), Artifact.name == FACTS).order_by(Job.id)
    known = {checkpoint.id for checkpoint in checkpoints}
    return {checkpoint: made_by for checkpoint, made_by in session.execute(made) if checkpoint in known}
