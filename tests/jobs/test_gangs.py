"""Jobs of several nodes: their workers start together or not at all, and end together."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from jobs import audit, gangs, holding, preemption, transitions, waiting, wake_up, workers
from jobs.attempts import AttemptRef
from jobs.database import Database
from jobs.devices import Free, free_of
from jobs.eligibility import WorkerFacts
from jobs.errors import Superseded
from jobs.gangs import Rendezvous
from jobs.models import Attempt, AttemptDevice, AttemptNode, Job, Worker
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from jobs.transitions import Claim
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, claim, try_claim, worker
from worker.patience import Patience

RENDEZVOUS = Rendezvous("127.0.0.1", 4711, "a secret", None)


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def register(database: Database, number: int, *, has_address: bool = True, **fields: Any) -> WorkerFacts:
    """Register a worker that is ready for jobs of several nodes."""
    address = f"10.0.0.{number}" if has_address else None
    facts = worker(id=f"00000000-0000-7000-8000-{number:012}", name=f"w{number}", address=address, **fields)
    database.write(lambda session: workers.register(session, facts, number, []))
    database.write(lambda session: workers.heartbeat(session, facts.id, None, address=address))
    return facts


def submit(database: Database, nodes: int = 2, **fields: Any) -> str:
    return rows.submit(database, spec={"nodes": nodes, "batch_size": 240}, **fields)


def begin(database: Database, facts: WorkerFacts, free: Free | None = None) -> Claim | None:
    return database.write(lambda session: transitions.begin_node(session, facts.id, free or facts.all_free))


def begun(database: Database, facts: WorkerFacts) -> Claim:
    result = begin(database, facts)
    assert result is not None
    return result


def free(database: Database) -> list[Free]:
    with database.read() as session:
        every = session.execute(select(Worker).order_by(Worker.id)).scalars().all()
        return [free_of(session, every)[each.id] for each in every]


def renew(database: Database, each: Claim) -> transitions.NodeState:
    return database.write(lambda session: transitions.renew_node(session, each.attempt, each.node))


def test_one_claim_starts_a_job_on_all_its_nodes_with_devices_of_each(database: Database) -> None:
    first, second = register(database, 1, gpus=2), register(database, 2, gpus=3)
    job_id = submit(database, gpus=2)

    assert try_claim(database, second) is None  # the worker with the lowest id claims for all
    leading = claim(database, first)
    following = begun(database, second)

    assert (leading.node, following.node, leading.num_nodes) == (0, 1, 2)
    assert following.attempt == leading.attempt
    assert leading.devices == tuple(device.uuid for device in first.devices)
    assert following.devices == tuple(device.uuid for device in second.devices[:2])
    assert free(database) == [Free((), 1), Free((second.devices[2].uuid,), 1)]
    assert begin(database, second) is None  # once
    assert rows.events(database, job_id)[-1].data["workers"] == ["w1", "w2"]
    with database.read() as session:
        nodes = gangs.nodes_of(session, rows.attempts(database, job_id))[1]
    assert [(each.worker_name, each.address) for each in nodes] == [("w1", "10.0.0.1"), ("w2", "10.0.0.2")]
    assert audit.audit(database).findings == []


def test_a_gang_that_lacks_a_worker_takes_nothing(database: Database) -> None:
    first, second = register(database, 1, gpus=2), register(database, 2, gpus=2)
    register(database, 3, gpus=2, has_address=False)
    rows.submit(database, gpus=1)
    Run(database, claim(database, second))
    submit(database, gpus=2)
    job_id = rows.submit(database, gpus=1)

    assert claim(database, first).job_id == job_id
    assert try_claim(database, first) is None


def test_a_look_at_the_queue_reads_the_workers_once_and_a_claim_twice(database: Database) -> None:
    first, _ = register(database, 1, gpus=2), register(database, 2, gpus=2)
    submit(database, gpus=2)
    patience, statements = Patience(0.0), list[str]()
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def count() -> int:
        return sum("workers.spec_versions" in each for each in statements)

    with database.read() as session:
        avoided = patience.avoided(session, first, first.all_free)
        held = patience.held(session, first, first.all_free)
        assert transitions.is_claimable(session, first, first.all_free, held, avoided)
    assert count() == 1
    claim(database, first)
    assert count() == 1 + 2  # again once the other workers are locked


def test_a_worker_that_is_cordoned_during_the_claim_of_a_gang_takes_no_part(database: Database) -> None:
    first, second = register(database, 1, gpus=2), register(database, 2, gpus=2)
    job_id = submit(database, gpus=2)

    def take(session: Session) -> tuple[gangs.Member, ...]:
        gangs.startable(session, first, first.all_free)
        workers.cordon(session, second.id, True)
        return gangs.locked(session, session.get_one(Job, job_id), first, first.all_free)

    assert database.write(take) == ()


def test_a_worker_without_an_address_claims_no_job_of_several_nodes(database: Database) -> None:
    facts = register(database, 1, has_address=False)
    register(database, 2)
    submit(database)

    assert try_claim(database, facts) is None


def test_nodes_without_devices_use_a_cpu_slot_each(database: Database) -> None:
    first, second = register(database, 1), register(database, 2)
    submit(database)
    rows.submit(database)

    claim(database, first)

    assert free(database) == [Free((), 0), Free((), 0)]
    assert try_claim(database, second) is None  # it has been given a node, which it begins next
    assert begin(database, second, Free((), 0)) is None  # an earlier run is about to exit
    begun(database, second)


def test_a_worker_for_one_job_is_given_nothing_else(database: Database) -> None:
    first, once = register(database, 1, gpus=2), register(database, 2, gpus=2, takes_one=True)
    submit(database, gpus=1)
    submit(database, gpus=1)
    rows.submit(database, gpus=1, priority=-1)

    claim(database, first)

    assert free(database)[1] == Free((), 0)
    assert try_claim(database, once) is None


def test_many_claims_at_once_start_each_gang_as_a_whole(database: Database) -> None:
    facts = [register(database, number, gpus=2) for number in range(1, 5)]
    for _ in range(4):
        submit(database, gpus=1)

    for _ in range(6):
        at_once(4, lambda number: try_claim(database, facts[number]))
    for each in facts * 2:
        begin(database, each)

    with database.read() as session:
        open_ = session.execute(select(Attempt.job_id).where(Attempt.ended_at.is_(None))).scalars().all()
        nodes = session.execute(select(AttemptNode.job_id)).scalars().all()
        devices = session.execute(select(AttemptDevice.device)).scalars().all()
    assert len(open_) == 4
    assert sorted(nodes) == sorted([*open_, *open_])
    assert len(devices) == len(set(devices)) == 8
    assert audit.audit(database).findings == []


def test_further_nodes_learn_where_the_ranks_meet_and_when_the_attempt_ends(database: Database) -> None:
    first, second = register(database, 1), register(database, 2)
    job_id = submit(database)
    run = Run(database, claim(database, first))
    following = begun(database, second)
    assert renew(database, following).rendezvous is None

    database.write(lambda session: transitions.announce_rendezvous(session, run.attempt, RENDEZVOUS))
    assert renew(database, following).rendezvous == RENDEZVOUS
    database.write(lambda session: transitions.cancel(session, job_id))
    assert renew(database, following).requests.cancel

    run.deliver(rows.started(), rows.end("cancelled"))
    with pytest.raises(Superseded):
        renew(database, following)
    assert rows.attempts(database, job_id)[0].rendezvous is None  # the secret is gone
    with pytest.raises(Superseded):
        database.write(lambda session: transitions.announce_rendezvous(session, run.attempt, RENDEZVOUS))
    assert free(database) == [Free((), 1), Free((), 1)]


def test_a_drain_of_one_worker_is_a_request_to_the_attempt(database: Database) -> None:
    first, second = register(database, 1), register(database, 2)
    job_id = submit(database)
    run = Run(database, claim(database, first))
    following = begun(database, second)
    assert not run.deliver(rows.started()).drain

    database.write(lambda session: transitions.request_drain(session, following.attempt))

    assert run.deliver().drain
    run.deliver(rows.end("drained"))
    job = rows.job(database, job_id)
    assert (job.status, job.status_reason, job.failures) == ("queued", "worker_stopped", 0)


@pytest.mark.parametrize("number", [1, 2])
def test_a_job_says_which_of_its_workers_drains(database: Database, number: int) -> None:
    facts = [register(database, 1), register(database, 2)]
    job_id = submit(database)
    claim(database, facts[0])
    begun(database, facts[1])

    database.write(lambda session: workers.drain(session, facts[number - 1].id))

    with database.read() as session:
        request = waiting.pending(session, session.get_one(Job, job_id))
    assert request == f"returning to the queue, because w{number} drains: stopping the run"


def test_a_worker_that_stops_before_it_begins_its_node_returns_the_job(database: Database) -> None:
    first, second = register(database, 1), register(database, 2)
    job_id = submit(database)
    claim(database, first)

    database.write(lambda session: transitions.leave_nodes(session, second.id))

    assert rows.status(database, job_id) == "queued"
    assert begin(database, second) is None


def is_late(database: Database, each: Claim) -> None:
    """End an attempt since a worker has not begun its node."""
    message = "w2 did not begin within 20 s"
    database.write(lambda s: transitions.end_attempt(s, each.attempt, "failed", "node_late", message))


def test_a_job_whose_worker_does_not_begin_waits_for_longer_each_time_and_then_for_a_user(database: Database) -> None:
    first, _ = register(database, 1), register(database, 2)
    gang, small = submit(database), rows.submit(database)
    waits = []
    for _ in range(4):
        each = claim(database, first)
        is_late(database, each)
        job = rows.job(database, gang)
        assert (job.status, job.status_reason, job.failures) == ("queued", "node_late", 0)
        assert reason(database, gang)[1] == "w2 did not begin within 20 s; the next attempt starts after a backoff"
        assert job.not_before is not None
        waits.append(job.not_before - job.updated_at)
        rows.make_due(database)
    assert waits[3] > 2 * waits[0]

    is_late(database, claim(database, first))

    job = rows.job(database, gang)
    assert (job.status, job.status_reason, job.failures) == ("paused", "node_late", 0)
    assert (job.status_message or "").endswith(
        "in 5 attempts in a row; restart or drain that worker, then resume the job"
    )
    assert claim(database, first).job_id == small


def test_other_workers_replace_one_that_did_not_begin_its_node(database: Database) -> None:
    first, second, third = (register(database, number) for number in (1, 2, 3))
    submit(database)
    is_late(database, claim(database, first))
    rows.make_due(database)

    each = claim(database, first)

    assert (each.number, each.num_nodes) == (2, 2)
    assert begin(database, second) is None
    assert begun(database, third).attempt == each.attempt


def test_an_attempt_that_ends_while_its_node_leaves_it_stops_no_worker_from_stopping(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(database, 1), register(database, 2)
    job_id = submit(database)
    claim(database, first)

    def end_twice(*arguments: Any, **options: Any) -> None:
        for _ in range(2):  # once for the first node, whose transaction comes before
            transitions.end_attempt(*arguments, **options)

    def stop(session: Session) -> None:
        workers.stop(session, second.id)
        transitions.leave_nodes(session, second.id)

    monkeypatch.setattr("jobs.transitions.nodes.end_attempt", end_twice)
    database.write(stop)

    with database.read() as session:
        assert session.get_one(Worker, second.id).state == "stopped"
    assert rows.status(database, job_id) == "queued"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_ends_the_attempt_within_a_lease(database: Database, lost: int) -> None:
    now = [0.0]
    reconciler = Reconciler(database, Settings(lease_seconds=60), sends_wake_ups=False, clock=lambda: now[0])
    facts = [register(database, 1, gpus=1), register(database, 2, gpus=1)]
    job_id = submit(database, gpus=1)
    run = Run(database, claim(database, facts[0]))
    following = begun(database, facts[1])
    run.deliver(rows.started())

    for _ in range(14):
        reconciler.poll()
        assert rows.status(database, job_id) == "running" or now[0] >= 60
        now[0] += 5
        for number, each in enumerate(facts):
            database.write(
                lambda s, each=each: workers.heartbeat(s, each.id, job_id, address=each.address)  # type: ignore[misc]
            )
            if number != lost and rows.status(database, job_id) == "running":
                run.deliver() if number == 0 else renew(database, following)

    job = rows.job(database, job_id)
    assert (job.status, job.status_reason, job.failures) == ("queued", "worker_lost", 1)
    assert "node 1" in (job.status_message or "") if lost else job.status_message
    with database.read() as session:
        held = select(AttemptDevice.device).where(AttemptDevice.released_at.is_(None))
        assert session.execute(held).scalars().all() == []


def test_a_node_that_has_not_begun_has_no_lease(database: Database) -> None:
    """The first node waits for it, for longer than a short lease."""
    now = [0.0]
    reconciler = Reconciler(database, Settings(lease_seconds=4), sends_wake_ups=False, clock=lambda: now[0])
    facts = [register(database, 1), register(database, 2)]
    job_id = submit(database)
    run = Run(database, claim(database, facts[0]))
    for _ in range(12):
        reconciler.poll()
        now[0] += 1
        run.deliver()
        for each in facts:
            database.write(
                lambda s, each=each: workers.heartbeat(s, each.id, job_id, address=each.address)  # type: ignore[misc]
            )

    assert begun(database, facts[1]).attempt == run.attempt


def test_a_node_of_another_attempt_is_not_renewed(database: Database) -> None:
    first, second = register(database, 1), register(database, 2)
    submit(database)
    attempt = claim(database, first).attempt
    following = begun(database, second)

    for other in (AttemptRef(attempt.job_id, 1, "0" * 16), AttemptRef(attempt.job_id, 2, attempt.token)):
        with pytest.raises(Superseded):
            database.write(lambda session, other=other: transitions.renew_node(session, other, 1))  # type: ignore[misc]
    assert renew(database, following)


# --- waiting -------------------------------------------------------------------------------------------------------


def reason(database: Database, job_id: str) -> tuple[str, str]:
    with database.read() as session:
        explained = waiting.explain(session, session.get_one(Job, job_id))
    assert explained is not None
    return explained.cause, explained.message


def held_by(database: Database, facts: WorkerFacts) -> str | None:
    """Return the job that a worker keeps its free part for."""
    held = look(database, facts)
    return held.job_id if held and held.is_here else None


def test_a_gang_that_cannot_be_filled_says_which_workers_it_lacks(database: Database) -> None:
    first, _ = register(database, 1, gpus=2), register(database, 2, gpus=1)
    register(database, 3, gpus=2, has_address=False)
    job_id = submit(database, gpus=2)

    assert reason(database, job_id) == (
        "too_few_workers",
        "it needs 2 workers at once; the pool default has 1 for it, and w2 has 1 GPUs, not 2, "
        "and w3 names no address (WCL_NODE_ADDRESS)",
    )
    small = rows.submit(database, gpus=1, priority=1)
    run = Run(database, claim(database, first))
    assert run.job_id == small
    assert held_by(database, first) is None  # nothing waits for a job that cannot start
    run.end("succeeded")

    fourth = register(database, 4, gpus=2)
    rows.submit(database, gpus=1, priority=1)
    Run(database, claim(database, fourth))
    cause, message = reason(database, job_id)
    assert cause == "workers_busy"
    assert message == ("it waits for 2 workers at once with 2 free GPUs each; 1 of 2 has room, and it lacks w4")


def unfillable(database: Database, count: int = 25, **fields: Any) -> None:
    """Submit jobs of several nodes for which the pool has too few workers."""
    for _ in range(count):
        submit(database, nodes=5, **fields)


def test_jobs_that_can_never_start_hide_no_gang_behind_them(database: Database) -> None:
    first, second = register(database, 1, gpus=2), register(database, 2, gpus=2)
    unfillable(database, gpus=2)
    gang = submit(database, gpus=2)

    assert held_by(database, second) is None
    assert claim(database, first).job_id == gang


def test_jobs_that_can_never_start_hide_no_job_to_keep_devices_for(database: Database) -> None:
    facts = register(database, 1, gpus=2)
    rows.submit(database, gpus=1)
    Run(database, claim(database, facts))
    unfillable(database, gpus=2)
    large = rows.submit(database, gpus=2)

    assert held_by(database, facts) == large


def test_the_closest_workers_keep_their_devices_for_a_gang(database: Database) -> None:
    facts = [register(database, number, gpus=2) for number in range(1, 4)]
    for each in facts[1:]:
        rows.submit(database, gpus=1)
        Run(database, claim(database, each))
    rows.submit(database, gpus=1)
    Run(database, claim(database, facts[2]))
    large, small = submit(database, gpus=2), rows.submit(database, gpus=1)

    assert [held_by(database, each) for each in facts] == [large, large, None]
    held = look(database, facts[0])
    assert database.write(lambda session: transitions.claim(session, facts[0], None, held)) is None
    assert database.write(lambda session: transitions.claim(session, facts[0], None, None)).job_id == small  # type: ignore[union-attr]


def keep(database: Database, facts: WorkerFacts, job_id: str | None) -> None:
    database.write(lambda session: workers.keep_for(session, facts.id, job_id))


def pair(database: Database) -> tuple[list[WorkerFacts], list[Run]]:
    """Register two workers with four devices each, and start a job on two of the first and on one of the second."""
    facts, runs = [register(database, number, gpus=4) for number in (1, 2)], []
    for each, gpus in zip(facts, (2, 1), strict=True):
        rows.submit(database, gpus=gpus)
        runs.append(Run(database, claim(database, each)))
    return facts, runs


def test_a_gang_takes_no_device_that_another_worker_keeps_for_a_job_before_it(database: Database) -> None:
    (first, second), runs = pair(database)
    large, gang = rows.submit(database, gpus=4), submit(database, gpus=1)
    assert held_by(database, second) == large
    keep(database, second, large)

    assert try_claim(database, first) is None
    urgent = submit(database, gpus=2, priority=1)
    assert claim(database, first).job_id == urgent, "it is before the job that the worker keeps its devices for"
    Run(database, begun(database, second)).end("succeeded")
    runs[1].end("succeeded")
    started = claim(database, second)
    assert started.job_id == large
    assert rows.status(database, gang) == "queued"
    Run(database, started).end("succeeded")
    keep(database, second, None)
    assert claim(database, first).job_id == gang


@pytest.mark.parametrize("is_gang_first", [False, True])
def test_a_large_job_and_a_gang_that_devices_are_kept_for_never_block_each_other(
    database: Database, is_gang_first: bool
) -> None:
    (first, second), runs = pair(database)
    gang = submit(database, gpus=4, priority=int(is_gang_first))
    large = rows.submit(database, gpus=4, priority=int(not is_gang_first))
    keep(database, first, large)  # each job needs what is kept for the other one
    keep(database, second, gang)
    assert [try_claim(database, each) for each in (first, second)] == [None, None]
    started = []

    for run in runs:
        run.end("succeeded")
    for _ in range(2):
        new = try_claim(database, first) or claim(database, second)
        started.append(new.job_id)
        begin(database, second)
        Run(database, new).end("succeeded")

    assert started == ([gang, large] if is_gang_first else [large, gang])
    assert audit.audit(database).findings == []


def test_devices_that_a_lost_worker_kept_are_kept_by_another_one(database: Database) -> None:
    (first, second), runs = pair(database)
    third = register(database, 3, gpus=2)
    large, gang = rows.submit(database, gpus=4), submit(database, gpus=1)
    keep(database, second, large)
    assert held_by(database, first) is None

    with database.read() as session:
        heartbeats = session.get_one(Worker, second.id).heartbeats
    database.write(lambda session: workers.mark_lost(session, second.id, heartbeats))

    assert held_by(database, first) == large
    keep(database, first, large)
    assert try_claim(database, first) is None, "the gang is behind it"
    runs[0].end("succeeded")
    assert claim(database, first).job_id == large
    assert rows.status(database, gang) == "queued"
    assert try_claim(database, third) is None


def test_nothing_is_kept_for_a_job_that_no_longer_waits(database: Database) -> None:
    (first, second), _ = pair(database)
    large, gang = rows.submit(database, gpus=4), submit(database, gpus=1)
    keep(database, second, large)
    assert try_claim(database, first) is None

    database.write(lambda session: transitions.cancel(session, large))

    assert claim(database, first).job_id == gang


def test_cpu_slots_that_are_kept_stop_no_gang_with_devices(database: Database) -> None:
    (first, second), _ = pair(database)
    rows.submit(database, gpus=0)
    Run(database, claim(database, second))
    on_cpu, gang = submit(database, gpus=0), submit(database, gpus=1)
    keep(database, first, on_cpu)

    assert claim(database, first).job_id == gang


def test_a_worker_of_a_gang_that_can_start_takes_no_job_behind_it(database: Database) -> None:
    first, second = register(database, 1), register(database, 2)
    gang, behind = submit(database), rows.submit(database)
    ahead = rows.submit(database, priority=1)

    run = Run(database, claim(database, second))
    assert run.job_id == ahead
    run.end("succeeded")

    assert try_claim(database, second) is None
    assert claim(database, first).job_id == gang
    assert rows.status(database, behind) == "queued"


def test_workers_keep_their_cpu_slots_for_a_gang_without_devices(database: Database) -> None:
    first, second = register(database, 1), register(database, 2)
    rows.submit(database)
    run = Run(database, claim(database, second))
    gang = submit(database)
    rows.submit(database)

    assert held_by(database, first) == gang
    held = look(database, first)
    assert database.write(lambda session: transitions.claim(session, first, None, held)) is None
    run.end("succeeded")
    assert claim(database, first).job_id == gang


def test_the_end_of_a_job_with_a_gpu_does_not_say_when_a_gang_without_devices_starts(database: Database) -> None:
    first, second = register(database, 1), register(database, 2, gpus=1)
    rows.submit(database, gpus=1)
    Run(database, claim(database, second)).deliver(rows.started(), rows.progress(1, eta_seconds=36_000))
    rows.submit(database, gpus=0)
    Run(database, claim(database, second))
    gang = submit(database, gpus=0)
    rows.submit(database, gpus=0, max_seconds=30_000)

    held = look(database, first)

    assert held is not None
    assert held.job_id == gang
    assert database.write(lambda session: transitions.claim(session, first, None, held)) is None


def test_jobs_on_as_many_workers_as_are_missing_give_way_to_a_gang(database: Database) -> None:
    facts = [register(database, number, gpus=1) for number in range(1, 4)]
    lesser = [rows.submit(database, gpus=1, preemptible=True) for _ in facts]
    runs = [Run(database, claim(database, each)) for each in facts]
    for ran_ms, run in zip((3, 1, 2), runs, strict=True):
        run.ran_ms = ran_ms
        run.deliver(rows.started())
    urgent = submit(database, gpus=1, priority=5)

    with database.read() as session:
        chosen = preemption.choose(session)

    assert chosen is not None
    assert (chosen.for_job_id, sorted(chosen.job_ids)) == (urgent, sorted(lesser[1:]))


@pytest.mark.parametrize("gpus", [0, 1])
def test_no_worker_of_a_gang_takes_new_work_while_jobs_give_way_to_it(database: Database, gpus: int) -> None:
    facts = [register(database, number, gpus=1) for number in range(1, 5)]
    runs = []
    for each in facts[:3]:
        rows.submit(database, gpus=gpus, preemptible=True)
        runs.append(Run(database, claim(database, each)))
    for ran_ms, run in zip((3, 1, 2), runs, strict=True):
        run.ran_ms = ran_ms
        run.deliver(rows.started())
        run.deliver(rows.progress(1, eta_seconds=1e6))
    urgent = submit(database, nodes=3, gpus=gpus, priority=5)
    rows.submit(database, gpus=gpus, max_seconds=1)

    chosen = database.write(transitions.preempt)

    assert chosen is not None
    assert set(chosen.job_ids) == {run.job_id for run in runs[1:]}, "those that have run for the shortest time"
    assert urgent_for(database, facts) == [None, urgent, urgent, urgent]
    held = look(database, facts[3])
    assert database.write(lambda session: transitions.claim(session, facts[3], None, held)) is None
    runs[1].end("drained")
    assert urgent_for(database, facts) == [None, urgent, urgent, urgent]
    runs[2].end("drained")
    assert claim(database, facts[1]).job_id == urgent


def look(database: Database, facts: WorkerFacts) -> holding.PassedOver | None:
    with database.read() as session:
        return holding.passed_over(session, facts, transitions.unused(session, facts, None))


def urgent_for(database: Database, facts: list[WorkerFacts]) -> list[str | None]:
    """Return the job that each worker keeps its free part for at once."""
    return [held.job_id if (held := look(database, each)) and held.is_urgent else None for each in facts]


def test_a_gang_gives_way_as_a_whole_by_any_of_its_workers(database: Database) -> None:
    first, second = register(database, 1, gpus=1), register(database, 2, gpus=1)
    gang = submit(database, gpus=1, preemptible=True)
    run = Run(database, claim(database, first))
    begun(database, second)
    rows.submit(database, gpus=1, priority=5)

    database.write(transitions.preempt)

    assert run.deliver(rows.started()).preempt
    run.deliver(rows.end("drained"))
    assert (rows.status(database, gang), rows.job(database, gang).status_reason) == ("queued", "preempted")
    assert free(database) == [Free((first.devices[0].uuid,), 1), Free((second.devices[0].uuid,), 1)]


def test_a_pool_is_woken_up_for_a_gang_only_if_enough_workers_have_room(database: Database) -> None:
    register(database, 1, gpus=1)
    submit(database, gpus=1)
    with database.read() as session:
        assert wake_up._counts_by_pool(session) == {}

    register(database, 2, gpus=1)
    with database.read() as session:
        assert wake_up._counts_by_pool(session) == {"default": 2}
