"""Weak-label groups of a run's monitor batch."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import ValidationError

from api.http.auth import Reader
from api.http.dependencies import TheDatabase, TheStorage
from api.rest.responses import Response
from api.rest.stored_files import read_artifact
from jobs import queries, weak_labels
from jobs.errors import FieldError, Invalid
from jobs.models import Artifact
from jobs.storage import Storage
from jobs.weak_labels import Moment, WeakGroup
from wcl_core.protocol import MONITOR_BATCH_FACTS, MonitorBatchFacts

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/jobs/{job_id}/groups", tags=["jobs"])


class WeakGroupResponse(Response):
    """Images with one weak label: `places` in the picture of the monitor batch, `images` in the train split.

    `classes` counts the true classes by name; `pair_precision` is the share of the group's pairs with equal classes.
    """

    places: list[int]
    images: list[int] | None
    classes: dict[str, int] | None
    pair_precision: float | None


class GroupsResponse(Response):
    """The weak-label groups at the end of one epoch, largest first; `epochs` are the values that `epoch` accepts.

    `pair_precision` is the mean, over images, of the share of same-label images that have the image's true class;
    `pair_precision_chance` is its expectation for random groups.  Without true classes both are null.
    """

    epochs: list[int]
    epoch: int | None
    step: int | None
    attempt: int | None
    num_images: int
    num_groups: int
    pair_precision: float | None
    pair_precision_chance: float | None
    groups: list[WeakGroupResponse]


@router.get("")
def groups(
    job_id: str,
    principal: Reader,
    database: TheDatabase,
    storage: TheStorage,
    epoch: Annotated[int | None, Query(ge=0, lt=2**31, description="By default the last one.")] = None,
) -> GroupsResponse:
    """Return how the weak labels group the monitor batch, a fixed set of train images, at the end of an epoch."""
    with database.read() as session:
        queries.get_job(session, job_id)
        moments = weak_labels.moments(session, job_id)
        moment = _moment_of(moments, epoch)
        labels = weak_labels.labels(session, job_id, [moment])[moment] if moment else []
        kept = {artifact.name: artifact for artifact in queries.artifacts(session, job_id)}
    batch = read_monitor_batch(storage, kept.get(MONITOR_BATCH_FACTS), len(labels))
    classes = batch.known_classes if batch else None
    by_label = weak_labels.weak_groups(labels, classes)
    return GroupsResponse(
        epochs=[each.epoch for each in moments],
        epoch=moment.epoch if moment else None,
        step=moment.step if moment else None,
        attempt=moment.attempt if moment else None,
        num_images=len(labels),
        num_groups=len(by_label),
        pair_precision=weak_labels.pair_precision(by_label),
        pair_precision_chance=weak_labels.chance(classes),
        groups=[_group(group, batch) for group in by_label],
    )


def _moment_of(moments: list[Moment], epoch: int | None) -> Moment | None:
    if epoch is None:
        return moments[-1] if moments else None
    for moment in moments:
        if moment.epoch == epoch:
            return moment
    raise Invalid([FieldError("epoch", "expected one of `epochs` in the response without this parameter")])


def _group(group: WeakGroup, batch: MonitorBatchFacts | None) -> WeakGroupResponse:
    return WeakGroupResponse(
        places=group.members,
        images=[batch.indices[place] for place in group.members] if batch else None,
        classes={batch.name_of(label): count for label, count in group.classes.items()}
        if batch and group.classes
        else None,
        pair_precision=group.precision,
    )


def read_monitor_batch(storage: Storage, facts: Artifact | None, num_images: int) -> MonitorBatchFacts | None:
    """Return the facts of the monitor batch; None if the file is missing, or describes another number of images."""
    if facts is None or (content := read_artifact(storage, facts)) is None:
        return None
    try:
        batch = MonitorBatchFacts.model_validate_json(content)
    except ValidationError as error:
        log.warning("the monitor batch of job %s cannot be read: %s", facts.job_id, error)
        return None
    return batch if len(batch.indices) == len(batch.classes) == num_images else None
