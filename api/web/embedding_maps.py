"""Maps of the feature space: the artifacts of the protocol `map`, read and validated."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import queries
from jobs.models import Artifact, Checkpoint, Job
from jobs.storage import Storage
from wcl_core.protocol import MAP_FACTS, MapFacts

log = logging.getLogger(__name__)


def read_map(storage: Storage, facts: Artifact | None) -> MapFacts | None:
    """Return the map; None when its file is missing or invalid."""
    if facts is None:
        return None
    try:
        return MapFacts.model_validate_json(storage.path(facts.storage_key).read_bytes())
    except (OSError, ValidationError) as error:
        log.warning("the map of job %s cannot be read: %s", facts.job_id, error)
        return None


def facts_of(session: Session, job_id: str) -> Artifact | None:
    """Return the artifact with the facts of a job's map."""
    return next((artifact for artifact in queries.artifacts(session, job_id) if artifact.name == MAP_FACTS), None)


def maps_of(session: Session, job_id: str, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Return, by checkpoint of a training job, the newest job that has made a map of it."""
    below = select(Job.id).where(Job.parent_id == job_id, Job.kind == "evaluate").cte(recursive=True)
    below = below.union(select(Job.id).where(Job.parent_id == below.c.id, Job.kind == "evaluate"))  # retries, clones
    checkpoint_id = Job.spec["features"]["checkpoint_id"].as_string()
    maps = select(checkpoint_id, Job.id).join(Artifact, Artifact.job_id == Job.id)
    maps = maps.where(Job.id.in_(select(below.c.id)), Artifact.name == MAP_FACTS).order_by(Job.id)
    known = {checkpoint.id for checkpoint in checkpoints}
    return {checkpoint: made_by for checkpoint, made_by in session.execute(maps) if checkpoint in known}
