"""Limits of a key: waiting jobs, submissions a minute, devices at once.  Those of a project: GPUs and storage, too."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs import keys, limits, policies, preemption, projects, submission, transitions, waiting
from jobs.access import Principal
from jobs.database import DEFAULT_PROJECT, Database, now_ms
from jobs.errors import Conflict, Forbidden, Invalid, OverLimit
from jobs.models import Job
from jobs.settings import Settings
from jobs.waiting import Cause
from tests.jobs import rows
from tests.jobs.rows import at_once, submit, try_claim


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def key(database: Database, name: str = "anna", **own: int | None) -> str:
    return database.write(lambda session: keys.create(session, name, limits=own)[0].id)


def send(database: Database, owner: str, count: int = 1, project: str = DEFAULT_PROJECT) -> list[str]:
    """Submit jobs as one request of a key of a project."""
    database = database.acting_for(Principal(owner, "", frozenset(), project_id=project))

    def change(session: Session) -> list[str]:
        ids = [submission.submit(session, rows.new_job(created_by=owner)).id for _ in range(count)]
        limits.check_submission(session, owner, {project: count})
        return ids

    return database.write(change)


def explained(database: Database, job_id: str) -> waiting.Waiting | None:
    with database.read() as session:
        return waiting.explain(session, session.get_one(Job, job_id))


def claim_as(database: Database, number: int) -> str | None:
    claim = try_claim(database, rows.worker(id=f"00000000-0000-7000-8000-0000000000b{number}", name=f"w{number}"))
    return None if claim is None else claim.job_id


def test_what_is_beyond_a_lower_limit_is_counted(database: Database) -> None:
    anna = key(database)
    send(database, anna, 5)
    assert [claim_as(database, number) is None for number in (1, 2, 3)] == [False] * 3

    def lowered(**own: int) -> str | None:
        database.write(lambda session: keys.change(session, anna, own))
        with database.read() as session:
            return limits.excess_of_key(session, anna)

    assert lowered(max_devices=3, max_waiting=2) is None
    assert lowered(max_devices=1) == "the key anna uses 3 devices, 2 over its limit, until its running jobs end"
    assert lowered(max_devices=9, max_waiting=1) == "the key anna has 2 waiting jobs, 1 over its limit, which stay"
    both = lowered(max_devices=2)
    assert both is not None
    assert both.endswith("until its running jobs end; it has 2 waiting jobs, 1 over its limit, which stay")


def test_a_key_has_at_most_so_many_waiting_jobs(database: Database) -> None:
    anna, ben = key(database, max_waiting=2), key(database, "ben")
    first, _ = send(database, anna, 2)

    with pytest.raises(OverLimit, match="the key anna may have 2 waiting jobs, and 2 others already wait") as refused:
        send(database, anna)
    with pytest.raises(Forbidden, match="this request has 3 jobs"):
        send(database, anna, 3)

    assert refused.value.retry_seconds > 0
    assert len(rows.rows_of(database, Job)) == 2
    send(database, ben, 3)
    database.write(lambda session: transitions.pause(session, first))
    with pytest.raises(OverLimit):  # a paused job waits, too
        send(database, anna)
    database.write(lambda session: transitions.cancel(session, first))
    send(database, anna)


def test_a_key_submits_at_most_so_many_jobs_a_minute(database: Database) -> None:
    anna = key(database, max_submissions=3)
    first, _ = send(database, anna, 2)
    database.write(
        lambda session: session.execute(update(Job).where(Job.id == first).values(created_at=now_ms() - 40_000))
    )

    with pytest.raises(OverLimit, match="may submit 3 jobs a minute") as refused:
        send(database, anna, 2)
    with pytest.raises(Forbidden, match="this request has 4"):
        send(database, anna, 4)

    assert 15 <= refused.value.retry_seconds <= 20  # when the oldest one is a minute old
    send(database, anna)
    database.write(lambda session: session.execute(update(Job).values(created_at=now_ms() - 60_000)))
    send(database, anna, 3)


def test_submissions_at_one_time_do_not_pass_a_limit_together(database: Database) -> None:
    anna = key(database, max_waiting=2)

    def one(_: int) -> bool:
        try:
            send(database, anna)
        except OverLimit:
            return False
        return True

    assert sum(at_once(4, one)) == 2


def test_the_jobs_of_a_key_use_at_most_so_many_devices(database: Database) -> None:
    anna, ben = key(database, max_devices=1), key(database, "ben")
    first, second, third = (submit(database, created_by=owner) for owner in (anna, anna, ben))

    assert [claim_as(database, number) for number in range(3)] == [first, third, None]

    held = explained(database, second)
    assert held is not None
    assert (held.cause, held.position) == (Cause.KEY_LIMIT, None)
    assert held.message == "the jobs of the key anna may use 1 device at once, and use 1; it starts when one has ended"
    with database.read() as session:
        assert preemption.choose(session) is None
    database.write(lambda session: transitions.end_attempt(session, rows.open_attempt(database, first), "succeeded"))
    assert claim_as(database, 3) == second


def test_claims_at_one_time_do_not_pass_a_limit_together(database: Database) -> None:
    anna, ben = key(database, max_devices=1), key(database, "ben")
    for owner in (anna, anna, anna, ben):
        submit(database, created_by=owner)

    claimed = at_once(4, lambda number: claim_as(database, number))

    owners = [rows.job(database, job_id).created_by for job_id in claimed if job_id is not None]
    assert sorted(map(str, owners)) == sorted([anna, ben])  # none takes the turn of another key


def test_a_job_that_needs_more_devices_than_its_key_may_use_is_refused(database: Database) -> None:
    anna = key(database, max_devices=2)
    database.write(lambda session: session.execute(update(Job).values(gpus=4)))

    def change(session: Session) -> None:
        job = submission.submit(session, rows.new_job(created_by=anna))
        session.execute(update(Job).where(Job.id == job.id).values(gpus=4))
        limits.check_submission(session, anna, {DEFAULT_PROJECT: 1})

    with pytest.raises(Invalid, match="needs 4 devices, and the key anna may use 2 devices at once"):
        database.write(change)


def test_the_limits_of_the_service_hold_for_keys_without_their_own(database: Database) -> None:
    anna, ben = key(database), key(database, "ben", max_devices=2, max_waiting=9)
    database.write(lambda session: policies.store(session, Settings(key_waiting=1, key_devices=1)))
    jobs = [submit(database, created_by=owner) for owner in (anna, anna, ben, ben)]

    assert [claim_as(database, number) for number in range(4)] == [jobs[0], jobs[2], jobs[3], None]
    with pytest.raises(OverLimit):
        send(database, anna)
    send(database, ben)
    database.write(lambda session: policies.store(session, Settings()))
    assert claim_as(database, 4) == jobs[1]


def test_a_changed_limit_holds_at_once(database: Database) -> None:
    anna = key(database, max_devices=1)
    first, second = (submit(database, created_by=anna) for _ in range(2))
    assert [claim_as(database, number) for number in range(2)] == [first, None]

    database.write(lambda session: keys.change(session, anna, {"max_devices": 2}))

    assert claim_as(database, 2) == second
    with pytest.raises(Invalid, match="expected 1 to 1,000,000, not 0"):
        database.write(lambda session: keys.change(session, anna, {"max_waiting": 0}))


def project(database: Database, **own: int | None) -> str:
    """Return the id of a new project with limits."""

    def create(session: Session) -> str:
        row = projects.create(session, "vision")
        return projects.change(session, row.id, limits=own).id

    return database.write(create)


def member(database: Database, name: str = "anna", project: str = "vision") -> str:
    return database.write(lambda session: keys.create(session, name, project=project)[0].id)


def submit_gpus(database: Database, owner: str, project_id: str, gpus: int = 1) -> str:
    acting = database.acting_for(Principal(owner, "", frozenset(), project_id=project_id))
    return submit(acting, created_by=owner, gpus=gpus)


def claim_gpus(database: Database, number: int, gpus: int = 4) -> str | None:
    facts = rows.worker(id=f"00000000-0000-7000-8000-0000000000b{number}", name=f"w{number}", gpus=gpus)
    claim = try_claim(database, facts)
    return None if claim is None else claim.job_id


def test_the_jobs_of_a_project_use_at_most_its_gpus(database: Database) -> None:
    vision = project(database, max_gpus=2)
    anna, ben = member(database), member(database, "ben")
    cleo = key(database, "cleo")
    first, large = (submit_gpus(database, anna, vision, gpus) for gpus in (1, 2))
    second = submit_gpus(database, ben, vision)
    third, other = submit_gpus(database, ben, vision), submit_gpus(database, cleo, DEFAULT_PROJECT)
    without = submit_gpus(database, ben, vision, 0)

    assert [claim_gpus(database, number) for number in range(5)] == [first, second, other, without, None]

    texts = [explained(database, each) for each in (large, third)]
    for held in texts:
        assert held is not None
        assert (held.cause, held.position) == (Cause.PROJECT_LIMIT, None)
        assert held.message == "its project uses its 2 GPUs; it starts when some are free"
    with database.read() as session:
        assert preemption.choose(session) is None
    database.write(lambda session: transitions.end_attempt(session, rows.open_attempt(database, first), "succeeded"))
    held = explained(database, large)
    assert held is not None
    assert held.message == "its project uses 1 of its 2 GPUs, and it needs 2; it starts when enough are free"
    assert [claim_gpus(database, number) for number in (5, 6)] == [third, None]
    database.write(lambda session: projects.change(session, vision, limits={"max_gpus": 1}))
    held = explained(database, large)
    assert held is not None
    assert "may use 1 GPU at once, and it needs 2" in held.message
    assert not held.can_start
    again = submit_gpus(database, ben, vision, 0)
    assert claim_as(database, 7) == again, "a job without GPUs is within a limit that is passed"
    database.write(lambda session: projects.change(session, vision, limits={"max_gpus": None}))
    assert claim_gpus(database, 8) == large


def test_claims_at_one_time_do_not_pass_a_projects_gpus_together(database: Database) -> None:
    vision = project(database, max_gpus=1)
    owners = [member(database, name) for name in ("anna", "ben", "cleo")]
    for owner in owners:
        submit_gpus(database, owner, vision)
    other = submit_gpus(database, key(database, "dora"), DEFAULT_PROJECT)

    claimed = [each for each in at_once(4, lambda number: claim_gpus(database, number)) if each is not None]

    assert len(claimed) == 2
    assert other in claimed


def test_a_project_has_at_most_so_many_waiting_jobs(database: Database) -> None:
    vision = project(database, max_waiting=2)
    anna, ben = member(database), member(database, "ben")
    send(database, anna, project=vision)
    first, *_ = send(database, ben, project=vision)

    with pytest.raises(OverLimit, match="the project vision may have 2 waiting jobs, and 2 others already wait"):
        send(database, anna, project=vision)
    with pytest.raises(Forbidden, match="this request has 3 jobs"):
        send(database, anna, 3, project=vision)

    assert len(rows.rows_of(database, Job)) == 2
    send(database, key(database, "cleo"), 3)
    database.write(lambda session: transitions.cancel(session, first))
    send(database, anna, project=vision)


def test_submissions_at_one_time_do_not_pass_a_projects_limit_together(database: Database) -> None:
    vision = project(database, max_waiting=1)
    anna, ben = member(database), member(database, "ben")
    refused = list[OverLimit]()

    def submit_as_ben() -> None:
        try:
            send(database, ben, project=vision)
        except OverLimit as error:
            refused.append(error)

    other = threading.Thread(target=submit_as_ben)

    def submit_beside_ben(session: Session) -> None:
        submission.submit(session, rows.new_job(created_by=anna))
        limits.check_submission(session, anna, {vision: 1})
        other.start()
        other.join(2)  # it waits for the commit; one that did not wait would end here

    acting = database.acting_for(Principal(anna, "", frozenset(), project_id=vision))
    acting.write(submit_beside_ben)
    other.join()

    assert len(refused) == 1
    assert len(rows.rows_of(database, Job)) == 1


def test_a_project_that_stores_too_much_takes_no_submission(database: Database) -> None:
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started(), rows.checkpoint(1))
    anna = key(database)
    database.write(lambda session: projects.change(session, DEFAULT_PROJECT, limits={"max_bytes": 11}))
    send(database, anna)
    database.write(lambda session: projects.change(session, DEFAULT_PROJECT, limits={"max_bytes": 10}))

    with pytest.raises(Conflict, match="the project default stores 10 B, and may store 10 B; delete checkpoints"):
        send(database, anna)
    run.deliver(rows.checkpoint(2, "b" * 64))  # a job that runs continues
    vision = project(database, max_bytes=1)
    send(database, member(database, "ben"), project=vision)


def test_a_job_that_needs_more_gpus_than_its_project_may_use_is_refused(database: Database) -> None:
    vision, anna = project(database, max_gpus=2), member(database)
    acting = database.acting_for(Principal(anna, "", frozenset(), project_id=vision))

    def change(session: Session) -> None:
        submission.submit(session, rows.new_job(created_by=anna, gpus=4))
        limits.check_submission(session, anna, {vision: 1})

    with pytest.raises(Invalid, match="needs 4 GPUs, and the project vision may use 2 at once"):
        acting.write(change)


@pytest.mark.parametrize("limit", ["max_waiting", "max_gpus", "max_bytes"])
def test_a_limit_of_a_project_is_in_its_range(database: Database, limit: str) -> None:
    for number in (0, projects.LIMITS[limit] + 1):
        with pytest.raises(Invalid, match="expected 1 to"):
            project(database, **{limit: number})
