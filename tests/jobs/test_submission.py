"""Requests of clients on jobs: submit once, errors, change, retry, clone, delete a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs import checkpoints, queries, submission, transitions, workers
from jobs.database import Database, new_id
from jobs.errors import Conflict, Invalid, NotFound
from jobs.idempotency import create_once
from jobs.models import Checkpoint, Dataset, Dependency, IdempotencyKey, Job, Tag
from jobs.seed_groups import seedless_name
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, claim, job, job_in, new_job, running, status, submit

NOWHERE = "00000000-0000-7000-8000-00000000dead"
OWNER = "00000000-0000-7000-8000-0000000000ee"


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def wrong(database: Database, **fields: Any) -> list[str]:
    """Return the pointers of all errors of a job; a dry run must return the same."""
    new = new_job(**fields)
    with pytest.raises(Invalid) as by_submit:
        database.write(lambda session: submission.submit(session, new))
    with database.read() as session, pytest.raises(Invalid) as by_plan:
        submission.plan(session, new)
    assert by_plan.value.errors == by_submit.value.errors
    with database.read() as session:
        assert session.execute(select(func.count()).select_from(Job).where(Job.name == "wrong")).scalar_one() == 0
    return [error.pointer for error in by_submit.value.errors]


# --- submitting ----------------------------------------------------------------------------------------------------


def test_a_submitted_job_keeps_its_sent_and_its_resolved_spec(database: Database) -> None:
    new = new_job(name="mine", tags=("a", "b"), priority=3, created_by=OWNER)
    submitted = database.write(lambda session: submission.submit(session, new))

    assert submitted.spec_sent == {"data": {"name": "digits", "image_size": 8}}
    assert submitted.spec["epochs"] == 100
    assert (submitted.name, submitted.priority, submitted.created_by) == ("mine", 3, OWNER)
    assert (submitted.status, submitted.dataset_digest, submitted.attempt) == (Status.QUEUED, rows.DIGEST, 0)
    assert submitted.created_at > 1_700_000_000_000
    with database.read() as session:
        assert queries.tags(session, [submitted.id]) == {submitted.id: ["a", "b"]}
    assert [(event.seq, event.type) for event in rows.events(database, submitted.id)] == [(1, "submitted")]


def test_tags_and_needs_may_repeat(database: Database) -> None:
    needed = submit(database)
    job_id = submit(database, tags=("a", "a"), after=(needed, needed))

    assert len([row for row in rows.rows_of(database, Tag) if row[0] == job_id]) == 1
    assert rows.rows_of(database, Dependency) == [(job_id, needed, "success")]


@pytest.mark.parametrize(("gpus", "processes", "fits"), [(0, 4, True), (2, 2, True), (4, 2, True), (1, 2, False)])
def test_each_process_gets_a_gpu_if_gpus_are_requested(
    database: Database, gpus: int, processes: int, fits: bool
) -> None:
    spec = {"processes": processes}
    if fits:
        assert job(database, submit(database, spec=spec, gpus=gpus)).spec["processes"] == processes
    else:
        assert wrong(database, name="wrong", spec=spec, gpus=gpus) == ["/spec/processes"]


def test_all_errors_are_reported_together_with_their_pointers(database: Database) -> None:
    rows.add_dataset(database, name="small", train=100)
    failed = job_in(database, Status.FAILED)

    assert wrong(database, name="wrong", spec={"data": {"name": "absent"}}) == ["/spec/data/name"]
    assert wrong(database, name="wrong", spec={"batch_size": 1001}) == ["/spec/batch_size"]
    assert wrong(
        database, name="wrong", spec={"data": {"name": "small"}, "batch_size": 101}, after=(NOWHERE, failed, "a\0b")
    ) == ["/spec/batch_size", "/after/0", "/after/1", "/after/2"]
    few = {"data": {"name": "small"}, "protocols": ["knn", "few_labels"], "knn_k": 6, "labels_per_class": [1, 11]}
    gone = {"kind": "checkpoint", "checkpoint_id": NOWHERE}
    assert wrong(database, name="wrong", kind="evaluate", spec=few | {"features": gone}) == [
        "/spec/knn_k",
        "/spec/labels_per_class/1",
        "/spec/features/checkpoint_id",
    ]


@pytest.mark.parametrize("needed", [Status.QUEUED, Status.PAUSED, Status.RUNNING, Status.BLOCKED])
def test_a_job_waits_for_one_that_has_not_ended(database: Database, needed: Status) -> None:
    assert status(database, submit(database, after=(job_in(database, needed),))) == Status.BLOCKED


def test_a_job_waits_no_longer_for_one_that_succeeded(database: Database) -> None:
    assert status(database, submit(database, after=(job_in(database, Status.SUCCEEDED),))) == Status.QUEUED


def test_a_dry_run_changes_nothing_and_returns_the_steps(database: Database) -> None:
    with database.read() as session:
        answer = submission.plan(session, new_job(spec={"epochs": 20}))

    assert (answer["steps_per_epoch"], answer["total_steps"]) == (3, 60)
    assert answer["warnings"]
    assert rows.rows_of(database, Job) == []


def test_a_dry_run_names_a_job_with_the_same_spec_and_seed(database: Database) -> None:
    first = submit(database, name="first", spec={"epochs": 7})

    def repeated(**changes: Any) -> Any:
        with database.read() as session:
            return submission.plan(session, new_job(spec={"epochs": 7} | changes))["repeats"]

    text = f"job first ({first[-12:]}, queued) has the same spec and seed, so this one repeats it"
    assert repeated() == {"id": first, "text": text}
    assert repeated(seed=1) is repeated(epochs=8) is None
    database.write(lambda session: transitions.cancel(session, first))
    assert repeated() is None, "a cancelled job gives no result"


@pytest.mark.parametrize("text", ["nul \0 nul", "x' OR 1=1 --", "%", "🏁", "e\u0301"])
def test_any_text_is_only_a_name(database: Database, text: str) -> None:
    job_id = submit(database, name=text, tags=(text,))

    assert job(database, job_id).name == text.replace("\0", "\ufffd")


# --- the same request again ----------------------------------------------------------------------------------------


def submit_once(database: Database, key: str, body: str, owner: str = OWNER) -> tuple[str, bool]:
    job, replayed = create_once(database, owner, key, body, Job, lambda session: submission.submit(session, new_job()))
    return job.id, replayed


def test_the_same_key_and_body_replay_the_first_answer(database: Database) -> None:
    first, replayed = submit_once(database, "key", "a" * 64)
    assert not replayed

    assert submit_once(database, "key", "a" * 64) == (first, True)
    assert len(rows.rows_of(database, Job)) == 1


def test_the_same_key_with_another_body_is_refused(database: Database) -> None:
    submit_once(database, "key", "a" * 64)

    with pytest.raises(Invalid, match="another body"):
        submit_once(database, "key", "b" * 64)
    assert len(rows.rows_of(database, Job)) == 1


def test_idempotency_keys_are_separate_for_each_owner(database: Database) -> None:
    first, _ = submit_once(database, "key", "a" * 64)

    assert submit_once(database, "key", "a" * 64, owner=NOWHERE) != (first, True)
    assert submit_once(database, "KEY", "a" * 64) != (first, True)


def test_a_refused_request_leaves_its_key_free(database: Database) -> None:
    wrong = new_job(spec={"batch_size": 5000})
    with pytest.raises(Invalid):
        create_once(database, OWNER, "key", "a" * 64, Job, lambda session: submission.submit(session, wrong))

    assert rows.rows_of(database, IdempotencyKey) == []
    assert not submit_once(database, "key", "a" * 64)[1]


def test_sixteen_twins_make_one_job(database: Database) -> None:
    answers = at_once(16, lambda _: submit_once(database, "key", "a" * 64))

    assert len({job_id for job_id, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 15
    assert len(rows.rows_of(database, Job)) == 1


def test_twins_with_different_bodies_make_one_job(database: Database) -> None:
    def act(number: int) -> str:
        try:
            return submit_once(database, "key", f"{number % 2}" * 64)[0]
        except Invalid:
            return "refused"

    answers = at_once(8, act)

    assert len(set(answers) - {"refused"}) == 1
    assert answers.count("refused") == 4


# --- changing ------------------------------------------------------------------------------------------------------


def change(database: Database, job_id: str, **values: Any) -> Job:
    return database.write(lambda session: submission.change(session, job_id, **values))


def test_a_waiting_job_can_be_changed(database: Database) -> None:
    job_id = submit(database, tags=("old",))
    changed = change(database, job_id, name="new", priority=7, tags=("b", "a", "b"))

    assert (changed.name, changed.priority) == ("new", 7)
    with database.read() as session:
        assert queries.tags(session, [job_id]) == {job_id: ["a", "b"]}
    assert rows.events(database, job_id)[-1].data["name"] == "new"


@pytest.mark.parametrize("before", list(Status))
def test_only_a_waiting_job_has_a_priority(database: Database, before: Status) -> None:
    job_id = job_in(database, before)
    waits = before in (Status.BLOCKED, Status.QUEUED, Status.PAUSED)

    if waits:
        assert change(database, job_id, priority=9).priority == 9
    else:
        with pytest.raises(Conflict):
            change(database, job_id, priority=9, name="new")
        assert job(database, job_id).name != "new"
    assert change(database, job_id, name="new").name == "new"
    assert job(database, job_id).status == before


def test_changing_an_absent_job_raises_not_found(database: Database) -> None:
    with pytest.raises(NotFound):
        change(database, NOWHERE, name="new")


def test_tags_that_are_changed_at_once_end_as_one_of_them(database: Database) -> None:
    job_id = submit(database)
    at_once(6, lambda number: change(database, job_id, tags=("same", f"of-{number}")))

    with database.read() as session:
        stored = queries.tags(session, [job_id])[job_id]
    assert len(stored) == 2
    assert "same" in stored


# --- retry and clone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", list(Status))
def test_only_failed_and_cancelled_jobs_are_retried(database: Database, before: Status) -> None:
    job_id = job_in(database, before)
    if before in (Status.FAILED, Status.CANCELLED):
        again = database.write(lambda session: submission.retry(session, job_id, OWNER))
        assert (again.parent_id, again.status, again.created_by) == (job_id, Status.QUEUED, OWNER)
        assert again.spec == job(database, job_id).spec
    else:
        with pytest.raises(Conflict, match=before):
            database.write(lambda session: submission.retry(session, job_id, OWNER))
    assert status(database, job_id) == before


def failed_with_checkpoints(database: Database, *steps: int) -> str:
    run = Run(database, running(database))
    run.deliver(rows.started(), *(rows.checkpoint(step) for step in steps), rows.end("failed", "internal_error"))
    return run.job_id


def test_a_retry_starts_from_the_last_checkpoint(database: Database) -> None:
    job_id = failed_with_checkpoints(database, 10, 30, 20)
    last = rows.checkpoints(database, job_id)[-1]

    database.write(lambda session: submission.retry(session, job_id, None))
    claimed = claim(database)

    assert claimed.resume is not None
    assert claimed.resume.id == last.id
    assert last.step == 30


def test_a_retry_of_a_retry_starts_from_where_the_first_was(database: Database) -> None:
    first = failed_with_checkpoints(database, 10)
    second = database.write(lambda session: submission.retry(session, first, None)).id
    Run(database, claim(database)).end("failed", "internal_error")
    database.write(lambda session: submission.retry(session, second, None))

    claimed = claim(database)
    assert claimed.resume is not None
    assert claimed.resume.id == rows.checkpoints(database, first)[0].id


def test_a_retry_never_starts_from_a_deleted_checkpoint(database: Database) -> None:
    first = failed_with_checkpoints(database, 10, 20)
    old, new = rows.checkpoints(database, first)
    second = database.write(lambda session: submission.retry(session, first, None)).id
    Run(database, claim(database)).end("failed", "internal_error")
    database.write(lambda session: checkpoints.delete(session, new.id))

    again = database.write(lambda session: submission.retry(session, second, None))
    assert again.resume_checkpoint_id is None
    assert database.write(lambda session: submission.retry(session, first, None)).resume_checkpoint_id == old.id


def test_a_clone_takes_overrides_field_by_field(database: Database) -> None:
    job_id = submit(database, spec={"epochs": 30, "loss": {"temperature": 0.5}}, tags=("a",), name="mine")
    overrides = {"loss": {"weak_weight": 2.0}, "seed": 5}

    copy = database.write(lambda session: submission.clone(session, job_id, overrides, OWNER))

    assert (copy.spec["epochs"], copy.spec["seed"]) == (30, 5)
    assert (copy.spec["loss"]["temperature"], copy.spec["loss"]["weak_weight"]) == (0.5, 2.0)
    assert (copy.parent_id, copy.resume_checkpoint_id, copy.status) == (job_id, None, Status.QUEUED)
    with database.read() as session:
        assert queries.tags(session, [copy.id]) == {copy.id: ["a"]}
    assert job(database, job_id).spec["seed"] == 0


def test_a_clone_has_a_name_of_its_own(database: Database) -> None:
    def clone(job_id: str, name: str | None = None, **overrides: Any) -> Job:
        return database.write(lambda session: submission.clone(session, job_id, overrides, OWNER, name))

    first = submit(database, name="mine")
    second = clone(first)
    assert (second.name, clone(first).name, clone(second.id).name) == ("mine-2", "mine-3", "mine-4")
    assert clone(submit(database, name="resnet-50")).name == "resnet-50-2", "no clone of a job called resnet"
    assert clone(first, "other").name == "other"
    assert clone(submit(database), method="simclr").name.startswith("simclr "), "the name tells what the job is"
    longest = clone(submit(database, name="a" * submission.MAX_NAME))
    assert (len(longest.name), longest.name[-3:]) == (submission.MAX_NAME, "a-2")
    with database.read() as session:
        assert submission.same_name(session, "unused", None) == submission.same_name(session, None, None) == []
        assert submission.same_name(session, "mine", first) == []
        (warning,) = submission.same_name(session, "mine")
        assert warning == "another job has the name mine, so only ids tell them apart; mine-5 is free"


def test_a_retry_and_a_continuation_have_names_of_their_own(database: Database) -> None:
    def retry(job_id: str) -> Job:
        return database.write(lambda session: submission.retry(session, job_id, OWNER))

    def cancelled(job_id: str, *, has_begun: bool = True) -> str:
        database.write(lambda session: transitions.cancel(session, job_id))
        began = update(Job).where(Job.id == job_id).values(attempt=int(has_begun))
        database.write(lambda session: session.execute(began))
        return job_id

    run = rows.Run(database, rows.running(database, name="whole"))
    run.deliver(rows.started(), rows.checkpoint(5), rows.end("succeeded"))
    for end in ("3 more epochs", "3 more epochs-2", "then on digits", "then on digits-2"):
        more = (3, None) if "more" in end else (None, "digits")
        new = database.write(lambda session, more=more: submission.go_on(session, run.job_id, *more, OWNER))
        assert new.name == f"whole, {end}"

    first = cancelled(submit(database, name="mine, seed 0"))
    second = retry(first)
    names = [second.name, retry(cancelled(second.id)).name, retry(first).name]
    assert names == [f"mine, seed 0-{number}" for number in (2, 3, 4)]
    assert {seedless_name(name) for name in names} == {"mine"}
    assert retry(cancelled(submit(database, name="never begun"), has_begun=False)).name == "never begun"


def test_two_clones_at_one_time_get_two_names(database: Database) -> None:
    first = submit(database, name="mine")
    write = database.write
    clones = at_once(2, lambda _: write(lambda session: submission.clone(session, first, {}, OWNER)).name)
    assert sorted(clones) == ["mine-2", "mine-3"]


def test_a_clone_that_does_not_fit_is_refused(database: Database) -> None:
    job_id = submit(database)
    for overrides in ({"epochs": 0}, {"unknown": 1}, {"loss": 3}, {"data": {"name": "../x"}}):
        with pytest.raises(ValidationError):
            database.write(lambda session, o=overrides: submission.clone(session, job_id, o, None))  # type: ignore[misc]
    with pytest.raises(Invalid):
        database.write(lambda session: submission.clone(session, job_id, {"data": {"name": "absent"}}, None))
    with pytest.raises(NotFound):
        database.write(lambda session: submission.clone(session, NOWHERE, {}, None))
    assert len(rows.rows_of(database, Job)) == 1


# --- deleting checkpoints ------------------------------------------------------------------------------------------


def delete(database: Database, checkpoint_id: str) -> None:
    database.write(lambda session: checkpoints.delete(session, checkpoint_id))


def test_an_unneeded_checkpoint_is_deleted_once(database: Database) -> None:
    job_id = failed_with_checkpoints(database, 10)
    checkpoint_id = rows.checkpoints(database, job_id)[0].id
    delete(database, checkpoint_id)

    assert rows.checkpoints(database, job_id)[0].deleted_at is not None
    with pytest.raises(NotFound):
        delete(database, checkpoint_id)
    for absent in (NOWHERE, "a\0b"):
        with pytest.raises(NotFound):
            delete(database, absent)


@pytest.mark.parametrize("needs", ["pinned", "its job runs", "its job is queued", "retry", "evaluation"])
def test_a_checkpoint_that_is_needed_is_kept(database: Database, needs: str) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.checkpoint(10))
    checkpoint_id = rows.checkpoints(database, run.job_id)[0].id
    if needs == "its job is queued":
        run.end("drained")
    elif needs != "its job runs":
        run.end("failed", "internal_error")
    if needs == "pinned":
        database.write(lambda s: s.execute(update(Checkpoint).values(pinned=True)))
    elif needs == "retry":
        database.write(lambda session: submission.retry(session, run.job_id, None))
    elif needs == "evaluation":
        submit(database, kind="evaluate", spec={"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}})

    with pytest.raises(Conflict):
        delete(database, checkpoint_id)
    assert rows.checkpoints(database, run.job_id)[0].deleted_at is None


def test_a_checkpoint_is_free_when_those_that_needed_it_have_ended(database: Database) -> None:
    first = failed_with_checkpoints(database, 10)
    checkpoint_id = rows.checkpoints(database, first)[0].id
    features = {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}
    again = database.write(lambda session: submission.retry(session, first, None)).id
    measuring = submit(database, kind="evaluate", spec=features)
    for job_id in (again, measuring):
        with pytest.raises(Conflict):
            delete(database, checkpoint_id)
        database.write(lambda session, j=job_id: transitions.cancel(session, j))  # type: ignore[misc]

    delete(database, checkpoint_id)
    with pytest.raises(Invalid, match="there is no checkpoint"):
        submit(database, kind="evaluate", spec=features)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("by", ["retry", "evaluation"])
def test_a_new_job_cannot_need_a_checkpoint_that_is_being_deleted(database: Database, by: str) -> None:
    """PostgreSQL only: neither transaction sees uncommitted rows of the other, so one of them has to wait."""
    job_id = failed_with_checkpoints(database, 10)
    checkpoint_id = rows.checkpoints(database, job_id)[0].id
    features = {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}

    def need() -> str | None:
        if by == "retry":
            return database.write(lambda session: submission.retry(session, job_id, None)).resume_checkpoint_id
        with pytest.raises(Invalid):
            submit(database, kind="evaluate", spec=features)
        return None

    with Session(database.engine) as other:
        checkpoints.delete(other, checkpoint_id)  # not committed yet
        with rows.in_background(need) as needing:
            rows.until_a_statement_waits_for_a_lock(database)
            other.commit()
            assert needing.result(timeout=30) is None


def test_a_dataset_that_changed_is_pinned_by_new_jobs_only(database: Database) -> None:
    old = submit(database)
    database.write(lambda s: s.execute(update(Dataset).values(digest="e" * 64)))
    new = submit(database)

    assert [job(database, job_id).dataset_digest for job_id in (old, new)] == [rows.DIGEST, "e" * 64]


@pytest.mark.parametrize(("pool", "expected"), [("default", 1), ("cpus", 0), ("absent", 0)])
def test_a_job_that_states_no_gpus_gets_one_where_its_pool_has_any(
    database: Database, pool: str, expected: int
) -> None:
    for name, count in (("default", 2), ("cpus", 0)):
        facts = rows.worker(id=new_id(), pool=name, gpus=count)
        database.write(lambda session, facts=facts: workers.register(session, facts, 1, []))  # type: ignore[misc]

    assert job(database, submit(database, pool=pool)).gpus == expected
    assert job(database, submit(database, pool=pool, gpus=0)).gpus == 0
    assert job(database, submit(database, pool=pool, spec={"processes": 2})).gpus == 2 * expected


@pytest.mark.parametrize(
    ("device", "pool", "gpus", "expected"),
    [
        ("cpu", "default", None, 0),
        ("cpu", "default", 0, 0),
        ("cpu", "default", 2, "/gpus"),
        ("cuda", "default", None, 2),
        ("cuda", "default", 0, "/gpus"),
        ("cuda", "cpus", None, 2),  # it waits for a worker with GPUs
        ("auto", "broken", None, 2),
        ("auto", "stopped", None, 2),
        ("auto", "empty", None, 0),
        ("auto", "default", 1, "/spec/processes"),
    ],
)
def test_device_gpus_and_processes_do_not_contradict_each_other(
    database: Database, device: str, pool: str, gpus: int | None, expected: int | str
) -> None:
    for name, count in (("default", 2), ("cpus", 0), ("broken", 1), ("stopped", 1)):
        facts = rows.worker(id=new_id(), pool=name, gpus=count)
        if name == "broken":
            facts = replace(facts, devices=tuple(replace(each, problem="Xid 79") for each in facts.devices))
        database.write(lambda session, facts=facts: workers.register(session, facts, 1, []))  # type: ignore[misc]
        if name == "stopped":
            database.write(lambda session, facts=facts: workers.stop(session, facts.id))  # type: ignore[misc]

    fields = {"spec": {"device": device, "processes": 2}, "pool": pool, "gpus": gpus}
    if isinstance(expected, str):
        assert wrong(database, name="wrong", **fields) == [expected]
    else:
        assert job(database, submit(database, **fields)).gpus == expected


def test_several_mig_instances_for_one_job_are_refused(database: Database) -> None:
    """CUDA lets a process see one MIG instance only."""
    facts = rows.worker(gpus=2)
    facts = replace(facts, devices=tuple(replace(each, uuid=f"MIG-{each.index}") for each in facts.devices))
    database.write(lambda session: workers.register(session, facts, 1, []))

    assert wrong(database, name="wrong", gpus=2) == ["/gpus"]
    assert job(database, submit(database, gpus=1)).gpus == 1


def test_a_training_has_a_process_for_each_gpu_unless_it_states_their_number(database: Database) -> None:
    def processes(gpus: int, **spec: Any) -> int:
        return int(job(database, submit(database, spec={"batch_size": 24} | spec, gpus=gpus)).spec["processes"])

    assert [processes(gpus) for gpus in (0, 1, 2, 3)] == [1, 1, 2, 3]
    assert processes(4, processes=2) == 2
    assert wrong(database, name="wrong", spec={"batch_size": 24}, gpus=5) == ["/spec/processes"]
