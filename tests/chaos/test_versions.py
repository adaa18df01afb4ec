"""Servers and workers of two versions side by side."""

from __future__ import annotations

from sqlalchemy import select, update

from jobs.models import Attempt, Job
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.stage import Stage, Theatre, spec
from wcl_core.config import SPEC_VERSIONS

LAST = SPEC_VERSIONS[-1]
NEXT = LAST + 1


def submit(stage: Stage, seed: int, version: int) -> Accepted:
    job_id = stage.submit(spec(seed, step_ms=1))
    stage.database.write(lambda s: s.execute(update(Job).where(Job.id == job_id).values(spec_version=version)) and None)
    return Accepted(job_id, seed, 2, frozenset({"succeeded"}))


def workers_of(stage: Stage, jobs: list[Accepted]) -> set[str]:
    ids = [job.job_id for job in jobs]
    with stage.database.read() as session:
        return set(session.execute(select(Attempt.worker_name).where(Attempt.job_id.in_(ids))).scalars())


def test_a_worker_of_the_previous_version_leaves_newer_jobs_alone(house: Theatre) -> None:
    """Two servers and two workers: four reconcilers poll the same rows."""
    with house.stage("versions") as stage:
        newer = [
            submit(stage, seed, NEXT) for seed in range(4)
        ]  # older than the others, so they come first in the queue
        earlier = [submit(stage, seed, LAST) for seed in range(10, 14)]
        for name in ("s0", "s1"):
            stage.server(name).start()
        stage.worker("old", spec_versions=SPEC_VERSIONS).start()
        for job in earlier:
            stage.wait_for(job.job_id, "succeeded", "failed")
        assert {stage.job(job.job_id).status for job in newer} == {"queued"}

        stage.worker("new", spec_versions=(*SPEC_VERSIONS, NEXT)).start()
        for job in newer:
            stage.wait_for(job.job_id, "succeeded", "failed")

        assert workers_of(stage, earlier) == {"old"}
        assert workers_of(stage, newer) == {"new"}
        assert Ledger(stage.database, stage.checkpoints_dir).problems(newer + earlier) == []
