"""Fair shares: among jobs of equal priority, those of the key with the least recent use come first."""

from __future__ import annotations

import pytest
from sqlalchemy import String, cast, insert, join, literal, select, text, true, update
from sqlalchemy.orm import Session

from jobs import policies, transitions, usage, waiting, workers
from jobs.database import Database, now_ms
from jobs.models import Attempt, DeviceUse, Job
from jobs.queue import job_queue
from jobs.settings import Settings
from jobs.usage import DAY_MS
from jobs.waiting import Waiting
from tests.jobs import rows
from tests.jobs.rows import submit, try_claim

ANNA, BEN, CORA = "anna", "ben", "cora"
DAY = 20_000


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def used(database: Database, owner: str, hours: float, days_ago: int = 0) -> None:
    """Store that the jobs of a key have used a GPU."""

    def change(session: Session) -> None:
        now = session.execute(select(now_ms())).scalar_one()
        values = {"gpu_ms": int(hours * 3_600_000), "cpu_ms": 0, "jobs": 1, "attempts": 1}
        at = now - days_ago * DAY_MS
        session.add(DeviceUse(owner_id=owner, day=at // DAY_MS, updated_at=at, **values))

    database.write(change)


def age(database: Database, job_id: str, days: float) -> None:
    late = update(Job).where(Job.id == job_id).values(created_at=now_ms() - int(days * DAY_MS))
    database.write(lambda session: session.execute(late))


def end(database: Database, job_id: str) -> None:
    attempt = rows.open_attempt(database, job_id)
    database.write(lambda session: transitions.end_attempt(session, attempt, "succeeded"))


def next_job(database: Database) -> str:
    claimed = try_claim(database)
    assert claimed is not None
    return claimed.job_id


def order(database: Database) -> list[str]:
    """Return the waiting jobs in the order of the queue."""
    with database.read() as session:
        queue = job_queue(session)
        return list(session.execute(select(Job.id).where(queue.is_ready()).order_by(*queue.order)).scalars())


def explained(database: Database, job_id: str) -> Waiting:
    with database.read() as session:
        result = waiting.explain(session, session.get_one(Job, job_id))
    assert result is not None
    return result


def explained_at_once(database: Database, job_ids: list[str]) -> dict[str, Waiting]:
    with database.read() as session:
        return waiting.explain_all(session, [session.get_one(Job, job_id) for job_id in job_ids])


def flood(database: Database, owner: str, count: int) -> list[str]:
    """Add waiting jobs as copies of one row, and return their ids."""
    first = submit(database, created_by=owner)
    database.write(lambda session: session.execute(update(Job).where(Job.id == first).values(queue_place=-10_000)))
    numbers = select(literal(1).label("n")).cte(recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < count - 1))
    changed = {
        "id": literal(first[:31]).concat(cast(numbers.c.n + 10_000, String)),
        "queue_place": numbers.c.n - 10_000,
    }
    columns = Job.__table__.columns
    copied = select(*(changed.get(each.name, each) for each in columns)).where(Job.id == first)
    copied = copied.select_from(join(Job.__table__, numbers, true()))
    copies = insert(Job.__table__).from_select([each.name for each in columns], copied)
    database.write(lambda session: session.execute(copies))
    return [first, *(f"{first[:31]}{number + 10_000}" for number in range(1, count))]


def test_a_flood_delays_the_first_job_of_another_key_by_at_most_one_job(database: Database) -> None:
    database.write(lambda session: workers.register(session, rows.WORKER, 1, (), None, None, ()))
    anna = flood(database, ANNA, 3_000)
    assert next_job(database) == anna[0]
    ben = [submit(database, created_by=BEN) for _ in range(2)]

    some = [*ben, anna[1], anna[2], anna[900]]
    explained_before = {job_id: explained(database, job_id) for job_id in (*some, anna[-1])}
    first, last = explained_before[ben[0]], explained_before[anna[-1]]
    many = explained_at_once(database, [*some, anna[-1]])
    together = {each: many[each] for each in some}
    end(database, anna[0])
    claimed = next_job(database)

    assert together == {each: explained_before[each] for each in some}
    assert many[anna[-1]].message == explained_before[anna[-1]].message.replace("; 2 of", "; about 2 of")
    assert (first.position, claimed) == (1, ben[0])
    assert (last.position, last.is_estimate, last.place) == (3_000, True, "about 3,000")
    assert last.message.startswith(
        "about 3,000 jobs are ahead of it; 2 of these are later, of keys with less recent use"
    )
    end(database, ben[0])
    used(database, BEN, hours=1, days_ago=1)
    assert next_job(database) == anna[1]


def test_the_key_with_the_least_recent_use_comes_first_within_a_priority(database: Database) -> None:
    jobs = {owner: submit(database, created_by=owner) for owner in (ANNA, BEN, CORA)}
    urgent = submit(database, created_by=ANNA, priority=1)
    late = submit(database, created_by=BEN)
    used(database, ANNA, hours=3)
    used(database, BEN, hours=10, days_ago=14)  # as 2.5 hours of today
    used(database, CORA, hours=2.75)

    assert order(database) == [urgent, jobs[BEN], late, jobs[CORA], jobs[ANNA]]
    in_order = [urgent, jobs[BEN], late, jobs[CORA], jobs[ANNA]]
    assert [explained(database, job_id).position for job_id in in_order] == [1, 2, 3, 4, 5]
    assert explained_at_once(database, in_order) == {job_id: explained(database, job_id) for job_id in in_order}
    database.write(lambda session: policies.store(session, Settings(fair_share_days=0)))
    assert order(database) == [urgent, jobs[ANNA], jobs[BEN], jobs[CORA], late]


def test_the_place_of_a_job_behind_those_of_a_key_with_less_use_may_change(database: Database) -> None:
    """Anna's jobs are older, and come first only as long as her key has used less."""
    database.write(lambda session: workers.register(session, rows.WORKER, 1, (), None, None, ()))
    anna = [submit(database, created_by=ANNA) for _ in range(3)]
    ben = submit(database, created_by=BEN)
    used(database, BEN, hours=1)
    changes = "keys with less recent use come first, and that order changes while jobs run"

    assert explained(database, ben).message == f"3 jobs are ahead of it; {changes}"
    assert explained(database, anna[2]).message == "2 jobs are ahead of it"
    used(database, ANNA, hours=3)
    assert explained(database, ben).position == 1
    assert explained_at_once(database, [ben, anna[2]]) == {each: explained(database, each) for each in (ben, anna[2])}


def test_jobs_of_one_key_keep_their_order(database: Database) -> None:
    used(database, ANNA, hours=100)
    jobs = [submit(database, created_by=ANNA) for _ in range(3)]

    assert order(database) == jobs
    with database.read() as session:
        assert not job_queue(session).ranks


def test_a_key_that_waits_for_a_day_comes_first_once(database: Database) -> None:
    used(database, ANNA, hours=1_000, days_ago=3)
    anna = [submit(database, created_by=ANNA) for _ in range(2)]
    ben = [submit(database, created_by=BEN) for _ in range(2)]
    assert order(database) == [*ben, *anna]

    for job_id in anna:
        age(database, job_id, days=1.1)

    assert order(database) == [*anna, *ben]
    assert next_job(database) == anna[0]
    assert order(database) == [*ben, anna[1]]
    end(database, anna[0])
    assert order(database) == [*ben, anna[1]]


def test_an_attempt_counts_on_each_day_that_it_ran_on(database: Database) -> None:
    submit(database, created_by=ANNA)
    attempt = rows.claim(database).attempt
    start = DAY * DAY_MS + DAY_MS // 2

    def change(session: Session) -> None:
        ends = {"started_at": start, "ended_at": start + 2 * DAY_MS}
        session.execute(update(Attempt).values(**ends))
        session.execute(update(Job).values(gpus=2))
        usage.charge(session, attempt)
        usage.charge(session, attempt)

    database.write(change)

    with database.read() as session:
        stored = session.execute(
            select(DeviceUse.day, DeviceUse.gpu_ms, DeviceUse.cpu_ms, DeviceUse.jobs, DeviceUse.attempts).order_by(
                DeviceUse.day
            )
        ).all()
    assert [tuple(row) for row in stored] == [
        (DAY, 2 * DAY_MS, 0, 2, 2),
        (DAY + 1, 4 * DAY_MS, 0, 0, 0),
        (DAY + 2, 2 * DAY_MS, 0, 0, 0),
    ]


def test_every_end_of_an_attempt_is_counted_once(database: Database) -> None:
    first = submit(database, created_by=ANNA)
    rows.Run(database, rows.claim(database)).end("failed", "killed")
    rows.make_due(database)
    rows.Run(database, rows.claim(database)).deliver(rows.started(), rows.end("succeeded"))

    with database.read() as session:
        row = session.execute(select(DeviceUse)).scalar_one()
    assert rows.status(database, first) == "succeeded"
    assert (row.owner_id, row.jobs, row.attempts, row.gpu_ms) == (ANNA, 1, 2, 0)


def test_the_first_jobs_are_those_of_the_order_for_any_number_of_keys(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = [None, *(f"key {number}" for number in range(5))]
    ids = [
        submit(database, created_by=owners[number % 6], priority=number % 4 // 3, gpus=number % 5 // 4)
        for number in range(24)
    ]
    used(database, "key 2", hours=2)
    used(database, "key 4", hours=1)

    with database.read() as session:
        queue = job_queue(session)
        ready = select(Job.id).where(queue.is_ready(), Job.gpus == 0).order_by(*queue.order)
        expected = list(session.execute(ready).scalars())
        by_key = [list(session.execute(queue.first(Job.gpus == 0, count=count)).scalars()) for count in (1, 7, 100)]
        monkeypatch.setattr("jobs.queue._MOST_LANES", 2)
        at_once = list(session.execute(queue.first(Job.gpus == 0, count=7)).scalars())

    assert set(expected) < set(ids)
    assert by_key == [expected[:1], expected[:7], expected]
    assert at_once == expected[:7]


@pytest.mark.parametrize("num_owners", [1, 3])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_first_job_is_read_from_an_index_in_the_order_of_the_queue(database: Database, num_owners: int) -> None:
    for number in range(num_owners):
        submit(database, created_by=f"key {number}")

    with database.read() as session:
        query = job_queue(session).first(Job.pool == "default")
        compiled = query.compile(session.connection(), compile_kwargs={"literal_binds": True})
        plan = [row.detail for row in session.execute(text(f"EXPLAIN QUERY PLAN {compiled}"))]

    index = "ix_jobs_claim_owner (status=? AND pool=? AND created_by=?)" if num_owners > 1 else "ix_jobs_claim ("
    assert sum(index in line for line in plan) == num_owners
    assert sum("TEMP B-TREE" in line for line in plan) == 1  # of the keys' first jobs
