"""Every change of a status: legal transitions, races, and refused writes of superseded attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs import new_job, transitions
from jobs.attempts import AttemptRef
from jobs.database import Database, now_ms
from jobs.errors import Conflict, NotFound, Superseded
from jobs.events import record
from jobs.ingest import Delivered
from jobs.models import Attempt, Job, Log
from jobs.status import INFRASTRUCTURE, TERMINAL, Reason, Status
from jobs.transitions import fence
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, attempts, claim, job, job_in, running, status, submit, try_claim, worker

NOWHERE = "00000000-0000-7000-8000-00000000dead"


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


# --- which transitions are legal -----------------------------------------------------------------------------------

# The status after each request, by the status before; a missing status refuses the request.
Verb = Callable[[Session, str], object]
VERBS: dict[str, tuple[Verb, dict[Status, Status]]] = {
    "cancel": (
        transitions.cancel,
        {
            Status.BLOCKED: Status.CANCELLED,
            Status.QUEUED: Status.CANCELLED,
            Status.PAUSED: Status.CANCELLED,
            Status.RUNNING: Status.RUNNING,
        },
    ),
    "pause": (transitions.pause, {Status.QUEUED: Status.PAUSED, Status.RUNNING: Status.RUNNING}),
    "resume": (transitions.resume, {Status.PAUSED: Status.QUEUED}),
}


@pytest.mark.parametrize("before", list(Status))
@pytest.mark.parametrize("verb", list(VERBS))
def test_a_request_changes_the_status_or_is_refused(database: Database, verb: str, before: Status) -> None:
    act, legal = VERBS[verb]
    job_id = job_in(database, before)
    numbered = len(rows.events(database, job_id))

    if before in legal:
        database.write(lambda session: act(session, job_id))
        assert status(database, job_id) == legal[before]
        assert len(rows.events(database, job_id)) == numbered + 1
    else:
        with pytest.raises(Conflict, match=before):
            database.write(lambda session: act(session, job_id))
        assert status(database, job_id) == before
        assert len(rows.events(database, job_id)) == numbered


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_request_for_an_absent_job_raises_not_found(database: Database, verb: str) -> None:
    with pytest.raises(NotFound):
        database.write(lambda session: VERBS[verb][0](session, NOWHERE))


@pytest.mark.parametrize("before", [status for status in Status if status is not Status.QUEUED])
def test_only_queued_jobs_are_claimed(database: Database, before: Status) -> None:
    job_in(database, before)

    assert try_claim(database) is None


@pytest.mark.parametrize("before", [status for status in Status if status is not Status.RUNNING])
def test_no_attempt_is_open_outside_running(database: Database, before: Status) -> None:
    job_id = job_in(database, before)
    newest = job(database, job_id).attempt

    tokens = {each.number: each.token for each in attempts(database, job_id)}
    for number in (newest, newest + 1):
        attempt = AttemptRef(job_id, number, tokens.get(number))
        with pytest.raises(Superseded):
            database.write(lambda session, a=attempt: transitions.deliver(session, a, []))  # type: ignore[misc]
        with pytest.raises(Superseded):
            database.write(lambda session, a=attempt: transitions.end_attempt(session, a, "succeeded"))  # type: ignore[misc]
        assert not database.write(lambda session, a=attempt: transitions.reap(session, a, 0))  # type: ignore[misc]
    assert status(database, job_id) == before


@pytest.mark.parametrize(
    ("outcome", "reason", "after", "shown"),
    [
        ("succeeded", None, Status.SUCCEEDED, None),
        ("failed", "bad_data", Status.FAILED, "bad_data"),
        ("failed", None, Status.FAILED, "internal_error"),
        ("failed", "killed", Status.QUEUED, "killed"),
        ("failed", "worker_lost", Status.QUEUED, "worker_lost"),
        ("cancelled", None, Status.CANCELLED, "user"),
        ("paused", None, Status.PAUSED, "user"),
        ("paused", "collapse", Status.PAUSED, "collapse"),
        ("paused", "non_finite_loss", Status.PAUSED, "non_finite_loss"),
        ("failed", "collapse", Status.FAILED, "collapse"),
        ("drained", None, Status.QUEUED, "worker_stopped"),
        ("unheard of", None, Status.FAILED, "internal_error"),
    ],
)
@pytest.mark.parametrize("by_line", [True, False])
def test_an_outcome_decides_where_the_job_goes(
    database: Database, outcome: str, reason: str | None, after: Status, shown: str | None, by_line: bool
) -> None:
    run = Run(database, running(database))

    if by_line:
        run.deliver(rows.started(), rows.end(outcome, reason, "words"))
    else:
        run.end(outcome, reason, "words")

    ended = job(database, run.job_id)
    assert (ended.status, ended.status_reason, ended.status_message) == (after, shown, "words")
    assert (ended.ended_at is not None) == (after in TERMINAL)
    assert ended.failures == (1 if reason in INFRASTRUCTURE else 0)
    assert [attempt.ended_at is not None for attempt in rows.attempts(database, run.job_id)] == [True]
    last = rows.events(database, run.job_id)[-1]
    assert last.type == ("requeued" if after is Status.QUEUED else after)
    assert (last.data["status"], last.data["attempt"]) == (after, 1)


def test_a_requeued_job_gets_the_next_attempt(database: Database) -> None:
    first = running(database)
    begun = job(database, first.job_id).started_at
    Run(database, first).deliver(rows.started(), rows.checkpoint(10), rows.end("drained"))

    second = claim(database)

    assert (second.job_id, second.number) == (first.job_id, 2)
    assert second.resume is not None
    assert second.resume.storage_key == rows.checkpoint(10)["path"]
    assert begun is not None
    assert job(database, first.job_id).started_at == begun


def test_infrastructure_failures_end_the_job_at_the_limit(database: Database) -> None:
    job_id = submit(database)
    for failure in (1, 2, 3):
        Run(database, claim(database)).end("drained")  # a drain in between is not a failure
        Run(database, claim(database)).end("failed", Reason.KILLED)
        assert job(database, job_id).failures == failure
        rows.make_due(database)

    assert status(database, job_id) == Status.FAILED
    assert job(database, job_id).status_reason == Reason.KILLED


# --- claims --------------------------------------------------------------------------------------------------------


def test_jobs_of_equal_priority_are_claimed_in_the_order_of_the_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids are in the opposite order, as if each job came from a server whose clock is further behind."""
    ids = [f"00000000-0000-7000-8000-{number:012}" for number in (3, 2, 1)]
    remaining = iter(ids)
    monkeypatch.setattr(new_job, "new_id", lambda: next(remaining))
    for _ in ids:
        submit(database)

    assert [claim(database).job_id for _ in ids] == ids


def test_a_claim_takes_priority_then_age(database: Database) -> None:
    low = [submit(database, priority=-1) for _ in range(2)]
    middle = [submit(database) for _ in range(3)]
    high = [submit(database, priority=5) for _ in range(2)]

    taken = [claim(database).job_id for _ in range(7)]

    assert taken == [*high, *middle, *low]


@pytest.mark.parametrize(
    ("fields", "facts", "fits"),
    [
        ({}, {}, True),
        ({"pool": "big"}, {}, False),
        ({"pool": "big"}, {"pool": "big"}, True),
        ({"gpus": 1}, {}, False),
        ({"gpus": 1}, {"gpus": 2}, True),
        ({}, {"datasets": {}}, False),
        ({}, {"datasets": {"digits": "e" * 64}}, False),
        ({}, {"datasets": {"other": rows.DIGEST}}, False),
        ({}, {"datasets": {"other": "e" * 64, "digits": rows.DIGEST}}, True),
        ({}, {"spec_versions": ()}, False),
        ({}, {"spec_versions": (2,)}, False),
        ({}, {"spec_versions": (1, 2)}, True),
    ],
)
def test_a_claim_fits_the_worker(database: Database, fields: dict[str, Any], facts: dict[str, Any], fits: bool) -> None:
    submit(database, **fields)

    assert (try_claim(database, worker(**facts)) is not None) == fits


@pytest.mark.parametrize(("delay_ms", "fits"), [(3_600_000, False), (-1, True)])
def test_a_job_that_is_not_yet_due_waits(database: Database, delay_ms: int, fits: bool) -> None:
    job_id = submit(database)
    database.write(lambda s: s.execute(update(Job).where(Job.id == job_id).values(not_before=now_ms() + delay_ms)))

    assert (try_claim(database) is not None) == fits


def test_a_job_that_fits_no_worker_delays_no_other(database: Database) -> None:
    submit(database, gpus=8, priority=100)
    small = submit(database)

    assert claim(database).job_id == small


def test_eight_claimers_never_take_a_job_twice(database: Database) -> None:
    jobs = [submit(database, priority=number % 3) for number in range(24)]

    def take_all(number: int) -> list[str]:
        taken = []
        while claimed := try_claim(database, worker(name=f"worker-{number}")):
            taken.append(claimed.job_id)
        return taken

    taken = at_once(8, take_all)

    assert sorted(job_id for each in taken for job_id in each) == sorted(jobs)
    by_priority = {job_id: number % 3 for number, job_id in enumerate(jobs)}
    for each in taken:  # no claim took a job while one of higher priority waited
        order = [by_priority[job_id] for job_id in each]
        assert order == sorted(order, reverse=True)
    assert all(len(rows.attempts(database, job_id)) == 1 for job_id in jobs)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_claim_skips_a_job_that_another_claim_has_locked(database: Database) -> None:
    """PostgreSQL only: the claim neither waits nor fails."""
    best, next_best = submit(database, priority=1), submit(database)
    with Session(database.engine) as other:
        taken = transitions.claim(other, worker(name="slow"))  # not committed yet
        assert taken is not None
        assert taken.job_id == best

        assert claim(database).job_id == next_best
        other.rollback()
    assert claim(database).job_id == best


# --- the fence -----------------------------------------------------------------------------------------------------

EVERYTHING = (
    rows.metrics(1, loss=1.0),
    rows.checkpoint(1),
    rows.evaluation(),
    rows.log("words"),
    rows.progress(1),
    {"type": "warning", "reason": "odd", "message": "words"},
    rows.started(),
    rows.end("succeeded"),
)


def supersede_by_reaping(database: Database, run: Run) -> None:
    renewals = rows.attempts(database, run.job_id)[-1].renewals
    assert database.write(lambda session: transitions.reap(session, run.attempt, renewals))


def supersede_by_a_successor(database: Database, run: Run) -> None:
    supersede_by_reaping(database, run)
    rows.make_due(database)
    Run(database, claim(database)).deliver(rows.started(), rows.metrics(1, loss=9.0), rows.checkpoint(1, "b" * 64))


def supersede_by_the_end(database: Database, run: Run) -> None:
    run.end("cancelled")


@pytest.mark.parametrize("kind", ["evaluate", "pretrain"])
@pytest.mark.parametrize("supersede", [supersede_by_reaping, supersede_by_a_successor, supersede_by_the_end])
def test_a_superseded_attempt_writes_nothing(
    database: Database, supersede: Callable[[Database, Run], None], kind: Any
) -> None:
    run = Run(database, running(database, kind=kind))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0))
    supersede(database, run)
    before = rows.contents(database)

    for line in EVERYTHING:
        with pytest.raises(Superseded):
            run.deliver(line)
    for send in (
        lambda: run.deliver(*EVERYTHING, output=[(1, "words")]),
        lambda: run.send([]),
        lambda: run.send([], [(1, "words")]),
        lambda: run.send(rows.numbered([rows.metrics(1, loss=1.0)], first=2)),
        lambda: run.end("succeeded"),
        lambda: run.end("failed", "killed"),
    ):
        with pytest.raises(Superseded):
            send()
    assert not database.write(lambda session: transitions.reap(session, run.attempt, 1))
    assert rows.contents(database) == before


def test_an_unknown_attempt_writes_nothing(database: Database) -> None:
    claimed = running(database)
    before = rows.contents(database)

    records = rows.delivered(rows.numbered([rows.log("words")]))
    for changes in ({"number": 0}, {"number": 2}, {"number": -1}, {"token": "0" * 16}, {"token": None}):
        attempt = replace(claimed.attempt, **changes)
        with pytest.raises(Superseded):
            database.write(lambda s, a=attempt: transitions.deliver(s, a, records))  # type: ignore[misc]
        with pytest.raises(Superseded):
            database.write(lambda s, a=attempt: transitions.end_attempt(s, a, "failed"))  # type: ignore[misc]
        assert not database.write(lambda s, a=attempt: transitions.reap(s, a, 0))  # type: ignore[misc]
    assert rows.contents(database) == before


def test_a_delivery_can_be_repeated_when_its_response_was_lost(database: Database) -> None:
    run = Run(database, running(database))
    values = {"loss": 1.0, "eval/knn_top1": 0.5}
    lines = rows.numbered([rows.started(), rows.metrics(1, **values), rows.checkpoint(1), rows.log("words")])
    run.send(lines, [(1, "out"), (2, "out")])
    before = rows.contents(database)

    run.send(lines, [(1, "out"), (2, "out")])

    after = rows.contents(database)
    assert rows.attempts(database, run.job_id)[0].renewals == 2
    for table in ("Point", "Rollup", "PointBlock", "RollupBlock", "Log", "Checkpoint", "Event", "Series"):
        assert after[table] == before[table], table


def test_a_repeated_delivery_stores_only_its_new_records(database: Database) -> None:
    run = Run(database, running(database))
    lines = rows.numbered([rows.metrics(step, loss=float(step)) for step in range(1, 7)])
    run.send(lines[:4])

    run.send(lines[1:])
    run.send(lines[2:5])

    assert rows.attempts(database, run.job_id)[0].delivered_seq == 6
    assert [(step, value) for _, step, _, value in rows.points(database)] == [
        (step, float(step)) for step in range(1, 7)
    ]


@pytest.mark.parametrize("seqs", [[2], [3, 4], [1, 3], [1, 2, 4]])
def test_a_delivery_with_a_gap_is_refused(database: Database, seqs: list[int]) -> None:
    run = Run(database, running(database))
    before = rows.contents(database)

    with pytest.raises(ValueError, match="missing"):
        run.send([{"seq": seq, **rows.metrics(seq, loss=1.0)} for seq in seqs])
    assert rows.contents(database) == before


def test_twin_deliveries_store_once(database: Database) -> None:
    """A supervisor timed out and sends again while its first delivery is under way."""
    run = Run(database, running(database))

    def send_both(lines: list[dict[str, Any]], output: list[tuple[int, str]], _: int) -> None:
        run.send(lines, output)

    for first in range(1, 40, 4):
        lines = rows.numbered([rows.metrics(step, loss=1.0) for step in range(4)], first)
        at_once(4, partial(send_both, lines, [(first, "out")]))

    assert len(rows.points(database)) == 40
    with database.read() as session:
        assert session.execute(select(func.count()).select_from(Log)).scalar_one() == 10
    assert status(database, run.job_id) == Status.RUNNING


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_concurrent_twin_does_not_supersede_the_attempt(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL only: the state that the fence has read must still hold when it passes."""
    run = Run(database, running(database))
    lines = rows.numbered([rows.metrics(step, loss=1.0) for step in range(4)])
    run.send(lines[:2])
    renew = fence._renew
    twins: list[Future[object]] = []
    due = [rows.delivered(lines[2:])]  # the second delivery, with the new records

    def renew_after_a_twin(session: Session, attempt: AttemptRef, sent: Sequence[Delivered], ran_ms: int) -> bool:
        if sent in due:
            due.clear()
            twins.append(pool.submit(run.send, lines[2:]))
            rows.until_a_statement_waits_for_a_lock(database, or_done=twins[0])
        return renew(session, attempt, sent, ran_ms)

    monkeypatch.setattr(fence, "_renew", renew_after_a_twin)
    with ThreadPoolExecutor(1) as pool:
        run.send(lines)

    assert twins[0].exception() is None
    assert rows.attempts(database, run.job_id)[0].delivered_seq == 4
    assert len(rows.points(database)) == 4


def test_a_renewal_stores_nothing(database: Database) -> None:
    run = Run(database, running(database))
    run.send([])
    run.send([])

    attempt = rows.attempts(database, run.job_id)[0]
    assert (attempt.renewals, attempt.delivered_seq) == (2, 0)


# --- reaping -------------------------------------------------------------------------------------------------------


def test_reap_ends_only_an_unrenewed_attempt(database: Database) -> None:
    run = Run(database, running(database))
    run.send([])

    assert not database.write(lambda session: transitions.reap(session, run.attempt, 0))
    assert status(database, run.job_id) == Status.RUNNING
    assert database.write(lambda session: transitions.reap(session, run.attempt, 1))
    assert (job(database, run.job_id).status, job(database, run.job_id).status_reason) == ("queued", "worker_lost")
    assert not database.write(lambda session: transitions.reap(session, run.attempt, 1))


def test_of_many_reapers_one_reaps(database: Database) -> None:
    run = Run(database, running(database))

    reaped = at_once(6, lambda _: database.write(lambda session: transitions.reap(session, run.attempt, 0)))

    assert sorted(reaped) == [False] * 5 + [True]
    assert job(database, run.job_id).failures == 1


@pytest.mark.slow
def test_a_renewal_and_a_reaper_never_both_win(database: Database) -> None:
    for _ in range(10):
        run = Run(database, running(database))

        def race(number: int, run: Run = run) -> bool:
            if number:
                return database.write(lambda session: transitions.reap(session, run.attempt, 0))
            try:
                run.send([])
            except Superseded:
                return False
            return True

        renewed, reaped = at_once(2, race)
        assert renewed != reaped
        assert status(database, run.job_id) == ("running" if renewed else "queued")
        database.write(lambda session, run=run: transitions.cancel(session, run.job_id))  # type: ignore[misc]
        if renewed:
            run.end("cancelled")


# --- requests while it runs ----------------------------------------------------------------------------------------


def test_a_delivery_returns_the_requests(database: Database) -> None:
    run = Run(database, running(database))
    assert run.send([]) == transitions.Requests(False, False, False)

    database.write(lambda session: transitions.pause(session, run.job_id))
    assert run.send([]) == transitions.Requests(False, True, False)
    database.write(lambda session: transitions.cancel(session, run.job_id))
    assert run.send([]) == transitions.Requests(True, True, False)


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_second_request_changes_nothing(database: Database, verb: str) -> None:
    run = Run(database, running(database))
    for _ in range(3):
        database.write(lambda session: VERBS[verb][0](session, run.job_id))

    assert [event.type for event in rows.events(database, run.job_id)].count(f"{verb}_requested") == 1


@pytest.mark.parametrize(
    ("verbs", "outcome", "reason", "after"),
    [
        (["cancel"], "drained", None, "cancelled"),
        (["cancel"], "failed", "worker_lost", "cancelled"),
        (["cancel"], "failed", "bad_data", "failed"),
        (["cancel"], "succeeded", None, "succeeded"),
        (["cancel"], "paused", None, "cancelled"),
        (["pause", "cancel"], "paused", None, "cancelled"),
        (["pause"], "drained", None, "paused"),
        (["pause"], "failed", "killed", "paused"),
        (["pause"], "failed", "out_of_memory", "failed"),
        (["pause"], "succeeded", None, "succeeded"),
        (["pause", "cancel"], "drained", None, "cancelled"),
    ],
)
def test_a_request_decides_the_status_when_the_run_stops(
    database: Database, verbs: list[str], outcome: str, reason: str | None, after: str
) -> None:
    run = Run(database, running(database))
    for verb in verbs:
        database.write(lambda session, verb=verb: VERBS[verb][0](session, run.job_id))  # type: ignore[misc]

    run.end(outcome, reason)

    ended = job(database, run.job_id)
    assert ended.status == after
    assert (ended.cancel_requested_at, ended.pause_requested_at) == (None, None)


def test_a_preempted_job_is_not_preempted_again_by_the_same_request(database: Database) -> None:
    run = Run(database, running(database))
    database.write(lambda s: s.execute(update(Job).where(Job.id == run.job_id).values(preempt_requested_at=now_ms())))
    assert run.send([]).preempt
    run.end("drained")

    assert not Run(database, claim(database)).send([]).preempt


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_request_that_races_the_end_is_never_lost(database: Database, verb: str) -> None:
    """Either the request comes first and decides, or the job is queued again and the request changes it."""
    expected = {"cancel": "cancelled", "pause": "paused"}[verb]
    for _ in range(15):
        run = Run(database, running(database))

        def race(number: int, run: Run = run) -> None:
            if number:
                database.write(lambda session: VERBS[verb][0](session, run.job_id))
            else:
                run.end("drained")

        at_once(2, race)
        assert status(database, run.job_id) == expected
        assert [attempt.ended_at is not None for attempt in rows.attempts(database, run.job_id)] == [True]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_request_that_commits_while_the_end_is_decided_counts(database: Database) -> None:
    """PostgreSQL only: the end waits for the request's lock and must then see the request."""
    run = Run(database, running(database))
    with Session(database.engine) as other:
        transitions.cancel(other, run.job_id)  # locks the job's row
        with rows.in_background(lambda: run.end("drained")) as ending:
            rows.until_a_statement_waits_for_a_lock(database)
            other.commit()
            ending.result(timeout=30)

    assert status(database, run.job_id) == "cancelled"


# --- dependencies --------------------------------------------------------------------------------------------------


def test_a_blocked_job_is_queued_once_all_its_dependencies_succeed(database: Database) -> None:
    first, second = running(database), running(database)
    waiting = submit(database, after=(first.job_id, second.job_id))
    assert status(database, waiting) == Status.BLOCKED

    Run(database, first).end("succeeded")
    assert database.write(transitions.unblock) == 0
    Run(database, second).end("succeeded")
    assert database.write(transitions.unblock) == 1
    assert status(database, waiting) == Status.QUEUED
    assert database.write(transitions.unblock) == 0


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_a_blocked_job_fails_once_a_dependency_is_lost(database: Database, outcome: str) -> None:
    first, second = running(database), running(database)
    waiting = submit(database, after=(first.job_id, second.job_id))
    behind = submit(database, after=(waiting,))

    Run(database, first).end(outcome)
    assert database.write(transitions.unblock) == 1
    assert database.write(transitions.unblock) == 1

    for job_id in (waiting, behind):
        assert (job(database, job_id).status, job(database, job_id).status_reason) == ("failed", "upstream_failed")


def test_concurrent_reconcilers_unblock_each_job_once(database: Database) -> None:
    needed = running(database)
    waiting = [submit(database, after=(needed.job_id,)) for _ in range(20)]
    Run(database, needed).end("succeeded")

    moved = at_once(4, lambda _: database.write(transitions.unblock))

    assert sum(moved) == len(waiting)
    for job_id in waiting:
        assert [event.type for event in rows.events(database, job_id)] == ["submitted", "queued"]


# --- events --------------------------------------------------------------------------------------------------------


def test_events_are_numbered_without_gaps_under_concurrency(database: Database) -> None:
    run = Run(database, running(database))

    def write(number: int) -> None:
        for turn in range(5):
            if number == 0:
                run.deliver({"type": "warning", "reason": "odd", "message": str(turn)})
            else:
                database.write(lambda session: record(session, run.job_id, "changed", {"by": number}))

    at_once(5, write)

    stored = rows.events(database, run.job_id)
    assert [event.seq for event in stored] == list(range(1, 2 + 25 + 1))
    assert job(database, run.job_id).event_seq == stored[-1].seq


def test_an_event_of_a_rolled_back_change_leaves_no_gap(database: Database) -> None:
    job_id = submit(database)

    def fail(session: Session) -> None:
        transitions.pause(session, job_id)
        raise RuntimeError("the request was cut")

    with pytest.raises(RuntimeError):
        database.write(fail)
    database.write(lambda session: transitions.pause(session, job_id))

    assert [(event.seq, event.type) for event in rows.events(database, job_id)] == [(1, "submitted"), (2, "paused")]


def test_the_end_of_a_run_and_a_reap_make_one_end(database: Database) -> None:
    for _ in range(10):
        run = Run(database, running(database))

        def race(number: int, run: Run = run) -> bool:
            if number:
                return database.write(lambda session: transitions.reap(session, run.attempt, 0))
            try:
                run.deliver(rows.started(), rows.end("succeeded"))
            except Superseded:
                return False
            return True

        ended, reaped = at_once(2, race)
        assert ended != reaped
        assert status(database, run.job_id) == ("succeeded" if ended else "queued")
        assert [attempt.end_reason for attempt in rows.attempts(database, run.job_id)] == [
            "succeeded" if ended else "worker_lost"
        ]
        if reaped:
            database.write(lambda session, run=run: transitions.cancel(session, run.job_id))  # type: ignore[misc]


def test_every_open_attempt_belongs_to_a_running_job(database: Database) -> None:
    for each in sorted(Status, key=lambda status: status is Status.QUEUED):  # a queued one would be claimed
        job_in(database, each)

    with database.read() as session:
        open_attempts = set(session.execute(select(Attempt.job_id).where(Attempt.ended_at.is_(None))).scalars())
        running_jobs = set(session.execute(select(Job.id).where(Job.status == Status.RUNNING)).scalars())
    assert open_attempts == running_jobs
