"""Limits of a key: waiting jobs, submissions a minute, and devices at once."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs import keys, limits, policies, preemption, submission, transitions, waiting
from jobs.database import Database, now_ms
from jobs.errors import Forbidden, Invalid, OverLimit
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


def send(database: Database, owner: str, count: int = 1) -> list[str]:
    """Submit jobs as one request of a key."""

    def change(session: Session) -> list[str]:
        ids = [submission.submit(session, rows.new_job(created_by=owner)).id for _ in range(count)]
        limits.check_submission(session, owner, count)
        return ids

    return database.write(change)


def explained(database: Database, job_id: str) -> waiting.Waiting | None:
    with database.read() as session:
        return waiting.explain(session, session.get_one(Job, job_id))


def claim_as(database: Database, number: int) -> str | None:
    claim = try_claim(database, rows.worker(id=f"00000000-0000-7000-8000-0000000000b{number}", name=f"w{number}"))
    return None if claim is None else claim.job_id


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
        limits.check_submission(session, anna, 1)

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
