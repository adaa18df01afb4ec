"""Requests about jobs: submit, dry run, change, retry, clone; each within the caller's transaction.

`jobs.checks` validates a new job against the database, `jobs.new_job` adds its rows, and `jobs.idempotency` makes a
repeated request return the first request's row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import Session

from jobs import access, activity, checkpoints, listing, queries, weights
from jobs.advice import advice, further_epochs_of
from jobs.checks import check, check_priority, pretraining_count
from jobs.database import new_id, now_ms
from jobs.datasets import hold, pinned_digest
from jobs.eligibility import fits, takers
from jobs.errors import Conflict, FieldError, Invalid
from jobs.estimates import estimate, steps_per_epoch
from jobs.events import record
from jobs.models import Checkpoint, Dataset, Job, Tag
from jobs.new_job import Checked, add_all, default_name, kind_of, nodes_of, options_of
from jobs.new_job import NewJob as NewJob
from jobs.shared_reads import dataset_named
from jobs.status import TERMINAL, Status
from wcl_core.config import CheckpointFeatures, EvaluateSpec, PretrainSpec, parse_spec, resolve_spec, version_of
from wcl_core.config.overlay import overlaid
from wcl_core.text import counted

MAX_NAME = 200  # characters
_MAX_BATCH_ERRORS = 50
_MOST_SPECS = 100  # the newest jobs of the same data, whose specs a planned one is compared with
_MOST_NAMES = 10_000  # jobs whose names a new one is compared with
T = TypeVar("T")
R = TypeVar("R")


def submit(session: Session, new: NewJob) -> Job:
    """Add a job: queued, or blocked while it waits for another job.

    The parent of an evaluation is the job that wrote the evaluated checkpoint, unless `new` names another parent.

    Raises:
        Invalid: all invalid fields, each with its pointer.
    """
    return add_all(session, [_checked(session, new)])[0]


def _checked(session: Session, new: NewJob) -> Checked:
    """Validate a job, and lock what it needs until the commit.

    Raises:
        Invalid: as `submit`.
    """
    measured = None
    if isinstance(new.spec, EvaluateSpec) and isinstance(new.spec.features, CheckpointFeatures):
        measured = str(new.spec.features.checkpoint_id)
        checkpoints.hold(session, measured)
    if new.after:  # no deletion of these jobs may come between their check and the commit
        needed = select(Job.id).where(Job.id.in_(new.after)).order_by(Job.id)
        session.execute(needed.with_for_update(read=True, key_share=True)).all()
    hold(session, new.spec)
    if isinstance(new.spec, PretrainSpec) and new.spec.weights is not None:
        weights.hold(session, new.spec.weights)
    new, dataset = check(session, new)
    if measured is not None and new.parent_id is None:
        new = replace(new, parent_id=session.get_one(Checkpoint, measured).job_id)
    return Checked(new, dataset, _has_to_wait(session, new))


def submit_group(session: Session, new: Sequence[NewJob]) -> list[Job]:
    """Add jobs that differ in their seed only, as one seed group.

    Raises:
        Invalid: as `submit`.
    """
    group_id = new_id()
    return add_all(session, [_checked(session, replace(each, group_id=group_id)) for each in new])


def submit_batch(session: Session, new: Sequence[NewJob]) -> list[Job]:
    """Add the jobs of one request, all or none.

    Raises:
        Invalid: as `submit`; the pointers name the job by its place, such as `/jobs/3/spec/data/name`.
    """
    return add_all(session, each_of_batch(new, lambda job: _checked(session, job)))


def each_of_batch(items: Sequence[T], act: Callable[[T], R]) -> list[R]:
    """Return the results for the jobs of a batch.

    Raises:
        Invalid: the first errors of all jobs; the pointers begin with the place of the job.
    """
    results, errors = [], list[FieldError]()
    for place, item in enumerate(items):
        try:
            results.append(act(item))
        except Invalid as error:
            errors += [FieldError(f"/jobs/{place}{each.pointer}", each.detail) for each in error.errors]
            if len(errors) >= _MAX_BATCH_ERRORS:
                break
    if errors:
        raise Invalid(errors[:_MAX_BATCH_ERRORS])
    return results


def plan(session: Session, new: NewJob) -> dict[str, Any]:
    """Return the dry run of a submission: what `submit` would add, without adding it.

    `repeats` is the job with the same spec and data: its `id`, and a `text` that says so; None without one.

    Raises:
        Invalid: as `submit`.
    """
    new, dataset = check(session, new)
    fitting = _fitting_workers(session, new, dataset)
    result: dict[str, Any] = {
        "kind": new.kind,
        "name": new.name or default_name(new.spec),
        "spec": resolve_spec(new.spec),
        "dataset": {"name": dataset.name, "digest": pinned_digest(session, dataset), "counts": dataset.counts},
        "workers": fitting,
        "warnings": [] if len(fitting) >= nodes_of(new.spec) else [_waits_for(nodes_of(new.spec), len(fitting))],
        "notes": same_name(session, new.name) + idle_gpus(new.gpus or 0, resolve_spec(new.spec)),
    }
    result["repeats"] = _same_spec(session, new.kind, result["spec"], result["dataset"]["digest"])
    if isinstance(new.spec, PretrainSpec):
        images = pretraining_count(dataset, new.spec.data)
        if (steps := steps_per_epoch(new.spec, images)) is not None:
            result |= {"steps_per_epoch": steps, "total_steps": steps * new.spec.epochs}
        expected = estimate(session, new.spec, new.pool, new.gpus or 0, images)
        result["estimate"] = expected
        result["warnings"] += advice(new.spec, images, new.preset)
        if (memory := expected["memory"]) and memory["warning"]:
            result["warnings"].append(memory["warning"])
    return result


def _same_spec(session: Session, kind: str, spec: dict[str, Any], digest: str) -> dict[str, str] | None:
    """Return id and note of the first of the last jobs with this spec and data that has not failed or been cancelled.

    Not the newest: a client that asks after its submission would meet the new job.
    """
    is_of_use = Job.status.not_in((Status.FAILED, Status.CANCELLED))
    jobs = select(Job).where(Job.kind == kind, Job.dataset_digest == digest, is_of_use).order_by(Job.id.desc())
    rows = session.execute(jobs.limit(_MOST_SPECS)).scalars().all() if digest else ()
    if (same := next((row for row in reversed(rows) if row.spec == spec), None)) is None:
        return None
    text = f"job {same.name} ({same.id[-12:]}, {same.status}) has the same spec and seed, so this one repeats it"
    return {"id": same.id, "text": text}


def _waits_for(nodes: int, num_fitting: int) -> str:
    if nodes == 1:
        return "no running worker fits; the job would wait for one"
    fit = "fit" if num_fitting > 1 else "fits"
    return f"{num_fitting or 'none'} of the running workers {fit}; the job would wait for {nodes} at once"


def _fitting_workers(session: Session, new: NewJob, dataset: Dataset) -> list[str]:
    job = Job(
        pool=new.pool,
        gpus=new.gpus or 0,
        nodes=nodes_of(new.spec),
        spec_version=version_of(resolve_spec(new.spec)),
        dataset_name=dataset.name,
        dataset_digest=pinned_digest(session, dataset),
    )
    return [worker.name for worker in takers(session) if fits(worker, job)]


def _has_to_wait(session: Session, new: NewJob) -> bool:
    if not new.after:
        return False
    statement = select(Job.id).where(Job.id.in_(new.after), Job.status != Status.SUCCEEDED)
    unfinished = session.execute(statement).scalars().all()
    return any(job_id not in new.after_checkpoint or not checkpoints.newest(session, job_id) for job_id in unfinished)


# --- changes -------------------------------------------------------------------------------------------------------


def change(
    session: Session,
    job_id: str,
    *,
    name: str | None = None,
    priority: int | None = None,
    tags: tuple[str, ...] | None = None,
    starred: bool | None = None,
    note: str | None = None,
) -> Job:
    """Change a job's name, tags, star or note, or the priority of a job that still waits; an empty note removes it.

    Raises:
        NotFound: there is no such job.
        Conflict: the priority of a job that no longer waits.
    """
    job = queries.get_job(session, job_id, lock=True)
    access.check_owner(session, job.created_by, f"job {job_id}")
    values: dict[str, Any] = {}
    if name is not None:
        values["name"] = name
    if priority is not None:
        if job.status not in (Status.BLOCKED, Status.QUEUED, Status.PAUSED):
            raise Conflict(f"the priority of a job that is {job.status} cannot change")
        if errors := check_priority(session, priority):
            raise Invalid(errors)
        values["priority"] = priority
    changed: dict[str, Any] = dict(values)
    former: dict[str, Any] = {each: getattr(job, each) for each in values}
    if starred is not None:
        values["starred_at"] = now_ms() if starred else None
        changed["starred"], former["starred"] = starred, job.starred_at is not None
    if note is not None:
        values["note"] = note or None
        changed["note"] = f"{len(note):,} characters" if note else "removed"
    if values:
        session.execute(update(Job).where(Job.id == job_id).values(**values, updated_at=now_ms()))
    if tags is not None:
        former["tags"] = queries.tags(session, [job_id])[job_id]
        session.execute(delete(Tag).where(Tag.job_id == job_id))
        session.add_all(Tag(job_id=job_id, tag=tag) for tag in dict.fromkeys(tags))
        changed["tags"] = list(tags)
    record(session, job_id, "changed", changed)
    activity.note(session, "job.change", job_id, job.name, **changed, former=former or None)
    session.refresh(job)
    return job


def archive(session: Session, job_id: str) -> None:
    """Leave an ended job and its evaluations out of the lists; a second call changes nothing.

    Raises:
        NotFound: there is no such job.
        Conflict: it has not ended.
    """
    job = queries.get_job(session, job_id, lock=True)
    access.check_owner(session, job.created_by, f"job {job_id}")
    if job.status not in TERMINAL:
        raise Conflict(f"cannot archive a job that is {job.status}; cancel it, or wait for its end")
    if _set_archived(session, job_id, True):
        activity.note(session, "job.archive", job_id, job.name)


def unarchive(session: Session, job_id: str) -> None:
    """Show an archived job in the lists again; a second call changes nothing.

    Raises:
        NotFound: there is no such job.
    """
    job = queries.get_job(session, job_id, lock=True)
    access.check_owner(session, job.created_by, f"job {job_id}")
    if _set_archived(session, job_id, False):
        activity.note(session, "job.unarchive", job_id, job.name)


def _set_archived(session: Session, job_id: str, is_archived: bool) -> bool:
    """Change the job and the ended evaluations below it, where this is a change; return whether it was one."""
    below = listing.evaluations_below([job_id])
    family = or_(Job.id == job_id, and_(Job.id.in_(select(below.c.id)), Job.status.in_(TERMINAL)))
    is_other = Job.archived_at.is_(None) if is_archived else Job.archived_at.is_not(None)
    ids = session.execute(select(Job.id).where(family, is_other).order_by(Job.id)).scalars().all()
    for changed in ids:
        values = {"archived_at": now_ms() if is_archived else None, "updated_at": now_ms()}
        session.execute(update(Job).where(Job.id == changed).values(values))
        record(session, changed, "changed", {"archived": is_archived})
    return bool(ids)


def retry(session: Session, job_id: str, created_by: str | None) -> Job:
    """Submit a job with the spec of a failed or cancelled one, which starts from that one's last good checkpoint.

    The new job takes the old job's place in its seed group, and has a name of its own (`free_name`).

    Raises:
        NotFound: there is no such job.
        Conflict: the job has neither failed nor been cancelled.
    """
    job = queries.get_job(session, job_id, lock=True)
    if job.status not in (Status.FAILED, Status.CANCELLED):
        goes_on = job.status == Status.SUCCEEDED and job.kind == "pretrain"
        instead = "; `wcl continue` trains it for more epochs" if goes_on else ""
        raise Conflict(f"only a failed or cancelled job can be retried; this one is {job.status}{instead}")
    copy = _copy(session, job, created_by, _resume_point(session, job))
    return submit(session, replace(copy, name=free_name(session, job.name), group_id=job.group_id))


def go_on(session: Session, job_id: str, epochs: int | None, dataset_name: str | None, created_by: str | None) -> Job:
    """Submit a job that trains a finished one further, from its last good checkpoint.

    On the same data the new job is the old one with more epochs, before which the learning rate starts again.  On other
    data it is a run of its own, which starts from the checkpoint's network and heads.

    Args:
        session: a writing transaction.
        job_id: the finished training.
        epochs: number of epochs more; None for `further_epochs_of` the job, and on other data for as many as it had.
        dataset_name: of the other data; None for the same.
        created_by: the id of the key.

    Raises:
        NotFound: there is no such job.
        Conflict: the job is no finished training, or nothing of it is left to start from.
        pydantic.ValidationError, Invalid: the resulting spec is invalid.
    """
    job = queries.get_job(session, job_id, lock=True)
    _check_finished(job)
    if (point := _resume_point(session, job)) is None:
        raise Conflict("the full checkpoints of this job are deleted, damaged or missing, so it cannot go on")
    if dataset_name is not None:
        return submit(session, _on_other_data(session, job, point, epochs, dataset_name, created_by))
    epochs = epochs or further_epochs_of(session, job)
    dataset = dataset_named(session, job.dataset_name)
    if dataset is not None and pinned_digest(session, dataset) not in ("", job.dataset_digest):
        raise Conflict(
            f"the images of {job.dataset_name} have changed since; to train further on those of now, name the dataset: "
            f"`--data {job.dataset_name}`"
        )
    lengths = {name: job.spec[name] for name in ("warmup_epochs", "weak_augmentation_epochs")}
    ends = {"restarts": [*job.spec["restarts"], job.spec["epochs"]], "epochs": job.spec["epochs"] + epochs}
    new = _copy(session, job, created_by, point, job.spec_sent | lengths | ends)
    spec = parse_spec("pretrain", job.spec | ends)  # with the sizes that the run has found
    name = free_name(session, shortened(job.name, f", {epochs} more epochs"))
    return submit(session, replace(new, spec=spec, name=name))


def _check_finished(job: Job) -> None:
    if job.kind != "pretrain":
        raise Conflict("only a training can go on, and this job is an evaluation")
    if job.status in (Status.FAILED, Status.CANCELLED):
        ended = "has failed" if job.status == Status.FAILED else "was cancelled"
        raise Conflict(f"this job {ended} before its end; `wcl retry` trains it to its end")
    if job.status != Status.SUCCEEDED:
        raise Conflict(f"only a finished training can go on; this one is {job.status}, so wait for its end")


def _on_other_data(
    session: Session, job: Job, point: str, epochs: int | None, dataset_name: str, created_by: str | None
) -> NewJob:
    checkpoint = session.get_one(Checkpoint, point)
    sent = {name: value for name, value in job.spec_sent.items() if name != "restarts"}
    sent |= {"data": job.spec["data"] | {"name": dataset_name}, "weights": checkpoint.sha256}
    sent |= {"epochs": epochs or job.spec["epochs"]}
    new = _copy(session, job, created_by, None, sent)
    return replace(new, name=free_name(session, shortened(job.name, f", then on {dataset_name}")))


def shortened(name: str, end: str) -> str:
    """Return a name with an end, as long as names may be."""
    return name[: MAX_NAME - len(end)] + end


def _resume_point(session: Session, job: Job) -> str | None:
    """Return the id of the job's last good checkpoint, or of the one it started from, locked against deletion."""
    while last := checkpoints.newest(session, job.id):
        if checkpoints.hold(session, last.id):
            return last.id
    return job.resume_checkpoint_id if checkpoints.hold(session, job.resume_checkpoint_id) else None


def clone(
    session: Session, job_id: str, overrides: dict[str, Any], created_by: str | None, name: str | None = None
) -> Job:
    """Submit a job with another job's spec, some fields replaced, which starts from scratch.

    Args:
        session: a writing transaction.
        job_id: the job.
        overrides: the fields of the spec that are replaced.
        created_by: the id of the key.
        name: of the clone; None for the name of the job with the next number.

    Raises:
        NotFound: there is no such job.
        pydantic.ValidationError, Invalid: the spec with the overrides is invalid.
    """
    job = queries.get_job(session, job_id, lock=True)
    # Lengths are shares of the epochs, which the client may have left to the default.
    base = {name: job.spec[name] for name in ("epochs",) if name in overrides and name in job.spec} | job.spec_sent
    copy = _copy(session, job, created_by, None, overlaid(base, overrides))
    beginning = default_name(copy.spec) if job.name == default_name(parse_spec(copy.kind, job.spec)) else job.name
    return submit(session, replace(copy, name=name or free_name(session, beginning)))


def free_name(session: Session, name: str) -> str:
    """Return a name that no job has: this one, `NAME-2`, `NAME-3` and so on; a number in it counts on from there.

    A lock of the job that is copied keeps two copies of it apart.
    """

    def taken(beginning: str) -> set[str]:
        statement = select(Job.name).where(Job.name.startswith(beginning, autoescape=True), _is_kept())
        return set(session.execute(statement).scalars())

    base, _, number = name.rpartition("-")
    if not (number.isdecimal() and base in taken(base)):  # `resnet-50` is no clone of `resnet`
        base = name
    names = taken(base)
    numbered = (shortened(base, f"-{number}") for number in count(2))
    return name if name not in names else next(each for each in numbered if each not in names)


def same_name(session: Session, name: str | None, besides: str | None = None) -> list[str]:
    """Return the warning that others have a name that a user gives, with a free one; none where it is free.

    Args:
        session: a transaction.
        name: that was given; None for a name that the service chooses.
        besides: the id of the job that has it by now.
    """
    if name is None:
        return []
    warnings = same_names(session, [name], [] if besides is None else [besides])
    return [f"{each}; {free_name(session, name)} is free" for each in warnings.values()]


def same_names(session: Session, names: Sequence[str], besides: Sequence[str] = ()) -> dict[str, str]:
    """Return the warning about each name that others of the newest jobs have, or that was given twice.

    `besides` are the ids of the jobs that have the names by now.
    """
    newest = select(Job.id, Job.name).where(_is_kept()).order_by(Job.id.desc()).limit(_MOST_NAMES).subquery()
    others = select(newest.c.name).where(newest.c.name.in_(set(names)), newest.c.id.not_in(besides))
    counts = Counter(session.execute(others).scalars()) + Counter({name: n - 1 for name, n in Counter(names).items()})
    have = {name: "another job has" if n == 1 else f"{n:,} other jobs have" for name, n in counts.items()}
    return {name: f"{has} the name {name}, so only ids tell them apart" for name, has in have.items()}


def _is_kept() -> ColumnElement[bool]:
    """Return the condition for a job whose name counts: not one that was cancelled before it began."""
    return or_(Job.status != Status.CANCELLED, Job.attempt > 0)


def idle_gpus(gpus: int, spec: dict[str, Any]) -> list[str]:
    """Return the warning that a job with a resolved spec holds GPUs that no process uses; none if it uses all."""
    processes = spec.get("processes", 1)
    if gpus <= processes:
        return []
    has = f"the run has {counted(processes, 'process', 'processes')}, so {counted(gpus - processes, 'GPU')} would idle"
    return [f"{has}; use gpus = {processes}{', or leave processes out' if 'processes' in spec else ''}"]


def _copy(
    session: Session, job: Job, created_by: str | None, resume: str | None, sent: dict[str, Any] | None = None
) -> NewJob:
    kind = kind_of(job)
    tags = session.execute(select(Tag.tag).where(Tag.job_id == job.id)).scalars().all()
    return NewJob(
        kind=kind,
        spec_sent=job.spec_sent if sent is None else sent,
        spec=parse_spec(kind, job.spec if sent is None else sent),
        name=job.name,
        tags=tuple(tags),
        created_by=created_by,
        parent_id=job.id,
        resume_checkpoint_id=resume,
        preset=job.preset,
        **options_of(job) | {"priority": access.copied_priority(session, job.priority)},
    )
