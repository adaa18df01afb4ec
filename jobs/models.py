"""The tables.  Times are integer milliseconds since 1970 by the database's clock; ids are UUIDv7 strings.

Job ─┬─ Attempt          one execution each; the open one is the lease and the fence
     │    ├─ AttemptDevice   a device that it uses or has used
     │    └─ AttemptNode     a worker of an attempt on several machines, and its lease
     ├─ Event            append-only, numbered per job
     ├─ Series ─┬─ Point     every metric value as reported
     │          └─ Rollup    buckets of 8, 64, … steps for charts
     ├─ Log
     ├─ Checkpoint ── Evaluation (by the file's digest)
     ├─ Artifact         small files for display, such as pictures
     ├─ Grouping         weak labels of the monitor batch at an epoch's end
     ├─ Dependency, Tag
Sweep ── SweepTrial      settings of a trial; its jobs carry the sweep's id and their place in it as `origin`
Webhook ─┬─ WebhookDelivery   a message to its receiver, and the result of sending it
         └─ WebhookLevel      a metric of a job that is beyond the line of a rule
Share ── ShareJob       a link that shows jobs without a key
SavedView               a name for filters, group and order of the list of jobs
Deletion                a deleted job: who deleted it, when, and what has become of it
Activity                what a person or a key did, to which object, and when
Project, Worker, Storage, Weights, Dataset ── DatasetSamples, DatasetVersion, Key, SignInToken, IdempotencyKey
Policy, DeviceUse, ProjectUse
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    desc,
    event,
    exists,
    false,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, ORMExecuteState, mapped_column, with_loader_criteria
from sqlalchemy.sql.base import ExecutableOption

from jobs.database import DEFAULT_PROJECT, JobsSession, now_ms, project_of, queue_place
from wcl_core.config import completed_spec, stored_spec
from wcl_core.protocol import storable

TRAINING, EMBEDDINGS = "training", "embeddings"  # kinds of checkpoint files; no run starts from embeddings
LIVE_STATES = ("idle", "busy")  # of a worker; the others are stopped and lost
SUCCESS, CHECKPOINT = "success", "checkpoint"  # what a dependency requires of the needed job
_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class _String(TypeDecorator[str]):
    """Text that both databases accept, so that no name, message or search term makes a statement fail."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else storable(value)


class _Text(_String):
    impl = Text
    cache_ok = True


class _Spec(TypeDecorator[dict[str, Any]]):
    """A resolved spec; the row holds it in the lowest version, for workers and servers of older versions."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        return self.impl_instance.coerce_compared_value(op, value)

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> dict[str, Any] | None:
        del dialect
        return None if value is None else stored_spec(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        del dialect
        return completed_spec(value) if isinstance(value, dict) else value  # a part of a spec may be a list


_Id = _String(36)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map: ClassVar = {
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        int: BigInteger,
    }


class Hideable:
    """Rows that no statement sees from the deletion of their job on, as if they were removed already (jobs.deletions).

    A statement that has to see them runs with the execution options `SEES_HIDDEN`.
    """

    hidden_at: Mapped[int | None] = mapped_column(default=None)


SEES_HIDDEN: Final = {"sees_hidden": True}
# Statements that are made once, as those of polls, stay one object here, too: to make the key of another one, by which
# its compiled form is found, takes a third of a poll.
_restricted: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_IS_VISIBLE: Final = with_loader_criteria(Hideable, lambda model: model.hidden_at.is_(None), include_aliases=True)


@event.listens_for(JobsSession, "do_orm_execute")
def _leave_out_hidden(state: ORMExecuteState) -> None:
    if not state.is_insert and not state.execution_options.get("sees_hidden", False):
        if (restricted := _restricted.get(state.statement)) is None:
            restricted = _restricted[state.statement] = state.statement.options(_IS_VISIBLE)
        state.statement = restricted


class InProject:
    """Rows of one project: a session that acts for a key of another project does not see them (`project_of`).

    The same holds for the rows of `OfJob` and of the other classes of `_in_project`, by what they belong to.
    """

    project_id: Mapped[str] = mapped_column(_Id, default=DEFAULT_PROJECT)


class OfJob:
    """Rows of a job, by their `job_id`; they are in the project of the job."""

    job_id: Mapped[str] = mapped_column(_Id)


@event.listens_for(JobsSession, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    """Restrict each statement to the project of its session, so that no query can forget to."""
    if not state.is_insert and (project := project_of(state.session)) is not None:
        state.statement = state.statement.options(*_in_project(project))


@functools.lru_cache(maxsize=256)
def _in_project(project: str) -> tuple[ExecutableOption, ...]:
    # Tables and not classes: the conditions of the classes would apply inside of these, too.
    jobs, webhooks, links = (
        model.__table__.alias(f"{model.__tablename__}_in_project") for model in (Job, Webhook, JobEvaluation)
    )
    return (
        with_loader_criteria(InProject, lambda model: model.project_id == project, include_aliases=True),
        with_loader_criteria(
            OfJob,
            lambda model: exists().where(jobs.c.id == model.job_id, jobs.c.project_id == project),
            include_aliases=True,
        ),
        with_loader_criteria(
            WebhookDelivery,
            lambda model: exists().where(webhooks.c.id == model.webhook_id, webhooks.c.project_id == project),
            include_aliases=True,
        ),
        with_loader_criteria(
            Evaluation,
            lambda model: exists().where(
                links.c.evaluation_id == model.id, jobs.c.id == links.c.job_id, jobs.c.project_id == project
            ),
            include_aliases=True,
        ),
        with_loader_criteria(Key, lambda model: model.project_id == project, include_aliases=True),
        with_loader_criteria(Project, lambda model: model.id == project, include_aliases=True),
    )


class Project(Base):
    """A group of keys, and what they have submitted."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(_String(200), unique=True)
    removed_at: Mapped[int | None]  # since then it is in no list; its name stays, for the usage of its time
    # Limits of its jobs (jobs.limits); None for none.
    max_waiting: Mapped[int | None] = mapped_column(Integer)
    max_gpus: Mapped[int | None] = mapped_column(Integer)
    max_bytes: Mapped[int | None]


# Jobs that stand alone in a list: no trial of a sweep, and no evaluation below a run.  A planner takes their index only
# for an equal condition, so it is a text; and SQLite takes the index of sweeps for `sweep_id IS NULL`.
LISTED = text("coalesce(sweep_id, '') = '' AND (kind <> 'evaluate' OR parent_id IS NULL)")


_HIDDEN = text("hidden_at IS NOT NULL")
_STARRED = text("starred_at IS NOT NULL")
_REFERENCE = text("reference_at IS NOT NULL")


class Job(InProject, Hideable, Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_claim", "status", "pool", desc("priority"), "queue_place"),
        Index("ix_jobs_claim_owner", "status", "pool", "created_by", desc("priority"), "queue_place"),
        Index("ix_jobs_created", "created_at", "id"),
        Index("ix_jobs_ended", "ended_at"),
        Index("ix_jobs_origin", "parent_id", "origin", unique=True),
        Index("ix_jobs_sweep", "sweep_id", "origin", unique=True),
        Index("ix_jobs_dataset", "dataset_name", "id"),
        Index("ix_jobs_status", "status", "id"),
        Index("ix_jobs_owner", "created_by", "created_at"),
        Index("ix_jobs_owner_status", "status", "created_by", "created_at"),
        Index("ix_jobs_listed", "id", sqlite_where=LISTED, postgresql_where=LISTED),
        # Partial: SQLite would take a whole one before that of a status.
        Index("ix_jobs_project", "project_id", "id", sqlite_where=LISTED, postgresql_where=LISTED),
        Index("ix_jobs_hidden", "hidden_at", sqlite_where=_HIDDEN, postgresql_where=_HIDDEN),
        Index("ix_jobs_reference", "dataset_name", sqlite_where=_REFERENCE, postgresql_where=_REFERENCE),
        Index("ix_jobs_starred", "id", sqlite_where=_STARRED, postgresql_where=_STARRED),
    )
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    created_by: Mapped[str | None] = mapped_column(_Id)
    request_id: Mapped[str | None] = mapped_column(_String(64))  # of the submission (jobs.logs)
    kind: Mapped[str] = mapped_column(_String(32))
    name: Mapped[str] = mapped_column(_String(200))
    status: Mapped[str] = mapped_column(_String(16))
    status_reason: Mapped[str | None] = mapped_column(_String(64))
    status_message: Mapped[str | None] = mapped_column(_Text)
    spec_version: Mapped[int] = mapped_column(Integer)  # the lowest one that holds the spec
    spec_sent: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]] = mapped_column(_Spec)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    pool: Mapped[str] = mapped_column(_String(64), default="default")
    gpus: Mapped[int] = mapped_column(Integer, default=0)  # of each node
    nodes: Mapped[int] = mapped_column(Integer, server_default=text("1"))  # workers that run it together
    # The order of jobs of equal priority; 0 for a job that a server of an older version has added.
    queue_place: Mapped[int] = mapped_column(default=queue_place(), server_default=text("0"), index=True)
    dataset_name: Mapped[str] = mapped_column(_String(64))
    dataset_digest: Mapped[str] = mapped_column(_String(64))  # empty until the dataset is read
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    parent_id: Mapped[str | None] = mapped_column(_Id)
    sweep_id: Mapped[str | None] = mapped_column(_Id)
    # Its entry in the parent's `evaluations`, or its place in the sweep.
    origin: Mapped[str | None] = mapped_column(_String(64))
    preset: Mapped[str | None] = mapped_column(_String(64))
    group_id: Mapped[str | None] = mapped_column(_Id, index=True)  # the seed group
    resume_checkpoint_id: Mapped[str | None] = mapped_column(_Id)
    not_before: Mapped[int | None]
    preemptible: Mapped[bool] = mapped_column(server_default=false())  # may give way to a job of higher priority
    max_seconds: Mapped[int | None] = mapped_column(Integer)  # limit on running time over all attempts
    cancel_requested_at: Mapped[int | None]
    pause_requested_at: Mapped[int | None]
    preempt_requested_at: Mapped[int | None]
    progress: Mapped[dict[str, Any] | None]  # the latest report, for lists
    latest_metrics: Mapped[dict[str, Any] | None]  # the latest value of every series, for lists
    event_seq: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[int] = mapped_column(default=now_ms())
    updated_at: Mapped[int] = mapped_column(default=now_ms())
    started_at: Mapped[int | None]
    ended_at: Mapped[int | None]
    archived_at: Mapped[int | None]  # lists leave it out unless they are asked for it
    starred_at: Mapped[int | None]
    reference_at: Mapped[int | None]  # since then it is the reference of its dataset (jobs.references)
    note: Mapped[str | None] = mapped_column(_Text)  # Markdown, as a user wrote it
    thinned_at: Mapped[int | None]  # since then its long curves have fewer points (jobs.expiry)

    @property
    def earlier_epochs(self) -> int:
        """The epochs of the job that this training continues; 0 for other jobs."""
        restarts = self.spec.get("restarts") if self.resume_checkpoint_id is not None else None
        return int(restarts[-1]) if restarts else 0


class Deletion(InProject, Base):
    """The record that a user deleted a job; it stays when every other row of the job is removed."""

    __tablename__ = "deletions"
    __table_args__ = (Index("ix_deletions_job", "job_id"), Index("ix_deletions_root", "root_id"))
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(_Id, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT)
    job_id: Mapped[str] = mapped_column(_Id)  # no foreign key: the row goes
    root_id: Mapped[str] = mapped_column(_Id)  # the job that the user deleted: this one, or the one that it evaluates
    job_name: Mapped[str] = mapped_column(_String(200))
    job_kind: Mapped[str] = mapped_column(_String(32))
    num_checkpoints: Mapped[int] = mapped_column(Integer)
    size: Mapped[int]  # of the files of its checkpoints and artifacts
    deleted_by: Mapped[str] = mapped_column(_Id)
    deleted_by_name: Mapped[str] = mapped_column(_String(200))  # of the key, at that time
    deleted_at: Mapped[int] = mapped_column(default=now_ms())
    restored_by: Mapped[str | None] = mapped_column(_Id)
    restored_by_name: Mapped[str | None] = mapped_column(_String(200))
    restored_at: Mapped[int | None]
    purge_began_at: Mapped[int | None]  # from then on it cannot be restored
    purged_at: Mapped[int | None]


class Activity(Base):
    """An entry of the activity log (jobs.activity); it has no foreign keys, since it stays when its object goes."""

    __tablename__ = "activities"
    __table_args__ = (Index("ix_activities_object", "object_id", "id"), Index("ix_activities_at", "at"))
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    at: Mapped[int] = mapped_column(default=now_ms())
    actor_id: Mapped[str] = mapped_column(_Id)  # the key; empty for the server itself and an operator's command
    actor: Mapped[str] = mapped_column(_String(200))  # the name of the key, at that time
    action: Mapped[str] = mapped_column(_String(64))
    object_id: Mapped[str] = mapped_column(_String(200))
    object_name: Mapped[str] = mapped_column(_String(200))
    details: Mapped[dict[str, Any] | None]


class Attempt(OfJob, Base):
    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_ended", "ended_at"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    token: Mapped[str | None] = mapped_column(_String(32))  # random; None: claimed by a worker of an older version
    worker_id: Mapped[str] = mapped_column(_Id)
    worker_name: Mapped[str] = mapped_column(_String(200))
    started_at: Mapped[int] = mapped_column(default=now_ms())
    ended_at: Mapped[int | None]
    end_reason: Mapped[str | None] = mapped_column(_String(64))
    start_step: Mapped[int | None]
    delivered_seq: Mapped[int] = mapped_column(default=0)
    renewals: Mapped[int] = mapped_column(default=0)
    ran_ms: Mapped[int | None]  # running time by its worker's monotonic clock; None: of a worker of an older version
    log_seq: Mapped[int] = mapped_column(default=0)
    output_lines: Mapped[int] = mapped_column(default=0)  # number of stdout and stderr lines in the log
    environment: Mapped[dict[str, Any] | None]
    # Of an attempt on several nodes: where its ranks meet (jobs.gangs.Rendezvous), and whether a worker of it drains.
    rendezvous: Mapped[dict[str, Any] | None]
    drain_requested_at: Mapped[int | None]


class AttemptNode(OfJob, Base):
    """A worker of an attempt on several nodes; the first one renews the attempt, each other one its own row."""

    __tablename__ = "attempt_nodes"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.number"]),
        Index("ix_attempt_nodes_worker", "worker_id"),
    )
    job_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    node: Mapped[int] = mapped_column(Integer, primary_key=True)  # from 0
    worker_id: Mapped[str] = mapped_column(_Id)
    worker_name: Mapped[str] = mapped_column(_String(200))
    address: Mapped[str] = mapped_column(_String(64))
    renewals: Mapped[int] = mapped_column(default=0)  # 0: its worker has not begun yet
    ended_at: Mapped[int | None]  # its ranks have ended well; it needs no renewal


class AttemptDevice(OfJob, Base):
    """A device of an attempt; no two attempts use one device at a time."""

    __tablename__ = "attempt_devices"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.number"]),
        Index(
            "uq_attempt_devices_in_use",
            "device",
            unique=True,
            sqlite_where=text("released_at IS NULL"),
            postgresql_where=text("released_at IS NULL"),
        ),
    )
    job_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    device: Mapped[str] = mapped_column(_String(128), primary_key=True)  # its UUID
    place: Mapped[int] = mapped_column(Integer)  # among the devices of its node, from 0
    node: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    released_at: Mapped[int | None]  # the end of the attempt; None while it uses the device


class Event(OfJob, Base):
    __tablename__ = "events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    type: Mapped[str] = mapped_column(_String(64))
    at: Mapped[int] = mapped_column(default=now_ms())
    data: Mapped[dict[str, Any]]


class Series(OfJob, Base):
    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("job_id", "name"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str] = mapped_column(_String(100))
    number: Mapped[int | None] = mapped_column(Integer)  # among those of the job, for blocks; None before its first


class Point(Base):
    """A value of a measurement, or of any metric in jobs of before there were blocks."""

    __tablename__ = "points"
    __table_args__ = (Index("ix_points_seq", "series_id", "attempt", "seq"),)
    series_id: Mapped[str] = mapped_column(ForeignKey("series.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)  # of the record: a step may be reported twice
    value: Mapped[float | None]
    at: Mapped[int] = mapped_column(default=now_ms())


class Rollup(Base):
    __tablename__ = "rollups"
    series_id: Mapped[str] = mapped_column(ForeignKey("series.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    level: Mapped[int] = mapped_column(Integer, primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(Integer)
    min: Mapped[float]
    max: Mapped[float]
    first: Mapped[float]
    last: Mapped[float]


class PointBlock(OfJob, Base):
    """Values of up to `point_blocks.CHUNK` series in the records of a delivery that have all of them."""

    __tablename__ = "point_blocks"
    __table_args__ = (Index("ix_point_blocks_step", "job_id", "attempt", "chunk", "first_step", "last_step"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)  # of the last record of the delivery
    part: Mapped[int] = mapped_column(Integer, primary_key=True)  # among the blocks of the delivery
    chunk: Mapped[int] = mapped_column(Integer)
    first_step: Mapped[int]
    last_step: Mapped[int]
    columns: Mapped[bytes] = mapped_column(LargeBinary)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[int] = mapped_column(default=now_ms())


class RollupBlock(OfJob, Base):
    """Rollups of up to `point_blocks.CHUNK` series in the steps `bucket * width` to `(bucket + 1) * width - 1`."""

    __tablename__ = "rollup_blocks"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    chunk: Mapped[int] = mapped_column(Integer, primary_key=True)
    width: Mapped[int] = mapped_column(primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True)
    columns: Mapped[bytes] = mapped_column(LargeBinary)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Log(OfJob, Base):
    __tablename__ = "logs"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(_String(16))
    line: Mapped[str] = mapped_column(_Text)
    at: Mapped[int] = mapped_column(default=now_ms())


class Checkpoint(OfJob, Hideable, Base):
    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "step"), Index("ix_checkpoints_sha256", "sha256"))
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int] = mapped_column(Integer)
    step: Mapped[int]
    epoch: Mapped[int] = mapped_column(Integer)
    storage_key: Mapped[str] = mapped_column("path", _String(500), key="storage_key")  # the column's name is older
    sha256: Mapped[str] = mapped_column(_String(64))
    size: Mapped[int]
    kind: Mapped[str] = mapped_column(_String(16), server_default=text(f"'{TRAINING}'"))
    metrics: Mapped[dict[str, Any]]
    pinned: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[int] = mapped_column(default=now_ms())
    deleted_at: Mapped[int | None]
    damaged_at: Mapped[int | None]  # its file had other bytes; the row is kept, but nothing is made from it
    missing_at: Mapped[int | None]  # its file was absent, though other files of its job were there
    checked_at: Mapped[int | None]  # the last time that its file was read as a whole

    @property
    def flaw(self) -> str | None:
        """Why nothing is made from the file: damaged or missing; None for a file that was last seen intact."""
        if self.damaged_at is not None:
            return "damaged"
        return None if self.missing_at is None else "missing"


class Weights(Base):
    """Imported weights that trainings start from (jobs.weights)."""

    __tablename__ = "weights"
    sha256: Mapped[str] = mapped_column(_String(64), primary_key=True)
    name: Mapped[str] = mapped_column(_String(64), unique=True)
    size: Mapped[int]
    backbone: Mapped[dict[str, Any]]
    image_size: Mapped[int] = mapped_column(Integer)
    report: Mapped[dict[str, Any]]  # which tensors of the imported file were taken
    created_by: Mapped[str | None] = mapped_column(_Id)
    created_at: Mapped[int] = mapped_column(default=now_ms())


class Artifact(OfJob, Base):
    """A small file for display; a later file of the same name replaces it."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "name"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(_String(64))
    storage_key: Mapped[str] = mapped_column("path", _String(500), key="storage_key")  # the column's name is older
    sha256: Mapped[str] = mapped_column(_String(64))
    size: Mapped[int]
    media_type: Mapped[str] = mapped_column(_String(32))
    created_at: Mapped[int] = mapped_column(default=now_ms())


class Grouping(OfJob, Base):
    __tablename__ = "groupings"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    epoch: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int]
    labels: Mapped[list[int]] = mapped_column(JSON)  # a weak label for each image of the monitor batch


class Evaluation(Hideable, Base):
    __tablename__ = "evaluations"
    __table_args__ = (
        UniqueConstraint(
            "features_digest",
            "protocol",
            "protocol_version",
            "dataset_digest",
            "split_digest",
            "params_digest",
            "seed",
            "metric",
        ),
        Index("ix_evaluations_dataset", "dataset_digest", "protocol"),
    )
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    # The checkpoint's sha256, or the digest of the features' spec.
    features_digest: Mapped[str] = mapped_column(_String(64))
    checkpoint_id: Mapped[str | None] = mapped_column(_Id)
    protocol: Mapped[str] = mapped_column(_String(64))
    protocol_version: Mapped[int] = mapped_column(Integer)
    dataset_digest: Mapped[str] = mapped_column(_String(64))
    split_digest: Mapped[str] = mapped_column(_String(64))
    params: Mapped[dict[str, Any]]
    params_digest: Mapped[str] = mapped_column(_String(64))
    seed: Mapped[int]
    metric: Mapped[str] = mapped_column(_String(64))
    value: Mapped[float | None]
    stderr: Mapped[float | None]
    n: Mapped[int | None]
    details: Mapped[dict[str, Any] | None]  # further results; not part of the identity
    created_at: Mapped[int] = mapped_column(default=now_ms())


class JobEvaluation(OfJob, Base):
    """A link from a job to an evaluation that it measured; a value measured twice is stored once and linked twice."""

    __tablename__ = "job_evaluations"
    __table_args__ = (Index("ix_job_evaluations_evaluation", "evaluation_id"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)


class Worker(Base):
    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(_String(200))
    pool: Mapped[str] = mapped_column(_String(64))
    gpus: Mapped[int] = mapped_column(Integer)  # number of its working devices
    devices: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))  # jobs.devices.Device
    cpu_slots: Mapped[int | None] = mapped_column(Integer)  # attempts without devices; None: of an older version
    memory_bytes: Mapped[int | None]  # of the machine, as far as the worker may use it
    has_compiler: Mapped[bool | None]  # for compiled steps; None: of an older version
    pid: Mapped[int]
    version: Mapped[str | None] = mapped_column(_String(32))  # of the service; None: of an older version
    address: Mapped[str | None] = mapped_column(_String(64))  # for jobs of several nodes; None while it takes none
    disk_free_bytes: Mapped[int | None]  # of the fuller of the disks that its runs write to
    lag_ms: Mapped[int | None]  # for which the oldest report of its runs has waited for its delivery
    takes_one: Mapped[bool] = mapped_column(server_default=false())  # it ends after one job
    datasets: Mapped[dict[str, Any]]  # name -> digest
    pending_datasets: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))  # that it still reads
    dataset_shares: Mapped[dict[str, Any] | None]  # name -> share of a pending dataset that it has read
    refused_datasets: Mapped[dict[str, Any] | None]  # name -> reason
    own_datasets: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))  # names of those of its settings
    # Ids of jobs whose earlier version of a dataset is in its cache.
    cached_jobs: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    spec_versions: Mapped[list[str]]
    state: Mapped[str] = mapped_column(_String(16))  # one of LIVE_STATES, stopped or lost
    job_id: Mapped[str | None] = mapped_column(_Id)
    kept_for: Mapped[str | None] = mapped_column(_Id)  # the job that it keeps its free part for; gangs heed it
    heartbeats: Mapped[int] = mapped_column("beats", default=0)
    started_at: Mapped[int] = mapped_column(default=now_ms())
    seen_at: Mapped[int] = mapped_column(default=now_ms())
    drain_requested_at: Mapped[int | None]
    cordoned_at: Mapped[int | None]  # it finishes its jobs and takes no other one
    unable: Mapped[str | None] = mapped_column(_String(64))  # why it takes no jobs, for programs; None if it does
    unable_message: Mapped[str | None] = mapped_column(_Text)  # the same for people

    @hybrid_property
    def is_live(self) -> bool:
        """Whether the worker runs: it has not stopped and was not declared lost."""
        return self.state in LIVE_STATES

    @is_live.inplace.expression
    @classmethod
    def _is_live(cls) -> ColumnElement[bool]:
        return cls.state.in_(LIVE_STATES)


class Storage(Base):
    """The id of the storage that holds this database's files (jobs.storage_id)."""

    __tablename__ = "storages"
    name: Mapped[str] = mapped_column(_String(32), primary_key=True)
    storage_id: Mapped[str] = mapped_column(_Id)
    created_at: Mapped[int] = mapped_column(default=now_ms())


class Dataset(Base):
    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(_Id, default=DEFAULT_PROJECT)
    name: Mapped[str] = mapped_column(_String(64), unique=True)
    digest: Mapped[str] = mapped_column(_String(64))  # empty until a worker has read the content
    kind: Mapped[str] = mapped_column(_String(16))
    counts: Mapped[dict[str, Any]]
    classes: Mapped[list[str]]
    class_counts: Mapped[dict[str, Any] | None]  # None: announced by a worker of an older version
    label_lists: Mapped[dict[str, Any] | None]
    image_size: Mapped[int | None] = mapped_column(Integer)  # of the stored images, if views cannot be larger
    report: Mapped[dict[str, Any] | None]  # wcl_core.protocol.DatasetReport; None: of no image folder
    reads_requested: Mapped[int] = mapped_column(
        Integer, server_default=text("0")
    )  # how often a user had its folder read again
    created_at: Mapped[int] = mapped_column(default=now_ms())
    updated_at: Mapped[int] = mapped_column(default=now_ms())


class DatasetVersion(Base):
    """A version of a dataset that a worker has announced, which the verdicts of its jobs need for ever."""

    __tablename__ = "dataset_versions"
    digest: Mapped[str] = mapped_column(_String(64), primary_key=True)
    class_counts: Mapped[dict[str, Any]]


class DatasetSource(Base):
    """A dataset that an administrator added; no response holds its path."""

    __tablename__ = "dataset_sources"
    name: Mapped[str] = mapped_column(_String(64), primary_key=True)
    id: Mapped[str] = mapped_column(_Id)  # stays when the dataset gets another name
    path: Mapped[str] = mapped_column(_Text)
    has_labels: Mapped[bool]
    created_by: Mapped[str | None] = mapped_column(_Id)
    created_at: Mapped[int] = mapped_column(default=now_ms())


class DatasetSamples(Base):
    """A picture of some images of each class, in a table of its own so that lists never read it."""

    __tablename__ = "dataset_samples"
    dataset_name: Mapped[str] = mapped_column(ForeignKey("datasets.name"), primary_key=True)
    png: Mapped[bytes]
    sha256: Mapped[str] = mapped_column(_String(64))  # of the picture
    rows: Mapped[int] = mapped_column(Integer)
    columns: Mapped[int] = mapped_column(Integer)
    side: Mapped[int] = mapped_column(Integer)  # of one image, in pixels


class Key(Base):
    __tablename__ = "keys"
    __table_args__ = (
        Index("ix_keys_form_key", "form_key", unique=True),
        Index("ix_keys_proxy_user", "proxy_user", unique=True),
    )
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(_String(200))
    hash: Mapped[str] = mapped_column(_String(64), unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[int] = mapped_column(default=now_ms())
    last_used_at: Mapped[int | None]
    revoked_at: Mapped[int | None]
    expires_at: Mapped[int | None]
    rotated_at: Mapped[int | None]  # when it got its present secret; None: at its creation
    # Limits (jobs.limits); None: that of the service.
    max_waiting: Mapped[int | None] = mapped_column(Integer)
    max_devices: Mapped[int | None] = mapped_column(Integer)
    max_submissions: Mapped[int | None] = mapped_column(Integer)  # a minute
    form_key: Mapped[str | None] = mapped_column(_String(200))  # of the form that created it
    proxy_user: Mapped[str | None] = mapped_column(_String(200))  # the person whom a proxy signs in
    # None: all projects.  A key that a server of an older version adds is in the default one.
    project_id: Mapped[str | None] = mapped_column(_String(36).evaluates_none(), server_default=DEFAULT_PROJECT)


class _Used:
    """Numbers of ended attempts; they stay when the jobs are removed."""

    gpu_ms: Mapped[int]  # of all GPUs together
    cpu_ms: Mapped[int]  # of attempts without GPUs
    jobs: Mapped[int] = mapped_column(Integer)  # whose first attempt ended
    attempts: Mapped[int] = mapped_column(Integer)
    updated_at: Mapped[int]


class DeviceUse(_Used, Base):
    """The use of devices by the attempts of a key on a day, in all projects."""

    __tablename__ = "device_use"
    owner_id: Mapped[str] = mapped_column(_Id, primary_key=True)  # of the key; empty for jobs of none
    day: Mapped[int] = mapped_column(Integer, primary_key=True)  # since 1970, UTC


class ProjectUse(_Used, InProject, Base):
    """The part of a project in it.  Versions before projects add to `DeviceUse` only."""

    __tablename__ = "project_use"
    owner_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    day: Mapped[int] = mapped_column(Integer, primary_key=True)
    project_id: Mapped[str] = mapped_column(_Id, primary_key=True, default=DEFAULT_PROJECT)


class Policy(Base):
    """A rule that servers and workers share (jobs.policies)."""

    __tablename__ = "policies"
    name: Mapped[str] = mapped_column(_String(64), primary_key=True)
    value: Mapped[float]


class ReconcilerPolls(Base):
    """The number of successful polls by the reconcilers of all servers (jobs.reconciler)."""

    __tablename__ = "reconcilers"
    name: Mapped[str] = mapped_column(_String(32), primary_key=True)
    polls: Mapped[int]


class SignInToken(Base):
    """A one-time link (`kind` link), a browser's session (session) or the invitation of a machine (worker).

    Only hashes are stored.
    """

    __tablename__ = "sign_in_tokens"
    hash: Mapped[str] = mapped_column(_String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(_String(16))
    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id"))
    created_at: Mapped[int] = mapped_column(default=now_ms())
    expires_at: Mapped[int]


class Share(InProject, Base):
    """A link that shows jobs without a key (jobs.shares); only the hash of its secret is stored."""

    __tablename__ = "shares"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(_Id, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT)
    hash: Mapped[str] = mapped_column(_String(64), unique=True)
    form_key: Mapped[str | None] = mapped_column(_String(200), unique=True)  # of the form that created it
    created_by: Mapped[str] = mapped_column(ForeignKey("keys.id"))
    created_by_name: Mapped[str] = mapped_column(_String(200))  # of the key, at that time
    created_at: Mapped[int] = mapped_column(default=now_ms())
    expires_at: Mapped[int]
    revoked_at: Mapped[int | None]
    revoked_by_name: Mapped[str | None] = mapped_column(_String(200))


class ShareJob(OfJob, Base):
    """A job that a link shows."""

    __tablename__ = "share_jobs"
    share_id: Mapped[str] = mapped_column(ForeignKey("shares.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True, index=True)
    place: Mapped[int] = mapped_column(Integer)


class SavedView(InProject, Base):
    """A named view of the list of jobs: filters, group and order (jobs.views)."""

    __tablename__ = "saved_views"
    __table_args__ = (UniqueConstraint("created_by", "name"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(_Id, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT)
    created_by: Mapped[str] = mapped_column(ForeignKey("keys.id"))
    created_by_name: Mapped[str] = mapped_column(_String(200))  # of the key, at that time
    name: Mapped[str] = mapped_column(_String(100))
    query: Mapped[str] = mapped_column(_Text)
    is_shared: Mapped[bool]
    created_at: Mapped[int] = mapped_column(default=now_ms())


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"
    owner: Mapped[str] = mapped_column(_Id, primary_key=True)
    key: Mapped[str] = mapped_column(_String(200), primary_key=True)
    body_digest: Mapped[str] = mapped_column(_String(64))
    job_id: Mapped[str] = mapped_column(_Id)
    job_ids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))  # of a batch, in the request's order
    created_at: Mapped[int] = mapped_column(default=now_ms())


class Dependency(OfJob, Base):
    __tablename__ = "dependencies"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    needs_job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    until: Mapped[str] = mapped_column(_String(16), server_default=text(f"'{SUCCESS}'"))


class Tag(OfJob, Base):
    __tablename__ = "tags"
    __table_args__ = (Index("ix_tags_tag", "tag"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    tag: Mapped[str] = mapped_column(_String(64), primary_key=True)


class Sweep(InProject, Base):
    """A search over fields of a training spec; its next step follows from its jobs (jobs.sweeps)."""

    __tablename__ = "sweeps"
    __table_args__ = (Index("ix_sweeps_status", "status"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    created_by: Mapped[str | None] = mapped_column(_Id)
    name: Mapped[str] = mapped_column(_String(200))
    search: Mapped[str] = mapped_column(_String(16))
    status: Mapped[str] = mapped_column(_String(16))
    status_message: Mapped[str | None] = mapped_column(_Text)
    preset: Mapped[str | None] = mapped_column(_String(64))
    base: Mapped[dict[str, Any]]  # the spec under a trial's settings
    parameters: Mapped[dict[str, Any]]
    metric: Mapped[dict[str, Any]]
    direction: Mapped[str] = mapped_column(_String(16))
    seeds: Mapped[list[int]] = mapped_column(JSON(none_as_null=True))
    seed: Mapped[int]  # of the random draws
    eta: Mapped[int] = mapped_column(Integer)
    rungs: Mapped[list[dict[str, Any]]] = mapped_column(JSON(none_as_null=True))
    max_parallel: Mapped[int] = mapped_column(Integer)
    options: Mapped[dict[str, Any]]  # fields of its jobs beside their spec: pool, priority, tags, …
    dataset_name: Mapped[str] = mapped_column(_String(64))
    dataset_digest: Mapped[str] = mapped_column(_String(64))
    best_trial: Mapped[int | None] = mapped_column(Integer)  # once it has ended
    best_value: Mapped[float | None]
    created_at: Mapped[int] = mapped_column(default=now_ms())
    updated_at: Mapped[int] = mapped_column(default=now_ms())
    ended_at: Mapped[int | None]


class SweepTrial(Base):
    __tablename__ = "sweep_trials"
    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    settings: Mapped[dict[str, Any]]  # values by the dotted names of fields


class Webhook(InProject, Base):
    """A receiver of messages about jobs (jobs.webhooks); no response but that of its creation holds the secret."""

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    created_by: Mapped[str | None] = mapped_column(_Id)
    name: Mapped[str] = mapped_column(_String(200))
    url: Mapped[str] = mapped_column(_Text)
    format: Mapped[str] = mapped_column(_String(16))
    secret: Mapped[str] = mapped_column(_String(100))
    events: Mapped[list[str]]
    rules: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))  # jobs.webhooks.outbox.Rule
    stalled_minutes: Mapped[int] = mapped_column(Integer)
    tag: Mapped[str | None] = mapped_column(_String(64))
    job_name: Mapped[str | None] = mapped_column(_String(200))  # a part of it
    kind: Mapped[str | None] = mapped_column(_String(32))
    owner_id: Mapped[str | None] = mapped_column(_Id)  # a key, if the webhook is for the jobs of this key only
    disabled_at: Mapped[int | None]
    disabled_reason: Mapped[str | None] = mapped_column(_Text)
    created_at: Mapped[int] = mapped_column(default=now_ms())


class WebhookDelivery(Base):
    """A message for a webhook; the transaction of the event adds it, and a server sends it later."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("webhook_id", "subject"),
        Index("ix_webhook_deliveries_due", "state", "due_at"),
        Index("ix_webhook_deliveries_log", "webhook_id", "id"),
        Index("ix_webhook_deliveries_ended", "ended_at"),
    )
    id: Mapped[str] = mapped_column(_Id, primary_key=True)  # the message's `webhook-id`
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    subject: Mapped[str] = mapped_column(_String(300))  # the event; a webhook has one delivery for each
    type: Mapped[str] = mapped_column(_String(64))
    job_id: Mapped[str | None] = mapped_column(_Id)
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(_String(16))  # pending, delivered or failed
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    due_at: Mapped[int] = mapped_column(default=now_ms())
    leased_until: Mapped[int | None]  # a server sends it
    give_up_at: Mapped[int]
    last_status: Mapped[int | None] = mapped_column(Integer)  # of the receiver's last response
    last_error: Mapped[str | None] = mapped_column(_Text)
    created_at: Mapped[int] = mapped_column(default=now_ms())
    ended_at: Mapped[int | None]


class WebhookLevel(Base):
    """A metric that is beyond the line of a rule; while the row exists, the rule sends no further message."""

    __tablename__ = "webhook_levels"
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    rule: Mapped[str] = mapped_column(_String(200), primary_key=True)
